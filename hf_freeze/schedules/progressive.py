"""Freezes block after block from the input on.

Sources: the linear curve and the exponential one are those of PipeTransformer (He et al. 2021), the cubic one that of
FreezeOut (Brock et al. 2017).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from hf_freeze.config.schedule import ProgressiveOptions
from hf_freeze.errors import PlanError
from hf_freeze.schedules.registry import register_schedule
from hf_freeze.schedules.run_length import RunLength
from hf_freeze.schedules.schedule import EMBEDDINGS, Choice, Moment, Schedule

_T0: Final = {"linear": 0.1, "cubic": 0.8}
_A: Final = 1 / 3


def linear_depth(progress: float, *, ceiling: int, t0: float) -> int:
    """Returns floor(ceiling * max(0, (t - t0) / (1 - t0))).

    >>> [linear_depth(t / 10, ceiling=3, t0=0.1) for t in range(11)]
    [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3]

    Args:
        progress: The share t of the run that is done, from 0 to 1.
        ceiling: The depth at the end.
        t0: The share of the run before the depth grows, from 0 to below 1.
    """
    # Shares of steps are rounded: without the smallest of margins a third block would come a step late.
    return math.floor(ceiling * max(0.0, (progress - t0) / (1 - t0)) + 1e-9)


def exponential_depth(epoch: int, *, num_blocks: int, ceiling: int, a: float) -> int:
    """Returns ceil(N (1 - (1 - a)^e)), at most the ceiling.

    >>> [exponential_depth(epoch, num_blocks=12, ceiling=11, a=1 / 3) for epoch in range(6)]
    [0, 4, 7, 9, 10, 11]

    Args:
        epoch: The number e of epochs that are done.
        num_blocks: The number N of blocks.
        ceiling: The largest depth.
        a: The share of the remaining blocks that freezes at each epoch, above 0 and below 1.
    """
    return min(ceiling, math.ceil(num_blocks * (1 - (1 - a) ** epoch) - 1e-9))


def freezing_time(block: int, *, num_blocks: int, t0: float) -> float:
    """Returns (t0 + (1 - t0) i / (N - 1))^3, the share of the run after which a block freezes (cubic).

    >>> [round(freezing_time(block, num_blocks=4, t0=0.8), 3) for block in range(4)]
    [0.512, 0.651, 0.813, 1.0]

    Args:
        block: The number i of the block, from 0 on.
        num_blocks: The number N of blocks, at least 2.
        t0: The cube root of the time of block 0, from 0 to below 1.
    """
    share: float = (t0 + (1 - t0) * block / (num_blocks - 1)) ** 3
    return share


def annealed(progress: float, end: float) -> float:
    """Returns 0.5 (1 + cos(pi t / t_i)): the factor on the learning rate of a block that freezes at t_i.

    Args:
        progress: The share t of the run that is done.
        end: The share t_i after which the block freezes.
    """
    return 0.5 * (1 + math.cos(math.pi * progress / end)) if progress < end else 0.0


@register_schedule("progressive")
class Progressive(Schedule):
    """Freezes more and more blocks from the input on, and never thaws one.

    The embeddings freeze with the first block unless the `freeze` section says otherwise.
    """

    Options = ProgressiveOptions
    options: ProgressiveOptions

    @property
    def may_train(self) -> frozenset[str]:
        """The roles that the plan trains."""
        return self.course.trained

    @property
    def ceiling(self) -> int:
        """The largest depth."""
        num_blocks = len(self.course.blocks)
        return num_blocks - 1 if self.options.ceiling is None else self.options.ceiling

    def begin(self, run: RunLength) -> None:
        """Checks that blocks are left to freeze, and that the run is long enough to freeze one.

        Args:
            run: How long training will be.

        Raises:
            PlanError: The ceiling is above the number of blocks, or nothing would ever freeze, or epochs count whose
                length is not known.
        """
        num_blocks = len(self.course.blocks)
        if self.ceiling > num_blocks:
            raise PlanError(
                f"schedule.ceiling: is above the number of blocks; got {self.ceiling}. The model has {num_blocks}. "
                f"Write a number from 1 to {num_blocks}."
            )
        if self.options.curve == "exponential" and run.steps_per_epoch is None:
            raise PlanError(
                "schedule.curve: exponential counts epochs, and how long one is is not known; got training rows "
                "without a length. Take rows that have one, or another curve."
            )
        last = Moment(run.num_steps - 1, run.num_steps, math.ceil(run.num_epochs) - 1, run.num_epochs)
        if self._frozen(self._depth(last)) == self.course.frozen:
            raise PlanError(
                f"schedule: progressive would freeze nothing more in this run; got {run.num_steps} steps and "
                f"{run.num_epochs:g} epochs. The depth before the last step is {self._depth(last)}, and the freeze "
                "section freezes as much. Train longer, choose another curve, or freeze less at the start."
            )

    def decide(self, moment: Moment) -> Choice | None:
        """Returns what is frozen at this share of the run.

        Args:
            moment: How far training is.
        """
        depth = self._depth(moment)
        numbers = {"depth": depth, "progress": moment.progress}
        if self.options.curve == "exponential":
            numbers = {"depth": depth, "epoch": math.floor(moment.epoch + 1e-9)}
        return Choice(self._frozen(depth), f"the {self.options.curve} curve is at depth {depth}", numbers)

    def lr_factors(self, moment: Moment) -> Mapping[str, float]:
        """Returns factors that bring the learning rate of a block to zero by the time it freezes (cubic).

        Args:
            moment: How far training is.
        """
        if self.options.curve != "cubic":
            return {}
        blocks = self.course.blocks[: self.ceiling]
        factors = {block: annealed(moment.progress, self._time(index)) for index, block in enumerate(blocks)}
        if self.course.embeddings_follow:
            factors[EMBEDDINGS] = factors[self.course.blocks[0]]
        return factors

    def _depth(self, moment: Moment) -> int:
        options, num_blocks = self.options, len(self.course.blocks)
        if options.curve == "linear":
            return linear_depth(moment.progress, ceiling=self.ceiling, t0=self._t0)
        if options.curve == "exponential":
            epoch = math.floor(moment.epoch + 1e-9)
            return exponential_depth(
                epoch, num_blocks=num_blocks, ceiling=self.ceiling, a=_A if options.a is None else options.a
            )
        return sum(moment.progress >= self._time(block) for block in range(self.ceiling))

    def _time(self, block: int) -> float:
        num_blocks = len(self.course.blocks)
        return freezing_time(block, num_blocks=max(2, num_blocks), t0=self._t0)

    @property
    def _t0(self) -> float:
        return _T0[self.options.curve] if self.options.t0 is None else self.options.t0

    def _frozen(self, depth: int) -> frozenset[str]:
        follows = depth > 0 and self.course.embeddings_follow
        return self.course.frozen.union(self.course.blocks[:depth], [EMBEDDINGS] if follows else [])
