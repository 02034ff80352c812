"""A schedule as the config asks for it, and the plan that it moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hf_freeze.config import FreezeConfig, ScheduleConfig, parse_section
from hf_freeze.plan.places import ROLE_EMBEDDINGS
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.plan.states import block_roles, frozen_by, plan_at
from hf_freeze.schedules import Course
from hf_freeze.schedules.guarded import Guarded


@dataclass(frozen=True)
class Scheduled:
    """A schedule and the plan that it moves.

    Attributes:
        section: The `schedule` section.
        course: What the schedule knows before training begins.
        base: What the config says trains, before any schedule.
        union: The plan with all that may ever train: what the wrappers and the optimizer are made for.
        start: The plan as training starts.
    """

    section: ScheduleConfig
    course: Course
    base: FreezePlan
    union: FreezePlan
    start: FreezePlan

    def new_schedule(self) -> Guarded:
        """Makes the schedule in its first state."""
        return Guarded(self.section, self.course)


def schedule_plan(
    plan: FreezePlan,
    section: ScheduleConfig,
    freeze: FreezeConfig | Mapping[str, object] | None,
    *,
    seed: int,
) -> Scheduled | None:
    """Returns a plan with what a schedule will make of it, or None where the schedule never changes anything.

    Args:
        plan: What the config says trains.
        section: The `schedule` section.
        freeze: The `freeze` section.
        seed: The seed of the run.

    Raises:
        ConfigError: A schedule of the user cannot be found, or its options cannot be read.
        PlanError: The schedule does not fit the model or what is frozen in it.
    """
    if section.type == "static":
        return None
    asked = parse_section(FreezeConfig, freeze, key="freeze") if freeze is not None else None
    follows = (asked is None or asked.embeddings == "auto") and plan.treatments[ROLE_EMBEDDINGS] != "adapter"
    course = Course(
        blocks=block_roles(plan.layout),
        roles=tuple(plan.treatments),
        frozen=frozenset(role for role, treatment in plan.treatments.items() if treatment == "frozen"),
        is_asked=asked is not None,
        embeddings_follow=follows,
        seed=seed,
        frozen_by=lambda given, key: frozen_by(plan, given, key=key),
    )
    schedule = Guarded(section, course)
    union = plan_at(plan, frozenset(course.roles) - schedule.may_train)
    return Scheduled(section, course, plan, union, plan_at(plan, schedule.start))
