"""Measures what `FreezeTrainer` adds to a training step when its plan is empty, as a ratio to `transformers.Trainer`.

Both trainers run their own `train()` on copies of one model and on the same batches in the same order, and advance step
by step in turns, as `benchmarks/pacing.py` describes: one pair is step n of both. The first steps are dropped:
FreezeTrainer audits its first step, and allocators and caches warm up.

For each model the median and the geometric mean of the ratios are given, with 95 % percentile bootstrap intervals over
the pairs. `--control` puts a second plain Trainer in FreezeTrainer's place, which shows what the method itself reads as
a difference. `cProfile` then counts, on the tiny model, the microseconds that each function of hf_freeze takes per
step; profiling makes Python slower, so these tell where time goes rather than how much.
"""

from __future__ import annotations

import argparse
import copy
import cProfile
import os
import pstats
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

import hf_freeze
from benchmarks.pacing import Gate, Training, estimate, interleave, machine, steps_of
from benchmarks.reviews import load_minilm, review_rows
from hf_freeze import FreezeTrainer

SOURCES = f"{Path(hf_freeze.__file__).resolve().parent}{os.sep}"
NUM_DROPPED = 10


@dataclass(frozen=True)
class Workload:
    """A model, and one batch after the other for it to train on."""

    name: str
    model: PreTrainedModel
    rows: Dataset
    batch_size: int
    collator: Callable[[list[Any]], dict[str, Any]] | None = None


def tiny_workload(*, num_steps: int, batch_size: int, max_length: int, seed: int) -> Workload:
    """A BERT of four blocks and hidden size 32 on random words: the step is all Python, so any addition shows."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=max_length,
    )
    words = torch.randint(5, config.vocab_size, (num_steps * batch_size, 10)).tolist()
    labels = torch.randint(0, 2, (len(words),)).tolist()
    rows = Dataset.from_dict({"input_ids": words, "attention_mask": [[1] * 10] * len(words), "labels": labels})
    return Workload("tiny BERT", BertForSequenceClassification(config), rows, batch_size)


def minilm_workload(*, num_steps: int, batch_size: int, max_length: int, seed: int) -> Workload:
    """MiniLM on the movie reviews, in shuffled order and repeated as often as needed."""
    model, tokenizer = load_minilm(seed=seed)
    rows = review_rows(tokenizer, "train", num_rows=num_steps * batch_size, max_length=max_length, seed=seed)
    return Workload("MiniLM", model, rows, batch_size, DataCollatorWithPadding(tokenizer))


WORKLOADS = {"tiny": tiny_workload, "minilm": minilm_workload}


def make_trainer(
    trainer_class: type[Trainer], workload: Workload, *, num_steps: int, callback: TrainerCallback, folder: str
) -> Trainer:
    """Makes a trainer, with an empty plan if it takes one; batches come in the order of the rows, equal for all."""
    args = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=workload.batch_size,
        max_steps=num_steps,
        train_sampling_strategy="sequential",
        weight_decay=0.01,
        optim="adamw_torch",
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    model = copy.deepcopy(workload.model)
    trainer = trainer_class(
        model, args, train_dataset=workload.rows, data_collator=workload.collator, callbacks=[callback]
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def measure(
    classes: Sequence[type[Trainer]], workload: Workload, *, num_pairs: int, num_threads: int, seed: int
) -> np.ndarray[Any, Any]:
    """Times interleaved steps of two trainers.

    Args:
        classes: The baseline and what is compared with it.
        workload: What both train on.
        num_pairs: How many pairs are kept.
        num_threads: How many threads an operation of torch may use.
        seed: What the order within the pairs is drawn from.

    Returns:
        Seconds of shape (pairs, 2).
    """
    gates = [Gate() for _ in classes]
    with tempfile.TemporaryDirectory() as folder:
        trainers = [
            make_trainer(
                trainer_class, workload, num_steps=steps_of(num_pairs, NUM_DROPPED), callback=gate, folder=folder
            )
            for trainer_class, gate in zip(classes, gates, strict=True)
        ]
        return interleave(
            [Training(trainer.train, gate) for trainer, gate in zip(trainers, gates, strict=True)],
            num_rounds=num_pairs,
            num_dropped=NUM_DROPPED,
            num_threads=num_threads,
            seed=seed,
            name=workload.name,
        )


def geometric_mean(ratios: np.ndarray[Any, Any], *, axis: int) -> np.ndarray[Any, Any]:
    """Returns the geometric mean along an axis: the same whichever of two trainers is the baseline."""
    mean: np.ndarray[Any, Any] = np.exp(np.log(ratios).mean(axis=axis))
    return mean


class ProfileCallback(TrainerCallback):
    """Profiles all steps of a training but the first ones and the last."""

    def __init__(self, num_steps: int) -> None:
        self.profile = cProfile.Profile()
        self._last = num_steps - 1

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts before the first step that counts, and ends before the last, which brings the training's end."""
        if state.global_step == NUM_DROPPED:
            self.profile.enable()
        elif state.global_step == self._last:
            self.profile.disable()


