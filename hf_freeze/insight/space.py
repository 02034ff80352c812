"""The plans that a search chooses from: axes, and the points where they cross. Pure, no model."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from hf_freeze.config import RunConfig, ScheduleConfig, SearchConfig, override, parse_section
from hf_freeze.config.search import NO_ADAPTER
from hf_freeze.errors import ConfigError

DEPTH: Final = "depth"
LEARNING_RATE: Final = "learning_rate"
ADAPTER: Final = "adapter"
SCHEDULE: Final = "schedule"

Choice = str | int | float | bool | None
Point = Mapping[str, Choice]


@dataclass(frozen=True)
class Axis:
    """One thing that is varied.

    Attributes:
        name: What tables call it.
        source: The key of the config that lists its values.
        values: What it can be, by what tables and the study call it.
    """

    name: str
    source: str
    values: Mapping[Choice, Any]


@dataclass(frozen=True)
class Space:
    """All plans of a search.

    Attributes:
        axes: What is varied.
        crossings: For every combination of values, in the order of the axes, the point that stands for it: where
            nothing is left to carry an adapter, all adapters are one plan.
    """

    axes: tuple[Axis, ...]
    crossings: Mapping[tuple[Choice, ...], Point]

    @property
    def points(self) -> tuple[Point, ...]:
        """The plans, each once."""
        return tuple({id(point): point for point in self.crossings.values()}.values())

    def same(self, point: Point) -> Point:
        """Returns the point that stands for the plan of this one.

        Args:
            point: A value of every axis.
        """
        return self.crossings[tuple(point[axis.name] for axis in self.axes)]


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
    return Space(axes, _crossings(config, axes, carriers))


def _crossings(config: RunConfig, axes: tuple[Axis, ...], carriers: Carriers) -> dict[tuple[Choice, ...], Point]:
    """Returns the point that stands for each combination of values."""
    names = tuple(axis.name for axis in axes)
    standing: dict[tuple[Choice, ...], Point] = {}
    first: dict[str, Point] = {}
    for choices in itertools.product(*(axis.values for axis in axes)):
        point: Point = dict(zip(names, choices, strict=True))
        bare = {name: choice for name, choice in point.items() if name != ADAPTER}
        if ADAPTER in point and carriers(config_of(config, axes, bare, carriers=carriers)) is None:
            point = first.setdefault(json.dumps(bare), point)
        standing[choices] = point
    return standing


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
            made = override(made, {"freeze.blocks": {"first": axis.values[point[DEPTH]]}}, source=axis.source)
        elif axis.name == SCHEDULE:
            made = made.model_copy(update={"schedule": _scheduled(axis, axis.values[point[SCHEDULE]])})
        else:
            key = "training.learning_rate" if axis.name == LEARNING_RATE else axis.name
            made = override(made, {key: axis.values[point[axis.name]]}, source=axis.source)
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
        yield Axis(LEARNING_RATE, "search.learning_rates", {rate: rate for rate in section.learning_rates})
    if section.adapters is not None:
        yield Axis(ADAPTER, "search.adapters", {_spelled_adapter(entry): entry for entry in section.adapters})
    if section.schedules is not None:
        yield Axis(SCHEDULE, "search.schedules", {_spelled_schedule(entry): entry for entry in section.schedules})
    for key, values in section.axes.items():
        yield Axis(key, "search.axes", {_spelled(value): value for value in values})


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
