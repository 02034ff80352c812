"""Seeds may tell that the plan which a single trial recommends falls behind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from hf_freeze.config import RunConfig, parse_config
from hf_freeze.insight.answer import BEST, FULL, RECOMMENDED, Answer
from hf_freeze.insight.confirming import Confirmation, Confirming, reconsider
from hf_freeze.insight.front import Recommendation
from hf_freeze.insight.outcomes import SeedRun, Trial, TrialOutcome
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
        "0.0200 behind on the validation rows, which is more than one standard error, 0.0058."
    )


def test_the_tolerance_does_not_stretch_a_standard_error() -> None:
    own = [0.8000, 0.8010, 0.8020, 0.8010, 0.8000]
    made = reconsidered(own, [value + 0.0045 for value in own])
    assert made.chosen.number == 0
    assert made.reason.endswith("over 5 seeds it is 0.0045 behind on the validation rows, which is more than one "
                                "standard error, 0.0000.")  # fmt: skip


def test_the_tolerance_decides_where_one_seed_tells_no_standard_error() -> None:
    assert reconsidered([0.796], [0.80]).chosen.number == 1
    made = reconsidered([0.79], [0.80])
    assert made.chosen.number == 0
    assert made.reason == (
        "It has the best eval_accuracy. Trial 1 trains faster and came within 0.005 of it, but with one more seed it "
        "is 0.0100 behind on the validation rows, which is more than 0.005."
    )


@pytest.mark.parametrize(
    ("own", "best", "figures"),
    [
        ([0.80, 0.80], [0.80, 0.80], "not behind the best"),
        ([0.70, 0.84], [0.80, 0.80], "0.0300 behind the best, not more than one standard error, 0.0700,"),
        ([0.85, 0.84], [0.80, 0.80], "not behind the best"),
    ],
)
def test_the_cheaper_plan_stays_where_it_is_about_as_good(own: list[float], best: list[float], figures: str) -> None:
    made = reconsidered(own, best)
    assert (made.chosen, made.best) == (FOUND.chosen, FOUND.best)
    assert made.reason == f"It is cheap. Over 2 seeds it is {figures} on the validation rows."


def test_the_best_plan_stays() -> None:
    found = Recommendation(trial(0), trial(0), 0.0, "It is the best.")
    assert reconsidered([0.1, 0.1], [0.9, 0.9], found) is found


def config_of(rate: float) -> RunConfig:
    training = {"output_dir": "runs/x", "learning_rate": rate}
    return parse_config({"model": {"name_or_path": "m"}, "data": {"load_dataset": {"path": "p"}}, "training": training})


@pytest.mark.parametrize("fails", ["raises", "nan"])
def test_a_plan_that_cannot_be_confirmed_is_left_out_and_said(tmp_path: Path, fails: str) -> None:
    """Full fine-tuning may not fit where a frozen plan does: the answer must not be lost over it."""
    rates: list[float] = []

    def train(config: RunConfig) -> TrialOutcome:
        rate = float(config.training["learning_rate"])
        rates.append(rate)
        if rate < 1 or fails == "gone":
            return outcome(0.8)
        if fails == "raises":
            raise RuntimeError("out of memory")
        return outcome(0.8, on_test=math.nan)

    study = open_study(tmp_path / "study.db", space(2), section())
    plans = {"recommended": config_of(0.1), "full fine-tuning": config_of(1.0)}
    told: list[tuple[list[tuple[str, int]], dict[str, int]]] = []

    def watch(runs: tuple[SeedRun, ...], left: Mapping[str, int]) -> None:
        told.append(([(run.name, run.seed) for run in runs], dict(left)))

    confirming = Confirming(study, train, seeds=[1, 2], watch=watch)
    assert [(each.name, len(each.outcomes)) for each in confirming.confirm(plans)] == [("recommended", 2)]
    assert rates == [0.1, 1.0, 0.1]
    ended = [("recommended", 1), ("full fine-tuning", 1), ("recommended", 2)]
    assert told == [
        ([], {"recommended": 2, "full fine-tuning": 2}),
        (ended[:1], {"recommended": 1, "full fine-tuning": 2}),
        (ended[:2], {"recommended": 1, "full fine-tuning": 1}),
        (ended, {"recommended": 0, "full fine-tuning": 0}),
    ]
    why = "RuntimeError: out of memory" if fails == "raises" else "test_accuracy is nan"
    assert confirming.failure(plans["recommended"]) is None
    assert confirming.failure(plans["full fine-tuning"]) == SeedRun("full fine-tuning", 1, None, why)

    rates.clear()
    fails = "gone"
    assert len(Confirming(study, train, seeds=[1, 2]).confirm(plans)) == 2
    assert rates == [1.0, 1.0]
    study.close()


def test_an_answer_tells_what_could_not_be_confirmed() -> None:
    failures = (SeedRun("trial 3", 42, None, "eval_loss is nan"), SeedRun(FULL, 43, None, "MemoryError: no message"))
    answer = Answer(section(), (), (), (), FOUND, (), is_over=True, num_left=3, failures=failures)
    assert answer.sentences == (
        "Recommended: trial 1 (). It is cheap.",
        "The time was up before 3 more trials could begin; run the same command again to go on.",
        "Trial 3 could not be confirmed; with seed 42 it gave: eval_loss is nan.",
        "Full fine-tuning could not be confirmed; with seed 43 it gave: MemoryError: no message.",
        "It was not compared with full fine-tuning on the test rows.",
    )
    none = replace(answer, front=(trial(3),), recommendation=None, failures=failures[:1])
    assert none.sentences == (
        "No plan could be confirmed, so there is nothing to recommend.",
        "Trial 3 could not be confirmed; with seed 42 it gave: eval_loss is nan.",
    )


def test_one_seed_tells_no_standard_error() -> None:
    confirmations = tuple(
        Confirmation(name, (outcome(0.8, on_test=value),))
        for name, value in ((RECOMMENDED, 0.5), (BEST, 0.51), (FULL, 0.5))
    )
    answer = Answer(section(), (), (), (), FOUND, confirmations, is_over=True)
    assert [row[:3] for row in answer.confirmation_rows] == [
        (RECOMMENDED, "0.5000", ""),
        (BEST, "0.5100", ""),
        (FULL, "0.5000", ""),
    ]
    assert answer.sentences[1] == (
        "The best plan of the search is ahead of it on the test rows (+0.0100 in test_accuracy with one seed, which "
        "tells no standard error)."
    )
    assert answer.sentences[2].startswith(
        "Full fine-tuning does not win on the test rows (+0.0000 in test_accuracy with one seed, which tells no "
        "standard error) and trains"
    )


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
