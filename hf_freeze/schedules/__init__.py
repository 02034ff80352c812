"""When the freeze state changes: the schedules, and what one of your own derives from."""

from hf_freeze.config.schedule import ScheduleOptions
from hf_freeze.schedules import (
    autofreeze,
    gradual_unfreeze,
    phases,
    plasticity,
    plateau,
    progressive,
    rotating,
    static,
)
from hf_freeze.schedules.outline import Outline, Stretch
from hf_freeze.schedules.registry import make_schedule, register_schedule, schedule_names
from hf_freeze.schedules.run_length import RunLength
from hf_freeze.schedules.schedule import Choice, Course, Moment, Schedule
from hf_freeze.schedules.statistics import Statistics
from hf_freeze.schedules.timeline import Transition

__all__ = [
    "Choice",
    "Course",
    "Moment",
    "Outline",
    "RunLength",
    "Schedule",
    "ScheduleOptions",
    "Statistics",
    "Stretch",
    "Transition",
    "autofreeze",
    "gradual_unfreeze",
    "make_schedule",
    "phases",
    "plasticity",
    "plateau",
    "progressive",
    "register_schedule",
    "rotating",
    "schedule_names",
    "static",
]
