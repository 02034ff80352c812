"""`hf-freeze search`: trials as they end, the best so far and the time left; then the answer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from hf_freeze.cli.terminal import new_console, new_grid, print_grid, print_lines

if TYPE_CHECKING:
    from collections.abc import Callable

    from hf_freeze.insight.answer import Answer
    from hf_freeze.insight.outcomes import SeedRun, Trial
    from hf_freeze.insight.search import Progress as SearchProgress


@contextmanager
def shown_progress(metric: str) -> Iterator[Callable[[SearchProgress], None]]:
    """Shows how far a search is: one line for each trial that ended and, on a terminal, a bar below them.

    Args:
        metric: What plans are compared by.
    """
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[unit]}"), TimeElapsedColumn())
    bar = Progress(*columns, TextColumn("{task.description}"), console=console, disable=not console.is_terminal)
    said: set[int] = set()
    reasons: dict[str | None, int] = {}
    num_said = 0
    task = bar.add_task("", total=None, unit="trials")

    def watch(progress: SearchProgress) -> None:
        nonlocal num_said
        bar.start()  # Not before: what the data holds is printed above it.
        ended = [trial for trial in progress.trials if trial.is_finished]
        for trial in ended:
            if trial.number not in said:
                first = reasons.setdefault(trial.error, trial.number)
                console.print(trial_line(trial, metric, first_failed=first), soft_wrap=True)
        said.update(trial.number for trial in ended)
        for run in progress.runs[num_said:]:
            console.print(run_line(run, metric), soft_wrap=True)
        num_said = len(progress.runs)
        done, left, unit = len(ended), len(progress.trials) - len(ended) + progress.num_left, "trials"
        if progress.runs or progress.num_runs_left:
            done, left, unit = num_said, progress.num_runs_left, "confirmations"
        bar.update(task, completed=done, total=done + left, unit=unit, description=state_line(progress, metric))

    try:
        yield watch
    finally:
        bar.stop()


def trial_line(trial: Trial, metric: str, *, first_failed: int) -> str:
    """Returns what there is to say about a trial that ended; why trials failed is said once.

    Args:
        trial: The trial.
        metric: What plans are compared by.
        first_failed: The number of the first trial that failed for the same reason, where this one failed.
    """
    plan = ", ".join(f"{name} {choice}" for name, choice in trial.point.items())
    start = f"trial {trial.number}: {plan}: {trial.state}"
    if trial.outcome is None:
        return f"{start}: {trial.error}" if first_failed == trial.number else f"{start}, as trial {first_failed} did"
    return f"{start}, {metric} {trial.outcome.metrics[metric]:.4f}, {trial.outcome.seconds:.1f} s"


def run_line(run: SeedRun, metric: str) -> str:
    """Returns what there is to say about a run that confirms the answer.

    Args:
        run: The run.
        metric: What plans are compared by.
    """
    start = f"confirming: {run.name}, seed {run.seed}"
    if run.outcome is None:
        return f"{start}: failed: {run.error}"
    name = f"test_{metric.removeprefix('eval_')}"
    return f"{start}: {name} {run.outcome.metrics[name]:.4f}, {run.outcome.seconds:.1f} s"


def state_line(progress: SearchProgress, metric: str) -> str:
    """Returns the best so far, and the time left.

    Args:
        progress: How far the search is.
        metric: What plans are compared by.
    """
    parts = []
    if progress.best is not None and progress.best.outcome is not None:
        value = progress.best.outcome.metrics[metric]
        parts.append(f"best {metric} {value:.4f} (trial {progress.best.number})")
    if progress.seconds_left is not None:
        minutes, seconds = divmod(round(progress.seconds_left), 60)
        parts.append(f"about {minutes}:{seconds:02} left")
    return ", ".join(parts)


def print_answer(answer: Answer) -> None:
    """Prints the tables, the recommendation and what was written.

    Args:
        answer: What was found.
    """
    console = new_console()
    if not sys.stdout.isatty():
        console.width = max(console.width, 160)  # A plan with several axes needs more than the usual width.
    grid = new_grid(answer.summary, *answer.head, numbers=5)
    for row in answer.rows:
        grid.add_row(*map(Text, row))
    print_grid(console, grid)
    marks = "* no other complete trial is as good and as cheap; > recommended."
    print_lines(console, *((marks, answer.memory, "") if answer.front else ()), *answer.sentences)
    if answer.confirmations:
        grid = new_grid("On the test rows, means over the seeds", *answer.confirmation_head, numbers=5)
        for row in answer.confirmation_rows:
            grid.add_row(*map(Text, row))
        print_lines(console, "")
        print_grid(console, grid)
    print_lines(console, "", *(f"Written: {file}" for file in answer.files))
