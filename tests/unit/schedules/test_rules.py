"""Every schedule follows its rule, decides from the moment and its own state alone, and says what does not fit."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from hf_freeze.config.schedule import SCHEDULE_OPTIONS
from hf_freeze.errors import ConfigError, PlanError
from hf_freeze.schedules import (
    Choice,
    Moment,
    RunLength,
    Schedule,
    ScheduleOptions,
    register_schedule,
    registry,
    schedule_names,
)
from hf_freeze.schedules.progressive import annealed, exponential_depth, freezing_time, linear_depth
from hf_freeze.schedules.rotating import drawn
from hf_freeze.schedules.run_length import count_evaluations
from tests.unit.schedules.courses import course_of, frozen_blocks, moments, schedule_of

RUN = RunLength(num_steps=12, steps_per_epoch=4, evaluates=True)


def changes(told: list[str]) -> list[tuple[int, str]]:
    """The steps at which something changes, and what is frozen from then on."""
    return [(step, now) for step, now in enumerate(told) if step == 0 or now != told[step - 1]]


class TestProgressive:
    def test_linear(self) -> None:
        told = frozen_blocks(schedule_of({"type": "progressive", "t0": 0.25}), moments(12))
        assert changes(told) == [(0, ""), (6, "-0"), (9, "-01")]

    def test_the_depth_grows_to_the_ceiling_at_the_end(self) -> None:
        depths = [linear_depth(step / 100, ceiling=11, t0=0.1) for step in range(101)]
        assert depths == sorted(depths)
        assert (depths[10], depths[-1]) == (0, 11)

    def test_exponential(self) -> None:
        told = frozen_blocks(schedule_of({"type": "progressive", "curve": "exponential"}), moments(12, 4))
        assert changes(told) == [(0, ""), (3, "-01"), (6, "-012")]
        assert [exponential_depth(e, num_blocks=6, ceiling=6, a=0.5) for e in range(4)] == [0, 3, 5, 6]

    def test_cubic(self) -> None:
        schedule = schedule_of({"type": "progressive", "curve": "cubic", "t0": 0.0})
        told = frozen_blocks(schedule, moments(27))
        assert changes(told) == [(0, "-0"), (1, "-01"), (8, "-012")]
        assert freezing_time(3, num_blocks=4, t0=0.8) == 1.0

    def test_the_learning_rate_of_a_block_is_zero_when_it_freezes(self) -> None:
        assert annealed(0.0, 0.5) == 1.0
        assert annealed(0.25, 0.5) == pytest.approx(0.5)
        assert annealed(0.5, 0.5) == annealed(0.7, 0.5) == 0.0
        schedule = schedule_of({"type": "progressive", "curve": "cubic", "t0": 0.5})
        factors = schedule.lr_factors(Moment(1, 16, 0.0, 1))
        assert sorted(factors) == ["blocks[0]", "blocks[1]", "blocks[2]", "embeddings"]
        assert factors["blocks[0]"] == factors["embeddings"] == pytest.approx(0.5)

    def test_what_the_section_freezes_is_never_thawed(self) -> None:
        course = course_of(frozen=["embeddings", "blocks[0]", "blocks[2]"])
        told = frozen_blocks(schedule_of({"type": "progressive"}, course), moments(20))
        assert changes(told) == [(0, "-02"), (14, "-012")]

    def test_embeddings_that_train_by_request_stay_so(self) -> None:
        told = frozen_blocks(schedule_of({"type": "progressive"}, course_of(embeddings_follow=False)), moments(20))
        assert told[-1] == "01"

    def test_only_what_the_plan_trains_may_train(self) -> None:
        schedule = schedule_of({"type": "progressive"}, course_of(frozen=["blocks[0]"]))
        assert schedule.may_train == {"embeddings", "blocks[1]", "blocks[2]", "blocks[3]", "head"}


class TestGradualUnfreeze:
    def test_without_a_section_all_but_the_head_is_frozen_at_first(self) -> None:
        schedule = schedule_of({"type": "gradual_unfreeze"})
        assert schedule.may_train == {"blocks[0]", "blocks[1]", "blocks[2]", "blocks[3]", "head"}
        assert changes(frozen_blocks(schedule, moments(12, 6))) == [
            (0, "-0123"), (2, "-012"), (4, "-01"), (6, "-0"), (8, "-")
        ]  # fmt: skip

    def test_the_section_is_the_start_and_the_floor_the_end(self) -> None:
        course = course_of(frozen=["embeddings", "blocks[0]", "blocks[1]", "blocks[2]"])
        schedule = schedule_of({"type": "gradual_unfreeze", "blocks_per_epoch": 5, "floor": 1}, course)
        assert changes(frozen_blocks(schedule, moments(4, 2))) == [(0, "-012"), (2, "-0")]
        assert schedule.warmup == 50

    def test_blocks_beside_those_with_adapters_stay_frozen(self) -> None:
        course = course_of(frozen=["embeddings", "blocks[0]", "blocks[1]"], is_asked=False)
        schedule = schedule_of({"type": "gradual_unfreeze"}, course)
        assert schedule.may_train == {"blocks[2]", "blocks[3]", "head"}
        assert frozen_blocks(schedule, moments(9, 9))[-1] == "-01"


class TestPlateau:
    def decided(self, values: list[float], **options: Any) -> list[str]:
        asked = moments(len(values) + 1, metrics={i + 1: {"eval_loss": v, "eval_f1": v} for i, v in enumerate(values)})
        return frozen_blocks(schedule_of({"type": "plateau", **options}), asked)[1:]

    def test_a_loss_that_stops_falling_thaws_a_block(self) -> None:
        assert self.decided([1.0, 0.9, 0.9, 0.8, 0.85]) == ["-0123", "-0123", "-012", "-012", "-01"]

    def test_patience_counts_evaluations_since_the_best_or_the_last_thaw(self) -> None:
        assert self.decided([1.0, 1.0, 1.0, 1.0, 1.0], patience=2) == ["-0123", "-0123", "-012", "-012", "-01"]

    def test_less_than_min_delta_is_no_improvement(self) -> None:
        assert self.decided([1.0, 0.95, 0.8], min_delta=0.1, blocks_per_thaw=2) == ["-0123", "-01", "-01"]

    def test_of_other_metrics_more_is_better(self) -> None:
        assert self.decided([0.5, 0.6, 0.6], metric="eval_f1") == ["-0123", "-0123", "-012"]
        assert self.decided([0.5, 0.6, 0.5], metric="eval_f1", greater_is_better=False) == ["-0123", "-012", "-01"]

    def test_nothing_is_decided_between_evaluations_and_nothing_below_the_floor(self) -> None:
        assert schedule_of({"type": "plateau"}).decide(Moment(3, 9, 0.3, 1)) is None
        assert self.decided([1.0] * 4, blocks_per_thaw=3, floor=2)[-1] == "-01"

    def test_what_is_not_a_number_is_no_improvement(self) -> None:
        assert self.decided([float("nan"), 1.0, 1.0]) == ["-012", "-012", "-01"]


class TestRotating:
    @pytest.mark.parametrize("order", ["shuffle", "ascending", "descending"])
    def test_every_block_comes_once_per_pass(self, order: str) -> None:
        passes = [[drawn("abcde", 3 * p + i, count=2, order=order, seed=0) for i in range(3)] for p in range(2)]
        assert [sorted("".join("".join(sorted(draw)) for draw in one)) for one in passes] == [list("abcde")] * 2

    def test_random_draws_repeat_with_the_seed_alone(self) -> None:
        one, again, other = (
            [drawn("abcdefgh", i, count=2, order="random", seed=s) for i in range(20)] for s in (1, 1, 2)
        )
        assert one == again != other
        assert all(len(draw) == 2 for draw in one)

    def test_blocks_change_every_few_steps_and_the_embeddings_rest(self) -> None:
        told = frozen_blocks(schedule_of({"type": "rotating", "every": 3, "order": "ascending"}), moments(9))
        assert changes(told) == [(0, "-123"), (3, "-023"), (6, "-013")]

    def test_embeddings_train_where_they_are_asked_for(self) -> None:
        schedule = schedule_of({"type": "rotating", "embeddings": True, "order": "ascending"})
        assert schedule.start == {"blocks[1]", "blocks[2]", "blocks[3]"}
        assert "embeddings" in schedule.may_train

    def test_two_blocks_of_a_larger_model(self) -> None:
        assert len(schedule_of({"type": "rotating"}, course_of(7)).start) == 6
        assert len(schedule_of({"type": "rotating"}, course_of(6)).start) == 6


def test_each_phase_lasts_until_its_end() -> None:
    phases = [
        {"until": 0.25, "freeze": {"blocks": {"first": 3}}},
        {"until": {"step": 6}, "freeze": {"blocks": {"first": 1}}},
        {"until": {"epoch": 2}, "freeze": {"blocks": {"first": 2}}},
        {"freeze": {"blocks": "none"}},
    ]
    schedule = schedule_of({"type": "phases", "phases": phases})
    schedule.begin(RUN)
    assert changes(frozen_blocks(schedule, moments(12, 3))) == [(0, "-012"), (3, "-0"), (6, "-01"), (8, "")]
    assert schedule.may_train == {"embeddings", "blocks[0]", "blocks[1]", "blocks[2]", "blocks[3]", "head"}


@pytest.mark.parametrize(
    ("options", "run", "message"),
    [
        (
            {"type": "progressive"},
            RunLength(2, 2, True),
            (
                "schedule: progressive would freeze nothing more in this run; got 2 steps and 1 epochs. The depth "
                "before the last step is 1, and the freeze section freezes as much. Train longer, choose another "
                "curve, or freeze less at the start."
            ),
        ),
        (
            {"type": "progressive", "ceiling": 5},
            RUN,
            "schedule.ceiling: is above the number of blocks; got 5. The model has 4. Write a number from 1 to 4.",
        ),
        (
            {"type": "gradual_unfreeze"},
            RunLength(9, 9, True),
            (
                "schedule: gradual_unfreeze would thaw nothing in this run; got 1 epochs. It thaws blocks at the start "
                "of the second epoch and of those after it. Train for two epochs at least."
            ),
        ),
        (
            {"type": "plateau", "metric": "eval_f1"},
            RunLength(9, 9, False),
            (
                "schedule.metric: nothing is evaluated while training; got 'eval_f1'. training.eval_strategy is 'no'. "
                "Set it to 'epoch' or 'steps', and give rows to evaluate."
            ),
        ),
        (
            {"type": "rotating"},
            RUN,
            (
                "schedule.every: the run ends before blocks are drawn a second time; got 20. Training takes 12 steps. "
                "Draw more often, or train longer."
            ),
        ),
        (
            {"type": "phases", "phases": [{"until": {"step": 20}, "freeze": {}}, {"freeze": {}}]},
            RUN,
            (
                "schedule.phases.0.until: this phase ends outside the run; got {'step': 20}. The run has 12 steps and "
                "3 epochs. Phases follow one another inside the run, each with a step at least, and the last one, "
                "which may leave until out, lasts until its end."
            ),
        ),
        (
            {"type": "phases", "phases": [{"until": 0.5, "freeze": {}}, {"until": {"epoch": 1}, "freeze": {}}]},
            RUN,
            (
                "schedule.phases.1.until: this phase ends before step 5, ahead of the one before it, which ends before "
                "step 7; got {'epoch': 1}. The run has 12 steps and 3 epochs. Phases follow one another inside the "
                "run, each with a step at least, and the last one, which may leave until out, lasts until its end."
            ),
        ),
        (
            {"type": "phases", "phases": [{"until": {"epoch": 1.5}, "freeze": {}}, {"until": 0.8, "freeze": {}}]},
            RunLength(9, 6, True),
            (
                "schedule.phases.0.until: this phase ends outside the run; got {'epoch': 1.5}. The run has 9 steps and "
                "1.5 epochs. Phases follow one another inside the run, each with a step at least, and the last one, "
                "which may leave until out, lasts until its end."
            ),
        ),
        (
            {"type": "phases", "phases": [{"until": 0.5, "freeze": {}}, {"until": 0.8, "freeze": {}}]},
            RUN,
            (
                "schedule.phases.1.until: this phase ends elsewhere than the run; got 0.8. The run has 12 steps and 3 "
                "epochs. Phases follow one another inside the run, each with a step at least, and the last one, which "
                "may leave until out, lasts until its end."
            ),
        ),
        (
            {"type": "phases", "phases": [{"until": u, "freeze": {}} for u in ({"epoch": 2}, 0.8, None)]},
            RunLength(13, 6, True),
            (
                "schedule.phases.1.until: this phase ends before step 12, ahead of the one before it, which ends "
                "before step 13; got 0.8. The run has 13 steps and 2.16667 epochs. Phases follow one another inside "
                "the run, each with a step at least, and the last one, which may leave until out, lasts until its end."
            ),
        ),
        (
            {"type": "phases", "phases": [{"until": u, "freeze": {}} for u in (0.01, 0.02, None)]},
            RunLength(24, 6, True),
            (
                "schedule.phases.1.until: this phase would have no step, as it begins and ends before step 2; got "
                "0.02. The run has 24 steps and 4 epochs. Phases follow one another inside the run, each with a step "
                "at least, and the last one, which may leave until out, lasts until its end."
            ),
        ),
        (
            {"type": "phases", "phases": [{"until": {"epoch": 2}, "freeze": {}}, {"freeze": {}}]},
            RunLength(24, None, True),
            (
                "schedule.phases.0.until: counts epochs, and how long one is is not known; got {'epoch': 2}. The "
                "training rows have no length. Write a share of the run, or {step: n}."
            ),
        ),
        (
            {"type": "gradual_unfreeze"},
            RunLength(24, None, True),
            (
                "schedule: gradual_unfreeze counts epochs, and how long one is is not known; got training rows without "
                "a length. Take rows that have one, or schedule.type phases with steps or shares of the run."
            ),
        ),
        (
            {"type": "progressive", "curve": "exponential"},
            RunLength(24, None, True),
            (
                "schedule.curve: exponential counts epochs, and how long one is is not known; got training rows "
                "without a length. Take rows that have one, or another curve."
            ),
        ),
        (
            {"type": "plateau", "patience": 5},
            RunLength(24, 6, True, num_evaluations=5),
            (
                "schedule.patience: plateau would thaw nothing in this run; got 5. 5 evaluations come before the last "
                "of 24 steps, the first of which is only compared with. Evaluate more often, wait for fewer "
                "evaluations, or train longer."
            ),
        ),
    ],
)
def test_runs_that_are_too_short(options: dict[str, Any], run: RunLength, message: str) -> None:
    schedule = schedule_of(options, course_of(frozen=["embeddings", "blocks[0]"]) if run.num_steps == 2 else None)
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        schedule.begin(run)


def test_a_last_phase_may_name_the_end_of_a_run_that_ends_within_an_epoch() -> None:
    phases = [{"until": {"epoch": 1}, "freeze": {}}, {"until": {"epoch": 1.5}, "freeze": {}}]
    schedule = schedule_of({"type": "phases", "phases": phases})
    schedule.begin(RunLength(8, 5, False))
    choices = [schedule.decide(moment) for moment in moments(8)]
    assert [choice.numbers["phase"] for choice in choices if choice is not None] == [0] * 5 + [1] * 3


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"strategy": "steps", "every": 1000}, 0),
        ({"strategy": "steps", "every": 0.25}, 3),
        ({"strategy": "steps", "every": 4, "delay": 100}, 0),
        ({"strategy": "steps", "every": 4, "delay": 9, "at_start": True}, 4),
        ({"strategy": "epoch"}, 3),
        ({"strategy": "epoch", "delay": 2.5}, 1),
        ({"strategy": "no", "at_start": True}, 1),
    ],
)
def test_only_evaluations_that_a_step_follows_count(options: dict[str, Any], expected: int) -> None:
    defaults = {"strategy": "no", "every": 4, "delay": 0, "at_start": False}
    assert count_evaluations(24, 6, **{**defaults, **options}) == expected


def test_how_often_a_stream_is_evaluated_by_epochs_is_not_known() -> None:
    assert count_evaluations(24, None, strategy="epoch", every=4, delay=0, at_start=False) is None


@pytest.mark.parametrize(
    ("options", "frozen", "message"),
    [
        (
            {"type": "gradual_unfreeze"},
            (),
            (
                "schedule: gradual_unfreeze has nothing to thaw; got a floor of 0. 0 blocks are frozen at the start "
                "and could train. Freeze more blocks, or lower schedule.floor."
            ),
        ),
        (
            {"type": "plateau", "floor": 4},
            None,
            (
                "schedule: plateau has nothing to thaw; got a floor of 4. 4 blocks are frozen at the start and could "
                "train. Freeze more blocks, or lower schedule.floor."
            ),
        ),
        (
            {"type": "rotating", "blocks": 2},
            ("blocks[0]", "blocks[1]"),
            (
                "schedule.blocks: leaves nothing to rotate; got 2. 2 blocks may train. Draw fewer of them, or freeze "
                "fewer blocks in the freeze section."
            ),
        ),
        (
            {"type": "rotating", "embeddings": True},
            ("embeddings", "blocks[0]"),
            (
                "schedule.embeddings: the freeze section freezes the embeddings; got True. Set freeze.embeddings to "
                "'full', or schedule.embeddings to false."
            ),
        ),
        (
            {"type": "phases", "phases": [{"freeze": {"blocks": {"first": 1}}}]},
            ("blocks[1]",),
            (
                "freeze: every phase says by itself what is frozen; got a section that freezes blocks[1]. Keep "
                "always_train and keep_dropout there alone, and write the rest into schedule.phases."
            ),
        ),
    ],
)
def test_sections_that_do_not_fit(options: dict[str, Any], frozen: tuple[str, ...] | None, message: str) -> None:
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        schedule_of(options, course_of(frozen=frozen))


def test_a_metric_that_is_never_logged() -> None:
    message = (
        "schedule.metric: this metric was not logged by the evaluation; got 'eval_acuracy'. It logged eval_accuracy, "
        "eval_loss. Name one of them. Did you mean 'eval_accuracy'?"
    )
    schedule = schedule_of({"type": "plateau", "metric": "eval_acuracy"})
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        schedule.decide(Moment(1, 9, 0.1, 1, {"eval_loss": 1.0, "eval_accuracy": 0.5}))


@pytest.mark.parametrize("name", [name for name in schedule_names() if name != "phases"])
def test_a_schedule_goes_on_from_its_state(name: str) -> None:
    options = {"type": name, **({"every": 2} if name == "rotating" else {})}
    metrics = {step: {"eval_loss": 1.0 / (1 + step % 4)} for step in range(0, 24, 2)}
    asked = moments(24, 6, metrics)
    whole = frozen_blocks(schedule_of(options), asked)
    for step in range(1, 24):
        first = schedule_of(options)
        frozen_blocks(first, asked[:step])
        resumed = schedule_of(options)
        resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
        after = [resumed.decide(moment) for moment in asked[step:]]
        again = schedule_of(options)
        expected = [again.decide(moment) for moment in asked][step:]
        assert after == expected
    assert len(whole) == 24


class TestSchedulesOfTheUser:
    def test_one_is_found_where_it_is_defined(self) -> None:
        schedule = schedule_of({"type": "tests.unit.schedules.own:Alternating", "every": 2})
        assert changes(frozen_blocks(schedule, moments(6))) == [(0, "-"), (2, "-0"), (4, "-")]

    def test_one_is_found_by_the_name_it_registers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Both take the name in, and give it back afterwards.
        monkeypatch.setitem(SCHEDULE_OPTIONS, "resting", ScheduleOptions)
        monkeypatch.setitem(registry._SCHEDULES, "resting", Schedule)

        @register_schedule("resting")
        class Resting(Schedule):
            def decide(self, moment: Moment) -> Choice | None:
                return None

        assert isinstance(schedule_of({"type": "resting"}), Resting)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"type": "tests.unit.schedules.nowhere:Alternating"},
                (
                    "schedule.type: this module cannot be imported; got 'tests.unit.schedules.nowhere:Alternating'. "
                    "Python says: No module named 'tests.unit.schedules.nowhere'. Install the package, or put its "
                    "folder on PYTHONPATH."
                ),
            ),
            (
                {"type": "tests.unit.schedules.own:Alternatin"},
                (
                    "schedule.type: tests.unit.schedules.own has no schedule of this name; got "
                    "'tests.unit.schedules.own:Alternatin'. Its schedules are Alternating. Derive the class from "
                    "hf_freeze.schedules.Schedule. Did you mean 'Alternating'?"
                ),
            ),
            (
                {"type": "json:dumps"},
                (
                    "schedule.type: json has no schedule of this name; got 'json:dumps'. It has none. Derive the class "
                    "from hf_freeze.schedules.Schedule."
                ),
            ),
            (
                {"type": "tests.unit.schedules.own:Alternating", "evry": 2},
                "schedule.evry: unknown key; got 2. Known keys: every, type. Did you mean 'every'?",
            ),
        ],
    )
    def test_one_that_cannot_be_used_is_said(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            schedule_of(options)

    def test_one_without_decide_says_so(self) -> None:
        with pytest.raises(NotImplementedError, match=r"^Schedule has no method decide$"):
            Schedule(None, course_of()).decide(Moment(0, 1, 0.0, 1))
