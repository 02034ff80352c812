"""The callbacks that keep the plan true while training: the audit, and the learning rate of every group."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Collection
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_freeze.plan.apply import apply_plan
from hf_freeze.plan.audit import check_gradients, check_unchanged, parameter_digests
from hf_freeze.plan.optimizer import check_groups
from hf_freeze.plan.resolve import FreezePlan

logger = logging.getLogger(__name__)


class _Trainer(Protocol):
    model: Any
    optimizer: Any
    is_deepspeed_enabled: bool

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
        self._new_digests: dict[str, str] = {}
        self._unreached: tuple[str, ...] = ()
        self._first_step = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Applies the plan to the model that was made, loaded and wrapped, and takes the digests of what is frozen."""
        model, plan = self.trainer.model, self.trainer.plan
        apply_plan(model, plan)
        self.digests = {}
        self.renew()

    def renew(self) -> None:
        """Has the next step checked, and takes the digests of what is frozen now and was not."""
        model, plan = self.trainer.model, self.trainer.plan
        frozen = set(plan.frozen_names)
        known = {name: digest for name, digest in self.digests.items() if name in frozen}
        self._new_digests = parameter_digests(model, frozen - known.keys())
        self.digests = {**known, **self._new_digests}
        self._first_step = True
        if not self.trainer.is_deepspeed_enabled:  # ZeRO has flat copies of the parameters in the groups.
            check_groups(model, plan, self.trainer.optimizer.param_groups)

    def release(self, names: Collection[str]) -> None:
        """Checks what is frozen before weights are loaded, which may then change it.

        Args:
            names: Canonical names of the parameters that may be loaded.

        Raises:
            PlanViolation: A frozen parameter moved.
        """
        check_unchanged(self.trainer.model, self.digests)
        self.digests = {name: digest for name, digest in self.digests.items() if name not in names}

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Checks that the first backward pass reached what trains and nothing else."""
        if self._first_step and self.trainer.gradients_are_local:
            unreached = check_gradients(self.trainer.model, self.trainer.plan)
            if unreached and unreached != self._unreached:
                self._unreached = unreached
                logger.info("These parameters train, but the model does not use them: %s", ", ".join(unreached))

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Checks that the first optimizer step moved nothing that was just frozen."""
        if self._first_step:
            check_unchanged(self.trainer.model, self._new_digests)
            self._first_step = False

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compares the frozen weights with their digests from the start."""
        check_unchanged(self.trainer.model, self.digests)


class LearningRateCallback(TrainerCallback):
    """Remembers the learning rate of every role at each step: the Trainer logs the one of its first group only.

    Attributes:
        rates: The rate of every role in the last step, by the name that it is logged under.
        unscaled: A role and its rate in the last step, before a schedule scaled it.
    """

    def __init__(self) -> None:
        self.rates: dict[str, float] = {}
        self.unscaled: tuple[str, float] = ("", 0.0)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Reads the rate of the first group before a schedule scales it for this step."""
        group = kwargs["optimizer"].param_groups[0]
        self.unscaled = (str(group["name"]), float(group["lr"]))

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Reads the rates that the step just used, before the scheduler changes them."""
        groups = kwargs["optimizer"].param_groups
        self.rates = {f"learning_rate/{group['name']}": float(group["lr"]) for group in groups}
