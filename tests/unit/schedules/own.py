"""A schedule as a user would write it, in a file of its own."""

from __future__ import annotations

from pydantic import Field

from hf_freeze.schedules import Choice, Moment, Schedule, ScheduleOptions


class AlternatingOptions(ScheduleOptions):
    """Options of the schedule below."""

    every: int = Field(10, ge=1, description="Number of steps between changes, at least 1.")


class Alternating(Schedule):
    """Freezes the first block every other time; the embeddings always."""

    Options = AlternatingOptions

    @property
    def start(self) -> frozenset[str]:
        return frozenset({"embeddings"})

    def decide(self, moment: Moment) -> Choice | None:
        turn = moment.step // self.options.every
        blocks = {self.course.blocks[0]} if turn % 2 else set()
        return Choice(self.start | blocks, f"turn {turn}", {"turn": turn})
