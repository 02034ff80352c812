"""The callbacks that keep the plan true while training: the audit, and the learning rate of every group."""

from __future__ import annotations

import logging
import weakref
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_freeze.plan.apply import apply_plan
from hf_freeze.plan.audit import check_gradients, check_unchanged, frozen_digests
from hf_freeze.plan.optimizer import check_groups
from hf_freeze.plan.resolve import FreezePlan

logger = logging.getLogger(__name__)


class _Trainer(Protocol):
    model: Any
    optimizer: Any

    @property
    def plan(self) -> FreezePlan: ...

    @property
    def gradients_are_local(self) -> bool: ...


class AuditCallback(TrainerCallback):
    """Applies the plan when training begins, checks the first step against it, and the frozen weights at the end.

    Args:
        trainer: The trainer whose model carries the plan.
    """

    def __init__(self, trainer: _Trainer) -> None:
        # The trainer holds its callbacks: a cycle would keep it, and its dataloader workers, until a collection.
        self.trainer = weakref.proxy(trainer)
        self.digests: dict[str, str] = {}
        self._first_step = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Applies the plan to the model that was made, loaded and wrapped, and takes the digests of what is frozen."""
        model, plan = self.trainer.model, self.trainer.plan
        apply_plan(model, plan)
        self.digests = frozen_digests(model, plan)
        self._first_step = True
        check_groups(model, plan, self.trainer.optimizer.param_groups)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Checks that the first backward pass reached what trains and nothing else."""
        if self._first_step and self.trainer.gradients_are_local:
            unreached = check_gradients(self.trainer.model, self.trainer.plan)
            if unreached:
                logger.info("These parameters train, but the model does not use them: %s", ", ".join(unreached))

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Checks that the first optimizer step moved nothing that is frozen."""
        if self._first_step:
            check_unchanged(self.trainer.model, self.digests)
            self._first_step = False

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compares the frozen weights with their digests from the start."""
        check_unchanged(self.trainer.model, self.digests)


class LearningRateCallback(TrainerCallback):
    """Remembers the learning rate of every role at each step: the Trainer logs the one of its first group only."""

    def __init__(self) -> None:
        self.rates: dict[str, float] = {}

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Reads the rates that the step just used, before the scheduler changes them."""
        groups = kwargs["optimizer"].param_groups
        self.rates = {f"learning_rate/{group['name']}": float(group["lr"]) for group in groups}
