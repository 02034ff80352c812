"""Which trials end early: successive halving that spares cheap plans and leaves enough trials for an answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from optuna.distributions import CategoricalDistribution
from optuna.pruners import BasePruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hf_freeze.insight.space import DEPTH, SCHEDULE

_REDUCTION: Final = 2


class GuardedHalving(BasePruner):
    """Asynchronous successive halving (Li et al. 2020) that trains a share of the trials to the end.

    A rung is an evaluation: the first, the second, the fourth and so on. The better half of those that reached it so
    far goes on. A plan has two groups of rivals: those of its own depth, and those that freeze at least as much. One in
    the worse half of either costs more than it gives. It is never compared with plans that freeze less: a cheaper plan
    need not be as good as a dearer one to be worth knowing.

    Only so many trials may end early, so they end where that saves most: those of the greatest depth never do, where
    there are several, nor any that is past its half.

    Args:
        min_complete: That share, from 0 to 1.
        num_trials: How many trials there will be; None where that is not known, and the share is kept at any time.
    """

    def __init__(self, *, min_complete: float, num_trials: int | None) -> None:
        self._min_complete = min_complete
        self._num_trials = num_trials

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Returns whether a trial is to end now.

        Args:
            study: The study.
            trial: The trial, with what it reported.
        """
        step = trial.last_step
        if step is None or step & (step - 1) or _is_cheapest(trial):
            return False
        trials = study.get_trials(deepcopy=False)
        states = [found.state for found in trials]
        pruned = states.count(TrialState.PRUNED) + 1
        known = self._num_trials or pruned + states.count(TrialState.COMPLETE)
        if pruned > (1 - self._min_complete) * known + 1e-9 or 2 * step > _num_evaluations(trials):
            return False
        sign = 1 if study.direction == StudyDirection.MAXIMIZE else -1
        own = sign * trial.intermediate_values[step]
        others = [
            (found.params.get(DEPTH), sign * found.intermediate_values[step])
            for found in trials
            if found.number != trial.number
            and found.state != TrialState.FAIL
            and step in found.intermediate_values
            and _is_comparable(trial, found)
        ]
        same_depth = [value for depth, value in others if depth == trial.params.get(DEPTH)]
        return _is_in_worse_half(own, same_depth) or _is_in_worse_half(own, [value for _, value in others])


def _is_cheapest(trial: FrozenTrial) -> bool:
    """Returns whether a trial has the greatest of several depths."""
    depths = trial.distributions.get(DEPTH)
    if not isinstance(depths, CategoricalDistribution) or len(depths.choices) < 2:
        return False
    return int(trial.params[DEPTH]) == max(int(str(depth)) for depth in depths.choices)


def _num_evaluations(trials: Sequence[FrozenTrial]) -> float:
    """Returns how many evaluations a trial has that is trained to the end, as far as that is known."""
    ended = (len(found.intermediate_values) for found in trials if found.state == TrialState.COMPLETE)
    return max(ended, default=math.inf)


def _is_comparable(trial: FrozenTrial, other: FrozenTrial) -> bool:
    """Returns whether the other one freezes at least as much, under the same schedule."""
    if other.params.get(SCHEDULE) != trial.params.get(SCHEDULE):
        return False
    return DEPTH not in trial.params or int(other.params.get(DEPTH, -1)) >= int(trial.params[DEPTH])


def _is_in_worse_half(own: float, others: Sequence[float]) -> bool:
    return sum(other > own for other in others) >= max(1, (len(others) + 1) // _REDUCTION)
