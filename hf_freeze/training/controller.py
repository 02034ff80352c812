"""Asks the schedule before every step, and carries out what it decides."""

from __future__ import annotations

import dataclasses
import json
import logging
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from hf_freeze.plan.apply import transition
from hf_freeze.plan.optimizer import free_state
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.plan.states import plan_at
from hf_freeze.plan.wrappers import named_parameters
from hf_freeze.schedules import Choice, Moment, RunLength, Schedule, Transition
from hf_freeze.schedules.run_length import count_evaluations
from hf_freeze.schedules.statistics import DRIFT, GRADIENTS
from hf_freeze.schedules.timeline import append_to_timeline, write_timeline
from hf_freeze.training.asking import Answer, Asking
from hf_freeze.training.checkpoint import read_schedule, read_schedule_tensors
from hf_freeze.training.distributed import rebuild_reducer
from hf_freeze.training.gathering import Gatherer
from hf_freeze.training.scheduled import Scheduled
from hf_freeze.training.watching import WatchingCallback, WatchingMixin

logger = logging.getLogger(__name__)

# Names of the tensors of the schedule, and of the sums of gradients, in a checkpoint.
_OF_SCHEDULE, _OF_GRADIENTS = "schedule/", "gradients/"
# What evaluation logs of the machine: it differs from run to run, and nothing may be decided from it.
_OF_THE_MACHINE = ("_runtime", "_per_second", "_preparation_time", "epoch")


