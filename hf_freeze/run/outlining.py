"""A schedule before training: what is frozen when, and what the run costs with it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from hf_freeze.plan.cost import ScheduleCost
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.plan.states import plan_at
from hf_freeze.plan.table import ScheduleTable, schedule_row
from hf_freeze.plan.timing import RunLength, Timing
from hf_freeze.run.planning import Prepared
from hf_freeze.run.settings import Settings, lengths_of
from hf_freeze.schedules import Outline, Stretch
from hf_freeze.schedules import RunLength as ScheduledLength
from hf_freeze.training.scheduled import Scheduled

# Freeze states whose steps are looked at; a schedule with more is priced by as many of them, evenly spaced.
_MOST_STATES: Final = 12

# Tells how long steps in a freeze state take, and whether its frozen prefix can be cached.
Timed = Callable[[FreezePlan], tuple[Timing, bool]]


@dataclass(frozen=True)
class Outlined:
    """A schedule and its course.

    Attributes:
        scheduled: The schedule and the plan that it moves.
        run: How long training will be.
        is_assumed: Whether that is not known.
        outline: The course.
    """

    scheduled: Scheduled
    run: ScheduledLength
    is_assumed: bool
    outline: Outline

    @property
    def table(self) -> ScheduleTable:
        """The schedule for a reader."""
        outline, num_steps = self.outline, self.run.num_steps
        stretches = (*outline.least, *outline.most) if outline.is_adaptive else outline.least
        plans = ((plan_at(self.scheduled.base, stretch.frozen), stretch.first_step) for stretch in stretches)
        rows = tuple(schedule_row(plan, first_step, num_steps) for plan, first_step in plans)
        note = None
        if self.is_assumed:
            note = f"Shown for {num_steps:,} steps and {self.run.num_epochs:g} epochs: how many there are is not known."
        return ScheduleTable(self.scheduled.section.type, num_steps, outline.is_adaptive, rows, note)


def outlined(made: Prepared, *, num_processes: int) -> Outlined | None:
    """Returns the course of the schedule of a plan, or None where nothing changes.

    Args:
        made: The plan.
        num_processes: How many processes share the rows.

    Raises:
        PlanError: The schedule does not fit the length of the run.
    """
    if made.scheduled is None:
        return None
    lengths = None if made.data is None else lengths_of(made.data)
    run = Settings(made.training).scheduled_length(lengths, num_processes=num_processes)
    outline = made.scheduled.new_schedule().outline(run)
    return Outlined(made.scheduled, run, lengths is None, outline)


def schedule_cost(found: Outlined, length: RunLength | None, full: Timing, timed: Timed) -> ScheduleCost:
    """Returns what a run costs under a schedule.

    Args:
        found: The schedule and its course.
        length: How much there is to do; None where the rows are not known: then steps alone count.
        full: How long steps of full fine-tuning take.
        timed: Tells how long those of other plans take.
    """
    known: dict[frozenset[str], tuple[FreezePlan, Timing, bool]] = {}

    def state(frozen: frozenset[str]) -> tuple[FreezePlan, Timing, bool]:
        if frozen not in known:
            plan = plan_at(found.scheduled.base, frozen)
            known[frozen] = (plan, *timed(plan))
        return known[frozen]

    length = length or RunLength(found.run.num_steps)
    courses = [
        _Course(_thinned(stretches), found.run, length, state)
        for stretches in (found.outline.least, found.outline.most)
    ]
    least, most = courses
    whole = full.run(length)
    cached = None
    if least.is_cached or most.is_cached:
        cached = (whole / least.cached_seconds, whole / most.cached_seconds)
    return ScheduleCost(
        mean_depth=(least.mean_depth, most.mean_depth),
        over_full=(whole / least.seconds, whole / most.seconds),
        cached_over_full=cached,
    )


def _thinned(stretches: Sequence[Stretch]) -> tuple[Stretch, ...]:
    """Returns stretches with few freeze states: others stand for the one before them."""
    states = list(dict.fromkeys(stretch.frozen for stretch in stretches))
    if len(states) <= _MOST_STATES:
        return tuple(stretches)
    kept = {states[index * len(states) // _MOST_STATES] for index in range(_MOST_STATES)}
    return tuple(stretch for stretch in stretches if stretch.frozen in kept)


class _Course:
    """What one course of a schedule costs.

    Args:
        stretches: The course.
        run: How long training will be.
        length: How much there is to do.
        state: Returns the plan in a freeze state, how long its steps take, and whether its prefix can be cached.
    """

    def __init__(
        self,
        stretches: Sequence[Stretch],
        run: ScheduledLength,
        length: RunLength,
        state: Callable[[frozenset[str]], tuple[FreezePlan, Timing, bool]],
    ) -> None:
        self._length = length
        ends = [*(stretch.first_step for stretch in stretches[1:]), run.num_steps]
        self._parts = [
            ((end - stretch.first_step) / run.num_steps, *state(stretch.frozen))
            for stretch, end in zip(stretches, ends, strict=True)
        ]

    @property
    def mean_depth(self) -> float:
        """The depth as a mean over the steps."""
        return sum(share * plan.depth for share, plan, _, _ in self._parts)

    @property
    def is_cached(self) -> bool:
        """Whether the prefix can be cached at some time."""
        return any(can_cache for _, _, _, can_cache in self._parts)

    @property
    def seconds(self) -> float:
        """How long the run takes without the activation cache."""
        return sum(share * timing.run(self._length) for share, _, timing, _ in self._parts)

    @property
    def cached_seconds(self) -> float:
        """How long it takes with the cache wherever that is faster; a deeper prefix is computed from what is stored."""
        total, stored = 0.0, 0.0
        for depth_parts in self._by_depth():
            without = sum(share * timing.run(self._length) for share, timing, _ in depth_parts)
            _, timing, can_cache = depth_parts[0]
            build = timing.build(self._length)
            served = sum(
                share * (timing.cached_run(self._length) - timing.build(self._length))
                for share, timing, _ in depth_parts
            )
            with_cache = served + (build - stored if build >= stored else build)
            if can_cache and with_cache < without:
                total, stored = total + with_cache, build
            else:
                total += without
        return total

    def _by_depth(self) -> Iterator[list[tuple[float, Timing, bool]]]:
        for _, group in itertools.groupby(self._parts, key=lambda part: part[1].depth):
            yield [(share, timing, can_cache) for share, _, timing, can_cache in group]
