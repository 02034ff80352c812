"""Freezes blocks whose gradients have stopped changing.

Source: AutoFreeze (Liu et al. 2021). The options `min_progress` and `blocks_per_decision` are additions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_freeze.config.schedule import AutofreezeOptions
from hf_freeze.errors import PlanError
from hf_freeze.schedules.freezing import FreezingSchedule
from hf_freeze.schedules.registry import register_schedule
from hf_freeze.schedules.run_length import RunLength
from hf_freeze.schedules.schedule import Choice, Course, Moment
from hf_freeze.schedules.statistics import GRADIENTS


def relative_change(before: float, now: float) -> float:
    """Returns |before - now| / before; infinity where a block that had no gradient has one now.

    >>> relative_change(4.0, 3.0)
    0.25
    """
    if before == 0:
        return 0.0 if now == 0 else math.inf
    return abs(before - now) / before


def num_settled(changes: Sequence[float], percentile: float) -> tuple[int, float]:
    """Returns how many blocks come before the first whose change is at or above a percentile, and the percentile.

    >>> num_settled([0.1, 0.2, 0.6, 0.3], 50)
    (2, 0.25)

    Args:
        changes: The relative change of every block that trains, from the input on; all finite.
        percentile: From 0 to 100, interpolated linearly.
    """
    limit = float(np.percentile(changes, percentile))
    return next(index for index, change in enumerate(changes) if change >= limit), limit


@register_schedule("autofreeze")
class Autofreeze(FreezingSchedule):
    """Freezes, after an interval, the blocks before the first one whose gradients still change much.

    With D_l the sum of the unclipped gradients of block l over an interval and n_l the sum over its parameters of the
    L1 norms in D_l, its change is eta_l = |n_l of the interval before - n_l| / n_l of the interval before. The first
    block that trains with eta at or above the `percentile` of those that train goes on training, and what lies before
    it freezes, at most `blocks_per_decision` blocks at a time.

    The statistic `gradients` costs one addition per parameter of the blocks that train and step, and 4 bytes per
    parameter. It is given up once there is nothing left to freeze.
    """

    Options = AutofreezeOptions
    name = "autofreeze"
    statistic = GRADIENTS
    options: AutofreezeOptions

    def __init__(self, options: AutofreezeOptions, course: Course) -> None:
        super().__init__(options, course)
        self._interval = 1
        self._num_intervals = 0
        self._norms: dict[str, float] = {}

    def begin(self, run: RunLength) -> None:
        """Checks that there are blocks to freeze and intervals to decide from.

        Args:
            run: How long training will be.

        Raises:
            PlanError: There are not.
        """
        super().begin(run)
        intervals = self.options.intervals
        if run.num_steps < intervals:
            raise PlanError(
                f"schedule.intervals: the run has fewer steps than intervals; got {intervals}. Training takes "
                f"{run.num_steps} steps. Ask for fewer intervals, or train longer."
            )
        self._interval = math.ceil(run.num_steps / intervals)
        last = (run.num_steps - 1) // self._interval
        if last < 2 or last * self._interval < self.options.min_progress * run.num_steps:
            raise PlanError(
                f"schedule: autofreeze would freeze nothing in this run; got {intervals} intervals and a min_progress "
                f"of {self.options.min_progress:g}. The last interval before the end of {run.num_steps} steps ends at "
                f"step {last * self._interval}, and a decision compares two of them. Ask for more intervals, lower "
                "min_progress, or train longer."
            )

    def is_due(self, moment: Moment) -> bool:
        """Returns whether an interval ends.

        Args:
            moment: How far training is.
        """
        return moment.step > 0 and moment.step % self._interval == 0

    def decide(self, moment: Moment) -> Choice | None:
        """Returns what is frozen after an interval, or None where none ends.

        Args:
            moment: How far training is.
        """
        gradients = moment.statistics.gradients
        norms = {block: gradients[block] for block in self.active if block in gradients}
        if not norms or not all(map(math.isfinite, norms.values())):
            return None
        before, self._norms = self._norms, norms
        self._num_intervals += 1
        if not before or moment.progress < self.options.min_progress - 1e-9:
            return None
        changes = {block: relative_change(before[block], norm) for block, norm in norms.items() if block in before}
        if not all(map(math.isfinite, changes.values())):
            return None
        return self._choice(self._as_control(changes, self._num_intervals))

    def _choice(self, changes: Mapping[str, float]) -> Choice:
        settled, limit = num_settled(list(changes.values()), self.options.percentile)
        count = min(settled, self.options.blocks_per_decision, self.num_freezable)
        told = ", ".join(f"{change:.3f}" for change in changes.values())
        what = "shuffled gradients" if self.options.control else "gradients"
        why = (
            f"interval {self._num_intervals}: {what} changed by {told} from {next(iter(changes))} on, and the "
            f"percentile {self.options.percentile:g} is {limit:.3f}"
        )
        numbers = {"interval": self._num_intervals, "percentile": limit}
        numbers |= {f"change/{block}": change for block, change in changes.items()}
        return self._freeze(count, why, numbers)

    def state_dict(self) -> dict[str, Any]:
        """Returns how many blocks are frozen, how many intervals have ended, and the norms of the last one."""
        return {"num_frozen": self._num_frozen, "num_intervals": self._num_intervals, "norms": dict(self._norms)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned.

        Args:
            state: What it returned.
        """
        self._num_frozen, self._num_intervals = state["num_frozen"], state["num_intervals"]
        self._norms = dict(state["norms"])
