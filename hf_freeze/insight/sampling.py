"""Which plan to try next: one that was not tried yet, by TPE or in random order."""

from __future__ import annotations

import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from hf_freeze.insight.outcomes import Trial
from hf_freeze.insight.space import DEPTH, Choice, Point, Space

# Proposals of TPE in a row that were all tried before another plan is drawn at random.
_MOST_PROPOSALS = 50


def distributions_of(space: Space) -> dict[str, BaseDistribution]:
    """Returns what Optuna may choose for each axis.

    Args:
        space: The plans.
    """
    return {axis.name: CategoricalDistribution(list(axis.values)) for axis in space.axes}


def _shuffled(space: Space, seed: int) -> list[Point]:
    """Returns all plans in random order, the values of the first axis in turn; depths the greatest first."""
    points = list(space.points)
    random.Random(seed).shuffle(points)
    first = space.axes[0].name
    if first == DEPTH:
        points.sort(key=lambda point: -int(str(point[DEPTH])))
    met: Counter[Any] = Counter()
    turns = []
    for point in points:
        turns.append((met[point[first]], point))
        met[point[first]] += 1
    return [point for _, point in sorted(turns, key=lambda turn: turn[0])]


def _next_depth(trials: Sequence[Trial], untried: Sequence[Point]) -> Choice:
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

    Args:
        space: The plans.
        trials: The trials that were begun.
        seed: What the random order is drawn from.
        uses_tpe: Whether TPE proposes plans once there is enough to learn from.
    """

    def __init__(self, space: Space, trials: Sequence[Trial], *, seed: int, uses_tpe: bool) -> None:
        self._space = space
        begun = [trial for trial in trials if trial.point]
        standing = [space.same(trial.point) for trial in begun]
        untried = [point for point in _shuffled(space, seed) if point not in standing]
        if space.axes[0].name == DEPTH and untried:
            self._fixed: Point = {DEPTH: _next_depth(begun, untried)}
            untried = [point for point in untried if point[DEPTH] == self._fixed[DEPTH]]
        else:
            self._fixed = {}
        self._untried = untried
        # Running trials are no news to TPE: what they try is not proposed again in any case.
        self._tpe = TPESampler(seed=seed + len(begun), constant_liar=False) if uses_tpe else None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Returns all axes: they are chosen together.

        Args:
            study: The study.
            trial: The trial to choose for.
        """
        return distributions_of(self._space)

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
            point = self._space.same({**only, **self._fixed, **proposed})
            if point in self._untried:
                return dict(point)
        return dict(self._untried[0])

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
