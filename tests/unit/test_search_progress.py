"""What `hf-freeze search` shows while it runs: a line for each trial that ended, the best so far and the time left."""

from __future__ import annotations

import re

import pytest

from hf_freeze.cli.search import shown_progress, state_line
from hf_freeze.insight.outcomes import SeedRun, Trial, TrialOutcome
from hf_freeze.insight.search import Progress
from tests.unit.insight.cheap_search import METRIC, outcome


def trial(number: int, state: str, value: float | None = None, error: str | None = None) -> Trial:
    return Trial(number, state, {"depth": number}, None if value is None else outcome(value, seconds=2.0), error)


BROKEN = "RuntimeError: out of memory"
TRIALS = (
    trial(0, "complete", 0.75),
    trial(1, "failed", error=BROKEN),
    trial(2, "pruned", 0.5),
    trial(3, "failed", error=BROKEN),
    trial(4, "running"),
)
LINES = [
    "trial 0: depth 0: complete, eval_accuracy 0.7500, 2.0 s",
    "trial 1: depth 1: failed: RuntimeError: out of memory",
    "trial 2: depth 2: pruned, eval_accuracy 0.5000, 2.0 s",
    "trial 3: depth 3: failed, as trial 1 did",
]


def progress(num_trials: int) -> Progress:
    return Progress(TRIALS[:num_trials], 10 - num_trials, TRIALS[0], seconds_left=754.6)


def test_every_trial_that_ended_has_a_line_and_why_it_failed_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress(METRIC) as watch:
        for num_trials in (1, 2, 2, 5):
            watch(progress(num_trials))
    shown = capsys.readouterr()
    assert (shown.out, shown.err.splitlines()) == ("", LINES)


RUNS = (
    SeedRun("recommended", 42, TrialOutcome({"test_accuracy": 0.75}, 2.0, 1, False, 1, 1)),
    SeedRun("full fine-tuning", 42, None, BROKEN),
)


def test_every_run_that_confirms_the_answer_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress(METRIC) as watch:
        for num_runs in (0, 1, 1, 2):
            watch(Progress((), 0, None, None, runs=RUNS[:num_runs], num_runs_left=2 - num_runs))
    assert capsys.readouterr().err.splitlines() == [
        "confirming: recommended, seed 42: test_accuracy 0.7500, 2.0 s",
        "confirming: full fine-tuning, seed 42: failed: RuntimeError: out of memory",
    ]


def test_the_best_and_the_time_left_are_in_words() -> None:
    assert state_line(progress(5), METRIC) == "best eval_accuracy 0.7500 (trial 0), about 12:35 left"
    assert state_line(Progress((), 10, None, seconds_left=None), METRIC) == ""


def test_a_terminal_has_a_bar_below_the_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "160")
    with shown_progress(METRIC) as watch:
        watch(progress(5))
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert all(line in shown for line in LINES)
    assert "4/10 trials" in shown
    assert "best eval_accuracy 0.7500 (trial 0), about 12:35 left" in shown


def test_a_terminal_counts_the_runs_that_confirm_the_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "160")
    with shown_progress(METRIC) as watch:
        watch(Progress(TRIALS[:1], 0, TRIALS[0], seconds_left=61.0, runs=RUNS[:1], num_runs_left=5))
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert "1/6 confirmations" in shown
    assert "best eval_accuracy 0.7500 (trial 0), about 1:01 left" in shown
