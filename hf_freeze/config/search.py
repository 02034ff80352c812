"""The `search` section: what is varied, for how long, and what is looked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    PlainValidator,
    Strict,
    Tag,
    WithJsonSchema,
    model_validator,
)

from hf_freeze.config.options import as_plain
from hf_freeze.config.problems import LIST_TAG, RANGE_TAG, KeyPath, Problem, ProblemsFound, dotted, shown
from hf_freeze.config.ranges import Range, RateRange, kind_of
from hf_freeze.config.section import Section, Text

NO_ADAPTER = "none"

# The keys that the axes with names of their own set.
_KEYS: Final[Mapping[str, KeyPath]] = {
    "depths": ("freeze", "blocks"),
    "learning_rates": ("training", "learning_rate"),
    "adapters": ("adapters",),
    "schedules": ("schedule",),
}
# What trials have in common, whatever an axis would say.
_OWN_SECTIONS: Final = ("allow_changed_plan", "monitor", "save", "search")
_OWN_ARGUMENTS: Final = (
    "disable_tqdm",
    "eval_on_start",
    "eval_strategy",
    "load_best_model_at_end",
    "output_dir",
    "push_to_hub",
    "report_to",
    "resume_from_checkpoint",
    "save_strategy",
    "seed",
)
_OWN_KEYS: Final[tuple[KeyPath, ...]] = (
    *((name,) for name in _OWN_SECTIONS),
    *(("training", name) for name in _OWN_ARGUMENTS),
)

Values = TypeVar("Values", bound=tuple[Any, ...])


def _axis(values: Values) -> Values:
    if not values:
        raise ProblemsFound([Problem((), "is empty; got []. An axis has one value or more. Add one, or leave it out.")])
    twice = next((value for index, value in enumerate(values) if value in values[:index]), None)
    if twice is not None:
        text = f"has a value twice; got {shown(list(values))}. A plan is tried once. Write {shown(twice)} once."
        raise ProblemsFound([Problem((), text)])
    return values


def _adapter(given: object) -> str | dict[str, Any]:
    if given == NO_ADAPTER:
        return NO_ADAPTER
    if not isinstance(given, Mapping) or "peft_type" not in given:
        text = f"is no adapter; got {shown(given)}. It takes none, or a mapping with peft_type, as in adapters."
        raise ProblemsFound([Problem((), text)])
    if "blocks" in given:
        what = "The adapter is put on the blocks that train. Remove the key."
        raise ProblemsFound([Problem(("blocks",), f"is not set here; got {shown(given['blocks'])}. {what}")])
    return dict(as_plain(given))


Adapter = Annotated[
    str | dict[str, Any],
    PlainValidator(_adapter),
    WithJsonSchema(
        {"anyOf": [{"const": NO_ADAPTER}, {"type": "object", "properties": {"peft_type": {"type": "string"}}}]}
    ),
]


def _schedule(given: object) -> dict[str, Any]:
    if isinstance(given, str):
        return {"type": given}
    if not isinstance(given, Mapping) or "type" not in given:
        text = f"is no schedule; got {shown(given)}. It takes the name of one, or a mapping with type, as in schedule."
        raise ProblemsFound([Problem((), text)])
    return dict(as_plain(given))


Schedule = Annotated[
    dict[str, Any],
    PlainValidator(_schedule),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object", "properties": {"type": {"type": "string"}}}]}),
]
IsAxis = AfterValidator(_axis)
Depths = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Strict(False), IsAxis]
Rates = Annotated[
    Annotated[RateRange, Tag(RANGE_TAG)]
    | Annotated[tuple[Annotated[float, Field(gt=0)], ...], Strict(False), IsAxis, Tag(LIST_TAG)],
    Discriminator(kind_of),
]
Adapters = Annotated[tuple[Adapter, ...], Strict(False), IsAxis]
Schedules = Annotated[tuple[Schedule, ...], Strict(False), IsAxis]
Axis = Annotated[
    Annotated[Range, Tag(RANGE_TAG)]
    | Annotated[tuple[Annotated[Any, AfterValidator(as_plain)], ...], Strict(False), IsAxis, Tag(LIST_TAG)],
    Discriminator(kind_of),
]


def _keys_set_by(axis: Range | tuple[Any, ...], key: str) -> set[KeyPath]:
    """Returns the keys that an axis sets: those within its values, where they are mappings."""
    path: KeyPath = tuple(int(part) if part.isdecimal() else part for part in key.split("."))
    values: tuple[Any, ...] = (None,) if isinstance(axis, Range) else axis
    return {found for value in values for found in _leaves(value, path)}


def _leaves(value: object, path: KeyPath) -> Iterator[KeyPath]:
    if isinstance(value, Mapping) and value:
        for key, child in value.items():
            yield from _leaves(child, (*path, key))
    else:
        yield path


def _overlap(some: Iterable[KeyPath], others: Iterable[KeyPath]) -> bool:
    """Tells whether a key of the one is, holds or lies within a key of the other."""
    others = list(others)
    return any(one[: len(other)] == other[: len(one)] for one in some for other in others)


class ConfirmConfig(Section):
    """How the answer is confirmed on the test rows."""

    seeds: int = Field(5, ge=0, description="Number of seeds from training.seed on, each trained once; 0: none.")
    full: dict[str, Any] = Field(
        {}, description="Overrides for full fine-tuning, which the answer is compared with, by dotted key."
    )


class SearchConfig(Section):
    """What `hf-freeze search` varies, and what it looks for."""

    depths: Depths | None = Field(
        None, description="List of numbers of blocks that are frozen behind the embeddings; null: as freeze says."
    )
    learning_rates: Rates | None = Field(
        None, description="List or range of values of training.learning_rate; null: its own."
    )
    adapters: Adapters | None = Field(
        None, description="List of adapters for the blocks that train, each none or as in adapters; null: as there."
    )
    schedules: Schedules | None = Field(
        None, description="List of schedules, each a name or as in schedule, such as static; null: as there."
    )
    axes: dict[str, Axis] = Field(
        {}, description="Lists or ranges of values of further keys, such as training.weight_decay."
    )
    trials: int = Field(20, gt=0, description="Number of trials above 0.")
    seconds: float | None = Field(
        None, gt=0, description="Number of seconds above 0 after which a process begins no trial; null: no limit."
    )
    metric: Annotated[Text, AfterValidator(lambda name: f"eval_{name.removeprefix('eval_')}")] = Field(
        "eval_loss", description="Metric of the validation rows that plans are compared by, with or without eval_."
    )
    direction: Literal["maximize", "minimize"] = Field("minimize", description="Whether more of it is better, or less.")
    sampler: Literal["tpe", "grid"] = Field("tpe", description="What chooses the next plan; grid: in random order.")
    pruner: Literal["halving", "none"] = Field(
        "halving", description="What ends trials early; halving: being in the worse half of its depth, as in ASHA."
    )
    min_complete: float = Field(
        0.6, ge=0, le=1, description="Share of the trials, from 0 to 1, that are trained to the end at least."
    )
    tolerance: float = Field(
        0.005, ge=0, description="How much of the metric, from 0 up, the answer may give up to be cheaper."
    )
    study: Text | None = Field(None, description="SQLite file of the study; null: study.db in training.output_dir.")
    confirm: ConfirmConfig = Field(ConfirmConfig(), description="Seeds and comparison that confirm the answer.")

    @model_validator(mode="after")
    def _has_an_axis(self) -> Self:
        if not (self.depths or self.learning_rates or self.adapters or self.schedules or self.axes):
            what = "has nothing to vary; got no depths, learning_rates, adapters, schedules or axes. Give one of them."
            raise ProblemsFound([Problem((), what)])
        return self

    @model_validator(mode="after")
    def _sets_each_key_once(self) -> Self:
        varied = self.model_dump(include=set(_KEYS), exclude_none=True)
        found: dict[KeyPath, set[KeyPath]] = {(name,): {key} for name, key in _KEYS.items() if name in varied}
        problems = []
        for key, axis in self.axes.items():
            path, keys = ("axes", key), _keys_set_by(axis, key)
            given = axis.model_dump(exclude_defaults=True) if isinstance(axis, Range) else list(axis)
            if _overlap(keys, _OWN_KEYS):
                what = "Trials save nothing, and all are seeded and evaluated alike. Remove the axis."
                problems.append(Problem(path, f"is set by the search itself; got {shown(given)}. {what}"))
            for other in (other for other, its in found.items() if _overlap(keys, its)):
                what = "Each axis sets keys of its own. Remove one of the two."
                same = f"sets what {dotted(('search', *other))} sets"
                problems.append(Problem(path, f"{same}; got {shown(given)}. {what}"))
            found[path] = keys
        if problems:
            raise ProblemsFound(problems)
        return self

    @model_validator(mode="after")
    def _has_a_grid(self) -> Self:
        axes: dict[KeyPath, object] = {("axes", key): axis for key, axis in self.axes.items()}
        axes[("learning_rates",)] = self.learning_rates
        ranges = {path: axis for path, axis in axes.items() if isinstance(axis, Range) and axis.step is None}
        if self.sampler == "grid" and ranges:
            what = "A grid has a value after another. Give it a step, write a list, or set search.sampler to 'tpe'."
            given = {path: shown(axis.model_dump(exclude_defaults=True)) for path, axis in ranges.items()}
            raise ProblemsFound(
                [Problem(path, f"is a range without a step; got {text}. {what}") for path, text in given.items()]
            )
        return self
