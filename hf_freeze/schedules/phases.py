"""Freezes what a list says, phase after phase."""

from __future__ import annotations

from collections.abc import Sequence

from hf_freeze.config.schedule import PhasesOptions, Until
from hf_freeze.errors import PlanError
from hf_freeze.schedules.registry import register_schedule
from hf_freeze.schedules.schedule import Choice, Course, Moment, RunLength, Schedule


def misplaced_phase(ends: Sequence[float]) -> int | None:
    """Returns the number of the first phase that ends out of order or outside the run, or None.

    >>> misplaced_phase([0.3, 0.5, 1.0])
    >>> misplaced_phase([0.5, 0.3, 1.0])
    1

    Args:
        ends: The end of every phase as a share of the run; that of the last one is 1.
    """
    before = 0.0
    for index, end in enumerate(ends):
        is_last = index == len(ends) - 1
        if end <= before or (abs(end - 1) > 1e-9 if is_last else end > 1 - 1e-9):
            return index
        before = end
    return None


def is_over(until: Until, moment: Moment) -> bool:
    """Returns whether a phase has ended.

    Args:
        until: Its end.
        moment: How far training is.
    """
    reached = {"share": moment.progress, "step": moment.step, "epoch": moment.epoch}[until.unit]
    return reached >= until.value - 1e-9


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

        Args:
            run: How long training will be.

        Raises:
            PlanError: They do not.
        """
        length = {"share": 1.0, "step": float(run.num_steps), "epoch": float(run.num_epochs)}
        untils = [phase.until for phase in self.options.phases]
        ends = [1.0 if until is None else until.value / length[until.unit] for until in untils]
        wrong = misplaced_phase(ends)
        if wrong is not None:
            until = untils[wrong]
            is_last = wrong == len(untils) - 1
            raise PlanError(
                f"schedule.phases.{wrong}.until: this phase ends {'elsewhere than' if is_last else 'outside'} "
                f"{'the run' if is_last else 'the run or before the one ahead of it'}; got "
                f"{until.spelling if until is not None else None!r}. The run has {run.num_steps} steps and "
                f"{run.num_epochs:g} epochs. Phases follow one another inside the run, and the last one, which may "
                "leave until out, lasts until its end."
            )

    def decide(self, moment: Moment) -> Choice | None:
        """Returns what the phase at this moment freezes.

        Args:
            moment: How far training is.
        """
        index = sum(phase.until is not None and is_over(phase.until, moment) for phase in self.options.phases)
        index = min(index, len(self._frozen) - 1)
        numbers = {"phase": index, "progress": moment.progress, "epoch": moment.epoch}
        return Choice(self._frozen[index], f"phase {index} begins", numbers)
