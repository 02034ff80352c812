"""Measures what `MonitorCallback` adds to a training step of MiniLM.

Three trainings advance step by step in turns, as `benchmarks/pacing.py` describes: without the callback, with one that
never comes to measure (`idle`), and with one that measures every step (`measured`). At the default of 100 steps, a
step costs on average what an idle one adds, plus a hundredth of what a measured one adds to that. This is told more
sharply from single steps than from a run of which one step in a hundred differs.

Medians of the differences within a round, with 95 % percentile bootstrap intervals over the rounds.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorWithPadding, PrinterCallback, TrainingArguments

from benchmarks.pacing import Gate, Training, estimate, interleave, machine, steps_of
from benchmarks.reviews import load_minilm, review_rows
from hf_freeze import FreezeTrainer, MonitorCallback
from hf_freeze.config import MonitorConfig

NUM_DROPPED = 5
NEVER = 10**9
EVERY = {"off": None, "idle": NEVER, "measured": 1}
PLANS: Mapping[str, Mapping[str, Any]] = {
    "everything trains": {"blocks": "none"},
    "4 of 6 blocks frozen": {"blocks": {"first": 4}},
    "head alone": {"blocks": "all"},
}
DEFAULT = MonitorConfig().every or NEVER


def measure(options: argparse.Namespace, freeze: Mapping[str, Any], name: str) -> np.ndarray[Any, Any]:
    """Times interleaved steps of the three trainings.

    Args:
        options: How many rounds, of which batches.
        freeze: What is frozen.
        name: What progress is reported under.

    Returns:
        Seconds of shape (rounds, 3).
    """
    num_steps = steps_of(options.rounds, NUM_DROPPED)
    model, tokenizer = load_minilm(seed=options.seed)
    rows = review_rows(
        tokenizer, "train", num_rows=num_steps * options.batch_size, max_length=options.max_length, seed=options.seed
    )
    trainings = []
    with tempfile.TemporaryDirectory() as folder:
        for every in EVERY.values():
            gate = Gate()
            args = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=options.batch_size,
                max_steps=num_steps,
                train_sampling_strategy="sequential",
                logging_strategy="no",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
            )
            trainer = FreezeTrainer(
                copy.deepcopy(model),
                args,
                train_dataset=rows,
                data_collator=DataCollatorWithPadding(tokenizer),
                callbacks=[gate, *([] if every is None else [MonitorCallback(every)])],
                freeze=freeze,
                activation_cache={"enabled": False},
            )
            trainer.remove_callback(PrinterCallback)
            trainings.append(Training(trainer.train, gate))
        return interleave(
            trainings,
            num_rounds=options.rounds,
            num_dropped=NUM_DROPPED,
            num_threads=options.threads,
            seed=options.seed,
            name=name,
        )


def figure_row(name: str, seconds: np.ndarray[Any, Any], *, seed: int) -> str:
    """Returns the row of one plan: times in milliseconds, and the shares that the default adds.

    The share of measured steps alone is told more sharply than that of all, which has the noise of an idle step in it.
    """
    step = float(np.median(seconds[:, 0]))
    idle, measured = ((seconds[:, column] - seconds[:, 0]) for column in (1, 2))
    # A step that is measured takes what an idle one takes, and more.
    whole = idle + (measured - idle) / DEFAULT
    return (
        f"| {name} | {1e3 * step:.1f} | {estimate(1e3 * idle, np.median, seed=seed):.2f} | "
        f"{estimate(1e3 * measured, np.median, seed=seed):.1f} | "
        f"{estimate(100 * measured / DEFAULT / step, np.median, seed=seed):.2f} | "
        f"{estimate(100 * whole / step, np.median, seed=seed):.2f} |"
    )


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the options."""
    parser = argparse.ArgumentParser(description="Time FreezeTrainer's step with the monitor against one without.")
    parser.add_argument("--plans", nargs="+", choices=sorted(PLANS), default=list(PLANS))
    parser.add_argument("--rounds", type=int, default=40, help="rounds of three steps per plan")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=64, help="tokens per row")
    parser.add_argument("--threads", type=int, default=2, help="threads that an operation of torch may use")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="where the report is written, beside standard output")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and reports in Markdown."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    lines = [
        machine(),
        "",
        f"| plan | step, ms | idle adds, ms | a measured step adds, ms | every {DEFAULT} steps, % of a step | all, % |",
        "|---|---|---|---|---|---|",
    ]
    lines += [figure_row(name, measure(options, PLANS[name], name), seed=options.seed) for name in options.plans]
    report = "\n".join([*lines, ""])
    print(report, end="")
    if options.output is not None:
        options.output.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
