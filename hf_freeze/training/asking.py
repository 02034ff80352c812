"""Asks a schedule in all processes at once: all of them go on with the same answer, or training ends in all."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hf_freeze.errors import FreezeError, PlanError
from hf_freeze.schedules import Choice, Moment, Schedule
from hf_freeze.training.distributed import gathered
from hf_freeze.training.manifest import newest_complete

Asked = TypeVar("Asked")

# What a process brings where its schedule failed; a digest is never below 0.
_FAILED = -1


@dataclass(frozen=True)
class Answer:
    """What a schedule says at one moment.

    Attributes:
        choice: What it decided; None where nothing changes.
        factors: Factors on the learning rates of the next step by role; 1 for what is not in it.
        warmup: Steps over which the learning rate of what was thawed rises.
        needs: The statistics to gather from now on.
        keeps_optimizer_state: Whether the optimizer keeps what it knows about parameters that are frozen.
    """

    choice: Choice | None
    factors: Mapping[str, float]
    warmup: int
    needs: frozenset[str]
    keeps_optimizer_state: bool


class Asking:
    """Asks a schedule in all processes at once.

    A process whose schedule fails lets the others know before it raises: they would wait for it in vain.

    Args:
        trainer: The trainer.
        place: The type of the schedule, for messages.
    """

    def __init__(self, trainer: Any, place: str) -> None:
        self._trainer = weakref.proxy(trainer)
        self._place = place

    def begin(self, prepare: Callable[[], Schedule]) -> None:
        """Has a schedule prepared for training, and checks that all processes start alike.

        Args:
            prepare: Makes it ready, and returns it.

        Raises:
            FreezeError: It fails in some process, or the processes start otherwise.
        """
        known = self._exchanged(lambda: _known(prepare()))
        self._compare(
            [str(names) for names in known],
            "before training begins",
            lambda: (
                f"starts otherwise in other processes; got {known[0]} frozen and needs {known[2]} in process "
                f"{self._trainer.args.process_index}. A schedule must start from what is equal everywhere: its options "
                "and its course."
            ),
        )

    def is_due(self, schedule: Schedule, moment: Moment) -> bool:
        """Returns whether the decision at a moment reads the statistics.

        Args:
            schedule: The schedule.
            moment: How far training is.

        Raises:
            FreezeError: The schedule fails in some process, or the processes differ.
        """
        is_due = self._exchanged(lambda: schedule.is_due(moment), tells_kept=True)
        self._compare(
            [str(is_due)],
            f"before step {moment.step + 1}",
            lambda: (
                f"calls a moment due that it does not call due in other processes; got {is_due} before step "
                f"{moment.step + 1} in process {self._trainer.args.process_index}. is_due must follow from what is "
                "equal everywhere: the moment, and its own state."
            ),
        )
        return is_due

    def answer(self, schedule: Schedule, moment: Moment, frozen: frozenset[str]) -> Answer:
        """Returns what the schedule says at a moment.

        Args:
            schedule: The schedule.
            moment: How far training is.
            frozen: The roles that are frozen.

        Raises:
            FreezeError: The schedule fails in some process, or the processes differ.
        """
        found = self._exchanged(lambda: _answered(schedule, moment), tells_kept=True)
        choice = Choice(frozen, "") if found.choice is None else found.choice
        chosen, factors = sorted(choice.frozen), dict(found.factors)
        told = [chosen, sorted(choice.renewed), sorted(factors.items()), found.warmup, sorted(found.needs)]
        self._compare(
            [str(each) for each in (*told, found.keeps_optimizer_state)],
            f"before step {moment.step + 1}",
            lambda: (
                f"decided otherwise in other processes before step {moment.step + 1}; got {chosen}, factors {factors}, "
                f"warmup {found.warmup}, needs {sorted(found.needs)} in process {self._trainer.args.process_index}. A "
                "schedule must decide from what is equal everywhere: the moment, and its own state."
            ),
        )
        return found

    def check_state(self, schedule: Schedule) -> None:
        """Checks, before a checkpoint is begun, that it can hold the state of the schedule.

        Args:
            schedule: The schedule.

        Raises:
            FreezeError: It cannot in some process.
        """
        self._exchanged(schedule.state_dict, tells_kept=True)
        self._compare([], f"at the checkpoint of step {self._trainer.state.global_step}", str)

    def _exchanged(self, ask: Callable[[], Asked], *, tells_kept: bool = False) -> Asked:
        """Returns what is asked, or lets the other processes know that it failed here."""
        try:
            return ask()
        except FreezeError as error:
            gathered(_FAILED, self._trainer.accelerator)
            if not tells_kept:
                raise
            raise type(error)(f"{error} {self._kept()}") from error

    def _compare(self, told: list[str], when: str, differ: Callable[[], str]) -> None:
        """Checks that no process failed, and that all of them told the same."""
        digest = hashlib.blake2b("\n".join(told).encode(), digest_size=8).digest()
        tokens = gathered(int.from_bytes(digest, "little") >> 1, self._trainer.accelerator)
        if _FAILED in tokens:
            process = tokens.index(_FAILED)
            what = f"failed {when}; got an error in process {process}. That process says which."
            raise PlanError(f"schedule: {self._place} {what} {self._kept()}")
        if len(set(tokens)) > 1:
            raise PlanError(f"schedule: {self._place} {differ()} {self._kept()}")

    def _kept(self) -> str:
        newest = newest_complete(Path(str(self._trainer.args.output_dir)))
        return "There is no checkpoint yet." if newest is None else f"The checkpoint {newest} is complete."


def _known(schedule: Schedule) -> list[list[str]]:
    return [sorted(names) for names in (schedule.start, schedule.may_train, schedule.needs)]


def _answered(schedule: Schedule, moment: Moment) -> Answer:
    return Answer(
        choice=schedule.decide(moment),
        factors=schedule.lr_factors(moment),
        warmup=schedule.warmup,
        needs=schedule.needs,
        keeps_optimizer_state=schedule.keeps_optimizer_state,
    )
