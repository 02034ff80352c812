"""Answers how much to freeze, on MiniLM and the movie reviews: accuracy, seconds, memory and disk of six plans.

- `run`: tunes the learning rate of every plan in equally many trials, on the validation split and with a seed of its
  own, then trains with each seed at the best rate and notes the accuracy on the test split. What the record holds is
  not run again, so the same command continues after an end at any moment. Accuracy does not depend on the load:
  several processes with different `--plans` may share a record.
- `time`: times every plan once, in an order drawn anew: filling the cache, an epoch, an evaluation, and the rest.
- `memory`: watches the peak of anonymous memory in a fresh process per plan, and weighs a checkpoint.
- `report`: writes docs/results.md from the record; it computes nothing else.

A run is what `benchmarks/balance_plans.py` says, in batches of 32 rows of like length, at most 64 tokens, with the
Trainer's linear schedule after a warm-up over a tenth of the steps. A seed decides, for all plans alike, which
rows are trained on, their order, and what head and dropout are drawn from.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from benchmarks.balance_plans import MAIN, PLANS, TUNED_AT, Plan, make_trainer
from benchmarks.balance_record import TEST, TUNING, Cost, Footprint, Record, Run
from benchmarks.balance_report import report
from benchmarks.contenders import Reviews, require_cache, training_arguments
from benchmarks.pacing import machine
from benchmarks.reviews import REPOSITORY, load_minilm, review_rows
from benchmarks.whole_runs import MemoryWatch, anonymous_memory

BATCH_SIZE = 32
EVALUATION_BATCH_SIZE = 64
MAX_LENGTH = 64
WARMUP = 0.1
TUNING_SEED = 0
BESIDE = "learning rates to try on the tuning rows as well; they are noted, and never chosen"


def train_rows(tokenizer: Any, *, rows: int, seed: int) -> Dataset:
    """Returns the rows that a seed trains on."""
    return review_rows(tokenizer, "train", num_rows=rows, max_length=MAX_LENGTH, seed=seed)


def evaluation_rows(tokenizer: Any, split: str, *, num_rows: int | None = None) -> Dataset:
    """Returns rows to evaluate on, the shortest first: rows of like length share a batch."""
    rows = review_rows(tokenizer, split, num_rows=num_rows, max_length=MAX_LENGTH, seed=0)
    return rows.select(sorted(range(len(rows)), key=lambda row: len(rows[row]["input_ids"])))


def arguments_of(folder: Path, *, epochs: int, seed: int, learning_rate: float, **options: Any) -> TrainingArguments:
    """Returns the training arguments that all plans share."""
    return training_arguments(
        folder,
        batch_size=BATCH_SIZE,
        seed=seed,
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        per_device_eval_batch_size=EVALUATION_BATCH_SIZE,
        warmup_steps=WARMUP,
        train_sampling_strategy="group_by_length",
        **options,
    )


def trainer_of(plan: Plan, args: TrainingArguments, *, rows: int, evaluated: Dataset | None, cache: Path) -> Trainer:
    """Makes the trainer of a plan with everything drawn from the seed of its arguments."""
    model, tokenizer = load_minilm(seed=args.seed)
    reviews = Reviews(model, tokenizer, train_rows(tokenizer, rows=rows, seed=args.seed), evaluated)
    set_seed(args.seed)  # adapters are drawn when the trainer is made
    return make_trainer(plan, reviews, args, cache=cache)


def accuracy_of(run: Run, *, evaluated: Dataset, cache: Path) -> float:
    """Trains, and returns the accuracy afterwards."""
    plan = PLANS[run.plan]
    with tempfile.TemporaryDirectory() as folder:
        args = arguments_of(Path(folder), epochs=run.epochs, seed=run.seed, learning_rate=run.learning_rate)
        trainer = trainer_of(plan, args, rows=run.rows, evaluated=evaluated, cache=cache)
        trainer.train()
        accuracy: float = trainer.evaluate()["eval_accuracy"]
    if plan.caches:
        require_cache(trainer)
    return accuracy


def missing_runs(record: Record, options: argparse.Namespace, plans: Mapping[str, Plan] = PLANS) -> Iterator[Run]:
    """Yields what is still to run; it looks at the record anew for each."""
    for rows in options.rows:
        tuned = TUNED_AT.get((rows, options.epochs), (rows, options.epochs))
        for name in options.plans:
            rates = plans[name].learning_rates
            runs = [Run(name, *tuned, TUNING_SEED, rate, TUNING) for rate in (*rates, *options.beside)]
            yield from (run for run in runs if run not in record.accuracies)
            best = record.best_rate(name, *tuned, rates, TUNING_SEED)
            if best is not None:
                runs = [Run(name, rows, options.epochs, seed, best, TEST) for seed in options.seeds]
                yield from (run for run in runs if run not in record.accuracies)


def versions() -> str:
    """Returns the versions that accuracy may depend on."""
    return ", ".join(f"{library} {version(library)}" for library in ("torch", "transformers", "accelerate", "peft"))


def evaluation_splits(options: argparse.Namespace) -> dict[str, Dataset]:
    """Returns the rows that learning rates are tuned on, and those that are reported on."""
    _, tokenizer = load_minilm(seed=0)
    return {split: evaluation_rows(tokenizer, split, num_rows=options.evaluation_rows) for split in (TUNING, TEST)}


def run_all(options: argparse.Namespace) -> None:
    """Runs what the record lacks."""
    record, about = Record(options.record), versions()
    splits = evaluation_splits(options)
    for run in missing_runs(record, options):
        start = time.perf_counter()
        accuracy = accuracy_of(run, evaluated=splits[run.split], cache=options.cache)
        record.add_run(run, accuracy, about)
        print(f"{run}: {accuracy:.4f}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


class EpochWatch(TrainerCallback):
    """Notes how long each epoch took, in seconds."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stops it."""
        self.seconds.append(time.perf_counter() - self._start)


