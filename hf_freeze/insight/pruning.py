"""Which trials end early: asynchronous successive halving, which leaves enough trials for an answer."""

from __future__ import annotations

from optuna.pruners import BasePruner, SuccessiveHalvingPruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

# A rung is an evaluation: the first, the second, the fourth and so on. The better half goes on.
_FIRST_RUNG = 1
_REDUCTION = 2


class GuardedHalving(BasePruner):
    """Asynchronous successive halving (Li et al. 2020) that trains a share of the trials to the end.

    Args:
        min_complete: That share, from 0 to 1.
    """

    def __init__(self, *, min_complete: float) -> None:
        self._min_complete = min_complete
        self._halving = SuccessiveHalvingPruner(min_resource=_FIRST_RUNG, reduction_factor=_REDUCTION)

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Returns whether a trial is to end now.

        Args:
            study: The study.
            trial: The trial, with what it reported.
        """
        # Asked first in any case: it notes how far the trial has come, which later ones are compared with.
        is_worse = self._halving.prune(study, trial)
        states = [found.state for found in study.get_trials(deepcopy=False)]
        pruned = states.count(TrialState.PRUNED) + 1
        ended = pruned + states.count(TrialState.COMPLETE)
        return is_worse and pruned <= (1 - self._min_complete) * ended + 1e-9
