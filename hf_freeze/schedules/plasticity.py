"""Freezes blocks whose outputs have stopped moving.

Source: Egeria (Wang et al. 2023), with a snapshot of a few outputs in place of its reference model.
Similarity-preserving loss: Tung & Mori 2019. Centered kernel alignment: Kornblith et al. 2019.
Shapes: `b` probed rows, `H` hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from hf_freeze.config.schedule import PlasticityOptions
from hf_freeze.errors import PlanError
from hf_freeze.schedules.freezing import FreezingSchedule
from hf_freeze.schedules.registry import register_schedule
from hf_freeze.schedules.run_length import RunLength
from hf_freeze.schedules.schedule import Choice, Course, Moment
from hf_freeze.schedules.statistics import PROBE

NUM_PROBES = 40
MIN_EVERY = 10
# Probes after which the snapshot is renewed, that have to be low in a row, and that a slope goes through.
RENEWAL, NUM_LOW, NUM_IN_SLOPE = 4, 3, 5
_SNAPSHOT = "snapshot "


def similarities(outputs: torch.Tensor, measure: str) -> torch.Tensor:
    """Returns how alike a block makes each pair of rows, of shape (b, b).

    Args:
        outputs: Of the block, of shape (b, H).
        measure: "sp": the rows of h h^T with an L2 norm of 1; "cka": h h^T of centered columns, its norm 1.
    """
    outputs = outputs.double()
    if measure == "sp":
        return normalize(outputs @ outputs.T, dim=1)
    centered = outputs - outputs.mean(dim=0)
    return normalize((centered @ centered.T).flatten(), dim=0).view(len(outputs), len(outputs))


def plasticity(now: torch.Tensor, snapshot: torch.Tensor, measure: str) -> float:
    """Returns how far two similarities are apart.

    Args:
        now: Of shape (b, b).
        snapshot: Those of before, of shape (b, b).
        measure: "sp": the squared Frobenius norm of the difference over b^2; "cka": 1 - linear CKA.
    """
    if measure == "sp":
        return float(((now - snapshot) ** 2).mean())
    return 1.0 - float((now * snapshot).sum())


def slope(values: Sequence[float]) -> float:
    """Returns the absolute slope of the least-squares line through equally spaced values.

    >>> round(slope([1.0, 3.0, 5.0]), 6)
    2.0
    """
    steps = np.arange(len(values)) - (len(values) - 1) / 2
    return abs(float(steps @ np.asarray(values) / (steps @ steps)))


@dataclass
class Series:
    """The plasticity of one block so far.

    Attributes:
        last: The last values, at most `NUM_IN_SLOPE`.
        largest: The largest value.
        steepest: The largest slope through `NUM_IN_SLOPE` values.
    """

    last: list[float]
    largest: float = 0.0
    steepest: float = 0.0

    def add(self, value: float) -> None:
        """Adds the value of a probe."""
        self.last = [*self.last, value][-NUM_IN_SLOPE:]
        self.largest = max(self.largest, value)
        self.steepest = max(self.steepest, self.slope)

    @property
    def slope(self) -> float:
        """The slope through the last values; 0 before there are enough."""
        return slope(self.last) if len(self.last) == NUM_IN_SLOPE else 0.0

    def settled(self, threshold: float) -> str | None:
        """Returns why the block has settled, or None where it has not.

        Args:
            threshold: The share of the maximum at or below which it has.
        """
        if len(self.last) >= NUM_LOW and max(self.last[-NUM_LOW:]) <= threshold * self.largest:
            return f"its last {NUM_LOW} are at most {threshold:g} of the largest, {self.largest:.3g}"
        if len(self.last) == NUM_IN_SLOPE and self.slope <= threshold * self.steepest:
            return f"its slope {self.slope:.3g} is at most {threshold:g} of the steepest, {self.steepest:.3g}"
        return None


@register_schedule("plasticity")
class Plasticity(FreezingSchedule):
    """Freezes the first block that trains once its plasticity is low, or has stopped changing.

    Every `every` steps, 64 rows of the training data, always the same, pass through the model in eval mode, and P is
    the distance of the outputs of each block to those in a snapshot, which is renewed every 4 probes. The block freezes
    when its last 3 values of P are at most `threshold` times its largest, or when the slope through the last 5 is at
    most `threshold` times its steepest. One block at a time.

    The statistic `probe` costs a forward pass over the rows, up to the last block but one, at each probe. It is given
    up once there is nothing left to freeze.
    """

    Options = PlasticityOptions
    name = "plasticity"
    statistic = PROBE
    options: PlasticityOptions

    def __init__(self, options: PlasticityOptions, course: Course) -> None:
        super().__init__(options, course)
        self._every = MIN_EVERY
        self._num_probes = 0
        self._snapshot: dict[str, torch.Tensor] = {}
        self._series: dict[str, Series] = {}

    def begin(self, run: RunLength) -> None:
        """Checks that there are blocks to freeze and probes to decide from.

        Args:
            run: How long training will be.

        Raises:
            PlanError: There are not.
        """
        super().begin(run)
        given = self.options.every
        self._every = max(MIN_EVERY, run.num_steps // NUM_PROBES) if given is None else given
        last = (run.num_steps - 1) // self._every
        # The first probe gives the first snapshot; the third value of P after it is the first that can freeze a block.
        if last < NUM_LOW or last * self._every < self.options.min_progress * run.num_steps:
            raise PlanError(
                f"schedule: plasticity would freeze nothing in this run; got a probe every {self._every} steps and a "
                f"min_progress of {self.options.min_progress:g}. The last probe before the end of {run.num_steps} "
                f"steps comes at step {last * self._every}, and a decision needs {NUM_LOW} after that at step 0. Probe "
                "more often (schedule.every), lower min_progress, or train longer."
            )

    def is_due(self, moment: Moment) -> bool:
        """Returns whether it is time for a probe.

        Args:
            moment: How far training is.
        """
        return moment.step % self._every == 0

    def decide(self, moment: Moment) -> Choice | None:
        """Returns what is frozen after a probe, or None where there was none.

        Args:
            moment: How far training is.
        """
        outputs = {block: output for block, output in moment.statistics.probe.items() if block in self.active}
        if not outputs or not all(bool(output.isfinite().all()) for output in outputs.values()):
            return None
        measure = self.options.measure
        now = {block: similarities(output, measure) for block, output in outputs.items()}
        index, self._num_probes = self._num_probes, self._num_probes + 1
        if index == 0:
            self._snapshot = now
            return None
        values = {block: plasticity(now[block], self._snapshot[block], measure) for block in now}
        for block, value in self._as_control(values, index).items():
            self._series.setdefault(block, Series([])).add(value)
        if index % RENEWAL == 0:
            self._snapshot = now
        return None if moment.progress < self.options.min_progress - 1e-9 else self._choice(index)

    def _choice(self, index: int) -> Choice:
        front = self.active[0]
        series = self._series[front]
        numbers = {"probe": index, "largest": series.largest, "slope": series.slope, "steepest": series.steepest}
        numbers |= {f"plasticity/{block}": kept.last[-1] for block, kept in self._series.items()}
        reason = series.settled(self.options.threshold)
        told = ", ".join(f"{value:.3g}" for value in series.last)
        what = "shuffled plasticity" if self.options.control else "plasticity"
        why = f"probe {index}: the {what} of {front} is {told}; {reason or 'it has not settled'}"
        choice = self._freeze(int(reason is not None), why, numbers)
        self._snapshot = {block: matrix for block, matrix in self._snapshot.items() if block in self.active}
        self._series = {block: kept for block, kept in self._series.items() if block in self.active}
        return choice

    def state_dict(self) -> dict[str, Any]:
        """Returns how many blocks are frozen, how many probes there were, the plasticity so far and the snapshot."""
        series = {block: [kept.last, kept.largest, kept.steepest] for block, kept in self._series.items()}
        state: dict[str, Any] = {"num_frozen": self._num_frozen, "num_probes": self._num_probes, "series": series}
        return state | {f"{_SNAPSHOT}{block}": matrix for block, matrix in self._snapshot.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned.

        Args:
            state: What it returned.
        """
        self._num_frozen, self._num_probes = state["num_frozen"], state["num_probes"]
        self._series = {block: Series(list(last), *maxima) for block, (last, *maxima) in state["series"].items()}
        self._snapshot = {
            name.removeprefix(_SNAPSHOT): value for name, value in state.items() if isinstance(value, torch.Tensor)
        }
