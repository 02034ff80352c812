"""The `schedule` section of a config: when the freeze state changes, with the options of every schedule."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    PlainValidator,
    Strict,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from hf_freeze.config.freeze import FreezeConfig
from hf_freeze.config.options import as_plain
from hf_freeze.config.problems import Problem, ProblemsFound, listed, shown
from hf_freeze.config.section import Section, Text, read_options
from hf_freeze.errors import did_you_mean

_OWN = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_UNTILS = "Write a share of the run above 0 and at most 1, {step: n} or {epoch: x}."


class ScheduleOptions(Section):
    """Options of a schedule; those of a schedule of your own derive from this class."""


class StaticOptions(ScheduleOptions):
    """Options of `static`: there are none."""


@dataclass(frozen=True)
class Until:
    """When a phase ends.

    Attributes:
        unit: `share` of the run, `step` or `epoch`.
        value: How many of them from the beginning of the run.
    """

    unit: Literal["share", "step", "epoch"]
    value: float

    @property
    def spelling(self) -> float | dict[str, float]:
        """The end as a config spells it."""
        return self.value if self.unit == "share" else {self.unit: self.value}


def read_until(given: Any) -> Until:
    """Reads the end of a phase.

    Args:
        given: A share of the run, `{"step": n}` or `{"epoch": x}`.

    Raises:
        ProblemsFound: It is spelled otherwise.
    """
    if isinstance(given, Until):
        given = given.spelling
    if _is_number(given) and 0 < given <= 1:
        return Until("share", float(given))
    if isinstance(given, Mapping) and len(given) == 1:
        [(unit, value)] = given.items()
        if unit == "step" and type(value) is int and value > 0:
            return Until("step", value)
        if unit == "epoch" and _is_number(value) and 0 < value < math.inf:
            return Until("epoch", value)
    raise ProblemsFound([Problem((), f"is no end of a phase; got {shown(given)}. {_UNTILS}")])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _section_of_roles(section: FreezeConfig) -> FreezeConfig:
    """Refuses what a phase cannot change."""
    found = [
        Problem((key,), f"is the same in every phase; got {shown(getattr(section, key))}. Write it in freeze.{key}.")
        for key in ("always_train", "keep_dropout")
        if key in section.model_fields_set
    ]
    if section.automatic is not None:
        text = f"cannot be chosen in a phase; got {shown(section.automatic.spelling)}. Write which blocks are frozen."
        found.append(Problem(("blocks",), text))
    if found:
        raise ProblemsFound(found)
    return section


class PhaseConfig(Section):
    """One phase: until when it lasts, and what is frozen in it."""

    until: (
        Annotated[
            Until,
            PlainValidator(read_until),
            PlainSerializer(lambda until: until.spelling),
            WithJsonSchema({"type": ["number", "object"]}),
        ]
        | None
    ) = Field(None, description="End of the phase: share of the run, {step: n} or {epoch: x}; null: that of the run.")
    freeze: Annotated[FreezeConfig, AfterValidator(_section_of_roles)] = Field(
        description="What is frozen in this phase, as in the section freeze."
    )


def _in_order(phases: tuple[PhaseConfig, ...]) -> tuple[PhaseConfig, ...]:
    """Refuses a list without phases, phases that never end, and ends in one unit that do not go forward."""
    if not phases:
        raise ProblemsFound([Problem((), "lists no phase; got []. Write one at least.")])
    found = [
        Problem((index, "until"), "is missing in a phase that others follow; got none. Only the last may leave it out.")
        for index, phase in enumerate(phases[:-1])
        if phase.until is None
    ]
    ends = [(index, phase.until) for index, phase in enumerate(phases) if phase.until is not None]
    for (_, before), (index, after) in itertools.pairwise(ends):
        if before.unit == after.unit and after.value <= before.value:
            text = (
                f"does not lie behind the end of the phase before; got {shown(after.spelling)} after "
                f"{shown(before.spelling)}. Phases follow one another. Put them in order."
            )
            found.append(Problem((index, "until"), text))
    if found:
        raise ProblemsFound(found)
    return phases


Warmup = Annotated[int, Field(ge=0)]
_WARMUP = "Steps over which the learning rate of what was thawed rises to its full value, from 0 up."


class PhasesOptions(ScheduleOptions):
    """Options of `phases`."""

    phases: Annotated[tuple[PhaseConfig, ...], Strict(False), AfterValidator(_in_order)] = Field(
        description="List of phases, each with what is frozen in it and until when."
    )
    warmup: Warmup = Field(50, description=_WARMUP)


class ProgressiveOptions(ScheduleOptions):
    """Options of `progressive`."""

    curve: Literal["linear", "exponential", "cubic"] = Field("linear", description="How the depth grows.")
    t0: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share of the run, from 0 to below 1, before the depth grows (linear), or whose cube is when "
        "block 0 freezes (cubic); null: 0.1 and 0.8.",
    )
    a: float | None = Field(
        None, gt=0, lt=1, description="Share of the remaining blocks frozen at each epoch (exponential); null: 1/3."
    )
    ceiling: int | None = Field(None, ge=1, description="Largest depth, at least 1; null: all blocks but the last.")

    @model_validator(mode="after")
    def _options_belong_to_the_curve(self) -> Self:
        wrong = "t0" if self.curve == "exponential" else "a"
        given = self.t0 if wrong == "t0" else self.a
        if given is not None:
            of = "linear and cubic" if wrong == "t0" else "exponential"
            text = f"does not belong to the curve {self.curve}; got {given}. It belongs to {of}. Leave it out."
            raise ProblemsFound([Problem((wrong,), text)])
        return self


_FLOOR = "Number of blocks, counted from the input, that stay frozen, from 0 up."


class GradualUnfreezeOptions(ScheduleOptions):
    """Options of `gradual_unfreeze`."""

    blocks_per_epoch: int = Field(1, ge=1, description="Number of blocks thawed at each epoch, at least 1.")
    floor: int = Field(0, ge=0, description=_FLOOR)
    warmup: Warmup = Field(50, description=_WARMUP)


class PlateauOptions(ScheduleOptions):
    """Options of `plateau`."""

    metric: Text = Field("eval_loss", description="Metric that is watched, as evaluation logs it.")
    greater_is_better: bool | None = Field(
        None, description="Whether more of the metric is better; null: unless its name ends in loss."
    )
    patience: int = Field(1, ge=1, description="Number of evaluations without improvement before a thaw, at least 1.")
    min_delta: float = Field(0.0, ge=0, description="Change of the metric, from 0 up, that more than which improves.")
    blocks_per_thaw: int = Field(1, ge=1, description="Number of blocks thawed at a time, at least 1.")
    floor: int = Field(0, ge=0, description=_FLOOR)
    warmup: Warmup = Field(50, description=_WARMUP)


class RotatingOptions(ScheduleOptions):
    """Options of `rotating`."""

    blocks: int | None = Field(
        None, ge=1, description="Number of blocks that train at a time, at least 1; null: 2, and 1 of up to 6 blocks."
    )
    every: int = Field(20, ge=1, description="Number of steps between draws, at least 1.")
    order: Literal["random", "shuffle", "ascending", "descending"] = Field(
        "random", description="How blocks are drawn: at random, or all in turn in shuffled, ascending or other order."
    )
    reset_state: bool = Field(True, description="Whether a block that is drawn starts with a fresh optimizer state.")
    embeddings: bool = Field(False, description="Whether the embeddings train all the time.")
    seed: int | None = Field(None, description="What draws come from; null: training.seed.")
    warmup: Warmup = Field(0, description=_WARMUP)


_CEILING = "Largest depth, at least 1 and below the number of blocks; null: all blocks but the last."
_CONTROL = "Control experiment: shuffled decides from the same numbers, shuffled among the blocks; null: none."


class AutofreezeOptions(ScheduleOptions):
    """Options of `autofreeze`."""

    intervals: int = Field(20, ge=3, description="Number of equal parts of the run, a decision after each; at least 3.")
    percentile: float = Field(
        50.0, gt=0, le=100, description="Percentile of the changes, above 0 up to 100, below which blocks have settled."
    )
    min_progress: float = Field(0.2, ge=0, lt=1, description="Share of the run, from 0 to below 1, without freezing.")
    blocks_per_decision: int = Field(2, ge=1, description="Number of blocks frozen at a time, at most; at least 1.")
    ceiling: int | None = Field(None, ge=1, description=_CEILING)
    control: Literal["shuffled"] | None = Field(None, description=_CONTROL)


class PlasticityOptions(ScheduleOptions):
    """Options of `plasticity`."""

    measure: Literal["sp", "cka"] = Field(
        "sp", description="How outputs are compared: sp, similarity-preserving loss; cka, centered kernel alignment."
    )
    every: int | None = Field(
        None, ge=1, description="Number of steps between probes, at least 1; null: a fortieth of the run, at least 10."
    )
    threshold: float = Field(
        0.2, gt=0, lt=1, description="Share of the maximum, above 0 and below 1, at which a block has settled."
    )
    min_progress: float = Field(0.15, ge=0, lt=1, description="Share of the run, from 0 to below 1, without freezing.")
    ceiling: int | None = Field(None, ge=1, description=_CEILING)
    control: Literal["shuffled"] | None = Field(None, description=_CONTROL)


# The options of every schedule by its name; `register_schedule` adds to it.
SCHEDULE_OPTIONS: dict[str, type[ScheduleOptions]] = {
    "autofreeze": AutofreezeOptions,
    "gradual_unfreeze": GradualUnfreezeOptions,
    "phases": PhasesOptions,
    "plasticity": PlasticityOptions,
    "plateau": PlateauOptions,
    "progressive": ProgressiveOptions,
    "rotating": RotatingOptions,
    "static": StaticOptions,
}


def option_problems(declared: type[ScheduleOptions], given: Mapping[str, Any]) -> list[Problem]:
    """Returns what is wrong with the options of a schedule.

    Args:
        declared: The options that it has.
        given: The section without `type`.
    """
    try:
        read_options(declared, given, among=SCHEDULE_OPTIONS, key="type")
    except ProblemsFound as error:
        return list(error.problems)
    return []


def _known_type(name: str) -> str:
    if name in SCHEDULE_OPTIONS or _OWN.fullmatch(name):
        return name
    text = (
        f"unknown schedule; got {name!r}. Schedules: {listed(SCHEDULE_OPTIONS)}; one of your own is written "
        f"my_package.my_module:MySchedule.{did_you_mean(name, SCHEDULE_OPTIONS)}"
    )
    raise ProblemsFound([Problem((), text)])


class ScheduleConfig(Section):
    """When the freeze state changes; keys other than `type` are options of the schedule."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[Any, AfterValidator(as_plain)]]

    type: Annotated[Text, AfterValidator(_known_type)] = Field(
        "static",
        description="Name of the schedule, or module:Class for one of your own; static: the freeze state never "
        "changes.",
    )

    @classmethod
    def problems_upstream(cls, given: Mapping[str, Any]) -> list[Problem]:
        """Returns what is wrong with the options, where the schedule is known by its name."""
        name = given.get("type", "static")
        declared = SCHEDULE_OPTIONS.get(name) if isinstance(name, str) else None
        given = {key: value for key, value in given.items() if key != "type"}
        return [] if declared is None else option_problems(declared, given)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Returns one entry for each schedule with its options, and one for those of the user."""
        entries = []
        for name, options in sorted(SCHEDULE_OPTIONS.items()):
            declared = handler.resolve_ref_schema(handler(options.__pydantic_core_schema__))
            properties = {"type": {"const": name}, **declared.get("properties", {})}
            # The type may stand in the file that a config extends.
            entries.append({**declared, "title": name, "properties": properties, "required": []})
        own = {"type": "object", "title": "own", "properties": {"type": {"type": "string", "pattern": _OWN.pattern}}}
        return {"description": cls.__doc__, "anyOf": [*entries, {**own, "required": ["type"]}]}

    @property
    def options(self) -> dict[str, Any]:
        """The options as they were given."""
        return dict(self.model_extra or {})
