"""Compares schedules with their controls, on MiniLM and the movie reviews: accuracy, seconds, mean depth.

The controls of a schedule are full training, the loop that freezes four blocks by hand, the head alone, the fixed depth
nearest to the schedule's own mean depth, and, where it decides from statistics, the same rule on shuffled statistics.

- `run`: tunes the learning rate of every plan in equally many trials, on the validation split and with a seed of its
  own, then trains with each seed at the best rate and notes the accuracy on the test split and the mean depth. What the
  record holds is not run again, so the same command continues after an end at any moment. Accuracy does not depend on
  the load: several processes with different `--plans` may share a record.
- `time`: times a whole training of every plan once, cache built and all, in an order drawn anew for every `--repeat`.
- `cost`: what gathering statistics adds to a step, from steps that are interleaved as `benchmarks/pacing.py` describes.
- `report`: prints the tables; it computes nothing else.

Runs are those of `benchmarks/balance.py`: batches of 32 rows of like length, at most 64 tokens, a linear schedule of
the learning rate after a warm-up over a tenth of the steps. A seed decides, for all plans alike, which rows are trained
on, their order, and what head and dropout are drawn from.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer

from benchmarks.balance import (
    BESIDE,
    TUNING_SEED,
    arguments_of,
    carry_out,
    evaluation_rows,
    evaluation_splits,
    missing_runs,
    seconds_of,
    trainer_of,
    versions,
)
from benchmarks.balance_plans import Plan
from benchmarks.balance_record import TUNING, Record, Run, Time
from benchmarks.contenders import require_cache, training_arguments
from benchmarks.pacing import Gate, Training, estimate, interleave, machine, steps_of
from benchmarks.reviews import REPOSITORY, load_minilm, review_rows
from benchmarks.schedule_plans import PLANS
from benchmarks.schedule_report import report
from benchmarks.whole_runs import table_head, table_row
from hf_freeze import FreezeTrainer
from hf_freeze.schedules.plasticity import MIN_EVERY, NUM_PROBES

NUM_DROPPED = 6
# Steps of a run over 7,500 rows in batches of 32 for 3 epochs, which costs are spread over.
USUAL_STEPS = 705
# What gathers and never freezes before the last steps: statistics are read at every other step.
_LATE = {"min_progress": 0.9}
GATHERING: Mapping[str, tuple[Mapping[str, Any], int]] = {
    "autofreeze": ({"type": "autofreeze", **_LATE}, math.ceil(USUAL_STEPS / 20)),
    "plasticity": ({"type": "plasticity", "every": 2, **_LATE}, max(MIN_EVERY, USUAL_STEPS // NUM_PROBES)),
}


def needs_evaluation(plan: Plan) -> bool:
    """Returns whether the schedule of a plan decides from evaluations."""
    return plan.sections is not None and plan.sections.get("schedule", {}).get("type") == "plateau"


def scheduled_trainer(plan: Plan, run: Run, *, tuning: Dataset, folder: Path, cache: Path) -> Any:
    """Makes the trainer of a plan; one that decides from evaluations sees the rows for tuning after each epoch."""
    evaluates = {"eval_strategy": "epoch"} if needs_evaluation(plan) else {}
    args = arguments_of(folder, epochs=run.epochs, seed=run.seed, learning_rate=run.learning_rate, **evaluates)
    return trainer_of(plan, args, rows=run.rows, evaluated=tuning if evaluates else None, cache=cache)


def mean_depth(trainer: Trainer, plan: Plan) -> float:
    """Returns the mean over the steps of how many blocks were frozen from the input on."""
    if not isinstance(trainer, FreezeTrainer) or trainer.scheduled is None:
        return float(plan.depth or 0)
    steps = trainer.state.max_steps
    depths = [(0, trainer.scheduled.start.depth), *((each.step, each.depth) for each in trainer.timeline)]
    ends = [step for step, _ in depths[1:]] + [steps]
    return sum(depth * (end - start) for (start, depth), end in zip(depths, ends, strict=True)) / steps


def outcome_of(run: Run, plan: Plan, splits: Mapping[str, Dataset], cache: Path) -> tuple[float, float]:
    """Trains, and returns the accuracy afterwards and the mean depth."""
    is_scheduled = plan.sections is not None and "schedule" in plan.sections
    # The prefix of a schedule is another in every run: nothing that is stored is of use to the next.
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as own:
        stores = Path(own) if is_scheduled else cache
        trainer = scheduled_trainer(plan, run, tuning=splits[TUNING], folder=Path(folder), cache=stores)
        trainer.train()
        accuracy: float = trainer.evaluate(splits[run.split])["eval_accuracy"]
        if plan.caches and not is_scheduled:
            require_cache(trainer)
    return accuracy, mean_depth(trainer, plan)


def run_all(options: argparse.Namespace) -> None:
    """Runs what the record lacks."""
    record, about = Record(options.record), versions()
    splits = evaluation_splits(options)
    for run in missing_runs(record, options, PLANS):
        start = time.perf_counter()
        accuracy, depth = outcome_of(run, PLANS[run.plan], splits, options.cache)
        record.add_run(run, accuracy, about, depth=depth)
        took = time.perf_counter() - start
        print(f"{run}: {accuracy:.4f}, depth {depth:.2f}, {took:.0f} s", file=sys.stderr, flush=True)


def time_all(options: argparse.Namespace) -> None:
    """Times one round of all plans."""
    record, here = Record(options.record), machine()
    _, tokenizer = load_minilm(seed=0)
    tuning = evaluation_rows(tokenizer, TUNING, num_rows=options.evaluation_rows)
    for name in random.Random(options.repeat).sample(options.plans, k=len(options.plans)):
        known = {(each.plan, each.rows, each.epochs, each.repeat) for each in record.times}
        if (name, options.rows, options.epochs, options.repeat) in known:
            continue
        plan = PLANS[name]
        run = Run(name, options.rows, options.epochs, options.repeat, plan.learning_rates[1], TUNING)
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir=options.folder) as cache:
            trainer = scheduled_trainer(plan, run, tuning=tuning, folder=Path(folder), cache=Path(cache))
            seconds = seconds_of(trainer.train)
        timed = Time(name, options.rows, options.epochs, options.repeat, seconds, mean_depth(trainer, plan))
        record.add_time(timed, here)
        print(timed, file=sys.stderr, flush=True)


def cost_all(options: argparse.Namespace) -> None:
    """Measures what gathering adds to a step, and prints it."""
    num_steps = steps_of(options.rounds, NUM_DROPPED)
    model, tokenizer = load_minilm(seed=0)
    rows = review_rows(tokenizer, "train", num_rows=num_steps * options.batch_size, max_length=64, seed=0)
    head = ["schedule", "step, ms", "adds, ms", "adds where statistics are read, ms", "every", "% of a step"]
    lines = [machine(), "", *table_head(head)]
    for name, (schedule, every) in GATHERING.items():
        if name == "autofreeze":
            schedule = {**schedule, "intervals": math.ceil(num_steps / 2)}
        with tempfile.TemporaryDirectory() as folder:
            shared: dict[str, Any] = {"num_steps": num_steps, "sampling": options.sampling, "folder": Path(folder)}
            trainings = [
                gathering(copy.deepcopy(model), tokenizer, rows, each, **shared)
                for each in ({"type": "static"}, schedule)
            ]
            seconds = interleave(
                trainings,
                num_rounds=options.rounds,
                num_dropped=NUM_DROPPED,
                num_threads=options.threads,
                seed=0,
                name=name,
            )
        lines.append(cost_row(name, seconds, every))
    print("\n".join(lines))


def gathering(
    model: Any,
    tokenizer: Any,
    rows: Dataset,
    schedule: Mapping[str, Any],
    *,
    num_steps: int,
    sampling: str,
    folder: Path,
) -> Training:
    """Returns a training of everything that stops at a gate before each step."""
    gate = Gate()
    args = training_arguments(
        folder,
        batch_size=len(rows) // num_steps,
        seed=0,
        max_steps=num_steps,
        train_sampling_strategy=sampling,
    )
    trainer = FreezeTrainer(
        model,
        args,
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
        schedule=schedule,
        activation_cache={"enabled": False},
    )
    trainer.remove_callback(PrinterCallback)
    # What a schedule does before a step belongs to the step that it is timed with.
    trainer.callback_handler.callbacks.insert(0, gate)
    return Training(trainer.train, gate)


def cost_row(name: str, seconds: np.ndarray[Any, Any], every: int) -> str:
    """Returns the row of one schedule.

    Args:
        name: Of the schedule.
        seconds: Of shape (rounds, 2): without the schedule and with it, which reads at every other step.
        every: Steps from one reading to the next in a usual run.
    """
    # Steps are counted from 0, and readings come before even ones.
    step, added = float(np.median(seconds[:, 0])), seconds[:, 1] - seconds[:, 0]
    reads = (np.arange(len(added)) + NUM_DROPPED) % 2 == 0
    plain, reading = (estimate(1e3 * added[which], np.median) for which in (~reads, reads))
    share = 100 * (plain.value + (reading.value - plain.value) / every) / (1e3 * step)
    return table_row([name, f"{1e3 * step:.1f}", f"{plain:.2f}", f"{reading:.1f}", every, f"{share:.2f}"])


def write_report(options: argparse.Namespace) -> None:
    """Prints the tables."""
    print(report(Record(options.record), tuning_seed=TUNING_SEED))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the options."""
    shared = argparse.ArgumentParser(add_help=False)
    default = REPOSITORY / "benchmarks" / "records" / "schedules.jsonl"
    shared.add_argument("--record", type=Path, default=default, help="the file that is read and continued")
    work = argparse.ArgumentParser(add_help=False)
    work.add_argument("--threads", type=int, default=2, help="threads that an operation of torch may use")
    plans = argparse.ArgumentParser(add_help=False)
    plans.add_argument("--plans", nargs="+", choices=list(PLANS), default=list(PLANS))
    plans.add_argument("--epochs", type=int, default=5)
    plans.add_argument("--evaluation-rows", type=int, help="rows to evaluate on; all unless given")
    parser = argparse.ArgumentParser(description="Compare schedules with their controls.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", parents=[shared, work, plans], help="tune and train what the record lacks")
    run.add_argument("--rows", type=int, nargs="+", default=[2000], help="rows to train on")
    run.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    run.add_argument("--beside", type=float, nargs="+", default=[], help=BESIDE)
    run.add_argument("--cache", type=Path, default=REPOSITORY / "runs" / "schedules", help="folder of the cache")
    timed = commands.add_parser("time", parents=[shared, work, plans], help="time each plan once")
    timed.add_argument("--rows", type=int, default=1000, help="rows to train on")
    timed.add_argument("--repeat", type=int, default=1, help="the number of the round")
    timed.add_argument("--folder", type=Path, help="a folder on a local disk for stores, removed at the end")
    cost = commands.add_parser("cost", parents=[work], help="measure what gathering adds to a step")
    cost.add_argument("--rounds", type=int, default=40, help="rounds of two steps per schedule")
    cost.add_argument("--batch-size", type=int, default=32)
    cost.add_argument(
        "--sampling", choices=["random", "group_by_length"], default="random", help="as the Trainer has it"
    )
    commands.add_parser("report", parents=[shared], help="print the tables")
    return parser.parse_args(arguments)


COMMANDS = {"run": run_all, "time": time_all, "cost": cost_all, "report": write_report}


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, times or reports."""
    carry_out(parse_arguments(arguments), COMMANDS)


if __name__ == "__main__":
    main()