def cost_of(plan: Plan, *, repeat: int, options: argparse.Namespace) -> Cost:
    """Trains a plan for two epochs with a new, empty cache, of which the second counts, and evaluates."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir=options.folder) as cache:
        args = arguments_of(Path(folder), epochs=2, seed=repeat, learning_rate=plan.learning_rates[0])
        _, tokenizer = load_minilm(seed=repeat)
        evaluated = evaluation_rows(tokenizer, TEST, num_rows=options.evaluation_rows)
        trainer: Any = trainer_of(plan, args, rows=options.rows, evaluated=evaluated, cache=Path(cache))
        watch = EpochWatch()
        trainer.add_callback(watch)
        training, evaluation, build = seconds_of(trainer.train), seconds_of(trainer.evaluate), 0.0
        setup = training - sum(watch.seconds)
        if plan.caches:
            built, filling = trainer.activation_cache.stats.build_seconds, evaluation
            evaluation = seconds_of(trainer.evaluate)
            setup, build = setup - built, built + filling - evaluation
            require_cache(trainer)
        size = size_of(Path(cache))
        return Cost(plan.name, options.rows, len(evaluated), repeat, build, setup, watch.seconds[-1], evaluation, size)


def seconds_of(action: Callable[[], Any]) -> float:
    """Returns how long a call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def time_all(options: argparse.Namespace) -> None:
    """Times one round of all plans."""
    record, here = Record(options.record), machine()
    for name in random.Random(options.repeat).sample(options.plans, k=len(options.plans)):
        if not any(
            (cost.plan, cost.rows, cost.repeat) == (name, options.rows, options.repeat) for cost in record.costs
        ):
            cost = cost_of(PLANS[name], repeat=options.repeat, options=options)
            record.add_cost(cost, here)
            print(cost, file=sys.stderr, flush=True)


