"""The loop of a search: failures, budgets of time, and what it tells as it goes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_freeze.errors import SearchError
from hf_freeze.insight.outcomes import Trial, TrialOutcome
from hf_freeze.insight.search import Progress, Report, run_trials
from hf_freeze.insight.space import Point
from tests.unit.insight.cheap_search import METRIC, open_study, outcome, section, space, value_of


def search(
    folder: Path,
    run: Callable[[Point, Report], TrialOutcome],
    watch: Callable[[Progress], None] = lambda progress: None,
    **options: object,
) -> list[Trial]:
    chosen = section(sampler="grid", **options)
    study = open_study(folder / "study.db", space(4), chosen)
    try:
        return run_trials(study, chosen, run, watch)
    finally:
        study.close()


def good(point: Point, report: Report) -> TrialOutcome:
    report({METRIC: value_of(point)}, is_last=True)
    return outcome(value_of(point), seconds=2.0)


def test_a_trial_that_fails_does_not_end_the_search(tmp_path: Path) -> None:
    def run(point: Point, report: Report) -> TrialOutcome:
        if point["axis0"] == "a2":
            raise RuntimeError("out of memory")
        return good(point, report)

    trials = search(tmp_path, run)
    assert sorted((trial.point["axis0"], trial.state, trial.error) for trial in trials) == [
        ("a0", "complete", None),
        ("a1", "complete", None),
        ("a2", "failed", "RuntimeError: out of memory"),
        ("a3", "complete", None),
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("metric", [METRIC, "eval_loss"])
def test_a_metric_that_is_no_number_fails_its_trial(tmp_path: Path, metric: str, value: float) -> None:
    def run(point: Point, report: Report) -> TrialOutcome:
        report({METRIC: 0.5, metric: value if point["axis0"] == "a1" else 0.5}, is_last=True)
        return outcome(0.5)

    failed = [trial for trial in search(tmp_path, run) if trial.state == "failed"]
    assert [(trial.point["axis0"], trial.error) for trial in failed] == [
        ("a1", f"{metric} is {value} after evaluation 1")
    ]


def test_the_first_error_is_told_once_where_every_trial_failed(tmp_path: Path) -> None:
    def run(point: Point, report: Report) -> TrialOutcome:
        raise ValueError("the rows are wrong")

    for _ in range(2):  # Also where there is nothing left to try.
        with pytest.raises(SearchError) as caught:
            search(tmp_path, run)
        first, second = str(caught.value).splitlines()
        assert first.startswith("search: every one of the 4 trials failed; got first, with axis0 a")
        assert first.endswith(": the rows are wrong")
        assert second == ("There is nothing to choose from. Mend what it says, and name a new file in search.study.")


def test_a_trial_without_an_evaluation_fails(tmp_path: Path) -> None:
    with pytest.raises(SearchError) as caught:
        search(tmp_path, lambda point, report: outcome(0.5), trials=1)
    assert "training ended before any evaluation, so there is no eval_accuracy" in str(caught.value)


def test_no_trial_begins_when_the_time_is_up(tmp_path: Path) -> None:
    assert len(search(tmp_path, good, seconds=1e-9)) == 0
    assert len(search(tmp_path, good, seconds=60)) == 4


def test_the_best_and_the_time_left_are_told(tmp_path: Path) -> None:
    told: list[Progress] = []
    search(tmp_path, good, told.append, confirm={"seeds": 0})
    assert [(len(progress.trials), progress.num_left) for progress in told] == [
        (1, 3),
        (1, 3),
        (2, 2),
        (2, 2),
        (3, 1),
        (3, 1),
        (4, 0),
        (4, 0),
    ]
    assert told[0].best is None
    assert told[0].seconds_left is None
    assert told[-1].best is not None
    assert told[-1].best.point == {"axis0": "a3"}
    assert told[1].seconds_left == 6.0
    assert told[-1].seconds_left == 0.0


def test_the_time_left_counts_the_runs_that_confirm_the_answer(tmp_path: Path) -> None:
    told: list[Progress] = []
    search(tmp_path, good, told.append, confirm={"seeds": 5})
    assert told[1].seconds_left == 6.0 + 5 * 3 * 2.0
    assert told[-1].seconds_left == 5 * 3 * 2.0
