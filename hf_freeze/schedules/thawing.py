"""What thawing schedules share: which blocks they start from, and the order of release, from the top down. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from hf_freeze.errors import PlanError
from hf_freeze.schedules.schedule import EMBEDDINGS, Course, Schedule


@dataclass(frozen=True)
class Thawing:
    """Blocks that are released one after the other.

    Attributes:
        start: The roles that are frozen at the start.
        held: The blocks that are frozen then and can train, from the input on.
        floor: How many of these stay frozen.
    """

    start: frozenset[str]
    held: tuple[str, ...]
    floor: int

    @property
    def num_releasable(self) -> int:
        """How many blocks can be released in all."""
        return len(self.held) - self.floor

    def frozen(self, released: int) -> frozenset[str]:
        """Returns the roles that are frozen once some blocks are released.

        Args:
            released: How many.
        """
        return self.start.difference(self.held[len(self.held) - min(released, self.num_releasable) :])

    @property
    def released(self) -> frozenset[str]:
        """The blocks that will have been released at the end."""
        return frozenset(self.held[self.floor :])


def thawing_from(course: Course, *, floor: int, name: str) -> Thawing:
    """Returns where a thawing schedule starts.

    With a `freeze` section that is what it freezes. Without one it is everything but the head, and what the plan would
    not train anyway (blocks beside those with adapters) stays frozen.

    Args:
        course: What is known before training begins.
        floor: How many blocks stay frozen.
        name: The name of the schedule, for messages.

    Raises:
        PlanError: There is nothing to thaw.
    """
    if course.is_asked:
        start = course.frozen
        held = tuple(block for block in course.blocks if block in start)
    else:
        start = course.frozen.union(course.blocks, [EMBEDDINGS] if course.embeddings_follow else [])
        held = tuple(block for block in course.blocks if block in course.trained)
    if floor >= len(held):
        raise PlanError(
            f"schedule: {name} has nothing to thaw; got a floor of {floor}. {len(held)} blocks are frozen at the start "
            f"and could train. Freeze more blocks, or lower schedule.floor."
        )
    return Thawing(start, held, floor)


class ThawingSchedule(Schedule):
    """Releases blocks from the top down to `options.floor`, each with a warm-up over `options.warmup` steps.

    Attributes:
        name: The name of the schedule, for messages.
    """

    name: ClassVar[str]

    def __init__(self, options: Any, course: Course) -> None:
        super().__init__(options, course)
        self._thawing = thawing_from(course, floor=options.floor, name=self.name)

    @property
    def start(self) -> frozenset[str]:
        """What the `freeze` section freezes, or everything but the head."""
        return self._thawing.start

    @property
    def may_train(self) -> frozenset[str]:
        """What is not frozen at the start, and the blocks that can be released."""
        return (frozenset(self.course.roles) - self.start) | self._thawing.released

    @property
    def bounds(self) -> tuple[frozenset[str], frozenset[str]]:
        """What stays frozen once all that can be released is, and what is frozen at the start."""
        return self.start - self._thawing.released, self.start

    @property
    def warmup(self) -> int:
        """Steps over which the learning rate of a released block rises."""
        warmup: int = self.options.warmup
        return warmup
