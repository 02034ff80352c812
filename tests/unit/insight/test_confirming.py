"""Seeds may tell that the plan which a single trial recommends falls behind."""

from __future__ import annotations

import pytest

from hf_freeze.insight.confirming import Confirmation, reconsider
from hf_freeze.insight.front import Recommendation
from hf_freeze.insight.outcomes import Trial, TrialOutcome

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
