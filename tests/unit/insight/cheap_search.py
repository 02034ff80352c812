"""A search whose trials cost nothing, for processes that share a study.

`python -m ... STUDY LOG SECONDS TRIALS AT_ONCE`. Every trial writes a line to the log when it begins and one when it
ends, with its plan. None ends before AT_ONCE have begun.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_freeze.config import SearchConfig
from hf_freeze.insight.outcomes import Trial, TrialOutcome
from hf_freeze.insight.search import Report, run_trials
from hf_freeze.insight.space import Axis, Point, Space
from hf_freeze.insight.study import SearchStudy

METRIC = "eval_accuracy"


def space(*sizes: int) -> Space:
    """Plans `a0`, `a1` ... that cross with others, all of them different."""
    axes = tuple(Axis(f"axis{i}", "search.axes", {f"a{n}": n for n in range(size)}) for i, size in enumerate(sizes))
    return Space(axes)


def section(**options: Any) -> SearchConfig:
    return SearchConfig(**{"axes": {"x": [1]}, "metric": METRIC, "direction": "maximize", **options})


def open_study(path: Path, plans: Space, options: SearchConfig, **identity: Any) -> SearchStudy:
    return SearchStudy(path, plans, options, seed=0, identity=identity)


def outcome(value: float, num_evaluations: int = 1, seconds: float = 1.0) -> TrialOutcome:
    return TrialOutcome({METRIC: value}, seconds, 1, False, 1, num_evaluations)


def value_of(point: Point) -> float:
    """The metric of a plan: the later its values, the better."""
    return sum(int(str(choice)[1:]) for choice in point.values()) / 100


def main(path: Path, log: Path, *, seconds: float, trials: int, at_once: int = 1) -> list[Trial]:
    options = section(trials=trials, pruner="none")
    study = open_study(path, space(4, 3), options)

    def run(point: Point, report: Report) -> TrialOutcome:
        note(log, "begins", point)
        time.sleep(seconds)
        while log.read_text().count("begins") < at_once:
            time.sleep(0.02)
        report({METRIC: value_of(point)}, is_last=True)
        note(log, "ends", point)
        return outcome(value_of(point))

    found = run_trials(study, options, run, lambda progress: None)
    study.close()
    return found


def note(log: Path, what: str, point: Mapping[str, Any]) -> None:
    with log.open("a") as file:
        file.write(f"{what} {' '.join(map(str, point.values()))}\n")


if __name__ == "__main__":
    seconds, trials, at_once = float(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
    main(Path(sys.argv[1]), Path(sys.argv[2]), seconds=seconds, trials=trials, at_once=at_once)