@dataclass(frozen=True)
class Cost:
    """What one function of hf_freeze takes per step, in microseconds."""

    function: str
    calls: float
    own: float
    added: float


def profile_step(workload: Workload, *, num_pairs: int) -> list[Cost]:
    """Profiles FreezeTrainer and returns the costs of hf_freeze's functions, the largest first."""
    num_steps = steps_of(num_pairs, NUM_DROPPED)
    callback = ProfileCallback(num_steps)
    with tempfile.TemporaryDirectory() as folder:
        make_trainer(FreezeTrainer, workload, num_steps=num_steps, callback=callback, folder=folder).train()
    return costs(pstats.Stats(callback.profile), num_steps=num_pairs)


def costs(stats: pstats.Stats, *, num_steps: int) -> list[Cost]:
    """Adds up what hf_freeze's functions take, with all they call but the method of the Trainer that they extend."""
    # Each entry is (primitive calls, calls, own seconds, cumulative seconds, the same four by caller).
    entries: dict[Any, Any] = vars(stats)["stats"]
    added = {function: entry[2] for function, entry in entries.items() if function[0].startswith(SOURCES)}
    for function, entry in entries.items():
        for caller, (_, _, _, cumulative) in entry[4].items():
            extends = function[2] == caller[2] and function[0] != "~"
            if caller in added and function not in added and not extends:
                added[caller] += cumulative
    scale = 1e6 / num_steps
    found = [
        Cost(
            f"{path.removeprefix(SOURCES)}:{line} {name}",
            entries[path, line, name][1] / num_steps,
            entries[path, line, name][2] * scale,
            seconds * scale,
        )
        for (path, line, name), seconds in added.items()
    ]
    return sorted(found, key=lambda cost: -cost.added)


def figure_row(workload: Workload, seconds: np.ndarray[Any, Any], *, seed: int) -> str:
    """Returns the row of one model: median times in milliseconds, and both figures."""
    ratios = seconds[:, 1] / seconds[:, 0]
    baseline, compared = 1e3 * np.median(seconds, axis=0)
    median, mean = (estimate(ratios, statistic, seed=seed) for statistic in (np.median, geometric_mean))
    return (
        f"| {workload.name} | {workload.batch_size} | {len(ratios)} | {baseline:.2f} | {compared:.2f} | {median:.4f} | "
        f"{mean:.4f} |"
    )


def profile_rows(found: Sequence[Cost]) -> list[str]:
    """Returns the rows of the profile and their sum."""
    rows = [f"| `{cost.function}` | {cost.calls:.2f} | {cost.own:.1f} | {cost.added:.1f} |" for cost in found]
    total = f"| together | | {sum(cost.own for cost in found):.1f} | {sum(cost.added for cost in found):.1f} |"
    return [*rows, total]


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the options."""
    parser = argparse.ArgumentParser(description="Time FreezeTrainer's step with an empty plan against Trainer's.")
    parser.add_argument("--models", nargs="+", choices=sorted(WORKLOADS), default=["tiny", "minilm"])
    parser.add_argument("--pairs", type=int, default=300, help="pairs of steps per model")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=64, help="tokens per row")
    parser.add_argument("--threads", type=int, default=2, help="threads that an operation of torch may use")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--control", action="store_true", help="compare Trainer with itself")
    parser.add_argument("--output", type=Path, help="where the report is written, beside standard output")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and reports in Markdown."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    compared = Trainer if options.control else FreezeTrainer
    names = "Trainer | second Trainer" if options.control else "Trainer | FreezeTrainer"
    lines = [
        machine(),
        "",
        f"| model | batch | pairs | {', ms | '.join(names.split(' | '))}, ms | median ratio | geometric mean |",
        "|---|---|---|---|---|---|---|",
    ]
    made: dict[str, Workload] = {}
    for name in options.models:
        made[name] = WORKLOADS[name](
            num_steps=steps_of(options.pairs, NUM_DROPPED),
            batch_size=options.batch_size,
            max_length=options.max_length,
            seed=options.seed,
        )
        seconds = measure(
            (Trainer, compared), made[name], num_pairs=options.pairs, num_threads=options.threads, seed=options.seed
        )
        lines.append(figure_row(made[name], seconds, seed=options.seed))
    if "tiny" in made and not options.control:
        lines += ["", "| function of hf_freeze | calls per step | own, µs per step | added, µs per step |"]
        lines += ["|---|---|---|---|", *profile_rows(profile_step(made["tiny"], num_pairs=options.pairs))]
    report = "\n".join([*lines, ""])
    print(report, end="")
    if options.output is not None:
        options.output.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
