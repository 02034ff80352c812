"""What the tests of schedules share: a course over a few blocks, and a run through all of its moments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hf_freeze.config import FreezeConfig, ScheduleConfig, parse_section
from hf_freeze.schedules import Course, Moment, Schedule, make_schedule


def course_of(num_blocks: int = 4, *, frozen: Iterable[str] | None = None, **changes: Any) -> Course:
    """A course over some blocks; `frozen` is what a freeze section freezes, None for no such section."""
    blocks = tuple(f"blocks[{index}]" for index in range(num_blocks))
    defaults: dict[str, Any] = {
        "blocks": blocks,
        "roles": ("embeddings", *blocks, "head"),
        "frozen": frozenset(frozen or ()),
        "is_asked": frozen is not None,
        "embeddings_follow": True,
        "seed": 7,
        "frozen_by": first_blocks,
    }
    return Course(**{**defaults, **changes})


def first_blocks(section: FreezeConfig, key: str) -> frozenset[str]:
    """The roles that a section `{"blocks": {"first": n}}` freezes."""
    count = section.blocks.value or 0
    return frozenset(["embeddings", *(f"blocks[{index}]" for index in range(count))] if count else ())


def schedule_of(options: Mapping[str, Any], course: Course | None = None) -> Schedule:
    """The schedule that a section asks for."""
    section = parse_section(ScheduleConfig, options, key="schedule")
    return make_schedule(section, course_of() if course is None else course)


def moments(
    num_steps: int, num_epochs: int = 1, metrics: Mapping[int, Mapping[str, float]] | None = None
) -> list[Moment]:
    """Every moment at which a schedule is asked, with what was evaluated before it."""
    return [
        Moment(step, num_steps, step * num_epochs / num_steps, num_epochs, (metrics or {}).get(step, {}))
        for step in range(num_steps)
    ]


def frozen_blocks(schedule: Schedule, asked: Iterable[Moment]) -> list[str]:
    """The numbers of the frozen blocks at every moment, as text; `-` stands for frozen embeddings."""
    frozen, told = schedule.start, []
    for moment in asked:
        choice = schedule.decide(moment)
        frozen = frozen if choice is None else choice.frozen
        blocks = "".join(str(index) for index, block in enumerate(schedule.course.blocks) if block in frozen)
        told.append(f"{'-' if 'embeddings' in frozen else ''}{blocks}")
    return told
