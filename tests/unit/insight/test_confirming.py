"""Seeds may tell that the plan which a single trial recommends falls behind."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest

from hf_freeze.config import RunConfig, parse_config
from hf_freeze.insight.answer import FULL, RECOMMENDED, Answer
from hf_freeze.insight.confirming import Confirmation, confirm, reconsider
from hf_freeze.insight.front import Recommendation
from hf_freeze.insight.outcomes import Trial, TrialOutcome
from tests.unit.insight.cheap_search import open_study, section, space

METRIC = "eval_accuracy"


def trial(number: int) -> Trial:
    return Trial(number, "complete", {"depth": number}, outcome(0.8), None)


def outcome(value: float, on_test: float = 0.5) -> TrialOutcome:
    return TrialOutcome({METRIC: value, "test_accuracy": on_test}, 1.0, 1, False, 1, 1)


FOUND = Recommendation(trial(1), trial(0), 0.0, "It is cheap.")


def reconsidered(own: list[float], best: list[float], found: Recommendation = FOUND) -> Recommendation:
    # On the test rows the cheaper plan is better: they have no say.
    mine = Confirmation("recommended", tuple(outcome(value, on_test=0.9) for value in own))
    other = Confirmation("best of the search", tuple(map(outcome, best)))
    return reconsider(found, mine, other, METRIC, "maximize", tolerance=0.005)


def test_the_best_is_recommended_where_the_cheaper_plan_falls_behind() -> None:
    made = reconsidered([0.78, 0.77, 0.79], [0.80, 0.80, 0.80])
    assert (made.chosen.number, made.best.number, made.given_up) == (0, 0, 0.0)
    assert made.reason == (
        "It has the best eval_accuracy. Trial 1 trains faster and came within 0.005 of it, but over 3 seeds it is "
        "0.0200 behind on the validation rows, standard error 0.0058."
    )


@pytest.mark.parametrize(
    ("own", "best"),
    [
        ([0.80, 0.80], [0.80, 0.80]),
        ([0.796, 0.796], [0.80, 0.80]),  # within the tolerance
        ([0.70, 0.84], [0.80, 0.80]),  # within a standard error
        ([0.85, 0.85], [0.80, 0.80]),
    ],
)
def test_the_cheaper_plan_stays_where_it_is_about_as_good(own: list[float], best: list[float]) -> None:
    assert reconsidered(own, best) is FOUND


def test_the_best_plan_stays() -> None:
    found = Recommendation(trial(0), trial(0), 0.0, "It is the best.")
    assert reconsidered([0.1, 0.1], [0.9, 0.9], found) is found


def config_of(rate: float) -> RunConfig:
    training = {"output_dir": "runs/x", "learning_rate": rate}
    return parse_config({"model": {"name_or_path": "m"}, "data": {"load_dataset": {"path": "p"}}, "training": training})


@pytest.mark.parametrize("fails", ["raises", "nan"])
def test_a_plan_that_cannot_be_confirmed_is_left_out_and_said(
    tmp_path: Path, fails: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Full fine-tuning may not fit where a frozen plan does: the answer must not be lost over it."""
    runs: list[float] = []

    def train(config: RunConfig) -> TrialOutcome:
        rate = float(config.training["learning_rate"])
        runs.append(rate)
        if rate < 1 or fails == "gone":
            return outcome(0.8)
        if fails == "raises":
            raise RuntimeError("out of memory")
        return outcome(0.8, on_test=math.nan)

    study = open_study(tmp_path / "study.db", space(2), section())
    plans = {"recommended": config_of(0.1), "full fine-tuning": config_of(1.0)}
    with caplog.at_level(logging.WARNING):
        found = confirm(study, plans, train, seeds=[1, 2])
    assert [(each.name, len(each.outcomes)) for each in found] == [("recommended", 2)]
    assert runs == [0.1, 1.0, 0.1]
    why = "RuntimeError: out of memory" if fails == "raises" else "nan for test_accuracy"
    (record,) = caplog.records
    assert record.getMessage() == f"search: a plan could not be confirmed (full fine-tuning, seed 1); got {why}"

    runs.clear()
    fails = "gone"
    assert len(confirm(study, plans, train, seeds=[1, 2])) == 2
    assert runs == [1.0, 1.0]
    study.close()


@pytest.mark.parametrize(("direction", "loss"), [("minimize", -0.05), ("maximize", 0.05)])
def test_how_far_full_fine_tuning_is_ahead_has_the_sign_of_the_metric(direction: str, loss: float) -> None:
    options = section(direction=direction)
    confirmations = tuple(
        Confirmation(name, (outcome(0.8, on_test=0.5 + ahead), outcome(0.8, on_test=0.5 + ahead)))
        for name, ahead in ((RECOMMENDED, 0.0), (FULL, loss))
    )
    answer = Answer(options, (), (), (), FOUND, confirmations, is_over=True)
    assert answer.sentences[-1].startswith(
        f"Full fine-tuning still wins on the test rows ({loss:+.4f} in test_accuracy, standard error 0.0000 over 2 "
        "seeds): take it where"
    )
