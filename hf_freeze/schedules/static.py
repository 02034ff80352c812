"""The freeze state that never changes."""

from __future__ import annotations

from hf_freeze.config.schedule import StaticOptions
from hf_freeze.schedules.registry import register_schedule
from hf_freeze.schedules.schedule import Choice, Moment, Schedule


@register_schedule("static")
class Static(Schedule):
    """Keeps the plan as it is."""

    Options = StaticOptions

    @property
    def may_train(self) -> frozenset[str]:
        """The roles that the plan trains."""
        return self.course.trained

    def decide(self, moment: Moment) -> Choice | None:
        """Returns None: nothing changes.

        Args:
            moment: How far training is.
        """
        return None
