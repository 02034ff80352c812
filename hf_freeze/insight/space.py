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
from hf_freeze.errors import ConfigError, FreezeError

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


@dataclass(frozen=True)
class Space:
    """All plans of a search.

    Attributes:
        axes: What is varied.
        carries: Tells whether the plan of a point has blocks that carry an adapter; all adapters are one plan else.
    """

    axes: tuple[Axis, ...]
    carries: Callable[[Point], bool] = lambda point: True

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

    def same(self, point: Point) -> Point:
        """Returns the point that stands for the plan of a point, with values of the axes.

        Args:
            point: The values, of all axes or of some.
        """
        if ADAPTER not in point or self.carries(point):
            return point
        return {**point, ADAPTER: next(choice for axis in self.axes if axis.name == ADAPTER for choice in axis.values)}

    def named(self, point: Point) -> Point:
        """Returns a point as tables show it: without an adapter where nothing carries one.

        Args:
            point: The values, of all axes or of some.
        """
        return point if ADAPTER not in point or self.carries(point) else {**point, ADAPTER: NO_ADAPTER}

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
    problems: dict[str, str] = {}
    for axis in axes:
        for choice in axis.values:
            try:
                config_of(config, axes, {axis.name: choice}, carriers=lambda _: "all")
            except ConfigError as error:
                for line in str(error).splitlines():
                    # That there is no such key is said once, whatever value it was given.
                    what, separator, _ = line.partition(": unknown key; got ")
                    problems.setdefault(what if separator else line, line)
    if problems:
        raise ConfigError("\n".join(problems.values()))
    return Space(axes, _carrying(config, axes, carriers))


def _carrying(config: RunConfig, axes: tuple[Axis, ...], carriers: Carriers) -> Callable[[Point], bool]:
    """Returns what tells whether a plan has blocks that carry an adapter, found once for each."""
    known: dict[str, bool] = {}

    def carries(point: Point) -> bool:
        bare = {name: choice for name, choice in point.items() if name != ADAPTER}
        key = json.dumps(bare)
        if key not in known:
            try:
                known[key] = carriers(config_of(config, axes, bare, carriers=carriers)) is not None
            except FreezeError:  # The plan cannot be made; its trial says why.
                known[key] = True
        return known[key]

    return carries


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
