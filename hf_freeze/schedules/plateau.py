"""Thaws blocks from the top down whenever a metric stops improving.

Source: the rule of `ReduceLROnPlateau`, applied to blocks in place of the learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hf_freeze.config.schedule import PlateauOptions
from hf_freeze.errors import PlanError, did_you_mean
from hf_freeze.schedules.registry import register_schedule
from hf_freeze.schedules.run_length import RunLength
from hf_freeze.schedules.schedule import Choice, Course, Moment
from hf_freeze.schedules.thawing import ThawingSchedule


@register_schedule("plateau")
class Plateau(ThawingSchedule):
    """Releases `blocks_per_thaw` blocks when a metric has not improved by `min_delta` for `patience` evaluations."""

    Options = PlateauOptions
    needs_metrics = True
    name = "plateau"
    options: PlateauOptions

    def __init__(self, options: PlateauOptions, course: Course) -> None:
        super().__init__(options, course)
        self._best: float | None = None
        self._num_waited = 0
        self._num_released = 0

    @property
    def greater_is_better(self) -> bool:
        """Whether more of the metric is better."""
        given = self.options.greater_is_better
        return not self.options.metric.endswith("loss") if given is None else given

    def begin(self, run: RunLength) -> None:
        """Checks that rows are evaluated often enough while training.

        Args:
            run: How long training will be.

        Raises:
            PlanError: They are not.
        """
        if not run.evaluates:
            raise PlanError(
                f"schedule.metric: nothing is evaluated while training; got {self.options.metric!r}. "
                "training.eval_strategy is 'no'. Set it to 'epoch' or 'steps', and give rows to evaluate."
            )
        patience = self.options.patience
        if run.num_evaluations is not None and run.num_evaluations <= patience:
            raise PlanError(
                f"schedule.patience: plateau would thaw nothing in this run; got {patience}. {run.num_evaluations} "
                f"evaluations come before the last of {run.num_steps} steps, the first of which is only compared with. "
                "Evaluate more often, wait for fewer evaluations, or train longer."
            )

    def decide(self, moment: Moment) -> Choice | None:
        """Returns what is frozen after an evaluation, or None where there was none.

        Args:
            moment: How far training is.

        Raises:
            PlanError: The evaluation did not log the metric.
        """
        if not moment.metrics:
            return None
        value = self._value(moment.metrics)
        if value is None:
            return None
        if self._improves(value):
            self._best, self._num_waited = value, 0
            return None
        self._num_waited += 1
        best = value if self._best is None else self._best
        if self._num_waited < self.options.patience or self._num_released >= self._thawing.num_releasable:
            return None
        numbers = {"value": value, "best": best, "waited": self._num_waited}
        self._num_waited = 0
        self._num_released = min(self._num_released + self.options.blocks_per_thaw, self._thawing.num_releasable)
        why = f"{self.options.metric} is {value:.4g} and was {best:.4g} at best"
        return Choice(self._thawing.frozen(self._num_released), why, {**numbers, "released": self._num_released})

    def _value(self, metrics: Mapping[str, float]) -> float | None:
        name = self.options.metric
        if name not in metrics and self._best is None and self._num_waited == 0:
            raise PlanError(
                f"schedule.metric: this metric was not logged by the evaluation; got {name!r}. It logged "
                f"{', '.join(sorted(metrics))}. Name one of them.{did_you_mean(name, metrics)}"
            )
        return metrics.get(name)

    def _improves(self, value: float) -> bool:
        if math.isnan(value):
            return False
        if self._best is None:
            return True
        gain = value - self._best if self.greater_is_better else self._best - value
        return gain > self.options.min_delta

    def state_dict(self) -> dict[str, Any]:
        """Returns the best value, the evaluations since, and how many blocks are released."""
        return {"best": self._best, "num_waited": self._num_waited, "num_released": self._num_released}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned.

        Args:
            state: What it returned.
        """
        self._best, self._num_waited = state["best"], state["num_waited"]
        self._num_released = state["num_released"]
