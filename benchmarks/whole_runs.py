"""Times and watches whole runs: from making the trainer to the last evaluation, the cache's build included."""

from __future__ import annotations

import argparse
import multiprocessing
import random
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.contenders import (
    CACHED,
    FROZEN_LOOP,
    FULL,
    LEARNING_RATE,
    Reviews,
    make_trainer,
    require_cache,
    training_arguments,
)
from benchmarks.reviews import load_minilm, review_rows

# Seconds between two looks at the process's memory.
SAMPLE_INTERVAL = 0.005


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        contender: Which way to train.
        depth: k, how many blocks are frozen; 0 for full training.
        num_epochs: How long.
        learning_rate: Of AdamW.
    """

    contender: str
    depth: int
    num_epochs: int
    learning_rate: float = LEARNING_RATE


@dataclass(frozen=True)
class Outcome:
    """What a run took, and the accuracy of its last evaluation."""

    seconds: float
    accuracy: float


@dataclass(frozen=True)
class Peak:
    """The largest anonymous memory of a process, in bytes: before the run, and during it."""

    before: int
    during: int


def load_reviews(options: argparse.Namespace) -> Reviews:
    """Returns MiniLM and the rows that the options ask for."""
    model, tokenizer = load_minilm(seed=options.seed)
    train, validation = (
        review_rows(tokenizer, split, num_rows=num_rows, max_length=options.max_length, seed=options.seed)
        for split, num_rows in (("train", options.rows), ("validation", options.evaluation_rows))
    )
    return Reviews(model, tokenizer, train, validation)


def run(job: Job, reviews: Reviews, *, options: argparse.Namespace, cache: Path) -> Outcome:
    """Trains with an evaluation after each epoch.

    Args:
        job: What to run.
        reviews: What to train and evaluate on.
        options: Those of the command line.
        cache: The folder with the stores.
    """
    with tempfile.TemporaryDirectory() as folder:
        args = training_arguments(
            Path(folder),
            batch_size=options.batch_size,
            seed=options.seed,
            num_train_epochs=job.num_epochs,
            learning_rate=job.learning_rate,
            eval_strategy="epoch",
        )
        start = time.perf_counter()
        trainer = make_trainer(job.contender, reviews, args, depth=job.depth, cache=cache)
        trainer.train()
        seconds = time.perf_counter() - start
    if job.contender == CACHED:
        require_cache(trainer)
    accuracies = [entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry]
    outcome = Outcome(seconds, accuracies[-1])
    print(f"{job}: {seconds:.1f} s, accuracy {outcome.accuracy:.3f}", file=sys.stderr)
    return outcome


def run_lines(options: argparse.Namespace) -> list[str]:
    """Returns the table of `runs`."""
    reviews = load_reviews(options)
    draw = random.Random(options.seed)
    outcomes: dict[Job, list[Outcome]] = {}
    for _ in range(options.repeats):
        jobs = [job for epochs in options.epochs for job in _jobs(options.contenders, options.depths, epochs)]
        for job in draw.sample(jobs, k=len(jobs)):
            with tempfile.TemporaryDirectory(dir=options.folder) as cache:
                outcomes.setdefault(job, []).append(run(job, reviews, options=options, cache=Path(cache)))
    lines = [_about(options), "", *_table_head(["epochs", "k"], options.contenders)]
    for epochs in options.epochs:
        for depth in options.depths:
            found = {each: outcomes[_job(each, depth, epochs)] for each in options.contenders}
            lines.append(_outcome_row([epochs, depth], found))
    return lines


def sweep_lines(options: argparse.Namespace) -> list[str]:
    """Returns the tables of `sweep`: the times of all learning rates together, and the accuracy at each."""
    reviews = load_reviews(options)
    draw = random.Random(options.seed)
    contenders, rates = options.contenders, options.learning_rates
    lines = [_about(options), "", *_table_head(["k", "learning rates"], contenders, shows_accuracy=False)]
    accuracies = ["", *table_head(["k", "learning rate", *(f"{each}, accuracy" for each in contenders)])]
    for depth in options.depths:
        totals: dict[str, list[Outcome]] = {each: [] for each in contenders}
        for _ in range(options.repeats):
            outcomes: dict[Job, Outcome] = {}
            with tempfile.TemporaryDirectory(dir=options.folder) as cache:
                for rate in rates:
                    for each in draw.sample(contenders, k=len(contenders)):
                        job = _job(each, depth, options.epochs, rate)
                        outcomes[job] = run(job, reviews, options=options, cache=Path(cache))
            for each in contenders:
                seconds = sum(found.seconds for job, found in outcomes.items() if job.contender == each)
                totals[each].append(Outcome(seconds, 0.0))
        lines.append(_outcome_row([depth, len(rates)], totals, shows_accuracy=False))
        for rate in rates:
            found = [outcomes[_job(each, depth, options.epochs, rate)].accuracy for each in contenders]
            accuracies.append(table_row([depth, f"{rate:g}", *(f"{each:.3f}" for each in found)]))
    return lines + accuracies


def memory_lines(options: argparse.Namespace) -> list[str]:
    """Returns the table of `memory`."""
    contenders = options.contenders
    head = ["k", "before a run, MB", *(f"{each}, MB" for each in contenders)]
    head += [f"{each} / {contenders[0]}" for each in contenders[1:]]
    lines = [_about(options), "", *table_head(head)]
    # A new process for each: it shares nothing with the one before.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as executor:
        for depth in options.depths:
            peaks: dict[str, list[Peak]] = {each: [] for each in contenders}
            for _ in range(options.repeats):
                for each in contenders:
                    job = _job(each, depth, options.epochs)
                    peaks[each].append(executor.submit(peak_of, job, options).result())
            before = statistics.median(peak.before for found in peaks.values() for peak in found)
            during = [statistics.median(peak.during for peak in peaks[each]) for each in contenders]
            ratios = [f"{each / during[0]:.3f}" for each in during[1:]]
            lines.append(table_row([depth, *(f"{each / 1e6:.0f}" for each in (before, *during)), *ratios]))
    return lines


def peak_of(job: Job, options: argparse.Namespace) -> Peak:
    """Runs a job in this process, and returns how much anonymous memory the process took at most.

    Args:
        job: What to run.
        options: Those of the command line.
    """
    torch.set_num_threads(options.threads)
    reviews = load_reviews(options)
    before = anonymous_memory()
    with tempfile.TemporaryDirectory(dir=options.folder) as cache, MemoryWatch() as watch:
        run(job, reviews, options=options, cache=Path(cache))
    return Peak(before, watch.peak)


class MemoryWatch:
    """Notes the largest anonymous memory of the process as long as it is entered."""

    def __init__(self) -> None:
        self.peak = 0
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ends.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, anonymous_memory())
            if self._ends.wait(SAMPLE_INTERVAL):
                return


def anonymous_memory() -> int:
    """Returns RssAnon, in bytes: what the process itself takes, without mapped files such as the store's."""
    found = re.search(r"^RssAnon:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        sys.exit("/proc/self/status has no RssAnon; memory is measured on Linux only.")
    return 1024 * int(found[1])


def table_head(cells: Sequence[str]) -> list[str]:
    """Returns the first two lines of a Markdown table."""
    return [table_row(cells), "|" + "---|" * len(cells)]


def table_row(cells: Iterable[object]) -> str:
    """Returns a line of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def _jobs(contenders: Sequence[str], depths: Sequence[int], num_epochs: int) -> list[Job]:
    """Returns the different jobs of one length: full training is the same at all depths."""
    return list(dict.fromkeys(_job(each, depth, num_epochs) for depth in depths for each in contenders))


def _job(contender: str, depth: int, num_epochs: int, learning_rate: float = LEARNING_RATE) -> Job:
    return Job(contender, 0 if contender == FULL else depth, num_epochs, learning_rate)


def _about(options: argparse.Namespace) -> str:
    return (
        f"{options.rows} rows in batches of {options.batch_size}, {options.evaluation_rows} rows to evaluate on after "
        f"each epoch; {options.repeats} repeats."
    )


def _compared(contenders: Sequence[str]) -> list[str]:
    return [each for each in (FROZEN_LOOP, FULL) if each in contenders and CACHED in contenders]


def _table_head(first: Sequence[str], contenders: Sequence[str], *, shows_accuracy: bool = True) -> list[str]:
    cells = [*first, *(f"{each}, s" for each in contenders), *(f"{each} / cached" for each in _compared(contenders))]
    return table_head(cells + [f"{each}, accuracy" for each in contenders if shows_accuracy])


def _outcome_row(first: Sequence[object], found: dict[str, list[Outcome]], *, shows_accuracy: bool = True) -> str:
    """Returns a row: median seconds, ratios of these with the smallest and largest of the repeats, last accuracy."""
    seconds = {each: [outcome.seconds for outcome in outcomes] for each, outcomes in found.items()}
    medians = {each: statistics.median(taken) for each, taken in seconds.items()}
    cells = [*first, *(f"{each:.1f}" for each in medians.values())]
    for each in _compared(list(found)):
        ratios = [own / cached for own, cached in zip(seconds[each], seconds[CACHED], strict=True)]
        cells.append(f"{medians[each] / medians[CACHED]:.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return table_row(cells + [f"{outcomes[-1].accuracy:.3f}" for outcomes in found.values() if shows_accuracy])
