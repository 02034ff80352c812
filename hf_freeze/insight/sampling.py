"""Which plan to try next: one that was not tried yet, by TPE or in random order."""

from __future__ import annotations

import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

from hf_freeze.insight.outcomes import Trial as KnownTrial
from hf_freeze.insight.space import DEPTH, Axis, Choice, Point, Space

# Proposals of TPE in a row that were all tried before another plan is drawn at random; then, draws in a row.
_MOST_PROPOSALS = 50


def distribution_of(axis: Axis) -> BaseDistribution:
    """Returns what Optuna may choose for an axis.

    Args:
        axis: The axis.
    """
    if (found := axis.range) is None:
        return CategoricalDistribution(list(axis.values))
    if found.is_whole:
        return IntDistribution(int(found.low), int(found.high), log=found.log, step=int(found.step or 1))
    return FloatDistribution(found.low, found.high, log=found.log, step=found.step)


def suggest(trial: Trial, axis: Axis) -> None:
    """Has Optuna note the value of an axis that the sampler has chosen.

    Args:
        trial: The trial.
        axis: The axis.
    """
    if (found := axis.range) is None:
        trial.suggest_categorical(axis.name, list(axis.values))
    elif found.is_whole:
        trial.suggest_int(axis.name, int(found.low), int(found.high), log=found.log, step=int(found.step or 1))
    else:
        trial.suggest_float(axis.name, found.low, found.high, log=found.log, step=found.step)


def _shuffled(points: Iterable[Point], axes: Sequence[Axis], seed: int) -> list[Point]:
    """Returns points in random order, the values of the first axis in turn; depths the greatest first."""
    points = list(points)
    random.Random(seed).shuffle(points)
    first = axes[0].name
    if first == DEPTH:
        points.sort(key=lambda point: -int(str(point[DEPTH])))
    met: Counter[Any] = Counter()
    turns = []
    for point in points:
        turns.append((met[point[first]], point))
        met[point[first]] += 1
    return [point for _, point in sorted(turns, key=lambda turn: turn[0])]


def _next_depth(trials: Sequence[KnownTrial], untried: Sequence[Point]) -> Choice:
    """Returns the depth that the least time was spent on of those that have plans left, the greatest of equals."""
    seconds: dict[Choice, list[float]] = defaultdict(list)
    running: Counter[Choice] = Counter()
    for trial in trials:
        if trial.outcome is not None:
            seconds[trial.point[DEPTH]].append(trial.outcome.seconds)
        elif trial.state != "failed":
            running[trial.point[DEPTH]] += 1
    means = {depth: statistics.mean(found) for depth, found in seconds.items()}
    most = max(means.values(), default=1.0)

    def spent(depth: Choice) -> float:
        return sum(seconds[depth]) + running[depth] * means.get(depth, most)

    return min({point[DEPTH] for point in untried}, key=lambda depth: (spent(depth), -int(str(depth))))


class UntriedSampler(BaseSampler):
    """Proposes plans of a space, each once; the same for the same study.

    Where depths are varied, the next plan is of the depth that the least training time was spent on, the greatest and
    cheapest first: all get an equal share of the time, so cheap ones get more trials. TPE chooses the other axes.
    Values of ranges are rounded, so that a plan is what tables show of it.

    Args:
        space: The plans.
        trials: The trials that were begun.
        seed: What the random order is drawn from.
        uses_tpe: Whether TPE proposes plans once there is enough to learn from.
    """

    def __init__(self, space: Space, trials: Sequence[KnownTrial], *, seed: int, uses_tpe: bool) -> None:
        self._space = space
        begun = [trial for trial in trials if trial.point]
        self._tried = [space.same(trial.point) for trial in begun]
        self._next = self._candidates(seed)
        self._fixed: Point = {}
        if space.axes[0].name == DEPTH and self._next:
            self._fixed = {DEPTH: _next_depth(begun, self._next)}
            self._next = [point for point in self._next if point[DEPTH] == self._fixed[DEPTH]]
        # Running trials are no news to TPE: what they try is not proposed again in any case.
        self._tpe = TPESampler(seed=seed + len(begun), constant_liar=False) if uses_tpe else None
        self._random = RandomSampler(seed=seed + len(begun))

    def _candidates(self, seed: int) -> list[Point]:
        """Returns the plans that were not tried, or, where they are not listed, a corner for each of them.

        The corners that the fewest plans were tried of come first.
        """
        if (points := self._space.points) is not None:
            return [point for point in _shuffled(points, self._space.axes, seed) if point not in self._tried]
        listed = [axis.name for axis in self._space.axes if axis.range is None]
        met = Counter(tuple(point[name] for name in listed) for point in self._tried)
        corners = _shuffled(self._space.corners, self._space.axes, seed)
        return sorted(corners, key=lambda point: met[tuple(point[name] for name in listed)])

    def _is_new(self, point: Point) -> bool:
        """Tells whether a plan, of the depth that is next, was not tried."""
        return point not in self._tried if self._space.points is None else point in self._next

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Returns all axes: they are chosen together.

        Args:
            study: The study.
            trial: The trial to choose for.
        """
        return {axis.name: distribution_of(axis) for axis in self._space.axes}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Returns a plan that was not tried.

        Args:
            study: The study.
            trial: The trial to choose for.
            search_space: All axes.
        """
        varied = {name: found for name, found in search_space.items() if name not in self._fixed and not found.single()}
        for _ in range(_MOST_PROPOSALS if self._tpe is not None else 0):
            assert self._tpe is not None
            proposed = self._tpe.sample_relative(study, trial, varied)
            if not proposed:
                break  # There is too little to learn from yet.
            only = {axis.name: next(iter(axis.values)) for axis in self._space.axes}
            point = self._exact({**only, **self._fixed, **proposed})
            if self._is_new(point):
                return dict(point)
        return dict(self._next[0] if self._space.points is not None else self._drawn(study, trial))

    def _drawn(self, study: Study, trial: FrozenTrial) -> Point:
        """Returns a plan at random values of the ranges."""
        ranges = {axis.name: distribution_of(axis) for axis in self._space.axes if axis.range is not None}
        for _ in range(_MOST_PROPOSALS):
            drawn = {name: self._random.sample_independent(study, trial, name, ranges[name]) for name in ranges}
            point = self._exact({**self._next[0], **drawn})
            if self._is_new(point):
                break
        return point

    def _exact(self, point: Point) -> Point:
        """Returns the point that stands for a plan, with rounded values."""
        ranges = {axis.name: axis.range for axis in self._space.axes if axis.range is not None}
        rounded = {name: found.nearest(float(str(point[name]))) for name, found in ranges.items()}
        return self._space.same({**point, **rounded})

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Never called: all axes are chosen together.

        Args:
            study: The study.
            trial: The trial to choose for.
            param_name: The axis.
            param_distribution: What it can be.
        """
        raise NotImplementedError(param_name)
