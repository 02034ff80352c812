"""Freezes what a list says, phase after phase."""

from __future__ import annotations

import math

from hf_freeze.config.schedule import PhasesOptions, Until
from hf_freeze.errors import PlanError
from hf_freeze.schedules.registry import register_schedule
from hf_freeze.schedules.run_length import RunLength
from hf_freeze.schedules.schedule import Choice, Course, Moment, Schedule


def end_of(until: Until | None, run: RunLength) -> int:
    """Returns the step before which a phase is over.

    >>> end_of(Until("epoch", 1.5), RunLength(num_steps=12, steps_per_epoch=5, evaluates=False))
    8

    Args:
        until: Its end; None for that of the run.
        run: How long training will be; the length of an epoch is known where the end counts epochs.
    """
    if until is None:
        return run.num_steps
    unit = {"share": run.num_steps, "step": 1, "epoch": run.steps_per_epoch or 0}[until.unit]
    # A margin for rounding: 0.07 * 100 is a little more than 7.
    return math.ceil(until.value * unit - 1e-9)


@register_schedule("phases")
class Phases(Schedule):
    """Freezes in every phase what its own section says."""

    Options = PhasesOptions
    options: PhasesOptions

    def __init__(self, options: PhasesOptions, course: Course) -> None:
        super().__init__(options, course)
        if course.is_asked and course.frozen:
            raise PlanError(
                f"freeze: every phase says by itself what is frozen; got a section that freezes "
                f"{', '.join(sorted(course.frozen))}. Keep always_train and keep_dropout there alone, and write the "
                "rest into schedule.phases."
            )
        self._frozen = tuple(
            course.frozen_by(phase.freeze, f"schedule.phases.{index}.freeze")
            for index, phase in enumerate(options.phases)
        )
        self._ends: tuple[int, ...] = ()

    @property
    def start(self) -> frozenset[str]:
        """What the first phase freezes."""
        return self._frozen[0]

    @property
    def may_train(self) -> frozenset[str]:
        """What any phase leaves unfrozen."""
        return frozenset().union(*(frozenset(self.course.roles) - frozen for frozen in self._frozen))

    @property
    def warmup(self) -> int:
        """Steps over which the learning rate of what a phase thaws rises."""
        return self.options.warmup

    def begin(self, run: RunLength) -> None:
        """Checks that the phases follow one another inside the run, and that the last one lasts until its end.

        Every phase has a step at least.

        Args:
            run: How long training will be.

        Raises:
            PlanError: They do not, or count epochs whose length is not known.
        """
        untils = [phase.until for phase in self.options.phases]
        for index, until in enumerate(untils):
            if until is not None and until.unit == "epoch" and run.steps_per_epoch is None:
                raise PlanError(
                    f"schedule.phases.{index}.until: counts epochs, and how long one is is not known; got "
                    f"{until.spelling}. The training rows have no length. Write a share of the run, or {{step: n}}."
                )
        self._ends = tuple(end_of(until, run) for until in untils)
        starts = (0, *self._ends)
        for index, (until, start, end) in enumerate(zip(untils, starts, self._ends, strict=False)):
            is_last = index == len(untils) - 1
            if end <= start or (end != run.num_steps if is_last else end >= run.num_steps):
                raise PlanError(
                    f"schedule.phases.{index}.until: {_misplaced(is_last, start, end, run)}; got "
                    f"{None if until is None else until.spelling}. The run has {run.num_steps} steps and "
                    f"{run.num_epochs:g} epochs. Phases follow one another inside the run, each with a step at least, "
                    "and the last one, which may leave until out, lasts until its end."
                )

    def decide(self, moment: Moment) -> Choice | None:
        """Returns what the phase at this moment freezes.

        Args:
            moment: How far training is.
        """
        index = sum(end <= moment.step for end in self._ends[:-1])
        numbers = {"phase": index, "progress": moment.progress, "epoch": moment.epoch}
        return Choice(self._frozen[index], f"phase {index} begins", numbers)


def _misplaced(is_last: bool, start: int, end: int, run: RunLength) -> str:
    if end == start:
        return f"this phase would have no step, as it begins and ends before step {start + 1}"
    if end < start:
        return f"this phase ends before step {end + 1}, ahead of the one before it, which ends before step {start + 1}"
    return "this phase ends elsewhere than the run" if is_last else "this phase ends outside the run"
