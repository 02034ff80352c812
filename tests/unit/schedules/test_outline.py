"""What is known of a schedule before training: its course, or the bounds of one that decides while training."""

from __future__ import annotations

import re

import pytest

from hf_freeze.errors import PlanError
from hf_freeze.schedules import Choice, Moment, Outline, RunLength, Schedule, Stretch
from tests.unit.schedules.courses import course_of, schedule_of

RUN = RunLength(num_steps=40, steps_per_epoch=10, evaluates=True)
LOWER = {"embeddings", "blocks[0]"}


def outline_of(name: str, run: RunLength = RUN, *, frozen: set[str] | None = None, **options: object) -> Outline:
    return schedule_of({"type": name, **options}, course_of(frozen=frozen)).outline(run)


def told(stretches: tuple[Stretch, ...]) -> list[tuple[int, int]]:
    """The first step of every stretch, and how many roles are frozen in it."""
    return [(stretch.first_step, len(stretch.frozen)) for stretch in stretches]


def test_a_course_that_follows_from_the_moment_is_known() -> None:
    found = outline_of("progressive")
    assert not found.is_adaptive
    assert found.least == found.most
    assert told(found.least) == [(0, 0), (16, 2), (28, 3)]
    assert found.least[1].frozen == LOWER


def test_thawing_at_each_epoch() -> None:
    assert told(outline_of("gradual_unfreeze").least) == [(0, 5), (10, 4), (20, 3), (30, 2)]


def test_a_rotating_schedule_begins_with_its_first_draw() -> None:
    found = outline_of("rotating", every=10, order="ascending")
    assert [stretch.first_step for stretch in found.least] == [0, 10, 20, 30]
    assert "blocks[0]" not in found.least[0].frozen


def test_nothing_moves_in_a_static_one() -> None:
    assert outline_of("static", frozen=LOWER).least == (Stretch(0, frozenset(LOWER)),)


@pytest.mark.parametrize("name", ["autofreeze", "plasticity"])
def test_freezing_as_blocks_settle_lies_between_the_start_and_the_ceiling(name: str) -> None:
    run = RunLength(num_steps=400, steps_per_epoch=100, evaluates=True)
    found = outline_of(name, run, ceiling=2)
    assert found.is_adaptive
    assert found.least == (Stretch(0, frozenset()),)
    assert found.most == (Stretch(0, frozenset({*LOWER, "blocks[1]"})),)


def test_thawing_on_a_plateau_lies_between_the_floor_and_the_start() -> None:
    found = outline_of("plateau", floor=1)
    assert found.is_adaptive
    assert found.least == (Stretch(0, frozenset(LOWER)),)
    assert found.most == (Stretch(0, frozenset({*LOWER, "blocks[1]", "blocks[2]", "blocks[3]"})),)


def test_an_outline_leaves_the_schedule_as_it_was() -> None:
    schedule = schedule_of({"type": "plateau"})
    before = schedule.state_dict()
    schedule.outline(RUN)
    assert schedule.state_dict() == before


def test_a_run_that_is_too_short_is_refused() -> None:
    message = (
        "schedule.every: the run ends before blocks are drawn a second time; got 20. Training takes 10 steps. Draw "
        "more often, or train longer."
    )
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        outline_of("rotating", RunLength(num_steps=10, steps_per_epoch=10, evaluates=False))


class Watchful(Schedule):
    """A schedule of a user that decides from metrics and says nothing of its bounds."""

    needs_metrics = True

    def decide(self, moment: Moment) -> Choice | None:
        """Decides nothing."""
        return None


def test_one_of_your_own_that_decides_while_training_may_freeze_anything_but_the_head() -> None:
    course = course_of()
    found = Watchful(Watchful.Options(), course).outline(RUN)
    assert found.is_adaptive
    assert found.least == (Stretch(0, frozenset()),)
    assert found.most == (Stretch(0, frozenset(course.roles) - {"head"}),)
