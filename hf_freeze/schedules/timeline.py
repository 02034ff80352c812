"""What a run changed in its freeze state and when: transitions, and the file that lists them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TIMELINE_FILE = "timeline.jsonl"


@dataclass(frozen=True)
class Transition:
    """One change of freeze state.

    Attributes:
        step: Optimizer steps that were done.
        epoch: Epochs that were done, with their fraction.
        froze: The roles that were frozen by it, in the order of the layout.
        thawed: The roles that were thawed by it.
        depth: The depth of the frozen prefix after it, in blocks.
        why: The reason, in a few words.
        numbers: The numbers that led to it.
    """

    step: int
    epoch: float
    froze: tuple[str, ...]
    thawed: tuple[str, ...]
    depth: int
    why: str
    numbers: Mapping[str, float]

    @property
    def line(self) -> str:
        """The transition in one line."""
        parts = [
            f"{verb} {', '.join(roles)}" for verb, roles in (("froze", self.froze), ("thawed", self.thawed)) if roles
        ]
        return f"step {self.step}: {'; '.join(parts)}; depth {self.depth}; {self.why}"

    def record(self) -> dict[str, Any]:
        """Returns the transition as plain data; a number that is not finite, which JSON lacks, is None."""
        numbers = {name: number if math.isfinite(number) else None for name, number in self.numbers.items()}
        return {**asdict(self), "froze": list(self.froze), "thawed": list(self.thawed), "numbers": numbers}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Transition:
        """Returns the transition that `record` gave; a number that was not finite is NaN.

        Args:
            record: What it gave.
        """
        numbers = {name: math.nan if number is None else number for name, number in record["numbers"].items()}
        roles = {name: tuple(record[name]) for name in ("froze", "thawed")}
        return cls(**{**record, **roles, "numbers": numbers})


def write_timeline(folder: Path, transitions: Iterable[Transition]) -> None:
    """Writes the file of a run anew.

    Args:
        folder: The folder of the run; it is made where it does not exist.
        transitions: What happened so far.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TIMELINE_FILE).write_text("".join(f"{json.dumps(one.record())}\n" for one in transitions))


def append_to_timeline(folder: Path, transition: Transition) -> None:
    """Adds one transition to the file of a run.

    Args:
        folder: The folder of the run.
        transition: What happened.
    """
    with (folder / TIMELINE_FILE).open("a") as stream:
        stream.write(f"{json.dumps(transition.record())}\n")


def read_timeline(folder: Path) -> list[Transition]:
    """Returns what the file of a run lists; nothing where there is none.

    Args:
        folder: The folder of the run.
    """
    file = folder / TIMELINE_FILE
    lines = file.read_text().splitlines() if file.exists() else []
    return [Transition.from_record(json.loads(line)) for line in lines]