class Controller(WatchingCallback):
    """Keeps the freeze state where the schedule wants it.

    Attributes:
        timeline: What changed so far.

    Args:
        trainer: The trainer, which has a schedule.
    """

    def __init__(self, trainer: Any) -> None:
        # The trainer holds its callbacks: a cycle would keep it, and its dataloader workers, until a collection.
        self.trainer = weakref.proxy(trainer)
        self._gatherer = Gatherer(trainer, self.scheduled.course.blocks)
        self._asking = Asking(trainer, self.scheduled.section.type)
        self._reset()

    @property
    def scheduled(self) -> Scheduled:
        """The schedule as the config asks for it, and the plan that it moves."""
        scheduled: Scheduled = self.trainer.scheduled
        return scheduled

    def _reset(self) -> None:
        self.schedule = self.scheduled.new_schedule()
        self._gatherer.free(frozenset({DRIFT}))
        self.timeline: list[Transition] = []
        self._frozen = self.schedule.start
        self._needs = self.schedule.needs
        self._thawed_at: dict[str, int] = {}
        self._metrics: dict[str, float] = {}
        self._factors: Mapping[str, float] = {}
        self._rates: list[float] = []

    @property
    def record(self) -> dict[str, Any]:
        """The schedule and where it stands, as plain data for a checkpoint.

        Raises:
            PlanError: The schedule keeps a state that a checkpoint cannot hold.
        """
        section = self.scheduled.section
        return {
            "type": section.type,
            "options": section.options,
            "frozen": sorted(self._frozen),
            "thawed_at": self._thawed_at,
            "metrics": self._metrics,
            "state": {name: value for name, value in self.schedule.state_dict().items() if not _is_tensor(value)},
            "timeline": [transition.record() for transition in self.timeline],
        }

    def check_state(self) -> None:
        """Checks, before a checkpoint is begun, that it can hold the state; all processes must call this.

        Raises:
            PlanError: It cannot.
        """
        self._asking.check_state(self.schedule)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns what a checkpoint holds beside the record; all processes must call this."""
        state = {
            f"{_OF_SCHEDULE}{name}": value for name, value in self.schedule.state_dict().items() if _is_tensor(value)
        }
        return state | {f"{_OF_GRADIENTS}{name}": value for name, value in self._gatherer.tensors().items()}

    def begin(self, num_steps: int, *, steps_per_epoch: int | None) -> None:
        """Takes the schedule to where training begins or goes on, and the model to the freeze state there.

        Args:
            num_steps: Optimizer steps in all.
            steps_per_epoch: Optimizer steps of an epoch; None where that is not known.

        Raises:
            PlanError: The schedule does not fit the run.
        """
        self._asking.begin(lambda: self._prepare(num_steps, steps_per_epoch))
        self._carry_out(self._plan, keeps_state=self.schedule.keeps_optimizer_state)
        self._gatherer.load(_named(read_schedule_tensors(self.trainer.resumed_folder), _OF_GRADIENTS))
        self._gatherer.free(self._needs | {DRIFT})

    def _prepare(self, num_steps: int, steps_per_epoch: int | None) -> Schedule:
        """Makes the schedule, and takes it to where training begins or goes on."""
        self._reset()
        self.schedule.begin(self._run_length(num_steps, steps_per_epoch))
        record = read_schedule(self.trainer.resumed_folder)
        if record is not None and (record["type"], record["options"]) == self._identity:
            self._take_up(record)
        self._needs = self.schedule.needs
        return self.schedule

    def _run_length(self, num_steps: int, steps_per_epoch: int | None) -> RunLength:
        args = self.trainer.args
        evaluates = args.eval_strategy != IntervalStrategy.NO
        num_evaluations = count_evaluations(
            num_steps,
            steps_per_epoch,
            strategy=IntervalStrategy(args.eval_strategy).value,
            every=self.trainer.state.eval_steps,
            delay=args.eval_delay or 0,
            at_start=bool(args.eval_on_start),
        )
        return RunLength(num_steps, steps_per_epoch, evaluates, num_evaluations)

    @property
    def _identity(self) -> tuple[str, dict[str, Any]]:
        options: dict[str, Any] = json.loads(json.dumps(self.scheduled.section.options))
        return self.scheduled.section.type, options

    def _take_up(self, record: Mapping[str, Any]) -> None:
        self._frozen = frozenset(record["frozen"])
        self._thawed_at = dict(record["thawed_at"])
        self._metrics = dict(record["metrics"])
        self.timeline = [Transition.from_record(entry) for entry in record["timeline"]]
        tensors = _named(read_schedule_tensors(self.trainer.resumed_folder), _OF_SCHEDULE)
        self.schedule.load_state_dict({**record["state"], **tensors})

    @property
    def _plan(self) -> FreezePlan:
        return plan_at(self.scheduled.base, self._frozen)

    def _carry_out(self, plan: FreezePlan, *, keeps_state: bool) -> None:
        transition(self.trainer.model, plan, None if keeps_state else self.trainer.optimizer)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Has DDP reduce what trains first: it was wrapped around all that may ever train."""
        rebuild_reducer(self.trainer.model_wrapped)
        if DRIFT in self._needs:
            self._gatherer.keep_start(anew=state.global_step == 0)
        if state.is_world_process_zero:
            write_timeline(Path(str(args.output_dir)), self.timeline)

    def on_weights_load(self, trainer: WatchingMixin) -> None:
        """Keeps the weights that the resumed run started from, where they are not kept already.

        Args:
            trainer: The trainer.
        """
        if DRIFT in self._needs:
            self._gatherer.keep_start(anew=False)

    def on_gradients(self, trainer: WatchingMixin) -> None:
        """Adds up the gradients of the step where the schedule needs them.

        Args:
            trainer: The trainer.
        """
        if GRADIENTS in self._needs:
            self._gatherer.add_gradients()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Frees what was gathered."""
        self._gatherer.free(frozenset())

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keeps what was evaluated for the next decision: that of the first process, as rounding may differ."""
        if self.trainer.is_in_train:
            (told,) = broadcast_object_list([dict(metrics or {})])
            for name, value in told.items():
                if isinstance(value, int | float) and not name.endswith(_OF_THE_MACHINE):
                    self._metrics[name] = float(value)

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Asks the schedule, and changes the freeze state where it says so."""
        moment = Moment(
            state.global_step, state.max_steps, state.epoch or 0.0, state.num_train_epochs, dict(self._metrics)
        )
        self._metrics = {}
        needed, moment = self._needs, self._with_statistics(moment, train_dataloader)
        answer = self._asking.answer(self.schedule, moment, self._frozen)
        self._needs = answer.needs
        if answer.choice is not None:
            self._renew(answer.choice, moment)
            if answer.choice.frozen != self._frozen:
                self._move(answer, answer.choice, moment, train_dataloader)
            elif needed:
                self.trainer.log(_logged(answer.choice.numbers))
        if needed:
            self._gatherer.free(self._needs)
        self._factors = self._with_warmup(answer, moment)

    def _with_statistics(self, moment: Moment, train_dataloader: Any) -> Moment:
        """Returns the moment with what was gathered, where the schedule calls it due."""
        if not self._needs or not self._asking.is_due(self.schedule, moment):
            return moment
        return dataclasses.replace(moment, statistics=self._gatherer.read(self._needs, train_dataloader))

    def _renew(self, choice: Choice, moment: Moment) -> None:
        """Has what goes on training start as if it were thawed, where the schedule says so."""
        renewed = choice.renewed - self._frozen
        if renewed:
            names = {each.name for each in self.trainer.plan.decisions if each.role in renewed}
            parameters = (parameter for name, parameter in named_parameters(self.trainer.model) if name in names)
            free_state(self.trainer.optimizer, parameters)
            self._thawed_at.update(dict.fromkeys(sorted(renewed), moment.step))

    def _move(self, answer: Answer, choice: Choice, moment: Moment, train_dataloader: Any) -> None:
        before, plan = self.trainer.plan, plan_at(self.scheduled.base, choice.frozen)
        roles = self.scheduled.course.roles
        froze = tuple(role for role in roles if role in choice.frozen and role not in self._frozen)
        thawed = tuple(role for role in roles if role in self._frozen and role not in choice.frozen)
        self._frozen = choice.frozen
        self._thawed_at = {role: step for role, step in self._thawed_at.items() if role not in choice.frozen}
        self._thawed_at.update(dict.fromkeys(thawed, moment.step))
        self._carry_out(plan, keeps_state=answer.keeps_optimizer_state)
        rebuild_reducer(self.trainer.model_wrapped)
        self.trainer.audit.renew()
        moved = Transition(moment.step, moment.epoch, froze, thawed, plan.depth, choice.why, choice.numbers)
        self._tell(moved, plan)
        self.trainer.move_activation_cache(before, train_dataloader)

    def _tell(self, moved: Transition, plan: FreezePlan) -> None:
        """Notes a transition in the timeline and its file, tells the trackers, and prints it."""
        self.timeline.append(moved)
        args = self.trainer.args
        if self.trainer.is_world_process_zero():
            append_to_timeline(Path(str(args.output_dir)), moved)
            if args.disable_tqdm:
                logger.info("%s", moved.line)
            else:
                tqdm.write(moved.line)
        trained = sum(decision.parameter.numel for decision in plan.decisions if decision.trainable)
        self.trainer.log(
            {
                "freeze/depth": plan.depth,
                "freeze/frozen_roles": len(plan.start.frozen),
                "freeze/trainable_parameters": trained,
                **_logged(moved.numbers),
            }
        )

    def _with_warmup(self, answer: Answer, moment: Moment) -> dict[str, float]:
        """Returns the factor of every role whose learning rate is not that of the run in the next step."""
        warmup, factors = answer.warmup, answer.factors
        self._thawed_at = {role: step for role, step in self._thawed_at.items() if moment.step - step < warmup}
        rising = {role: (moment.step - step + 1) / warmup for role, step in self._thawed_at.items()}
        both = {role: rising.get(role, 1.0) * factors.get(role, 1.0) for role in (*rising, *factors)}
        return {role: factor for role, factor in both.items() if factor != 1.0}

    @property
    def scaled_roles(self) -> frozenset[str]:
        """The roles whose learning rate was not that of the run in the last step."""
        return frozenset(self._factors)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Puts the factors on the learning rates, for this step alone: the scheduler knows nothing of them."""
        groups = kwargs["optimizer"].param_groups
        self._rates = [group["lr"] for group in groups] if self._factors else []
        for group in groups if self._factors else ():
            group["lr"] *= self._factors.get(group["name"], 1.0)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Gives the learning rates back."""
        for group, rate in zip(kwargs["optimizer"].param_groups, self._rates, strict=False):
            group["lr"] = rate


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def _named(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Returns the tensors whose name begins so, without that."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _logged(numbers: Mapping[str, float]) -> dict[str, float]:
    """Returns the numbers of a decision as they are logged; the depth is logged in any case."""
    return {f"freeze/{name}": float(value) for name, value in numbers.items() if name != "depth"}
