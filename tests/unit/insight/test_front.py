"""The Pareto front and the recommendation, on made-up trials."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_freeze.insight.front import best_of, pareto_front, recommend
from hf_freeze.insight.outcomes import Trial, TrialOutcome
from hf_freeze.insight.plot import front_line


def trial(
    number: int, accuracy: float, seconds: float, memory: int = 100, trainable: int = 10, *, state: str = "complete"
) -> Trial:
    outcome = TrialOutcome({"eval_accuracy": accuracy}, seconds, memory, False, trainable, 3)
    return Trial(number, state, {"depth": number}, outcome, None)


def numbers(trials: list[Trial]) -> list[int]:
    return [found.number for found in trials]


def test_a_trial_that_another_equals_or_beats_in_everything_is_not_on_the_front() -> None:
    trials = [trial(0, 0.8, 10), trial(1, 0.8, 11), trial(2, 0.7, 5), trial(3, 0.7, 5, trainable=11)]
    assert numbers(pareto_front(trials, "eval_accuracy", "maximize")) == [0, 2]


@pytest.mark.parametrize("cost", ["seconds", "memory", "trainable"])
def test_being_cheapest_in_one_cost_is_enough_for_the_front(cost: str) -> None:
    cheap = {"seconds": 5.0, "memory": 50, "trainable": 5}
    trials = [trial(0, 0.8, 10), trial(1, 0.5, **{"seconds": 20.0, cost: cheap[cost]})]  # type: ignore[arg-type]
    assert numbers(pareto_front(trials, "eval_accuracy", "maximize")) == [0, 1]


def test_equal_trials_are_on_the_front_together() -> None:
    assert numbers(pareto_front([trial(0, 0.8, 10), trial(1, 0.8, 10)], "eval_accuracy", "maximize")) == [0, 1]


def test_only_complete_trials_count() -> None:
    trials = [trial(0, 0.9, 1, state="pruned"), trial(1, 0.5, 9)]
    assert numbers(pareto_front(trials, "eval_accuracy", "maximize")) == [1]
    best = best_of(trials, "eval_accuracy", "maximize")
    assert best is not None
    assert best.number == 1


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 4), min_size=1, max_size=9))
def test_whatever_is_off_the_front_is_beaten_by_one_on_it(values: list[tuple[int, int, int, int]]) -> None:
    trials = [trial(i, *value) for i, value in enumerate(values)]
    front = numbers(pareto_front(trials, "eval_accuracy", "minimize"))
    assert front
    for index, value in enumerate(values):
        beaten = any(all(a <= b for a, b in zip(values[i], value, strict=True)) and values[i] != value for i in front)
        assert beaten == (index not in front)


class TestRecommendation:
    TRIALS = (trial(0, 0.800, 20, trainable=99), trial(1, 0.795, 10), trial(2, 0.794, 5), trial(3, 0.7, 1))

    def test_the_fastest_within_the_tolerance_is_recommended(self) -> None:
        found = recommend(self.TRIALS, "eval_accuracy", "maximize", tolerance=0.005)
        assert found is not None
        assert (found.chosen.number, found.best.number) == (1, 0)
        assert found.given_up == pytest.approx(0.005)
        assert found.reason == (
            "Of the 2 complete trials within 0.005 of the best eval_accuracy, 0.8000, it trains fastest: 0.7950 in "
            "10.0 seconds, where the best takes 20.0 (2.0 times as long) and trains 99 parameters instead of 10."
        )

    def test_the_best_is_recommended_where_nothing_comes_near(self) -> None:
        found = recommend(self.TRIALS, "eval_accuracy", "maximize", tolerance=0.001)
        assert found is not None
        assert found.chosen.number == 0
        assert found.reason == (
            "It has the best eval_accuracy, 0.8000, and none of the other 3 comes within 0.001 of it."
        )

    @pytest.mark.parametrize(
        ("num", "reason"),
        [
            (1, "It is the only complete trial; its eval_accuracy is 0.8000."),
            (
                2,
                "It has the best eval_accuracy, 0.8000, and the other complete trial does not come within 0.001 of it.",
            ),
        ],
    )
    def test_few_complete_trials_are_told_as_such(self, num: int, reason: str) -> None:
        found = recommend(self.TRIALS[:num], "eval_accuracy", "maximize", tolerance=0.001)
        assert found is not None
        assert found.reason == reason

    def test_less_is_better_where_the_direction_says_so(self) -> None:
        found = recommend(self.TRIALS, "eval_accuracy", "minimize", tolerance=0.0)
        assert found is not None
        assert found.chosen.number == 3

    def test_the_best_may_be_the_fastest_itself(self) -> None:
        found = recommend([trial(0, 0.8, 1), trial(1, 0.8, 2)], "eval_accuracy", "maximize", tolerance=0.0)
        assert found is not None
        assert found.reason == (
            "Of the 2 complete trials within 0 of the best eval_accuracy, 0.8000, it trains fastest, and it is the "
            "best itself."
        )

    def test_there_is_none_without_a_complete_trial(self) -> None:
        assert recommend([trial(0, 0.9, 1, state="pruned")], "eval_accuracy", "maximize", tolerance=0.1) is None


def test_the_line_of_a_picture_rises_with_the_cost() -> None:
    points = [(3.0, 0.7), (1.0, 0.5), (2.0, 0.8), (2.0, 0.6), (4.0, 0.9)]
    assert front_line(points, "maximize") == [(1.0, 0.5), (2.0, 0.8), (4.0, 0.9)]
    assert front_line(points, "minimize") == [(1.0, 0.5)]
