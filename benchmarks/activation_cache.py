"""Measures what the activation cache saves, on MiniLM and the movie reviews; one sub-command per question.

- `steps`: how long a step takes, interleaved in one process (`benchmarks/pacing.py`), for the contenders that
  `benchmarks/contenders.py` describes: all on the same batches in the same order, the cache filled before the first
  step. The ratios are medians over the rounds, with 95 % percentile bootstrap intervals.
- `runs`: how long whole runs take, with an evaluation after each epoch, and the cache built in a new, empty folder.
- `sweep`: the same for several learning rates in a row, which share one cache.
- `memory`: the peak of anonymous memory of such a run, in a fresh process each.
- `reading`: what reading a batch from the store costs beside a step, warm and cold, and how writing and reading at
  random fare as the store grows.
- `profile`: where the time of a cached step goes.
- `precision`: what storing in half precision, and bfloat16 autocast, change about what is learned and predicted.

All take `--threads` and `--seed`, and write Markdown to standard output and to `--output`.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer

from benchmarks import cached_precision, cached_profile, store_reading, whole_runs
from benchmarks.contenders import (
    CACHED,
    FROZEN_LOOP,
    FULL,
    MODEL_IN_TRAINER,
    ORACLE,
    ORACLE_IN_TRAINER,
    Features,
    Oracle,
    Reviews,
    make_feature_trainer,
    make_trainer,
    require_cache,
    training_arguments,
)
from benchmarks.pacing import Gate, Training, estimate, interleave, machine, steps_of
from benchmarks.reviews import load_minilm, review_rows

TRAINERS = (FROZEN_LOOP, FULL, CACHED)
ON_FEATURES = (ORACLE_IN_TRAINER, MODEL_IN_TRAINER)
CONTENDERS = (*TRAINERS, ORACLE, *ON_FEATURES)
RATIOS = (
    (FROZEN_LOOP, CACHED),
    (FULL, CACHED),
    (CACHED, ORACLE),
    (CACHED, ORACLE_IN_TRAINER),
    (CACHED, MODEL_IN_TRAINER),
    (MODEL_IN_TRAINER, ORACLE),
)


def measure_steps(
    reviews: Reviews,
    contenders: Sequence[str],
    *,
    depth: int,
    batch_size: int,
    options: argparse.Namespace,
    cache: Path,
) -> np.ndarray[Any, Any]:
    """Times interleaved steps at one depth and one batch size.

    Args:
        reviews: What all train on; as many of its first rows as needed.
        contenders: What is compared.
        depth: k, how many blocks are frozen.
        batch_size: Rows per step.
        options: Those of the command line.
        cache: The folder with the stores.

    Returns:
        Seconds of shape (rounds, contenders).
    """
    num_steps = steps_of(options.rounds, options.dropped)
    reviews = replace(reviews, train=reviews.train.select(range(num_steps * batch_size)))
    trainings: list[Training] = []
    cached: list[Trainer] = []
    features = functools.cache(functools.partial(Features, reviews, depth))
    with tempfile.TemporaryDirectory() as folder:
        for contender in contenders:
            gate = Gate()
            if contender == ORACLE:
                oracle = Oracle(reviews, features(), depth=depth, batch_size=batch_size, num_steps=num_steps, gate=gate)
                trainings.append(Training(oracle.run, gate))
                continue
            args = training_arguments(
                Path(folder),
                batch_size=batch_size,
                seed=options.seed,
                max_steps=num_steps,
                train_sampling_strategy="sequential",
            )
            if contender in ON_FEATURES:
                trainer = make_feature_trainer(contender, reviews, features(), args, depth=depth, callbacks=[gate])
            else:
                trainer = make_trainer(contender, reviews, args, depth=depth, cache=cache, callbacks=[gate])
            cached += [trainer] if contender == CACHED else []
            trainings.append(Training(trainer.train, gate))
        seconds = interleave(
            trainings,
            num_rounds=options.rounds,
            num_dropped=options.dropped,
            num_threads=options.threads,
            seed=options.seed,
            name=f"k = {depth}, batch {batch_size}",
        )
    for trainer in cached:
        require_cache(trainer)
    return seconds


def step_lines(options: argparse.Namespace) -> list[str]:
    """Returns the table of `steps`."""
    contenders = options.contenders
    ratios = [pair for pair in RATIOS if set(pair) <= {*contenders}]
    model, tokenizer = load_minilm(seed=options.seed)
    num_rows = steps_of(options.rounds, options.dropped) * max(options.batch_sizes)
    rows = review_rows(tokenizer, "train", num_rows=num_rows, max_length=options.max_length, seed=options.seed)
    reviews = Reviews(model, tokenizer, rows)
    head = ["batch", "k", *(f"{each}, ms" for each in contenders), *(f"{a} / {b}" for a, b in ratios)]
    lines = [f"Medians of {options.rounds} rounds.", "", *whole_runs.table_head(head)]
    with tempfile.TemporaryDirectory(dir=options.folder) as cache:
        for batch_size in options.batch_sizes:
            for depth in options.depths:
                seconds = measure_steps(
                    reviews, contenders, depth=depth, batch_size=batch_size, options=options, cache=Path(cache)
                )
                of = dict(zip(contenders, seconds.T, strict=True))
                figures = [f"{1e3 * np.median(of[each]):.1f}" for each in contenders]
                figures += [f"{estimate(of[a] / of[b], np.median, seed=options.seed):.2f}" for a, b in ratios]
                lines.append(whole_runs.table_row([batch_size, depth, *figures]))
    return lines


def _add_step_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 3, 4, 5, 6], help="k, how many blocks are frozen")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 8])
    parser.add_argument("--rounds", type=int, default=30, help="steps of each that are kept")
    parser.add_argument("--dropped", type=int, default=5, help="steps of each that come before those")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)


def _add_run_options(parser: argparse.ArgumentParser, *, depths: Sequence[int], rows: int, repeats: int) -> None:
    parser.add_argument("--depths", type=int, nargs="+", default=depths, help="k, how many blocks are frozen")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rows", type=int, default=rows, help="rows to train on; there are 7500")
    parser.add_argument(
        "--evaluation-rows", type=int, help="rows to evaluate on, of 1500; a fifth of --rows unless given"
    )
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--contenders", nargs="+", choices=TRAINERS, default=TRAINERS)


def _add_reading_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", nargs="+", choices=["step", "growth"], default=["step", "growth"])
    parser.add_argument("--depth", type=int, default=5, help="k of the step that reading is compared with")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=60, help="batches of the reviews that are read")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 300_000, 1_000_000])
    parser.add_argument("--tokens", type=int, default=32, help="tokens per synthetic row")
    parser.add_argument("--hidden", type=int, default=384, help="numbers per token")
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], default="float16")
    parser.add_argument("--reads", type=int, default=200, help="batches that are read at random at each size")


def _add_precision_options(parser: argparse.ArgumentParser) -> None:
    storages = ["float16", "bfloat16", "autocast"]
    parser.add_argument("--storages", nargs="+", choices=storages, default=storages)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--depth", type=int, default=4, help="k, how many blocks are frozen")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rows", type=int, default=500, help="rows to train on; there are 7500")
    parser.add_argument("--evaluation-rows", type=int, default=300, help="rows to evaluate on; there are 1500")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--results", type=Path, help="a file that keeps what is done, and is read where it exists")
    parser.add_argument("--jobs", type=int, help="training runs in this call, of those that are not kept yet")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the options."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--threads", type=int, default=2, help="threads that an operation of torch may use")
    shared.add_argument("--seed", type=int, default=0)
    shared.add_argument("--max-length", type=int, default=64, help="tokens per review")
    shared.add_argument(
        "--folder", type=Path, help="a folder on a local disk for the stores, which are removed at the end"
    )
    shared.add_argument("--output", type=Path, help="where the report is written, beside standard output")
    parser = argparse.ArgumentParser(description="Measure what the activation cache saves.")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_step_options(commands.add_parser("steps", parents=[shared], help="time single steps"))
    runs = commands.add_parser("runs", parents=[shared], help="time whole runs")
    _add_run_options(runs, depths=[4, 5], rows=800, repeats=2)
    runs.add_argument("--epochs", type=int, nargs="+", default=[1, 3, 5])
    sweep = commands.add_parser("sweep", parents=[shared], help="time several learning rates in a row")
    _add_run_options(sweep, depths=[5], rows=1200, repeats=1)
    sweep.add_argument("--epochs", type=int, default=3)
    sweep.add_argument("--learning-rates", type=float, nargs="+", default=[5e-5, 1e-4, 2e-4, 4e-4, 8e-4])
    memory = commands.add_parser("memory", parents=[shared], help="watch the peak of anonymous memory")
    _add_run_options(memory, depths=[4, 5, 6], rows=640, repeats=3)
    memory.add_argument("--epochs", type=int, default=2)
    memory.set_defaults(contenders=[FROZEN_LOOP, CACHED])
    profile = commands.add_parser("profile", parents=[shared], help="profile cached steps")
    profile.add_argument("--depth", type=int, default=6, help="k, how many blocks are frozen")
    profile.add_argument("--batch-size", type=int, default=32)
    profile.add_argument("--rounds", type=int, default=100, help="steps that are profiled")
    profile.add_argument("--functions", type=int, default=40, help="how many functions are listed")
    _add_reading_options(commands.add_parser("reading", parents=[shared], help="time the store"))
    _add_precision_options(commands.add_parser("precision", parents=[shared], help="compare half precision"))
    options = parser.parse_args(arguments)
    if "evaluation_rows" in options and options.evaluation_rows is None:
        options.evaluation_rows = options.rows // 5
    if "contenders" in options:
        options.contenders = [each for each in CONTENDERS if each in options.contenders]
    return options


COMMANDS = {
    "steps": step_lines,
    "runs": whole_runs.run_lines,
    "sweep": whole_runs.sweep_lines,
    "memory": whole_runs.memory_lines,
    "reading": store_reading.reading_lines,
    "profile": cached_profile.profile_lines,
    "precision": cached_precision.precision_lines,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and reports in Markdown."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    here = machine()
    about = f"`benchmarks/activation_cache.py {' '.join(sys.argv[1:] if arguments is None else arguments)}`"
    lines = COMMANDS[options.command](options)
    report = "\n".join([about, "", f"{here} {options.threads} threads.", "", *lines, ""])
    print(report, end="")
    if options.output is not None:
        options.output.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
