"""How a config asks for blocks that are chosen before training: `freeze.blocks: {auto: {by: ...}}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal, Self

from pydantic import Field, model_validator

from hf_freeze.config.options import as_plain
from hf_freeze.config.problems import Problem, ProblemsFound, listed, shown
from hf_freeze.config.section import Section, Size, read_options
from hf_freeze.config.selection import AUTO
from hf_freeze.config.sizes import spell_size
from hf_freeze.errors import did_you_mean

# Schedules that train blocks which were frozen at the start, or fewer than were not.
_MOVING_AWAY: Final = ("gradual_unfreeze", "plateau", "rotating")


def _of_phases(by: str) -> str:
    return (
        f"chooses what is frozen, which every phase says by itself; got {by!r} beside the schedule 'phases'. Leave one "
        "of them out."
    )


class AutomaticSelection(Section):
    """What is frozen is chosen before training.

    Attributes:
        by: The name of the rule.
    """

    by: ClassVar[str]

    def misfit(self, schedule: str) -> str | None:
        """Returns what is wrong with a schedule beside the choice, to follow the key; None where they fit together.

        Args:
            schedule: The type of the schedule.
        """
        return None

    @property
    def spelling(self) -> dict[str, Any]:
        """The choice as a config asks for it."""
        given: dict[str, Any] = as_plain(self.model_dump(exclude_none=True))
        return {AUTO: {"by": self.by, **given}}


class SnrSelection(AutomaticSelection):
    """Weights train that stand out most from noise, within each type of module (Spectrum)."""

    by = "snr"

    train_top: float = Field(
        0.5, gt=0, le=1, description="Share of the weights of each type of module that trains, above 0 and at most 1."
    )

    def misfit(self, schedule: str) -> str | None:
        """Returns what is wrong: single weights train in all blocks, which schedules freeze and thaw as a whole."""
        if schedule == "static":
            return None
        return (
            f"chooses single weights, and schedules move whole blocks; got {self.by!r} beside the schedule "
            f"{schedule!r}. Leave the schedule out, choose by gradient, or write which blocks are frozen."
        )


class GradientSelection(AutomaticSelection):
    """Blocks train that have the largest gradients for their weights."""

    by = "gradient"

    train_top: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Share of all relative gradients that the blocks that train have at least, above 0 and at most 1.",
    )

    def misfit(self, schedule: str) -> str | None:
        """Returns what is wrong: phases say by themselves what is frozen."""
        return _of_phases(self.by) if schedule == "phases" else None


class BudgetSelection(AutomaticSelection):
    """As few blocks are frozen as a target for speed or memory allows."""

    by = "budget"

    speedup: float | None = Field(
        None, gt=1, description="How many times as fast as full fine-tuning the whole run is at least, above 1."
    )
    memory: Size | None = Field(None, description="Memory that training takes at most, such as 8 GB.")
    seconds: float | None = Field(None, gt=0, description="Number of seconds above 0 that the run takes at most.")

    @model_validator(mode="after")
    def _has_one_target(self) -> Self:
        given = self.model_dump(exclude_none=True)
        if len(given) != 1:
            names = listed(given) or "none"
            what = f"needs one target; got {names}. Targets: memory, seconds, speedup. Give exactly one."
            raise ProblemsFound([Problem((), what)])
        return self

    def misfit(self, schedule: str) -> str | None:
        """Returns what is wrong: where more trains than was chosen, or other blocks, the target is not kept."""
        if schedule == "phases":
            return _of_phases(self.by)
        if schedule not in _MOVING_AWAY:
            return None
        return (
            f"meets its target with what it freezes; got {self.by!r} beside the schedule {schedule!r}, which trains "
            "other blocks. Leave the schedule out, take one that only freezes more (autofreeze, plasticity, "
            "progressive), or write which blocks are frozen."
        )

    @property
    def target(self) -> tuple[Literal["speedup", "memory", "seconds"], float]:
        """The target and its value."""
        if self.speedup is not None:
            return "speedup", self.speedup
        return ("memory", self.memory) if self.memory is not None else ("seconds", self.seconds or 0.0)

    @property
    def spelled_target(self) -> str:
        """The target in words."""
        name, value = self.target
        return f"memory {spell_size(int(value))}" if name == "memory" else f"{name} {value:g}"


# What an automatic selection can go by.
AUTOMATIC: Final[Mapping[str, type[AutomaticSelection]]] = {
    declared.by: declared for declared in (BudgetSelection, GradientSelection, SnrSelection)
}


def read_automatic(given: Any) -> AutomaticSelection:
    """Reads what stands under `auto`.

    Args:
        given: A mapping with `by` and the options of what it names.

    Raises:
        ProblemsFound: It is spelled otherwise.
    """
    if isinstance(given, AutomaticSelection):
        return given
    if not isinstance(given, Mapping):
        text = f"is not a mapping; got {shown(given)}. It has the key by ({listed(AUTOMATIC)}) and options."
        raise ProblemsFound([Problem((), text)])
    name = given.get("by")
    declared = AUTOMATIC.get(name) if isinstance(name, str) else None
    if declared is None:
        meant = did_you_mean(name, AUTOMATIC) if isinstance(name, str) else ""
        text = f"unknown automatic selection; got {shown(name)}. It goes by one of {listed(AUTOMATIC)}.{meant}"
        raise ProblemsFound([Problem(("by",), text)])
    options = {key: value for key, value in given.items() if key != "by"}
    return read_options(declared, options, among=AUTOMATIC, key="by")


def _entry_schema(declared: type[AutomaticSelection]) -> dict[str, Any]:
    schema = declared.model_json_schema()
    return {
        "type": "object",
        "description": declared.__doc__,
        "properties": {"by": {"const": declared.by}, **schema["properties"]},
        "required": ["by"],
        "additionalProperties": False,
    }


AUTOMATIC_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "description": "Chosen before training.",
    "properties": {AUTO: {"oneOf": [_entry_schema(declared) for declared in AUTOMATIC.values()]}},
    "required": [AUTO],
    "additionalProperties": False,
}
