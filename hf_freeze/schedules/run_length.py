"""How long a run is, for a schedule that has to fit it. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class RunLength:
    """How long a run is.

    Attributes:
        num_steps: Optimizer steps in all.
        steps_per_epoch: Optimizer steps of an epoch; None where that is not known, as for a stream of rows.
        evaluates: Whether rows are evaluated while training.
        num_evaluations: Evaluations that a step follows; None where that is not known.
    """

    num_steps: int
    steps_per_epoch: float | None
    evaluates: bool
    num_evaluations: int | None = None

    @property
    def num_epochs(self) -> float:
        """Epochs in all, with the fraction of the last; a run whose epochs are not known counts as one."""
        return 1.0 if self.steps_per_epoch is None else self.num_steps / self.steps_per_epoch


def count_evaluations(
    num_steps: int, steps_per_epoch: float | None, *, strategy: str, every: float, delay: float, at_start: bool
) -> int | None:
    """Returns after how many evaluations a step follows; None where that is not known.

    >>> count_evaluations(24, 6, strategy="steps", every=4, delay=0, at_start=False)
    5
    >>> count_evaluations(24, 6, strategy="epoch", every=4, delay=2, at_start=True)
    3

    Args:
        num_steps: Optimizer steps in all.
        steps_per_epoch: Optimizer steps of an epoch; None where that is not known.
        strategy: `no`, `steps` or `epoch`.
        every: Steps between evaluations, or their share of all steps, for `steps`.
        delay: Steps or epochs before the first evaluation.
        at_start: Whether there is one before the first step.
    """
    first = int(at_start)
    if strategy == "steps":
        interval = math.ceil(num_steps * every) if every < 1 else int(every)
        return first + sum(step >= delay for step in range(interval, num_steps, interval))
    if strategy == "epoch":
        if steps_per_epoch is None:
            return None
        return first + sum(epoch >= delay for epoch in range(1, math.ceil(num_steps / steps_per_epoch)))
    return first
