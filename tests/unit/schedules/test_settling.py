"""Schedules that freeze what has settled follow their rules, and say what does not fit. The trainer is not in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch

from hf_freeze.config.schedule import SCHEDULE_OPTIONS
from hf_freeze.errors import ConfigError, PlanError
from hf_freeze.schedules import Choice, Moment, RunLength, Schedule, Statistics
from hf_freeze.schedules.autofreeze import num_settled, relative_change
from hf_freeze.schedules.freezing import FreezingSchedule
from hf_freeze.schedules.plasticity import Series, plasticity, similarities, slope
from tests.unit.schedules.courses import course_of, schedule_of

BLOCKS = [f"blocks[{index}]" for index in range(4)]
ROWS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


def begun(num_steps: int, options: Mapping[str, Any], **course: Any) -> Schedule:
    schedule = schedule_of(options, course_of(**course))
    schedule.begin(RunLength(num_steps, num_steps, evaluates=False))
    return schedule


def asked(schedule: Schedule, step: int, num_steps: int, **gathered: Any) -> Choice | None:
    assert schedule.is_due(Moment(step, num_steps, 0.0, 1))
    return schedule.decide(Moment(step, num_steps, 0.0, 1, {}, Statistics(**gathered)))


@pytest.mark.parametrize("options", [{"type": "autofreeze", "intervals": 10}, {"type": "plasticity", "every": 10}])
def test_one_block_goes_on_training_where_the_last_are_frozen_from_the_start(options: Mapping[str, Any]) -> None:
    frozen = {"blocks[2]", "blocks[3]"}
    schedule = begun(100, options, frozen=frozen)
    assert isinstance(schedule, FreezingSchedule)
    assert schedule.num_freezable == 1
    assert schedule.bounds == (frozen, frozen | {"embeddings", "blocks[0]"})
    message = (
        f"schedule: {options['type']} has nothing to freeze; got a largest depth of 3. 3 of 4 blocks are frozen at the "
        "start, and one goes on training. Freeze less in the freeze section, or raise schedule.ceiling."
    )
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        begun(100, options, frozen=frozen | {"blocks[1]"})


class TestAutofreeze:
    OPTIONS: ClassVar = {"type": "autofreeze", "intervals": 10, "min_progress": 0.0}

    def test_what_comes_before_the_first_block_that_changes_freezes(self) -> None:
        schedule = begun(40, self.OPTIONS)
        assert asked(schedule, 4, 40, gradients=dict.fromkeys(BLOCKS, 10.0)) is None
        choice = asked(schedule, 8, 40, gradients=dict(zip(BLOCKS, [9.0, 11.5, 14.0, 12.0], strict=True)))
        assert choice == Choice(
            frozenset({"embeddings", "blocks[0]", "blocks[1]"}),
            "interval 2: gradients changed by 0.100, 0.150, 0.400, 0.200 from blocks[0] on, and the percentile 50 is "
            "0.175",
            {
                "interval": 2,
                "percentile": pytest.approx(0.175),
                "change/blocks[0]": pytest.approx(0.1),
                "change/blocks[1]": pytest.approx(0.15),
                "change/blocks[2]": pytest.approx(0.4),
                "change/blocks[3]": pytest.approx(0.2),
            },
        )

    def test_no_more_blocks_freeze_at_a_time_than_asked_for(self) -> None:
        schedule = begun(40, self.OPTIONS | {"blocks_per_decision": 1, "percentile": 100})
        asked(schedule, 4, 40, gradients=dict.fromkeys(BLOCKS, 10.0))
        for step, depth in ((8, 1), (12, 2), (16, 3)):
            settling = dict(zip(BLOCKS, (10.0, 10.0, 10.0, 10.0 + step), strict=True))
            choice = asked(schedule, step, 40, gradients=settling)
            assert choice is not None
            assert choice.frozen == {"embeddings", *BLOCKS[:depth]}
        assert schedule.needs == frozenset()

    def test_nothing_freezes_before_its_time_nor_above_the_ceiling(self) -> None:
        schedule = begun(40, self.OPTIONS | {"min_progress": 0.25, "ceiling": 1})
        for step in (4, 8):
            assert asked(schedule, step, 40, gradients=dict(zip(BLOCKS, range(1, step, 1), strict=False))) is None
        choice = asked(schedule, 12, 40, gradients=dict(zip(BLOCKS, (1, 2, 9, 9), strict=True)))
        assert choice is not None
        assert choice.frozen == {"embeddings", "blocks[0]"}

    def test_intervals_are_of_equal_length_and_not_more_than_asked_for(self) -> None:
        schedule = begun(39, self.OPTIONS)
        due = [step for step in range(39) if schedule.is_due(Moment(step, 39, 0.0, 1))]
        assert due == [4, 8, 12, 16, 20, 24, 28, 32, 36]

    def test_the_embeddings_follow_the_first_block_and_the_section_stays(self) -> None:
        schedule = begun(40, self.OPTIONS, frozen=["blocks[1]"], embeddings_follow=False)
        asked(schedule, 4, 40, gradients=dict.fromkeys(BLOCKS, 1.0))
        choice = asked(schedule, 8, 40, gradients={"blocks[0]": 1.0, "blocks[2]": 1.1, "blocks[3]": 2.0})
        assert choice is not None
        assert choice.frozen == {"blocks[0]", "blocks[1]"}

    def test_gradients_that_are_no_numbers_decide_nothing(self) -> None:
        schedule = begun(40, self.OPTIONS)
        asked(schedule, 4, 40, gradients=dict.fromkeys(BLOCKS, 1.0))
        assert asked(schedule, 8, 40, gradients=dict.fromkeys(BLOCKS, float("nan"))) is None
        assert schedule.state_dict() == {"num_frozen": 0, "num_intervals": 1, "norms": dict.fromkeys(BLOCKS, 1.0)}

    def test_the_control_shuffles_the_same_numbers_by_the_seed(self) -> None:
        told = []
        for seed in (1, 1, 2, 3):
            schedule = begun(40, self.OPTIONS | {"control": "shuffled"}, seed=seed)
            asked(schedule, 4, 40, gradients=dict.fromkeys(BLOCKS, 10.0))
            choice = asked(schedule, 8, 40, gradients=dict(zip(BLOCKS, [11.0, 12.0, 13.0, 14.0], strict=True)))
            assert choice is not None
            assert "shuffled gradients changed by" in choice.why
            told.append([choice.numbers[f"change/{block}"] for block in BLOCKS])
        assert told[0] == told[1]
        assert len({tuple(each) for each in told}) > 1
        assert {tuple(sorted(each)) for each in told} == {tuple(sorted(told[0]))}

    def test_nothing_is_decided_from_changes_that_are_not_finite(self) -> None:
        schedule = begun(40, self.OPTIONS)
        told = [asked(schedule, step, 40, gradients={**dict.fromkeys(BLOCKS, 1.0), "blocks[3]": last})
                for step, last in ((4, 0.0), (8, 1.0), (12, 2.0))]  # fmt: skip
        assert told[:2] == [None, None]
        assert told[2] is not None

    def test_a_first_gradient_is_an_infinite_change(self) -> None:
        assert relative_change(0.0, 1.0) == float("inf")
        assert relative_change(0.0, 0.0) == 0.0
        assert num_settled([0.3, 0.1], 50) == (0, pytest.approx(0.2))

    def test_fewer_steps_than_intervals_are_refused(self) -> None:
        message = (
            "schedule.intervals: the run has fewer steps than intervals; got 20. Training takes 12 steps. Ask for "
            "fewer intervals, or train longer."
        )
        with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
            begun(12, {"type": "autofreeze"})

    def test_a_run_without_a_decision_is_refused(self) -> None:
        message = (
            "schedule: autofreeze would freeze nothing in this run; got 3 intervals and a min_progress of 0.9. The "
            "last interval before the end of 12 steps ends at step 8, and a decision compares two of them. Ask for "
            "more intervals, lower min_progress, or train longer."
        )
        with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
            begun(12, {"type": "autofreeze", "intervals": 3, "min_progress": 0.9})


class TestPlasticity:
    OPTIONS: ClassVar = {"type": "plasticity", "every": 2, "min_progress": 0.0}

    @pytest.mark.parametrize("measure", ["sp", "cka"])
    def test_outputs_that_stay_are_at_no_distance_and_others_are(self, measure: str) -> None:
        now = similarities(ROWS, measure)
        assert plasticity(now, now, measure) == pytest.approx(0.0, abs=1e-12)
        assert plasticity(similarities(ROWS.flip(0), measure), now, measure) > 0.01

    def test_similarities_are_those_of_the_papers(self) -> None:
        gram = ROWS.double() @ ROWS.double().T
        rows = gram / gram.norm(dim=1, keepdim=True)
        other = similarities(ROWS.flip(0), "sp")
        assert torch.allclose(similarities(ROWS, "sp"), rows)
        assert plasticity(rows, other, "sp") == pytest.approx(float((rows - other).norm() ** 2 / 36))
        x, y = (each - each.mean(0) for each in (ROWS.double(), ROWS.double() ** 3))
        expected = 1 - (y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())
        found = plasticity(similarities(ROWS, "cka"), similarities(ROWS**3, "cka"), "cka")
        assert found == pytest.approx(float(expected))

    def test_a_block_settles_when_it_is_low_or_level(self) -> None:
        low, level = Series([]), Series([])
        for value in (1.0, 0.5, 0.1, 0.2, 0.1):
            low.add(value)
        assert low.settled(0.2) == "its last 3 are at most 0.2 of the largest, 1"
        for value in (1.0, 2.0, 3.0, 4.0, 5.0, 5.0, 5.0):
            level.add(value)
            assert level.settled(0.2) is None
        level.add(5.0)
        level.add(5.0)
        assert level.last == [5.0] * 5
        assert level.settled(0.2) == "its slope 0 is at most 0.2 of the steepest, 1"
        assert slope([0.0, 2.0, 1.0, 3.0]) == pytest.approx(0.8)

    def test_only_the_first_block_that_trains_freezes(self) -> None:
        schedule = begun(40, self.OPTIONS)
        outputs = dict.fromkeys(BLOCKS[:3], ROWS)
        assert asked(schedule, 0, 40, probe=outputs) is None
        moved = {**outputs, "blocks[0]": ROWS.flip(0), "blocks[2]": ROWS.flip(0)}
        for step in (2, 4, 6, 8):
            choice = asked(schedule, step, 40, probe=outputs if step > 2 else moved)
            assert choice is not None
            frozen = {"embeddings", "blocks[0]"} if step == 8 else set()
            assert choice.frozen == frozen
        assert choice.why.startswith("probe 4: the plasticity of blocks[0] is ")
        assert choice.why.endswith(f"; its last 3 are at most 0.2 of the largest, {choice.numbers['largest']:.3g}")
        assert choice.numbers["plasticity/blocks[2]"] == 0.0
        choice = asked(schedule, 10, 40, probe={block: outputs[block] for block in BLOCKS[1:3]})
        assert choice is not None
        assert choice.frozen == {"embeddings", "blocks[0]", "blocks[1]"}

    def test_the_snapshot_is_renewed(self) -> None:
        schedule = begun(40, self.OPTIONS | {"threshold": 0.001})
        outputs = dict.fromkeys(BLOCKS[:3], ROWS)
        asked(schedule, 0, 40, probe=outputs)
        moved = dict.fromkeys(outputs, ROWS.flip(0))
        told = [asked(schedule, step, 40, probe=moved) for step in (2, 4, 6, 8, 10)]
        found = [choice.numbers["plasticity/blocks[2]"] for choice in told if choice is not None]
        assert min(found[:4]) == max(found[:4]) > 0
        assert found[4] == 0.0

    def test_a_probe_comes_every_fortieth_of_the_run_and_ten_steps_at_least(self) -> None:
        for num_steps, every in ((100, 10), (400, 10), (1000, 25)):
            schedule = begun(num_steps, {"type": "plasticity"})
            due = [step for step in range(num_steps) if schedule.is_due(Moment(step, num_steps, 0.0, 1))]
            assert due == list(range(0, num_steps, every))

    def test_outputs_that_are_no_numbers_decide_nothing(self) -> None:
        schedule = begun(40, self.OPTIONS)
        assert asked(schedule, 0, 40, probe=dict.fromkeys(BLOCKS[:3], ROWS * float("nan"))) is None
        assert schedule.state_dict() == {"num_frozen": 0, "num_probes": 0, "series": {}}

    def test_the_control_shuffles_the_same_numbers(self) -> None:
        told = {}
        for control in (None, "shuffled"):
            schedule = begun(40, self.OPTIONS | {"control": control}, seed=2)
            asked(schedule, 0, 40, probe=dict.fromkeys(BLOCKS[:3], ROWS))
            choice = asked(schedule, 2, 40, probe={b: ROWS + i * ROWS.flip(0) for i, b in enumerate(BLOCKS[:3])})
            assert choice is not None
            told[control] = [choice.numbers[f"plasticity/{block}"] for block in BLOCKS[:3]]
        assert told[None] != told["shuffled"]
        assert sorted(told[None]) == sorted(told["shuffled"])

    def test_too_few_probes_are_refused(self) -> None:
        message = (
            "schedule: plasticity would freeze nothing in this run; got a probe every 10 steps and a min_progress of "
            "0.15. The last probe before the end of 30 steps comes at step 20, and a decision needs 3 after that at "
            "step 0. Probe more often (schedule.every), lower min_progress, or train longer."
        )
        with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
            begun(30, {"type": "plasticity"})


@pytest.mark.parametrize("name", ["autofreeze", "plasticity"])
def test_a_schedule_that_would_freeze_everything_is_refused(name: str) -> None:
    message = (
        f"schedule.ceiling: would let all blocks be frozen; got 4. The model has 4, and {name} keeps one at least. "
        "Write a smaller number, or leave it out."
    )
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        begun(100, {"type": name, "ceiling": 4})


@pytest.mark.parametrize("name", ["autofreeze", "plasticity"])
def test_nothing_left_to_freeze_is_refused(name: str) -> None:
    message = (
        f"schedule: {name} has nothing to freeze; got a largest depth of 2. 2 of 4 blocks are frozen at the start, "
        "and one goes on training. Freeze less in the freeze section, or raise schedule.ceiling."
    )
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        begun(100, {"type": name, "ceiling": 2}, frozen=["embeddings", *BLOCKS[:2]])


@pytest.mark.parametrize(
    ("name", "key", "value", "problem"),
    [
        ("autofreeze", "percentile", 0.0, "not above 0.0"),
        ("autofreeze", "percentile", 101.0, "above 100.0"),
        ("autofreeze", "min_progress", 1.0, "not below 1.0"),
        ("autofreeze", "intervals", 2, "below 3"),
        ("plasticity", "threshold", 1.0, "not below 1.0"),
        ("plasticity", "min_progress", -0.1, "below 0.0"),
    ],
)
def test_thresholds_out_of_range_are_refused(name: str, key: str, value: float, problem: str) -> None:
    says = SCHEDULE_OPTIONS[name].model_fields[key].description
    with pytest.raises(ConfigError, match=f"^{re.escape(f'schedule.{key}: is {problem}; got {value}. {says}')}$"):
        schedule_of({"type": name, key: value})
