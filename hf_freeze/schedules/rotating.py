"""Trains a few blocks at a time, drawn anew every few steps; the head trains all the time.

Sources: LISA (Pan et al. 2024) for the order `random`; block coordinate descent as in BAdam (Luo et al. 2024) for the
orders in which every block comes once per pass.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from hf_freeze.config.schedule import RotatingOptions
from hf_freeze.errors import PlanError
from hf_freeze.schedules.registry import register_schedule
from hf_freeze.schedules.run_length import RunLength
from hf_freeze.schedules.schedule import EMBEDDINGS, Choice, Course, Moment, Schedule


def drawn(blocks: Sequence[str], index: int, *, count: int, order: str, seed: int) -> frozenset[str]:
    """Returns the blocks of one draw; equal arguments give equal draws.

    >>> [sorted(drawn("abcde", index, count=2, order="descending", seed=0)) for index in range(4)]
    [['d', 'e'], ['b', 'c'], ['a'], ['d', 'e']]

    Args:
        blocks: The blocks to draw from, from the input on.
        index: The number of the draw, from 0 on.
        count: How many blocks are drawn; fewer at the end of a pass where they do not divide evenly.
        order: `random`, or `shuffle`, `ascending` or `descending` for every block once per pass.
        seed: What draws come from.
    """
    if order == "random":
        return frozenset(random.Random(f"{seed} {index}").sample(list(blocks), count))
    draws_per_pass = -(-len(blocks) // count)
    number, place = divmod(index, draws_per_pass)
    ordered = list(blocks)
    if order == "shuffle":
        random.Random(f"{seed} {number}").shuffle(ordered)
    elif order == "descending":
        ordered.reverse()
    return frozenset(ordered[place * count : (place + 1) * count])


@register_schedule("rotating")
class Rotating(Schedule):
    """Trains `blocks` blocks at a time among those that the `freeze` section leaves unfrozen.

    The embeddings train only where the option `embeddings` says so.
    """

    Options = RotatingOptions
    options: RotatingOptions

    def __init__(self, options: RotatingOptions, course: Course) -> None:
        super().__init__(options, course)
        self._candidates = tuple(block for block in course.blocks if block in course.trained)
        self._count = options.blocks if options.blocks is not None else 1 if len(course.blocks) <= 6 else 2
        self._seed = course.seed if options.seed is None else options.seed
        if self._count >= len(self._candidates):
            raise PlanError(
                f"schedule.blocks: leaves nothing to rotate; got {self._count}. {len(self._candidates)} blocks may "
                "train. Draw fewer of them, or freeze fewer blocks in the freeze section."
            )
        if options.embeddings and EMBEDDINGS not in course.trained:
            raise PlanError(
                "schedule.embeddings: the freeze section freezes the embeddings; got True. Set freeze.embeddings to "
                "'full', or schedule.embeddings to false."
            )

    @property
    def start(self) -> frozenset[str]:
        """Everything but the first draw and what trains all the time."""
        return self._frozen(0)

    @property
    def may_train(self) -> frozenset[str]:
        """What the plan trains, and the embeddings only where they are asked for."""
        return self.course.trained - ({EMBEDDINGS} if self._freezes_embeddings else set())

    @property
    def warmup(self) -> int:
        """Steps over which the learning rate of a drawn block rises."""
        return self.options.warmup

    @property
    def keeps_optimizer_state(self) -> bool:
        """Whether a block that is drawn again goes on with the optimizer state that it had."""
        return not self.options.reset_state

    def begin(self, run: RunLength) -> None:
        """Checks that the run is long enough for a second draw.

        Args:
            run: How long training will be.

        Raises:
            PlanError: It is not.
        """
        if self.options.every >= run.num_steps:
            raise PlanError(
                f"schedule.every: the run ends before blocks are drawn a second time; got {self.options.every}. "
                f"Training takes {run.num_steps} steps. Draw more often, or train longer."
            )

    def decide(self, moment: Moment) -> Choice | None:
        """Returns what is frozen beside the blocks that are drawn now.

        Args:
            moment: How far training is.
        """
        index, since = divmod(moment.step, self.options.every)
        is_drawn = index > 0 and since == 0 and self.options.reset_state
        frozen = self._frozen(index)
        renewed = frozenset(self._candidates) - frozen if is_drawn else frozenset()
        return Choice(frozen, f"draw {index} in {self.options.order} order", {"draw": index}, renewed)

    @property
    def _freezes_embeddings(self) -> bool:
        return self.course.embeddings_follow and not self.options.embeddings

    def _frozen(self, index: int) -> frozenset[str]:
        chosen = drawn(self._candidates, index, count=self._count, order=self.options.order, seed=self._seed)
        resting = set(self._candidates) - chosen
        return self.course.frozen.union(resting, [EMBEDDINGS] if self._freezes_embeddings else [])
