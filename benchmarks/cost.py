"""Compares what the cost model predicts with what is measured, on plans of MiniLM and the movie reviews.

- `steps`: steps of a plain `Trainer` in full, of the frozen loop and of each plan, interleaved in one process
  (`benchmarks/pacing.py`), beside the predicted speed-ups. All train on the same batches in the same order.
- `runs`: whole runs with an evaluation after each epoch, from making the trainer to the evaluation of validation and
  test rows at the end, the cache built in each.
- `memory`: the most bytes that torch's allocator had handed out at once in a step of the trainer (its own
  profiler), and the growth of the anonymous memory of a fresh process, beside the predicted peak; the growth with an
  allocator that gives back what is freed, and with glibc's as it is.
- `rates`: what the default rates of the CPU were taken from.

All write Markdown to standard output. Predictions come from `hf_freeze.plan_cost` with its default rates.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import DataCollatorWithPadding, PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from benchmarks.contenders import (
    Reviews,
    freeze_by_hand,
    require_cache,
    training_arguments,
)
from benchmarks.pacing import Gate, Training, estimate, interleave, machine, steps_of
from benchmarks.reviews import REVIEWS, load_minilm, review_rows
from benchmarks.whole_runs import MemoryWatch, anonymous_memory, load_reviews, table_head, table_row
from hf_freeze import FreezeTrainer, plan_cost
from hf_freeze.plan.cost import PlanCost

_LORA = {"peft_type": "LORA", "blocks": {"last": 2}, "target_modules": "all-linear", "r": 16, "lora_alpha": 32}

# Steps of a run whose memory is watched: the first one is left out, the last one is profiled.
_NUM_WATCHED = 5

# Has glibc's allocator give memory back to the system as soon as it is freed, from 64 KiB on.
_GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}


@dataclass(frozen=True)
class Contender:
    """One plan.

    Attributes:
        name: What the tables call it.
        depth: How many blocks are frozen from the input on.
        adapters: Its adapters.
        cached: Whether it trains from the activation cache.
    """

    name: str
    depth: int
    adapters: tuple[dict[str, Any], ...] = ()
    cached: bool = False


PLANS = (
    Contender("full", 0),
    Contender("k = 2", 2),
    Contender("k = 4", 4),
    Contender("k = 4, cached", 4, cached=True),
    Contender("k = 5, cached", 5, cached=True),
    Contender("k = 4, LoRA on the top 2", 4, adapters=(_LORA,)),
)
MEMORY_PLANS = (
    *PLANS,
    Contender("k = 5", 5),
    Contender("k = 6", 6),
)


def predicted(plan: Contender, options: argparse.Namespace) -> PlanCost:
    """Returns what the cost model says about a plan.

    Args:
        plan: The plan.
        options: Those of the command line.
    """
    model, tokenizer = load_minilm(seed=options.seed)
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        config = Path(folder, "plan.yaml")
        config.write_text(
            f"model: {{name_or_path: {folder}}}\n"
            f"data: {{load_dataset: {{path: {REVIEWS}}}, max_length: {options.max_length}, "
            "labels: [negative, positive], "
            f"splits: {{train: 'train[:{options.rows}]', validation: 'validation[:{options.evaluation_rows}]', "
            f"test: 'test[:{options.evaluation_rows}]'}}}}\n"
            f"training: {{output_dir: {folder}/out, use_cpu: true, num_train_epochs: {options.epochs}, "
            f"eval_strategy: epoch, per_device_eval_batch_size: {options.batch_size}, "
            f"per_device_train_batch_size: {options.batch_size}}}\n"
        )
        overrides = [f"freeze.blocks.first={plan.depth}", "activation_cache.enabled=true"] if plan.depth else []
        overrides += [f"adapters={[{**each} for each in plan.adapters]}"] if plan.adapters else []
        return plan_cost(str(config), overrides)


def step_lines(options: argparse.Namespace) -> list[str]:
    """Returns the table of `steps`."""
    model, tokenizer = load_minilm(seed=options.seed)
    num_steps = steps_of(options.rounds, options.dropped)
    num_rows = num_steps * options.batch_size
    rows = review_rows(tokenizer, "train", num_rows=num_rows, max_length=options.max_length, seed=options.seed)
    reviews = Reviews(model, tokenizer, rows)
    lines = table_head(["plan", "ms", "over full", "predicted", "error", "over the frozen loop", "predicted", "error"])
    with tempfile.TemporaryDirectory() as folder:
        loops = {depth: Contender(f"loop {depth}", depth) for depth in sorted({plan.depth for plan in PLANS} - {0})}
        loops |= {-1: Contender("LoRA loop", 4, adapters=(_LORA,))}
        contenders = [*PLANS, *loops.values()]
        makers = [functools.partial(_trainer, reviews, folder=Path(folder), options=options)] * len(contenders)
        trainers, trainings = [], []
        for make, contender in zip(makers, contenders, strict=True):
            gate = Gate()
            trainer = make(contender, gate, max_steps=num_steps, train_sampling_strategy="sequential")
            trainers.append(trainer)
            trainings.append(Training(trainer.train, gate))
        seconds = interleave(
            trainings,
            num_rounds=options.rounds,
            num_dropped=options.dropped,
            num_threads=options.threads,
            seed=options.seed,
            name="plans",
        )
        for contender, trainer in zip(contenders, trainers, strict=True):
            if contender.cached:
                require_cache(trainer)
    measured = dict(zip((each.name for each in contenders), seconds.T, strict=True))
    for plan in PLANS:
        loop = "full" if plan.depth == 0 else "LoRA loop" if plan.adapters else f"loop {plan.depth}"
        cost = predicted(plan, options)
        cells: list[object] = [plan.name, f"{1e3 * np.median(measured[plan.name]):.0f}"]
        pairs = (cost.cached_over_full, cost.cached_over_loop) if plan.cached else (cost.over_full, cost.over_loop)
        for other, speedup in zip(("full", loop), pairs, strict=True):
            assert speedup is not None
            found = estimate(measured[other] / measured[plan.name], np.median, seed=options.seed)
            cells += [f"{found:.2f}", f"{speedup.step:.2f}", f"{speedup.step / found.value - 1:+.0%}"]
        lines.append(table_row(cells))
    return lines


def run_lines(options: argparse.Namespace) -> list[str]:
    """Returns the table of `runs`."""
    reviews = load_reviews(options)
    few = {"num_rows": options.evaluation_rows, "max_length": options.max_length, "seed": options.seed}
    test = review_rows(reviews.tokenizer, "test", **few)
    taken: dict[str, list[float]] = {plan.name: [] for plan in PLANS}
    draw = random.Random(options.seed)
    for _ in range(options.repeats):
        for plan in draw.sample(PLANS, k=len(PLANS)):
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                length = {"num_train_epochs": options.epochs, "eval_strategy": "epoch"}
                trainer = _trainer(reviews, plan, folder=Path(folder), options=options, **length)
                trainer.train()
                trainer.evaluate()
                trainer.evaluate(test)
                taken[plan.name].append(time.perf_counter() - start)
            if plan.cached:
                require_cache(trainer)
    medians = {name: float(np.median(seconds)) for name, seconds in taken.items()}
    lines = table_head(["plan", "s", "over full", "predicted", "error"])
    for plan in PLANS:
        cost = predicted(plan, options)
        speedup = cost.cached_over_full if plan.cached else cost.over_full
        assert speedup is not None
        assert speedup.run is not None
        found = medians["full"] / medians[plan.name]
        cells = [plan.name, f"{medians[plan.name]:.1f}", f"{found:.2f}", f"{speedup.run:.2f}"]
        lines.append(table_row([*cells, f"{speedup.run / found - 1:+.0%}"]))
    return lines


def _trainer(
    reviews: Reviews,
    contender: Contender,
    *callbacks: TrainerCallback,
    folder: Path,
    options: argparse.Namespace,
    **arguments: Any,
) -> Trainer:
    args = training_arguments(folder, batch_size=options.batch_size, seed=options.seed, **arguments)
    model = copy.deepcopy(reviews.model)
    shared: dict[str, Any] = {
        "train_dataset": reviews.train,
        "eval_dataset": reviews.validation,
        "data_collator": DataCollatorWithPadding(reviews.tokenizer),
    }
    is_loop = "loop" in contender.name
    if contender.depth == 0 or (is_loop and not contender.adapters):
        freeze_by_hand(model, contender.depth) if contender.depth else None
        trainer: Trainer = Trainer(model, args, callbacks=[*callbacks], **shared)
    else:
        trainer = FreezeTrainer(
            model,
            args,
            callbacks=[*callbacks],
            freeze={"blocks": {"first": contender.depth}, "keep_dropout": is_loop},
            adapters=contender.adapters,
            activation_cache={"enabled": contender.cached, "dir": str(folder / "cache")},
            **shared,
        )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def memory_lines(options: argparse.Namespace) -> list[str]:
    """Returns the table of `memory`."""
    columns = ["predicted, MB", "allocated, MB", "error", "growth of the process, MB", "error", "glibc as it is, MB"]
    lines = table_head(["plan", *columns])
    for plan in MEMORY_PLANS:
        cost = predicted(plan, options)
        expected = cost.peak_cached if plan.cached else cost.peak
        assert expected is not None
        allocated, grown = _in_new_process(plan, options, _GIVES_BACK)
        _, grown_by_default = _in_new_process(plan, options, {})
        cells = [plan.name, f"{expected / 1e6:.0f}"]
        for found in (allocated, grown):
            cells += [f"{found / 1e6:.0f}", f"{expected / found - 1:+.0%}"]
        lines.append(table_row([*cells, f"{grown_by_default / 1e6:.0f}"]))
    return lines


def _in_new_process(plan: Contender, options: argparse.Namespace, variables: dict[str, str]) -> tuple[int, int]:
    """Returns what `measured_peaks` finds in a process that shares nothing with the one before."""
    with mock.patch.dict(os.environ, variables):
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as executor:
            return executor.submit(measured_peaks, plan, options).result()


def measured_peaks(plan: Contender, options: argparse.Namespace) -> tuple[int, int]:
    """Trains on the longest batch in this process, and returns two peaks, in bytes, of the whole and of what grew.

    Args:
        plan: The plan.
        options: Those of the command line.
    """
    torch.set_num_threads(options.threads)
    model, tokenizer = load_minilm(seed=options.seed)
    rows = review_rows(tokenizer, "train", num_rows=None, max_length=options.max_length, seed=options.seed)
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]["input_ids"]))
    # What libraries load and set up on first use is not counted.
    _watched(Reviews(model, tokenizer, rows.select(order[:2])), plan, options)
    gc.collect()  # A trainer and its callbacks refer to each other.
    before = anonymous_memory()
    allocated, peak = _watched(Reviews(model, tokenizer, rows.select(order[: options.batch_size])), plan, options)
    return allocated, peak - before


def _watched(reviews: Reviews, plan: Contender, options: argparse.Namespace) -> tuple[int, int]:
    """Trains on one batch again and again, and returns the most bytes of tensors and of anonymous memory in a step."""
    steps = _StepMemory()
    with tempfile.TemporaryDirectory() as folder:
        # The model is copied: weights that are read from a file lie in memory that is mapped to it.
        trainer = _trainer(reviews, plan, steps, folder=Path(folder), options=options, max_steps=_NUM_WATCHED)
        trainer.train()
        if plan.cached:
            require_cache(trainer)
    assert trainer.optimizer is not None
    state = [value for entry in trainer.optimizer.state.values() for value in entry.values()]
    kept = [*trainer.model.parameters(), *(value for value in state if isinstance(value, torch.Tensor))]
    return sum(value.nbytes for value in kept) + _largest(steps.profiler), steps.watch.peak


class _StepMemory(TrainerCallback):
    """Watches the memory of the process from the second step on, and what the allocator hands out in the last one.

    The first step has the optimizer make its state, the audit look at gradients, and the cache compare its rows.
    """

    def __init__(self) -> None:
        self.watch = MemoryWatch()
        self.profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.watch.__enter__()
        if state.global_step == args.max_steps - 1:
            self.watch.__exit__(None, None, None)
            self.profiler.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == args.max_steps:
            self.profiler.stop()


def _largest(profiler: Any) -> int:
    """Returns the most bytes that were handed out at once since the profiler began."""
    events = sorted(
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    held = most = 0
    for _, num_bytes in events:
        held += num_bytes
        most = max(most, held)
    return most


def rate_lines(options: argparse.Namespace) -> list[str]:
    """Returns what the default rates of the CPU are taken from."""
    tokens, hidden = 1920, 384
    narrow, wide = torch.randn(tokens, hidden), torch.randn(tokens, 4 * hidden)
    weight, scores, one = torch.randn(hidden, 4 * hidden), torch.randn(32, 12, 60, 60), torch.randn(4, 4)
    layer = torch.nn.Linear(4, 4)
    measured: dict[str, tuple[Callable[[], Any], float, str]] = {
        "matrix product": (lambda: narrow @ weight, 2e-9 * tokens * hidden * 4 * hidden, "GFLOP/s"),
        "elementwise product": (lambda: wide * 1.5, 2e-9 * wide.nbytes, "GB/s"),
        "GELU": (lambda: torch.nn.functional.gelu(wide), 2e-9 * wide.nbytes, "GB/s"),
        "layer norm": (lambda: torch.nn.functional.layer_norm(narrow, (hidden,)), 2e-9 * narrow.nbytes, "GB/s"),
        "softmax": (lambda: scores.softmax(-1), 2e-9 * scores.nbytes, "GB/s"),
        "random numbers": (lambda: torch.empty_like(scores).bernoulli_(0.9), 1e-6 * scores.numel(), "million/s"),
        "layer on 4 x 4": (lambda: [layer(one) for _ in range(1000)], 1e-3, "million/s"),
    }
    lines = table_head(["operation", "rate"])
    for name, (operation, amount, unit) in measured.items():
        taken = []
        for _ in range(50):
            start = time.perf_counter()
            operation()
            taken.append(time.perf_counter() - start)
        lines.append(table_row([name, f"{amount / float(np.median(taken)):.3g} {unit}"]))
    return lines


COMMANDS = {"steps": step_lines, "runs": run_lines, "memory": memory_lines, "rates": rate_lines}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and reports in Markdown."""
    parser = argparse.ArgumentParser(description="Compare predicted with measured costs.")
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--threads", type=int, default=2, help="threads that an operation of torch may use")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-length", type=int, default=64, help="tokens per review")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rows", type=int, default=800, help="rows of a run to train on")
    parser.add_argument("--evaluation-rows", type=int, default=160, help="rows of a run to evaluate on")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of a run")
    parser.add_argument("--repeats", type=int, default=1, help="how often runs are repeated")
    parser.add_argument("--rounds", type=int, default=12, help="steps of each that are kept")
    parser.add_argument("--dropped", type=int, default=3, help="steps of each that come before those")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    here = machine()
    print("\n".join([f"{here} {options.threads} threads.", "", *COMMANDS[options.command](options)]))


if __name__ == "__main__":
    main()
