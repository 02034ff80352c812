"""Whether the answer of a search holds: trained anew with other seeds, on rows that the search has not seen."""

from __future__ import annotations

import hashlib
import logging
import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from hf_freeze.config import RunConfig, override, to_yaml
from hf_freeze.config.writing import without_secrets
from hf_freeze.insight.front import Direction, Recommendation
from hf_freeze.insight.outcomes import TrialOutcome
from hf_freeze.insight.search import TRIAL_ERRORS, in_words
from hf_freeze.insight.study import SearchStudy

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Confirmation:
    """What one plan gave with several seeds.

    Attributes:
        name: Which plan it is.
        outcomes: What each seed gave; the seeds are the same for all plans.
    """

    name: str
    outcomes: tuple[TrialOutcome, ...]

    def scores(self, metric: str) -> list[float]:
        """Returns a metric of the test rows for each seed.

        Args:
            metric: Its name on the validation rows, such as `eval_accuracy`.
        """
        name = f"test_{metric.removeprefix('eval_')}"
        return [outcome.metrics[name] for outcome in self.outcomes]

    @property
    def seconds(self) -> float:
        """The mean training time, in seconds."""
        return statistics.mean(outcome.seconds for outcome in self.outcomes)

    @property
    def peak_memory_bytes(self) -> int:
        """The largest peak of memory, in bytes."""
        return max(outcome.peak_memory_bytes for outcome in self.outcomes)


def mean_and_error(scores: list[float]) -> tuple[float, float]:
    """Returns the mean and its standard error: the sample's standard deviation over the root of its size.

    Args:
        scores: One number for each seed; the error of a single one is not known, and NaN.
    """
    error = statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else math.nan
    return statistics.mean(scores), error


def gap(
    better: Confirmation, worse: Confirmation, metric: str, direction: Direction, *, on_test: bool
) -> tuple[float, float]:
    """Returns by how much one plan is better than another, and the standard error of that, paired by seed.

    Args:
        better: The one.
        worse: The other, with the same seeds.
        metric: The name of a metric on the validation rows, such as `eval_accuracy`.
        direction: Whether more of it is better.
        on_test: Whether the test rows are compared, or the validation rows.
    """
    sign = 1 if direction == "maximize" else -1

    def scores(found: Confirmation) -> list[float]:
        return found.scores(metric) if on_test else [outcome.metrics[metric] for outcome in found.outcomes]

    return mean_and_error([sign * (one - other) for one, other in zip(scores(better), scores(worse), strict=True)])


def reconsider(
    found: Recommendation,
    own: Confirmation,
    best: Confirmation,
    metric: str,
    direction: Direction,
    *,
    tolerance: float,
) -> Recommendation:
    """Returns the plan to take once seeds tell more than one trial: the best one, where the cheaper one falls behind.

    Only the validation rows decide; the test rows say what the answer is worth.

    Args:
        found: What single trials recommend.
        own: What the recommended plan gave with several seeds.
        best: What the best one gave with the same.
        metric: The metric on the validation rows.
        direction: Whether more of it is better.
        tolerance: How much of it may be given up.
    """
    behind, error = gap(best, own, metric, direction, on_test=False)
    if found.chosen.number == found.best.number or behind <= max(tolerance, error):
        return found
    reason = (
        f"It has the best {metric}. Trial {found.chosen.number} trains faster and came within {tolerance:g} of it, but "
        f"over {len(own.outcomes)} seeds it is {behind:.4f} behind on the validation rows, standard error {error:.4f}."
    )
    return Recommendation(found.best, found.best, 0.0, reason)


def confirm(
    study: SearchStudy,
    configs: Mapping[str, RunConfig],
    train: Callable[[RunConfig], TrialOutcome],
    *,
    seeds: Iterable[int],
) -> tuple[Confirmation, ...]:
    """Trains plans with several seeds, and returns what they gave; plans of which runs are missing are left out.

    Runs that the study holds are not repeated, and those that other processes are at are left to them. A plan that
    fails, or gives a number that is not finite, is said to and not tried with further seeds.

    Args:
        study: The study, which keeps what runs gave.
        configs: The plans, by name.
        train: Trains a plan and evaluates it on the test rows.
        seeds: The seeds.
    """
    runs = {
        (name, seed): override(config, {"training.seed": seed}, source="search.confirm")
        for seed in seeds
        for name, config in configs.items()
    }
    keys = {run: _digest(config) for run, config in runs.items()}
    failed: set[str] = set()
    for index, ((name, seed), config) in enumerate(runs.items()):
        key = keys[name, seed]
        if name not in failed and study.claim_confirmation(index, key):
            outcome = _attempted(train, config, f"{name}, seed {seed}")
            if outcome is None:
                failed.add(name)
            else:
                study.record_confirmation(index, key, outcome)
    done = study.confirmed
    found = []
    for name in configs:
        mine = [done.get(key) for (owner, _), key in keys.items() if owner == name]
        outcomes = tuple(outcome for outcome in mine if outcome is not None)
        if len(outcomes) == len(mine):
            found.append(Confirmation(name, outcomes))
    return tuple(found)


def _attempted(train: Callable[[RunConfig], TrialOutcome], config: RunConfig, what: str) -> TrialOutcome | None:
    """Returns what a run gave; None, with a warning, where it failed: the answer is there without it."""
    try:
        outcome = train(config)
    except TRIAL_ERRORS as error:
        logger.warning("search: a plan could not be confirmed (%s); got %s", what, in_words(error))
        return None
    for metric, value in outcome.metrics.items():
        if not math.isfinite(value):
            logger.warning("search: a plan could not be confirmed (%s); got %s for %s", what, value, metric)
            return None
    return outcome


def _digest(config: RunConfig) -> str:
    """Returns a name for a run that is equal for equal configs, wherever they write to."""
    anywhere = override(config, {"training.output_dir": "any", "activation_cache.dir": None}, source="search.confirm")
    return hashlib.blake2b(to_yaml(without_secrets(anywhere)).encode(), digest_size=16).hexdigest()
