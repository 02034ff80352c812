"""Whether the answer of a search holds: trained anew with other seeds, on rows that the search has not seen."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from hf_freeze.config import RunConfig, override, to_yaml
from hf_freeze.config.writing import without_secrets
from hf_freeze.insight.front import ROUNDING, Direction, Recommendation
from hf_freeze.insight.outcomes import SeedRun, TrialOutcome
from hf_freeze.insight.search import TRIAL_ERRORS, in_words
from hf_freeze.insight.study import SearchStudy


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
        return [outcome.metrics[on_test_rows(metric)] for outcome in self.outcomes]

    @property
    def seconds(self) -> float:
        """The mean training time, in seconds."""
        return statistics.mean(outcome.seconds for outcome in self.outcomes)

    @property
    def peak_memory_bytes(self) -> int:
        """The largest peak of memory, in bytes."""
        return max(outcome.peak_memory_bytes for outcome in self.outcomes)


def on_test_rows(metric: str) -> str:
    """Returns the name of a metric on the test rows, such as `test_accuracy`.

    Args:
        metric: Its name on the validation rows.
    """
    return f"test_{metric.removeprefix('eval_')}"


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

    It falls behind by more than one standard error or, where a single seed tells none, by more than the tolerance.
    Only the validation rows decide; the test rows say what the answer is worth.

    Args:
        found: What single trials recommend.
        own: What the recommended plan gave with several seeds.
        best: What the best one gave with the same.
        metric: The metric on the validation rows.
        direction: Whether more of it is better.
        tolerance: How much of it the cheaper plan gave up at most in its trial.
    """
    if found.chosen.number == found.best.number:
        return found
    behind, error = gap(best, own, metric, direction, on_test=False)
    count = len(own.outcomes)
    # The error of a single seed is not known.
    allowed, limit = (error, f"one standard error, {error:.4f}") if count > 1 else (tolerance, f"{tolerance:g}")
    seeds = f"over {count} seeds" if count > 1 else "with one more seed"
    if behind <= allowed + ROUNDING:
        place = f"{behind:.4f} behind the best, not more than {limit}," if behind > 0 else "not behind the best"
        stays = f"{seeds.capitalize()} it is {place} on the validation rows."
        return replace(found, reason=f"{found.reason} {stays}")
    reason = (
        f"It has the best {metric}. Trial {found.chosen.number} trains faster and came within {tolerance:g} of it, but "
        f"{seeds} it is {behind:.4f} behind on the validation rows, which is more than {limit}."
    )
    return Recommendation(found.best, found.best, 0.0, reason)


class Confirming:
    """Trains plans with several seeds.

    Runs that the study holds are not repeated, and those that other processes are at are left to them. A plan that
    fails, or gives a number that is not finite, is not tried with further seeds.

    Attributes:
        runs: The runs that ended here.

    Args:
        study: The study, which keeps what runs gave.
        train: Trains a plan and evaluates it on the test rows.
        seeds: The seeds.
        watch: Is told before each run, and at the end, which have ended here and how many of each plan are to come.
    """

    def __init__(
        self,
        study: SearchStudy,
        train: Callable[[RunConfig], TrialOutcome],
        *,
        seeds: Sequence[int],
        watch: Callable[[tuple[SeedRun, ...], Mapping[str, int]], None] = lambda runs, left: None,
    ) -> None:
        self.runs: list[SeedRun] = []
        self._study = study
        self._train = train
        self._seeds = seeds
        self._watch = watch
        self._failed: dict[str, SeedRun] = {}

    def confirm(self, configs: Mapping[str, RunConfig]) -> tuple[Confirmation, ...]:
        """Returns what plans gave; those of which runs are missing are left out.

        Args:
            configs: The plans, by name.
        """
        keys = {
            (name, seed): _digest(override(config, {"training.seed": seed}, source="search.confirm"))
            for seed in self._seeds
            for name, config in configs.items()
        }
        left = Counter(name for name, _ in keys)
        for (name, seed), key in keys.items():
            if self.failure(configs[name]) is None and self._study.claim_confirmation(key):
                self._watch(tuple(self.runs), left)
                run = self._run(name, configs[name], seed)
                if run.outcome is None:
                    self._failed[_digest(configs[name])] = run
                    self._study.release_confirmation(key)
                else:
                    self._study.record_confirmation(key, run.outcome)
                self.runs.append(run)
            left[name] -= 1
        self._watch(tuple(self.runs), left)
        done = self._study.confirmed
        found = {name: [done.get(keys[name, seed]) for seed in self._seeds] for name in configs}
        return tuple(
            Confirmation(name, tuple(outcome for outcome in outcomes if outcome is not None))
            for name, outcomes in found.items()
            if None not in outcomes
        )

    def failure(self, config: RunConfig) -> SeedRun | None:
        """Returns the run in which a plan failed; None where none did.

        Args:
            config: The plan.
        """
        return self._failed.get(_digest(config))

    def _run(self, name: str, config: RunConfig, seed: int) -> SeedRun:
        try:
            outcome = self._train(override(config, {"training.seed": seed}, source="search.confirm"))
        except TRIAL_ERRORS as error:
            return SeedRun(name, seed, None, in_words(error))
        for metric, value in outcome.metrics.items():
            if not math.isfinite(value):
                return SeedRun(name, seed, None, f"{metric} is {value}")
        return SeedRun(name, seed, outcome)


def _digest(config: RunConfig) -> str:
    """Returns a name for a run that is equal for equal configs, wherever they write to."""
    anywhere = override(config, {"training.output_dir": "any", "activation_cache.dir": None}, source="search.confirm")
    return hashlib.blake2b(to_yaml(without_secrets(anywhere)).encode(), digest_size=16).hexdigest()
