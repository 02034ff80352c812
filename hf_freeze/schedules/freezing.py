"""What schedules share that freeze blocks as they settle: which blocks they may freeze, and how many are frozen."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, ClassVar

from hf_freeze.errors import PlanError
from hf_freeze.schedules.run_length import RunLength
from hf_freeze.schedules.schedule import EMBEDDINGS, Choice, Course, Schedule


class FreezingSchedule(Schedule):
    """Freezes blocks from the input on up to `options.ceiling`, and never thaws one.

    The embeddings freeze with the first of them unless the `freeze` section says otherwise.

    Attributes:
        name: The name of the schedule, for messages.
        statistic: What it decides from.
    """

    name: ClassVar[str]
    statistic: ClassVar[str]

    def __init__(self, options: Any, course: Course) -> None:
        super().__init__(options, course)
        self._blocks = tuple(block for block in course.blocks if block in course.trained)
        self._num_frozen = 0

    @property
    def may_train(self) -> frozenset[str]:
        """The roles that the plan trains."""
        return self.course.trained

    @property
    def ceiling(self) -> int:
        """The largest depth."""
        given: int | None = self.options.ceiling
        return len(self.course.blocks) - 1 if given is None else given

    @property
    def active(self) -> tuple[str, ...]:
        """The blocks that train, from the input on."""
        return self._blocks[self._num_frozen :]

    @property
    def num_freezable(self) -> int:
        """How many more blocks may be frozen; one that trains is left, also where the section freezes the last ones."""
        below = sum(block in self.course.blocks[: self.ceiling] for block in self.active)
        return min(below, max(0, len(self.active) - 1))

    @property
    def needs(self) -> frozenset[str]:
        """What it decides from, as long as there is a block left to freeze."""
        return frozenset({self.statistic}) if self.num_freezable else frozenset()

    @property
    def bounds(self) -> tuple[frozenset[str], frozenset[str]]:
        """What is frozen at the start, and that with all blocks up to the ceiling."""
        blocks = [block for block in self.course.blocks[: self.ceiling] if block in self._blocks[:-1]]
        follows = bool(blocks) and self.course.embeddings_follow
        return self.start, self.start.union(blocks, [EMBEDDINGS] if follows else [])

    def begin(self, run: RunLength) -> None:
        """Checks that blocks are left to freeze, and that one goes on training.

        Args:
            run: How long training will be.

        Raises:
            PlanError: The ceiling leaves no block to train, or nothing is left to freeze.
        """
        num_blocks = len(self.course.blocks)
        if self.options.ceiling is not None and self.options.ceiling >= num_blocks:
            raise PlanError(
                f"schedule.ceiling: would let all blocks be frozen; got {self.options.ceiling}. The model has "
                f"{num_blocks}, and {self.name} keeps one at least. Write a smaller number, or leave it out."
            )
        if self.num_freezable == 0:
            raise PlanError(
                f"schedule: {self.name} has nothing to freeze; got a largest depth of {self.ceiling}. "
                f"{num_blocks - len(self._blocks)} of {num_blocks} blocks are frozen at the start, and one goes on "
                "training. Freeze less in the freeze section, or raise schedule.ceiling."
            )

    def _freeze(self, count: int, why: str, numbers: Mapping[str, float]) -> Choice:
        """Freezes some blocks more, and returns what is frozen then."""
        self._num_frozen += count
        frozen = self._blocks[: self._num_frozen]
        follows = bool(frozen) and self.course.embeddings_follow
        return Choice(self.course.frozen.union(frozen, [EMBEDDINGS] if follows else []), why, numbers)

    def _as_control(self, values: Mapping[str, float], index: int) -> Mapping[str, float]:
        """Returns the numbers of the blocks as they are, or shuffled among the blocks where `control` says so.

        Decisions from shuffled numbers freeze blocks too. What a schedule is worth is what it does better than these.

        Args:
            values: By block.
            index: The number of the decision; equal seeds and numbers shuffle alike.
        """
        if self.options.control is None:
            return values
        shuffled = list(values.values())
        random.Random(f"{self.course.seed} {index}").shuffle(shuffled)
        return dict(zip(values, shuffled, strict=True))
