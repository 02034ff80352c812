"""Thaws some blocks at each epoch, from the top down.

Source: gradual unfreezing of ULMFiT (Howard & Ruder 2018).
"""

from __future__ import annotations

import math

from hf_freeze.config.schedule import GradualUnfreezeOptions
from hf_freeze.errors import PlanError
from hf_freeze.schedules.registry import register_schedule
from hf_freeze.schedules.run_length import RunLength
from hf_freeze.schedules.schedule import Choice, Moment
from hf_freeze.schedules.thawing import ThawingSchedule


@register_schedule("gradual_unfreeze")
class GradualUnfreeze(ThawingSchedule):
    """Keeps max(floor, k - e * blocks_per_epoch) of k blocks frozen in epoch e; the embeddings stay frozen."""

    Options = GradualUnfreezeOptions
    name = "gradual_unfreeze"
    options: GradualUnfreezeOptions

    def begin(self, run: RunLength) -> None:
        """Checks that there is a second epoch, as far as epochs are known: before it, nothing is thawed.

        Args:
            run: How long training will be.

        Raises:
            PlanError: There is none, or how long one is is not known.
        """
        if run.steps_per_epoch is None:
            raise PlanError(
                "schedule: gradual_unfreeze counts epochs, and how long one is is not known; got training rows without "
                "a length. Take rows that have one, or schedule.type phases with steps or shares of the run."
            )
        if run.num_epochs <= 1:
            raise PlanError(
                f"schedule: gradual_unfreeze would thaw nothing in this run; got {run.num_epochs:g} epochs. It thaws "
                "blocks at the start of the second epoch and of those after it. Train for two epochs at least."
            )

    def decide(self, moment: Moment) -> Choice | None:
        """Returns what is frozen in this epoch.

        Args:
            moment: How far training is.
        """
        epoch = math.floor(moment.epoch + 1e-9)
        released = min(epoch * self.options.blocks_per_epoch, self._thawing.num_releasable)
        why = f"epoch {epoch} begins"
        return Choice(self._thawing.frozen(released), why, {"epoch": epoch, "released": released})
