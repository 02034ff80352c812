"""Which trials end early: successive halving among plans of one depth, which leaves enough for an answer."""

from __future__ import annotations

from typing import Final

from optuna.pruners import BasePruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hf_freeze.insight.space import DEPTH

_REDUCTION: Final = 2


class GuardedHalving(BasePruner):
    """Asynchronous successive halving (Li et al. 2020) that trains a share of the trials to the end.

    A rung is an evaluation: the first, the second, the fourth and so on. The better half of those that reached it so
    far goes on. Only plans that freeze the same number of blocks are compared: a cheaper plan need not be as good as a
    dearer one to be worth knowing, and ending dear trials early is what saves time.

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
        if step is None or step & (step - 1):
            return False
        trials = study.get_trials(deepcopy=False)
        states = [found.state for found in trials]
        pruned = states.count(TrialState.PRUNED) + 1
        known = self._num_trials or pruned + states.count(TrialState.COMPLETE)
        if pruned > (1 - self._min_complete) * known + 1e-9:
            return False
        own = trial.intermediate_values[step]
        others = [
            found.intermediate_values[step]
            for found in trials
            if found.number != trial.number
            and found.state != TrialState.FAIL
            and found.params.get(DEPTH) == trial.params.get(DEPTH)
            and step in found.intermediate_values
        ]
        sign = 1 if study.direction == StudyDirection.MAXIMIZE else -1
        num_better = sum(sign * other > sign * own for other in others)
        return num_better >= max(1, (len(others) + 1) // _REDUCTION)
