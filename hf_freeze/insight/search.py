"""The search itself: trials one after the other, until the budget is spent or every plan was tried."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from hf_freeze.config import SearchConfig
from hf_freeze.errors import FreezeError, SearchError
from hf_freeze.insight.front import best_of
from hf_freeze.insight.outcomes import SeedRun, Trial, TrialOutcome
from hf_freeze.insight.space import Point
from hf_freeze.insight.study import Asked, SearchStudy

# What a trial may raise without ending the search: its plan may not fit, or the machine may be too small for it.
TRIAL_ERRORS = (
    FreezeError,
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Report(Protocol):
    """Takes the metrics of an evaluation, and returns whether training is to end."""

    def __call__(self, metrics: Mapping[str, float], *, is_last: bool) -> bool:
        """Takes the metrics; `is_last` where no evaluation comes after this one."""
        ...


# Trains the plan of a point, and reports after each evaluation.
RunTrial = Callable[[Point, Report], TrialOutcome]


@dataclass(frozen=True)
class Progress:
    """How far a search is.

    Attributes:
        trials: What is known about every trial, the current one last where one runs here.
        num_left: How many trials are not begun.
        best: The best complete trial; None where there is none.
        seconds_left: How long it will take about, with the runs that confirm the answer, as far as that is known.
        runs: The runs that confirm the answer and ended here.
        num_runs_left: How many of them are to come; 0 until the trials have ended.
    """

    trials: tuple[Trial, ...]
    num_left: int
    best: Trial | None
    seconds_left: float | None
    runs: tuple[SeedRun, ...] = ()
    num_runs_left: int = 0


def run_trials(
    study: SearchStudy, section: SearchConfig, run_trial: RunTrial, watch: Callable[[Progress], None]
) -> list[Trial]:
    """Runs trials until none is left or the time is up, and returns what is known about all.

    Args:
        study: The study.
        section: The `search` section.
        run_trial: Trains one plan.
        watch: Is told how far the search is, before and after each trial.

    Raises:
        SearchError: The study cannot be used, or every trial failed.
    """
    start = time.monotonic()
    while section.seconds is None or time.monotonic() - start < section.seconds:
        asked = study.ask()
        if asked is None:
            break
        watch(_progress(study, section, start))
        _run(study, section, asked, run_trial)
        watch(_progress(study, section, start))
    trials = study.trials
    _check_some_succeeded(trials)
    return trials


def _run(study: SearchStudy, section: SearchConfig, asked: Asked, run_trial: RunTrial) -> None:
    num_reports, is_pruned = 0, False

    def report(metrics: Mapping[str, float], *, is_last: bool) -> bool:
        nonlocal num_reports, is_pruned
        num_reports += 1
        for name, value in metrics.items():  # A plan whose loss is NaN may yet have the accuracy of a guess.
            if not math.isfinite(value):
                raise ValueError(f"{name} is {value} after evaluation {num_reports}")
        is_pruned = study.report(asked, metrics[section.metric], num_reports, is_last=is_last)
        return is_pruned

    try:
        outcome = run_trial(asked.point, report)
        if not num_reports:
            raise ValueError(f"training ended before any evaluation, so there is no {section.metric}")
    except SearchError:
        raise
    except TRIAL_ERRORS as error:
        study.tell_failure(asked, in_words(error))
    else:
        study.tell(asked, outcome, is_pruned=is_pruned)


def in_words(error: Exception) -> str:
    """Returns what an error says, with its type where the text alone may not tell.

    Args:
        error: The error.
    """
    text = str(error) or "no message"
    return text if isinstance(error, FreezeError | ValueError) else f"{type(error).__name__}: {text}"


def _check_some_succeeded(trials: list[Trial]) -> None:
    failed = [trial for trial in trials if trial.state == "failed"]
    if failed and all(trial.state == "failed" for trial in trials):
        values = ", ".join(f"{name} {choice}" for name, choice in failed[0].point.items())
        many = "the only trial" if len(failed) == 1 else f"every one of the {len(failed)} trials"
        raise SearchError(
            f"search: {many} failed; got first, with {values}: {failed[0].error}\n"
            "There is nothing to choose from. Mend what it says, and name a new file in search.study."
        )


def _progress(study: SearchStudy, section: SearchConfig, start: float) -> Progress:
    trials, num_left = study.trials, study.num_left
    took = [trial.outcome.seconds for trial in trials if trial.outcome is not None]
    running = sum(trial.state == "running" for trial in trials)
    left = None if not took else (num_left + min(1, running)) * sum(took) / len(took)
    if section.seconds is not None:
        until = max(0.0, section.seconds - (time.monotonic() - start))
        left = until if left is None else min(left, until)
    best = best_of(trials, section.metric, section.direction)
    if left is not None and best is not None and best.outcome is not None:
        # The recommended plan takes no longer than the best; full fine-tuning no less than the slowest.
        left += section.confirm.seeds * (2 * best.outcome.seconds + max(took))
    return Progress(tuple(trials), num_left, best, left)
