"""The record of `balance.py` and `schedules.py`: one JSON line per run, so that an end at any moment costs one run."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TUNING, TEST = "validation", "test"


@dataclass(frozen=True)
class Run:
    """One training, and the split that it is judged on.

    Attributes:
        plan: Its name.
        rows: How many rows it trains on.
        epochs: How often it passes over them.
        seed: What the choice and order of the rows, the weights of head and adapters, and dropout are drawn from.
        learning_rate: The peak of the schedule.
        split: "validation" for tuning, "test" for what is reported.
    """

    plan: str
    rows: int
    epochs: int
    seed: int
    learning_rate: float
    split: str


@dataclass(frozen=True)
class Cost:
    """What one plan took once.

    Attributes:
        plan: Its name.
        rows: How many rows it trained on.
        evaluated: How many rows of the test split it was evaluated on.
        repeat: The number of the round.
        build: Seconds of filling the activation cache for both.
        setup: Seconds of the rest of training outside its epochs.
        epoch: Seconds of one epoch of training.
        evaluation: Seconds of one pass over the evaluated rows.
        cache_bytes: Of the files of the activation cache, for the rows of both.
    """

    plan: str
    rows: int
    evaluated: int
    repeat: int
    build: float
    setup: float
    epoch: float
    evaluation: float
    cache_bytes: int


@dataclass(frozen=True)
class Time:
    """What one whole training took.

    Attributes:
        plan: Its name.
        rows: How many rows it trained on.
        epochs: How often it passed over them.
        repeat: The number of the round.
        seconds: From the first to the last step, with an activation cache that was empty at first.
        depth: The mean over the steps of the depth of the frozen prefix.
    """

    plan: str
    rows: int
    epochs: int
    repeat: int
    seconds: float
    depth: float


@dataclass(frozen=True)
class Footprint:
    """The memory and disk of one plan.

    Attributes:
        plan: Its name.
        repeat: The number of the round.
        before: Anonymous memory of the process before it trained, in bytes.
        during: The largest that it was until training ended, in bytes.
        checkpoint_bytes: Of a checkpoint with the state of the optimizer.
    """

    plan: str
    repeat: int
    before: int
    during: int
    checkpoint_bytes: int


class Record:
    """What has been run so far.

    Args:
        path: The file, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add_run(self, run: Run, accuracy: float, about: str, *, depth: float | None = None) -> None:
        """Appends a finished run.

        Args:
            run: What was run.
            accuracy: On its split.
            about: The versions that it ran on.
            depth: The mean over its steps of the depth of the frozen prefix, where that changes.
        """
        found = {} if depth is None else {"depth": depth}
        self._append({"kind": "run", **asdict(run), "accuracy": accuracy, **found, "about": about})

    def add_time(self, time: Time, about: str) -> None:
        """Appends what a whole training took.

        Args:
            time: The figures.
            about: The machine.
        """
        self._append({"kind": "time", **asdict(time), "about": about})

    def add_cost(self, cost: Cost, about: str) -> None:
        """Appends what a plan took.

        Args:
            cost: The figures.
            about: The machine.
        """
        self._append({"kind": "cost", **asdict(cost), "about": about})

    def add_footprint(self, footprint: Footprint, about: str) -> None:
        """Appends the memory and disk of a plan.

        Args:
            footprint: The figures.
            about: The machine.
        """
        self._append({"kind": "footprint", **asdict(footprint), "about": about})

    @property
    def accuracies(self) -> dict[Run, float]:
        """The accuracy of every finished run."""
        fields = Run.__dataclass_fields__
        return {Run(**{name: line[name] for name in fields}): line["accuracy"] for line in self._lines("run")}

    @property
    def depths(self) -> dict[Run, float]:
        """The mean depth of every finished run in which it changes."""
        fields = Run.__dataclass_fields__
        lines = (line for line in self._lines("run") if "depth" in line)
        return {Run(**{name: line[name] for name in fields}): line["depth"] for line in lines}

    @property
    def times(self) -> list[Time]:
        """What whole trainings took."""
        return [Time(**{name: line[name] for name in Time.__dataclass_fields__}) for line in self._lines("time")]

    @property
    def costs(self) -> list[Cost]:
        """What the plans took."""
        return [Cost(**{name: line[name] for name in Cost.__dataclass_fields__}) for line in self._lines("cost")]

    @property
    def footprints(self) -> list[Footprint]:
        """The memory and disk of the plans."""
        fields = Footprint.__dataclass_fields__
        return [Footprint(**{name: line[name] for name in fields}) for line in self._lines("footprint")]

    def about(self, kind: str) -> list[str]:
        """Returns the different machines or versions of one kind of line, in order, without the load.

        Args:
            kind: "run", "cost", "time" or "footprint".
        """
        return list(dict.fromkeys(line["about"].partition("; load")[0] for line in self._lines(kind)))

    def best_rate(self, plan: str, rows: int, epochs: int, rates: tuple[float, ...], seed: int) -> float | None:
        """Returns the learning rate with the best accuracy in tuning, the smallest of equals; None until all are tried.

        Args:
            plan: Its name.
            rows: How many rows it trained on.
            epochs: How often it passed over them.
            rates: Those that are tried.
            seed: Of tuning.
        """
        known = self.accuracies
        runs = [Run(plan, rows, epochs, seed, rate, TUNING) for rate in sorted(rates)]
        if any(run not in known for run in runs):
            return None
        return max(runs, key=known.__getitem__).learning_rate

    def _lines(self, kind: str) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        # What stands behind the last line feed was not written to its end.
        *lines, _ = self.path.read_text(encoding="utf-8").split("\n")
        return [found for found in map(json.loads, lines) if found["kind"] == kind]

    def _append(self, values: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            written = file.read()
            file.truncate(written.rfind(b"\n") + 1)
            file.write(json.dumps(values).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
