"""Which plan to try next: one that was not tried yet, by TPE or in random order."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from hf_freeze.insight.space import Point, Space

# Proposals of TPE in a row that were all tried before another plan is drawn at random.
_MOST_PROPOSALS = 50


def distributions_of(space: Space) -> dict[str, BaseDistribution]:
    """Returns what Optuna may choose for each axis.

    Args:
        space: The plans.
    """
    return {axis.name: CategoricalDistribution(list(axis.values)) for axis in space.axes}


def _balanced(space: Space, seed: int) -> list[Point]:
    """Returns all plans in random order, the values of the first axis in turn: no depth waits for the others."""
    points = list(space.points)
    random.Random(seed).shuffle(points)
    first = space.axes[0].name
    met: Counter[Any] = Counter()
    turns = []
    for point in points:
        turns.append((met[point[first]], point))
        met[point[first]] += 1
    return [point for _, point in sorted(turns, key=lambda turn: turn[0])]


class UntriedSampler(BaseSampler):
    """Proposes plans of a space, each once; the same for the same study.

    Args:
        space: The plans.
        tried: The plans that were tried or are being tried, and how many those are.
        seed: What the random order is drawn from.
        uses_tpe: Whether TPE proposes plans once there is enough to learn from.
    """

    def __init__(self, space: Space, tried: Sequence[Point], *, seed: int, uses_tpe: bool) -> None:
        self._space = space
        points = _balanced(space, seed)
        standing = [space.same(point) for point in tried]
        self._tried = standing
        self.untried = [point for point in points if point not in standing]
        # Running trials are no news to TPE: what they try is not proposed again in any case.
        self._tpe = TPESampler(seed=seed + len(tried), constant_liar=False) if uses_tpe else None

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
        varied = {name: found for name, found in search_space.items() if not found.single()}
        for _ in range(_MOST_PROPOSALS if self._tpe is not None else 0):
            assert self._tpe is not None
            proposed = self._tpe.sample_relative(study, trial, varied)
            if not proposed:
                break  # There is too little to learn from yet.
            fixed = {axis.name: next(iter(axis.values)) for axis in self._space.axes}
            point = self._space.same({**fixed, **proposed})
            if point not in self._tried:
                return dict(point)
        return dict(self.untried[0])

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
