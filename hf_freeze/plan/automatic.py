"""What an automatic selection chose before training, and why: in sentences, and as plain data. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_freeze.config import FreezeConfig, Selection, parse_section
from hf_freeze.config.automatic import AutomaticSelection
from hf_freeze.errors import PlanError
from hf_freeze.plan.places import Stack


@dataclass(frozen=True)
class Chosen:
    """What was chosen.

    Attributes:
        asked: The choice as the config asks for it.
        section: The `freeze` section that says the same without choosing.
        why: What was chosen and why, a sentence each.
        scored: What the scores are, in words.
        scores: Scores by role.
    """

    asked: Mapping[str, Any]
    section: FreezeConfig
    why: tuple[str, ...]
    scored: str
    scores: Mapping[str, float]

    @property
    def lines(self) -> tuple[str, ...]:
        """What was chosen and why, with the scores."""
        scores = ", ".join(f"{role} {score:.3g}" for role, score in self.scores.items())
        return (*self.why, f"{self.scored}: {scores}.")

    def record(self) -> dict[str, Any]:
        """Returns the choice as plain data."""
        section = self.section.model_dump(exclude_defaults=True)
        told = {"why": list(self.why), "scored": self.scored, "scores": dict(self.scores)}
        return {"asked": dict(self.asked), "section": section, **told}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Chosen:
        """Returns the choice that `record` gave.

        Args:
            record: What it gave.
        """
        section = parse_section(FreezeConfig, record["section"], key="freeze")
        return cls(record["asked"], section, tuple(record["why"]), record["scored"], record["scores"])


def first_blocks(stacks: Sequence[Stack], count: int) -> Selection | dict[str, Selection]:
    """Returns the selection of the blocks nearest to the input, of all stacks one after the other.

    Args:
        stacks: The stacks in the order in which they run.
        count: How many blocks.
    """
    if len(stacks) == 1:
        return Selection("first", count)
    selections = {}
    for stack in stacks:
        here = min(count, stack.num_blocks)
        selections[stack.name] = Selection("first", here)
        count -= here
    return selections


def check_automatic(selection: AutomaticSelection, adapters: Sequence[object], schedule: str = "static") -> None:
    """Refuses an automatic selection beside adapters, or beside a schedule that it does not fit.

    Args:
        selection: The selection.
        adapters: The entries of the `adapters` section.
        schedule: The type of the schedule.

    Raises:
        PlanError: There are adapters, or the schedule does not fit.
    """
    misfit = selection.misfit(schedule)
    if misfit is not None:
        raise PlanError(f"freeze.blocks.auto: {misfit}")
    if adapters:
        raise PlanError(
            f"freeze.blocks.auto: chooses what trains in full, which blocks with adapters do not; got "
            f"{selection.by!r} beside {len(adapters)} {'entry' if len(adapters) == 1 else 'entries'} in adapters. "
            "Say which blocks are frozen, or leave adapters out."
        )
