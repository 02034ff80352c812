"""The picture of a search: the metric against seconds, memory and trainable parameters, with the Pareto fronts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from matplotlib.figure import Figure

from hf_freeze.insight.front import Direction, complete
from hf_freeze.insight.outcomes import Trial, TrialOutcome

_MIB: Final = 1 << 20  # bytes
_COSTS: Final[dict[str, Callable[[TrialOutcome], float]]] = {
    "training seconds": lambda outcome: outcome.seconds,
    "peak memory, MiB": lambda outcome: outcome.peak_memory_bytes / _MIB,
    "trainable parameters": lambda outcome: float(outcome.num_trainable),
}


def draw_front(path: Path, trials: Iterable[Trial], *, metric: str, direction: Direction, chosen: Trial | None) -> None:
    """Draws the complete trials, one panel for each cost, and writes a PNG.

    Args:
        path: The file.
        trials: All trials.
        metric: What is drawn upwards.
        direction: Whether more of it is better.
        chosen: The plan to take, which is marked.
    """
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    found = complete(trials)
    for axes, (name, cost) in zip(figure.subplots(1, len(_COSTS), sharey=True), _COSTS.items(), strict=True):
        points = [(cost(outcome), outcome.metrics[metric]) for _, outcome in found]
        axes.scatter(*zip(*points, strict=True), color="tab:gray", label="complete trials")
        axes.step(*zip(*front_line(points, direction), strict=True), where="post", color="tab:blue", label="front")
        if chosen is not None and chosen.outcome is not None:
            place = ([cost(chosen.outcome)], [chosen.outcome.metrics[metric]])
            axes.scatter(*place, color="tab:orange", marker="*", s=220, zorder=3, label="recommended")
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
        if name == "trainable parameters":
            axes.set_xscale("log")
    figure.axes[0].set_ylabel(metric)
    figure.axes[0].legend()
    figure.savefig(path, format="png")


def front_line(points: Iterable[tuple[float, float]], direction: Direction) -> list[tuple[float, float]]:
    """Returns the points that no cheaper one equals, from the cheapest on.

    Args:
        points: Cost and metric of each trial.
        direction: Whether more of the metric is better.
    """
    sign = -1 if direction == "maximize" else 1
    line: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], sign * point[1])):
        if not line or sign * value < sign * line[-1][1]:
            line.append((cost, value))
    return line
