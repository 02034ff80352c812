"""The plans that a search chooses from: axes, lists or ranges, and the points where they cross. Pure, no model."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from hf_freeze.config import RunConfig, ScheduleConfig, SearchConfig, override, parse_section
from hf_freeze.config.ranges import Range
from hf_freeze.config.search import NO_ADAPTER
from hf_freeze.errors import ConfigError

DEPTH: Final = "depth"
LEARNING_RATE: Final = "learning_rate"
ADAPTER: Final = "adapter"
SCHEDULE: Final = "schedule"

Choice = str | int | float | bool | None
Point = Mapping[str, Choice]


# More plans than these are not listed, and no search tries them all.
_MOST_LISTED: Final = 10_000


@dataclass(frozen=True)
class Axis:
    """One thing that is varied.

    Attributes:
        name: What tables call it.
        source: The key of the config that lists its values.
        values: What it can be, by what tables and the study call it; the ends of a range.
        range: The range that values are chosen from; None where they are listed.
    """

    name: str
    source: str
    values: Mapping[Choice, Any]
    range: Range | None = None

    @property
    def num_values(self) -> float:
        """How many values it has; infinite where they cannot be counted."""
        return len(self.values) if self.range is None else self.range.num_values

    @property
    def choices(self) -> list[Choice]:
        """Its values, by what tables and the study call them, where they can be counted."""
        return list(self.values) if self.range is None else list(self.range.values)

    def value_of(self, choice: Choice) -> Any:
        """Returns the value that the config takes.

        Args:
            choice: What tables and the study call it.
        """
        return self.values[choice] if self.range is None else choice


def _itself(point: Point) -> Point:
    return point


@dataclass(frozen=True)
class Space:
    """All plans of a search.

    Attributes:
        axes: What is varied.
        same: Returns the point that stands for the plan of a point: where nothing is left to carry an adapter, all
            adapters are one plan.
    """

    axes: tuple[Axis, ...]
    same: Callable[[Point], Point] = _itself

    @cached_property
    def points(self) -> tuple[Point, ...] | None:
        """The plans, each once; None where there are too many, as there are in a range without a step."""
        if math.prod(axis.num_values for axis in self.axes) > _MOST_LISTED:
            return None
        return self._crossed([axis.choices for axis in self.axes])

    @cached_property
    def corners(self) -> tuple[Point, ...]:
        """The plans at the least values of all ranges."""
        return self._crossed([[next(iter(axis.values))] if axis.range else list(axis.values) for axis in self.axes])

    @property
    def num_plans(self) -> float:
        """How many plans there are; infinite where they are not listed."""
        return math.inf if self.points is None else len(self.points)

    def _crossed(self, choices: Iterable[Sequence[Choice]]) -> tuple[Point, ...]:
        names = [axis.name for axis in self.axes]
        standing = (self.same(dict(zip(names, each, strict=True))) for each in itertools.product(*choices))
        return tuple({tuple(point.values()): point for point in standing}.values())


# What an adapter can be put on once other overrides hold: a selection as configs spell it, or None.
Carriers = Callable[[RunConfig], Any]


def make_space(config: RunConfig, section: SearchConfig, carriers: Carriers) -> Space:
    """Returns the plans of a search, once every value of every axis is known to make a sound config.

    Args:
        config: The config that is varied.
        section: Its `search` section.
        carriers: What an adapter can be put on.

    Raises:
        ConfigError: A value does not fit its key, or there is no such key; every problem is listed.
    """
    axes = tuple(_axes(section))
    problems = []
    for axis in axes:
        for choice in axis.values:
            try:
                config_of(config, axes, {axis.name: choice}, carriers=lambda _: "all")
            except ConfigError as error:
                problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return Space(axes, _standing(config, axes, carriers) if any(axis.name == ADAPTER for axis in axes) else _itself)


def _standing(config: RunConfig, axes: tuple[Axis, ...], carriers: Carriers) -> Callable[[Point], Point]:
    """Returns what finds the point that stands for a plan, where adapters are varied."""
    first = next(choice for axis in axes if axis.name == ADAPTER for choice in axis.values)
    carries: dict[str, bool] = {}

    def same(point: Point) -> Point:
        bare = {name: choice for name, choice in point.items() if name != ADAPTER}
        key = json.dumps(bare)
        if key not in carries:
            carries[key] = carriers(config_of(config, axes, bare, carriers=carriers)) is not None
        return point if carries[key] else {**point, ADAPTER: first}

    return same


def config_of(config: RunConfig, axes: Iterable[Axis], point: Point, *, carriers: Carriers) -> RunConfig:
    """Returns the config of one plan, without the `search` section.

    Args:
        config: The config that is varied.
        axes: What is varied.
        point: The values, of all axes or of some.
        carriers: What an adapter can be put on.

    Raises:
        ConfigError: The values do not fit their keys or each other.
    """
    made = override(config, {"search": None}, source="search")
    adapter: tuple[Axis, Any] | None = None
    for axis in axes:
        if axis.name not in point:
            continue
        if axis.name == ADAPTER:
            adapter = axis, axis.values.get(point[ADAPTER], NO_ADAPTER)
        elif axis.name == DEPTH:
            made = override(made, {"freeze.blocks": {"first": axis.value_of(point[DEPTH])}}, source=axis.source)
        elif axis.name == SCHEDULE:
            made = made.model_copy(update={"schedule": _scheduled(axis, axis.value_of(point[SCHEDULE]))})
        else:
            key = "training.learning_rate" if axis.name == LEARNING_RATE else axis.name
            made = override(made, {key: axis.value_of(point[axis.name])}, source=axis.source)
    if adapter is None:
        return made
    axis, entry = adapter
    bare = override(made, {"adapters": []}, source=axis.source)
    blocks = None if entry == NO_ADAPTER else carriers(bare)
    return bare if blocks is None else override(bare, {"adapters": [{**entry, "blocks": blocks}]}, source=axis.source)


def _scheduled(axis: Axis, entry: Mapping[str, Any]) -> ScheduleConfig:
    """Returns the section of a schedule; the options of another one do not stay beside it."""
    try:
        return parse_section(ScheduleConfig, entry, key="schedule")
    except ConfigError as error:
        raise ConfigError("\n".join(f"{axis.source}: {line}" for line in str(error).splitlines())) from None


def _axes(section: SearchConfig) -> Iterable[Axis]:
    if section.depths is not None:
        yield Axis(DEPTH, "search.depths", {depth: depth for depth in section.depths})
    if section.learning_rates is not None:
        yield _numbers(LEARNING_RATE, "search.learning_rates", section.learning_rates)
    if section.adapters is not None:
        yield Axis(ADAPTER, "search.adapters", {_spelled_adapter(entry): entry for entry in section.adapters})
    if section.schedules is not None:
        yield Axis(SCHEDULE, "search.schedules", {_spelled_schedule(entry): entry for entry in section.schedules})
    for key, values in section.axes.items():
        yield _numbers(key, "search.axes", values)


def _numbers(name: str, source: str, given: Range | Sequence[Any]) -> Axis:
    if isinstance(given, Range):
        return Axis(name, source, {end: end for end in (given.nearest(given.low), given.nearest(given.high))}, given)
    return Axis(name, source, {_spelled(value): value for value in given})


def _spelled_adapter(entry: str | Mapping[str, Any]) -> str:
    if isinstance(entry, str):
        return entry
    options = [f"{key}={_spelled(value)}" for key, value in entry.items() if key != "peft_type"]
    return " ".join([str(entry["peft_type"]).upper(), *options])


def _spelled_schedule(entry: Mapping[str, Any]) -> str:
    options = [f"{key}={_spelled(value)}" for key, value in entry.items() if key != "type"]
    return " ".join([str(entry["type"]), *options])


def _spelled(value: Any) -> Choice:
    return value if value is None or isinstance(value, str | int | float | bool) else json.dumps(value, sort_keys=True)
