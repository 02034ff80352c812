"""What a trial gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hf_freeze.insight.space import Point


@dataclass(frozen=True)
class TrialOutcome:
    """What training one plan gave.

    Attributes:
        metrics: The metrics of the last evaluation, by the names that the Trainer logs.
        seconds: How long training took, in seconds, its evaluations included and the build of the cache not.
        peak_memory_bytes: The most memory that was held while training, in bytes.
        on_gpu: Whether that is memory of the GPU.
        num_trainable: How many parameters trained.
        num_evaluations: After how many evaluations training ended.
    """

    metrics: Mapping[str, float]
    seconds: float
    peak_memory_bytes: int
    on_gpu: bool
    num_trainable: int
    num_evaluations: int


@dataclass(frozen=True)
class SeedRun:
    """One run that confirms the answer of a search.

    Attributes:
        name: Which plan it is.
        seed: Its seed.
        outcome: What it gave; None where it failed.
        error: Why it failed.
    """

    name: str
    seed: int
    outcome: TrialOutcome | None
    error: str | None = None


@dataclass(frozen=True)
class Trial:
    """What a study knows about one trial.

    Attributes:
        number: Its number.
        state: `waiting`, `running`, `complete`, `pruned` or `failed`.
        point: Its plan.
        outcome: What it gave, where it ended.
        error: Why it failed.
    """

    number: int
    state: str
    point: Point
    outcome: TrialOutcome | None
    error: str | None

    @property
    def is_finished(self) -> bool:
        """Whether it ended, in whatever way."""
        return self.state in {"complete", "pruned", "failed"}
