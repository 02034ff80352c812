"""The part of the trainer that follows a schedule: what may ever train, what trains first, and what moved when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import has_length

from hf_freeze.config import ScheduleConfig
from hf_freeze.plan.apply import apply_plan, plan_of
from hf_freeze.plan.resolve import FreezePlan, FreezeState
from hf_freeze.plan.states import plan_at, with_trained
from hf_freeze.schedules import Transition
from hf_freeze.training.controller import Controller
from hf_freeze.training.scheduled import Scheduled, schedule_plan

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object  # The Trainer class comes behind the mixin among the bases of whatever class uses it.


class SchedulingMixin(_Base):
    """Moves the freeze state as a schedule says."""

    # The Trainer declares it as optional: it is None before the Trainer has made it.
    model: Any

    scheduled: Scheduled | None = None
    _controller: Controller | None = None
    _steps_per_epoch: int | None = None
    # Canonical names of what had trained when the checkpoint was written that was resumed, under whatever plan.
    _trained_before: frozenset[str] = frozenset()

    @property
    def plan(self) -> FreezePlan:
        """What trains in the current model now."""
        return plan_of(self.model)

    @property
    def base_plan(self) -> FreezePlan:
        """What the config says trains, before any schedule."""
        return self.plan if self.scheduled is None else self.scheduled.base

    @property
    def union_plan(self) -> FreezePlan:
        """The plan with all that may ever train."""
        return self.plan if self.scheduled is None else self.scheduled.union

    @property
    def trained_plan(self) -> FreezePlan:
        """The plan with all that has trained so far, before the checkpoint that was resumed and under a schedule."""
        return with_trained(self._trained_since, self._trained_before)

    @property
    def _trained_since(self) -> FreezePlan:
        """The plan with all that has trained under it so far."""
        if self.scheduled is None:
            return self.plan
        start = self.scheduled.start.treatments
        thawed = {role for transition in self.timeline for role in transition.thawed}
        held = {role for role, treatment in start.items() if treatment == "frozen"} - thawed
        return plan_at(self.scheduled.base, held)

    @property
    def freeze_state(self) -> FreezeState:
        """Which roles are frozen now."""
        return self.plan.start

    @property
    def timeline(self) -> list[Transition]:
        """The changes of freeze state so far, those before the checkpoint that was resumed included."""
        return [] if self._controller is None else list(self._controller.timeline)

    def _follow(self, model: nn.Module, section: ScheduleConfig, freeze: Any, *, seed: int) -> None:
        """Has a model that was just frozen start as its schedule says."""
        self.scheduled = schedule_plan(plan_of(model), section, freeze, seed=seed)
        if self.scheduled is not None:
            apply_plan(model, self.scheduled.start)

    def set_initial_training_values(self, args: TrainingArguments, dataloader: DataLoader[Any]) -> Any:
        """Returns what the Trainer returns: how long training is. What it says of an epoch is kept for the schedule.

        Args:
            args: As for the Trainer.
            dataloader: As for the Trainer.
        """
        values: Any = super().set_initial_training_values(args, dataloader)
        # Second of the values; of a stream, which has no length, the Trainer takes the whole run for one epoch.
        self._steps_per_epoch = int(values[1]) if has_length(dataloader) else None
        return values

    def create_scheduler(self, num_training_steps: int, *positional: Any, **keywords: Any) -> Any:
        """Makes the learning rate scheduler, and puts the model into the freeze state that training goes on from.

        The model is wrapped by now, and the optimizer of a checkpoint is loaded next: FSDP asks for a state of exactly
        those parameters that require a gradient.

        Args:
            num_training_steps: Optimizer steps in all.
            positional: As for the Trainer.
            keywords: As for the Trainer.

        Raises:
            PlanError: The schedule does not fit the run.
        """
        scheduler = super().create_scheduler(num_training_steps, *positional, **keywords)
        if self._controller is not None:
            self._controller.begin(num_training_steps, steps_per_epoch=self._steps_per_epoch)
        return scheduler