def footprint_of(name: str, options: argparse.Namespace) -> Footprint:
    """Trains a plan for one epoch in this process, and returns the peak of its memory and the size of a checkpoint."""
    torch.set_num_threads(options.threads)
    plan = PLANS[name]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir=options.folder) as cache:
        args = arguments_of(
            Path(folder), epochs=1, seed=options.repeat, learning_rate=plan.learning_rates[0], save_strategy="epoch"
        )
        trainer = trainer_of(plan, args, rows=options.rows, evaluated=None, cache=Path(cache))
        before = anonymous_memory()
        with MemoryWatch() as watch:
            trainer.train()
        (checkpoint,) = Path(folder).glob("checkpoint-*")
        return Footprint(name, options.repeat, before, watch.peak, size_of(checkpoint))


def watch_all(options: argparse.Namespace) -> None:
    """Watches the memory of each plan in a process of its own."""
    record, here = Record(options.record), machine()
    # A new process for each: it shares nothing with the one before.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as executor:
        for name in options.plans:
            if any((each.plan, each.repeat) == (name, options.repeat) for each in record.footprints):
                continue
            footprint = executor.submit(footprint_of, name, options).result()
            record.add_footprint(footprint, here)
            print(footprint, file=sys.stderr, flush=True)


def size_of(folder: Path) -> int:
    """Returns how much of the disk the files below a folder take, in bytes."""
    return sum(512 * path.stat().st_blocks for path in folder.rglob("*") if path.is_file())


def write_report(options: argparse.Namespace) -> None:
    """Writes docs/results.md."""
    text = report(Record(options.record), tuning_seed=TUNING_SEED)
    options.output.write_text(text, encoding="utf-8")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the options."""
    shared = argparse.ArgumentParser(add_help=False)
    default = REPOSITORY / "benchmarks" / "records" / "balance.jsonl"
    shared.add_argument("--record", type=Path, default=default, help="the file that is read and continued")
    work = argparse.ArgumentParser(add_help=False, parents=[shared])
    work.add_argument("--plans", nargs="+", choices=list(PLANS), default=[plan.name for plan in MAIN])
    work.add_argument("--threads", type=int, default=2, help="threads that an operation of torch may use")
    work.add_argument("--evaluation-rows", type=int, help="rows to evaluate on; all unless given")
    parser = argparse.ArgumentParser(description="Answer how much to freeze.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", parents=[work], help="tune and train, as far as the record lacks it")
    run.add_argument("--rows", type=int, nargs="+", default=[500, 7500], help="rows to train on")
    run.add_argument("--epochs", type=int, default=3)
    run.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    run.add_argument("--beside", type=float, nargs="+", default=[], help=BESIDE)
    run.add_argument(
        "--cache", type=Path, default=REPOSITORY / "runs" / "balance", help="folder of the activation cache"
    )
    for name, rows, about in (("time", 500, "time each plan once"), ("memory", 640, "watch memory and disk")):
        command = commands.add_parser(name, parents=[work], help=about)
        command.add_argument("--rows", type=int, default=rows, help="rows to train on")
        command.add_argument("--repeat", type=int, default=1, help="the number of the round")
        command.add_argument("--folder", type=Path, help="a folder on a local disk for stores, removed at the end")
    written = commands.add_parser("report", parents=[shared], help="write docs/results.md")
    written.add_argument("--output", type=Path, default=REPOSITORY / "docs" / "results.md")
    return parser.parse_args(arguments)


COMMANDS = {"run": run_all, "time": time_all, "memory": watch_all, "report": write_report}


def carry_out(options: argparse.Namespace, commands: Mapping[str, Callable[[argparse.Namespace], None]]) -> None:
    """Does what the sub-command says.

    Args:
        options: Those of the command line.
        commands: What each sub-command does.
    """
    if "threads" in options:
        torch.set_num_threads(options.threads)
    commands[options.command](options)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, times, watches or reports."""
    carry_out(parse_arguments(arguments), COMMANDS)


if __name__ == "__main__":
    main()
