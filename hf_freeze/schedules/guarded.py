"""A schedule that is asked with care: what it answers is checked, and what it raises is told in words."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Set
from typing import Any, NoReturn

import torch

from hf_freeze.config.schedule import ScheduleConfig
from hf_freeze.errors import PlanError, did_you_mean
from hf_freeze.plan.states import check_roles
from hf_freeze.schedules.outline import Outline
from hf_freeze.schedules.registry import Answer, asked, make_schedule
from hf_freeze.schedules.run_length import RunLength
from hf_freeze.schedules.schedule import Choice, Course, Moment, Schedule
from hf_freeze.schedules.statistics import STATISTICS


class Guarded(Schedule):
    """The schedule that a section asks for, behind a guard.

    Whatever is read or called raises a `PlanError` where the schedule fails, or answers with something of another kind.

    Args:
        section: The `schedule` section.
        course: What is known before training begins.

    Raises:
        ConfigError: A schedule of the user cannot be found, or its options cannot be read.
        PlanError: The schedule does not fit the model or what is frozen in it, or cannot be made.
    """

    def __init__(self, section: ScheduleConfig, course: Course) -> None:
        self._section = section
        self._schedule = make_schedule(section, course)
        super().__init__(section.options, course)
        self.needs_metrics = self._ask("needs_metrics", lambda: bool(self._schedule.needs_metrics))

    def _ask(self, what: str, ask: Callable[[], Answer]) -> Answer:
        return asked(self._section.type, what, ask)

    def _refuse(self, what: str) -> NoReturn:
        raise PlanError(f"schedule: {self._section.type} {what}")

    @property
    def start(self) -> frozenset[str]:
        """The roles that are frozen when training starts."""
        return self._ask("start", lambda: self._roles(self._schedule.start, "start"))

    @property
    def may_train(self) -> frozenset[str]:
        """The roles that may ever train."""
        return self._ask("may_train", lambda: self._roles(self._schedule.may_train, "may_train"))

    @property
    def warmup(self) -> int:
        """Steps over which the learning rate of what was thawed rises to its full value."""
        warmup = self._ask("warmup", lambda: self._schedule.warmup)
        if type(warmup) is not int or warmup < 0:
            self._refuse(f"has a warmup that is no number of steps; got {warmup!r}. Return an int from 0 up.")
        return warmup

    @property
    def keeps_optimizer_state(self) -> bool:
        """Whether the optimizer keeps what it knows about parameters that are frozen."""
        return self._ask("keeps_optimizer_state", lambda: bool(self._schedule.keeps_optimizer_state))

    @property
    def needs(self) -> frozenset[str]:
        """The statistics to gather from now on."""
        needs = self._ask("needs", lambda: self._names(self._schedule.needs, "needs", "statistics"))
        for name in sorted(needs - STATISTICS):
            self._refuse(
                f"needs a statistic that is not gathered; got {name!r}. There are {', '.join(sorted(STATISTICS))}. "
                f"Return some of these from needs.{did_you_mean(name, STATISTICS)}"
            )
        return needs

    @property
    def bounds(self) -> tuple[frozenset[str], frozenset[str]]:
        """The roles that are frozen at every moment, and those that are frozen at one moment at most."""
        least, most = self._ask("bounds", lambda: tuple(self._roles(each, "bounds") for each in self._schedule.bounds))
        return least, most

    def begin(self, run: RunLength) -> None:
        """Checks that the schedule fits the length of the run.

        Args:
            run: How long training will be.

        Raises:
            PlanError: It does not fit.
        """
        self._ask("begin", lambda: self._schedule.begin(run))

    def is_due(self, moment: Moment) -> bool:
        """Returns whether the decision at this moment reads the statistics.

        Args:
            moment: How far training is, without statistics.
        """
        return self._ask(f"is_due before step {moment.step + 1}", lambda: bool(self._schedule.is_due(moment)))

    def decide(self, moment: Moment) -> Choice | None:
        """Returns the roles that are frozen from now on, or None where nothing changes.

        Args:
            moment: How far training is.

        Raises:
            PlanError: It decides for something that cannot be.
        """
        return self._ask(f"decide before step {moment.step + 1}", lambda: self._checked(self._schedule.decide(moment)))

    def lr_factors(self, moment: Moment) -> Mapping[str, float]:
        """Returns the factor on the learning rate of each role for the next step.

        Args:
            moment: How far training is.

        Raises:
            PlanError: A role does not exist, or a factor is no factor.
        """
        return self._ask(
            f"lr_factors before step {moment.step + 1}", lambda: self._factors(self._schedule.lr_factors(moment))
        )

    def outline(self, run: RunLength) -> Outline:
        """Returns the course of the schedule as far as it is known before training.

        Args:
            run: How long training will be.

        Raises:
            PlanError: The schedule does not fit the length of the run.
        """
        if type(self._schedule).outline is Schedule.outline:
            return super().outline(run)
        return self._ask("outline", lambda: self._schedule.outline(run))

    def _anew(self) -> Schedule:
        return Guarded(self._section, self.course)

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint has to keep: plain data by name, or tensors by name.

        Raises:
            PlanError: A checkpoint cannot hold it.
        """
        state = self._ask("state_dict", self._schedule.state_dict)
        if not isinstance(state, dict):
            self._refuse(f"returns no state from state_dict; got {state!r}. Return plain data or tensors by name.")
        plain = {name: value for name, value in state.items() if not isinstance(value, torch.Tensor)}
        try:
            json.dumps(plain)
        except (TypeError, ValueError) as error:
            raise PlanError(
                f"schedule: {self._section.type} keeps a state that a checkpoint cannot hold; got {plain!r}. JSON "
                "holds text, numbers, booleans, null, lists and mappings. Return these from state_dict."
            ) from error
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned.

        Args:
            state: What it returned.
        """
        self._ask("load_state_dict", lambda: self._schedule.load_state_dict(state))

    def _names(self, given: object, what: str, kind: str) -> frozenset[str]:
        if not isinstance(given, Set | list | tuple):
            self._refuse(f"returns no set of {kind} from {what}; got {given!r}. Return a set of their names.")
        return frozenset(given)

    def _roles(self, given: object, what: str) -> frozenset[str]:
        roles = self._names(given, what, "roles")
        check_roles(self.course.roles, roles)
        return roles

    def _checked(self, choice: object) -> Choice | None:
        if choice is None:
            return None
        if not isinstance(choice, Choice):
            self._refuse(f"decided for something that is no Choice; got {choice!r}. decide returns a Choice or None.")
        # A copy: a schedule may go on changing what it returned.
        numbers = {name: float(value) for name, value in choice.numbers.items()}
        frozen, renewed = (self._roles(roles, "decide") for roles in (choice.frozen, choice.renewed))
        choice = dataclasses.replace(choice, frozen=frozen, numbers=numbers, renewed=renewed - frozen)
        thawed = sorted(set(self.course.roles) - choice.frozen - self.may_train)
        if thawed:
            self._refuse(
                f"thaws a role that it may not train; got {thawed[0]!r}. The optimizer holds "
                f"{', '.join(sorted(self.may_train))}. Return the role from may_train."
            )
        return choice

    def _factors(self, factors: Mapping[str, float]) -> Mapping[str, float]:
        check_roles(self.course.roles, factors)
        for role, factor in factors.items():
            if not 0 <= factor < math.inf:
                self._refuse(f"returns a factor on the learning rate of {role} below 0 or not finite; got {factor!r}.")
        return dict(factors)
