"""Schedules by name, and those of the user by the place where they are defined."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, TypeVar

from hf_freeze.config.problems import dotted, listed
from hf_freeze.config.schedule import SCHEDULE_OPTIONS, ScheduleConfig, ScheduleOptions, option_problems
from hf_freeze.errors import ConfigError, FreezeError, PlanError, did_you_mean
from hf_freeze.schedules.schedule import Course, Schedule

_SCHEDULES: dict[str, type[Schedule]] = {}

ScheduleClass = TypeVar("ScheduleClass", bound=type[Schedule])
Answer = TypeVar("Answer")


def register_schedule(name: str) -> Callable[[ScheduleClass], ScheduleClass]:
    """Returns a decorator that makes a schedule known by a name.

    ```
    @register_schedule("alternating")
    class Alternating(Schedule): ...
    ```

    Args:
        name: What the `schedule` section calls it.
    """

    def register(schedule: ScheduleClass) -> ScheduleClass:
        _SCHEDULES[name] = schedule
        SCHEDULE_OPTIONS[name] = schedule.Options
        return schedule

    return register


def schedule_names() -> tuple[str, ...]:
    """Returns the names of the schedules that are known by one."""
    return tuple(sorted(_SCHEDULES))


def make_schedule(section: ScheduleConfig, course: Course) -> Schedule:
    """Makes the schedule that a section asks for.

    Args:
        section: The `schedule` section.
        course: What is known before training begins.

    Raises:
        ConfigError: A schedule of the user cannot be found, or its options cannot be read.
        PlanError: The schedule does not fit the model or what is frozen in it, or cannot be made.
    """
    schedule, options = find_schedule(section)
    return asked(section.type, "__init__", lambda: schedule(options, course))


def find_schedule(section: ScheduleConfig) -> tuple[type[Schedule], Any]:
    """Returns the class of the schedule that a section asks for, and its options.

    Args:
        section: The `schedule` section.

    Raises:
        ConfigError: A schedule of the user cannot be found, or its options cannot be read.
    """
    schedule = _SCHEDULES[section.type] if section.type in _SCHEDULES else _own_schedule(section.type)
    return schedule, _options(schedule, section.options)


def asked(place: str, what: str, ask: Callable[[], Answer]) -> Answer:
    """Returns what a schedule answers, and tells what it raises in words.

    Args:
        place: The type of the schedule.
        what: What is asked, such as the name of a method.
        ask: Asks it.

    Raises:
        FreezeError: The schedule refuses, in words of its own.
        PlanError: It fails.
    """
    try:
        return ask()
    except FreezeError:
        raise
    except Exception as error:
        raise PlanError(
            f"schedule: {place} failed in {what}; got {type(error).__name__}: {error}. Correct it there."
        ) from error


def _options(schedule: type[Schedule], given: Mapping[str, Any]) -> Any:
    declared: object = schedule.Options
    if not (isinstance(declared, type) and issubclass(declared, ScheduleOptions)):
        raise ConfigError(
            f"schedule.type: the Options of {schedule.__name__} are no options of a schedule; got {declared!r}. "
            "Derive them from hf_freeze.schedules.ScheduleOptions."
        )
    if found := option_problems(schedule.Options, given):
        raise ConfigError("\n".join(f"{dotted(('schedule', *problem.path))}: {problem.text}" for problem in found))
    return schedule.Options.model_validate(given)


def _own_schedule(place: str) -> type[Schedule]:
    """Returns the class of the user that `module:Class` names."""
    module_name, _, class_name = place.partition(":")
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"schedule.type: this module cannot be imported; got {place!r}. Python says: {error}. "
            "Install the package, or put its folder on PYTHONPATH."
        ) from error
    except Exception as error:
        raise ConfigError(
            f"schedule.type: this module cannot be imported; got {place!r}. Python says: {type(error).__name__}: "
            f"{error}. Correct the module."
        ) from error
    found = vars(module).get(class_name)
    if isinstance(found, type) and issubclass(found, Schedule):
        return found
    schedules = {name: value for name, value in vars(module).items() if isinstance(value, type)}
    own = [name for name, value in schedules.items() if issubclass(value, Schedule) and value is not Schedule]
    has = f"Its schedules are {listed(own)}." if own else "It has none."
    raise ConfigError(
        f"schedule.type: {module_name} has no schedule of this name; got {place!r}. {has} "
        f"Derive the class from hf_freeze.schedules.Schedule.{did_you_mean(class_name, own)}"
    )
