"""What a search found: the Pareto front of the metric against what plans cost, and the plan to take. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from hf_freeze.insight.outcomes import Trial, TrialOutcome

Direction = Literal["maximize", "minimize"]

# 0.800 - 0.795 is a bit above 0.005 in floating point.
ROUNDING: Final = 1e-9


@dataclass(frozen=True)
class Recommendation:
    """The plan to take.

    Attributes:
        chosen: The cheapest complete trial within the tolerance of the best.
        best: The complete trial with the best metric.
        given_up: How much worse the metric of the chosen one is, from 0 up.
        reason: Why it was chosen, in words.
    """

    chosen: Trial
    best: Trial
    given_up: float
    reason: str


def costs(outcome: TrialOutcome) -> tuple[float, float, float]:
    """Returns what a plan costs: training seconds, peak memory in bytes, and trainable parameters.

    Args:
        outcome: What training it gave.
    """
    return outcome.seconds, float(outcome.peak_memory_bytes), float(outcome.num_trainable)


def complete(trials: Iterable[Trial]) -> list[tuple[Trial, TrialOutcome]]:
    """Returns the trials that were trained to the end, with what they gave.

    Args:
        trials: All trials.
    """
    return [(trial, trial.outcome) for trial in trials if trial.state == "complete" and trial.outcome is not None]


def best_of(trials: Iterable[Trial], metric: str, direction: Direction) -> Trial | None:
    """Returns the complete trial with the best metric, the cheapest of equals; None where none is complete.

    Args:
        trials: All trials.
        metric: What is compared.
        direction: Whether more is better.
    """
    sign = -1 if direction == "maximize" else 1
    return min(
        complete(trials), key=lambda found: (sign * found[1].metrics[metric], costs(found[1])), default=(None, None)
    )[0]


def pareto_front(trials: Iterable[Trial], metric: str, direction: Direction) -> list[Trial]:
    """Returns the complete trials that no other beats by being as good and cheap in everything, and better in one.

    Args:
        trials: All trials.
        metric: What is compared with the costs.
        direction: Whether more is better.
    """
    sign = -1 if direction == "maximize" else 1
    found = [(trial, (sign * outcome.metrics[metric], *costs(outcome))) for trial, outcome in complete(trials)]
    return [trial for trial, own in found if not any(_beats(other, own) for _, other in found)]


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(mine <= its for mine, its in zip(one, other, strict=True))


def recommend(trials: Sequence[Trial], metric: str, direction: Direction, *, tolerance: float) -> Recommendation | None:
    """Returns the cheapest complete plan whose metric is within the tolerance of the best, or None where none is.

    Args:
        trials: All trials.
        metric: What is compared.
        direction: Whether more is better.
        tolerance: How much of it may be given up.
    """
    best = best_of(trials, metric, direction)
    if best is None or best.outcome is None:
        return None
    top = best.outcome.metrics[metric]

    def given_up(outcome: TrialOutcome) -> float:
        return abs(outcome.metrics[metric] - top)

    near = [found for found in complete(trials) if given_up(found[1]) <= tolerance + ROUNDING]
    chosen, outcome = min(near, key=lambda found: costs(found[1]))
    reason = _reason(best.outcome, outcome, metric, tolerance=tolerance, num_near=len(near), num=len(complete(trials)))
    return Recommendation(chosen, best, given_up(outcome), reason)


def _reason(best: TrialOutcome, chosen: TrialOutcome, metric: str, *, tolerance: float, num_near: int, num: int) -> str:
    top, own = best.metrics[metric], chosen.metrics[metric]
    if num == 1:
        return f"It is the only complete trial; its {metric} is {top:.4f}."
    if num_near == 1:
        others = "the other complete trial does not come" if num == 2 else f"none of the other {num - 1} comes"
        return f"It has the best {metric}, {top:.4f}, and {others} within {tolerance:g} of it."
    among = f"Of the {num_near} complete trials within {tolerance:g} of the best {metric}, {top:.4f}, it trains fastest"
    if chosen == best:
        return f"{among}, and it is the best itself."
    times = best.seconds / chosen.seconds
    return (
        f"{among}: {own:.4f} in {chosen.seconds:.1f} seconds, where the best takes {best.seconds:.1f} "
        f"({times:.1f} times as long) and trains {best.num_trainable:,} parameters instead of {chosen.num_trainable:,}."
    )
