"""Measures, every so many steps, how each role that trains is moving, and says what the record advises.

Everything is logged through `Trainer.log`, and so to whatever `report_to` names, under one naming scheme:

- `monitor/grad_norm/<role>`: the norm of the gradient, after accumulation and averaging, before clipping.
- `monitor/drift/<role>`: ||w - w0|| / ||w0||, with w0 the weights at the start of the run.
- `monitor/update_ratio/<role>`: ||w after the step - w before|| / ||w before||.

A role stands for those of its parameters that train. A ratio is left out where the weights it divides by are all zero.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments

from hf_freeze.config import MonitorConfig, parse_section
from hf_freeze.errors import PlanError
from hf_freeze.insight.advice import DRIFT, GRADIENT, UPDATE, Record, advise
from hf_freeze.plan.apply import plan_of
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.plan.wrappers import named_parameters, unwrap_model
from hf_freeze.training.norms import Part, local, role_norms
from hf_freeze.training.watching import WatchingCallback, WatchingMixin

logger = logging.getLogger(__name__)

_NUM_LOSSES: Final = 100  # means of the training loss that a run is divided into, whatever it logs


class MonitorCallback(WatchingCallback):
    """Logs gradient norm, drift and update-to-weight ratio of every role that trains, and gives advice once.

    Nothing in training changes. The weights at the start are kept in the memory of the CPU, in their own dtype: as many
    bytes as the weights that train take. As much again is taken for the length of a step that is measured. Where
    parameters are sharded by FSDP version 2, each process keeps its shards; elsewhere only the main process keeps any.

    A run that is resumed compares with the weights that the model had before the checkpoint was loaded. These are those
    of the start where the model was made in the same way, a fresh head from the same seed included.

    Args:
        every: Number of steps above 0 from one measurement to the next; None leaves nothing but advice on losses.

    Attributes:
        advice: What the record has advised so far, in words.

    Raises:
        ConfigError: `every` is not a number of steps.
    """

    def __init__(self, every: int | None = 100) -> None:
        self.every = parse_section(MonitorConfig, {"every": every}, key="monitor").every
        self.advice: list[str] = []
        self._is_training = False
        self._trainer: Any = None
        self._record = Record()
        self._loss: torch.Tensor | float = 0.0
        self._means: list[tuple[int, torch.Tensor | float]] = []
        self._given: set[tuple[str, str]] = set()
        self._start: dict[nn.Parameter, torch.Tensor] = {}
        self._forget()

    def _forget(self) -> None:
        """Forgets the weights of the start, and what is watched."""
        self._start.clear()
        self._plan: FreezePlan | None = None
        self._watched: list[tuple[str, nn.Parameter]] = []
        self._measures = False
        self._before: list[torch.Tensor] = []
        self._sizes: dict[str, float] = {}
        self._values: dict[str, float] = {}

    def on_weights_load(self, trainer: WatchingMixin) -> None:
        """Keeps the weights that the resumed run started from, where they are not kept already.

        Args:
            trainer: The trainer.
        """
        if self.every is not None and trainer.gradients_are_local:
            self._watch(trainer)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts a record, with what a resumed run has logged before."""
        if state.global_step == 0:
            self._forget()
        self._is_training = True
        self._trainer = None
        self._record = Record.of(state.log_history)
        self._loss = 0.0
        self._means.clear()
        self._given.clear()
        self.advice.clear()

    def on_batch(self, trainer: WatchingMixin, loss: torch.Tensor) -> None:
        """Adds the loss to the mean that advice rests on; nothing waits for the device.

        Args:
            trainer: The trainer.
            loss: Of this process, of shape ().
        """
        self._loss = loss + self._loss

    def on_gradients(self, trainer: WatchingMixin) -> None:
        """Measures gradients and keeps the weights before the step, on the steps that are measured.

        Args:
            trainer: The trainer.
        """
        if self._trainer is None:
            self._trainer = weakref.proxy(trainer)
            if self.every is not None and not trainer.gradients_are_local and trainer.is_world_process_zero():
                logger.warning(
                    "Gradients, drift and updates are not measured: DeepSpeed and FSDP version 1 keep weights and "
                    "gradients where a callback cannot read them. Advice rests on the losses alone."
                )
        if self.every is None or not trainer.gradients_are_local:
            return
        if plan_of(trainer.model) is not self._plan:
            self._watch(trainer)
        if not self._measures or (trainer.state.global_step + 1) % self.every:
            return
        scaler = trainer.accelerator.scaler
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        gradients = (Part(role, p, local(p.grad)) for role, p in self._watched if p.grad is not None)
        self._values = {f"{GRADIENT}/{role}": norm / scale for role, norm in role_norms(gradients).items()}
        self._sizes = role_norms(Part(role, p, local(p)) for role, p in self._watched)
        self._before = [_copy(p) for _, p in self._watched]

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measures how far the step moved each role, and how far it is from its start.

        Raises:
            PlanError: The callback was given to another trainer than those of hf_freeze.
        """
        if self._trainer is None:
            raise PlanError(
                "callbacks: MonitorCallback learns of gradients from the trainers of hf_freeze; got another Trainer. "
                "FreezeTrainer, FreezeSeq2SeqTrainer and every class with FreezeMixin are such. Use one of them, or "
                "leave the callback out."
            )
        if not self._before:
            return
        updates = role_norms(self._changes(self._before))
        self._before = []
        start = [self._start[p] for _, p in self._watched]
        lengths = role_norms(Part(role, p, w.to(p.device)) for (role, p), w in zip(self._watched, start, strict=True))
        self._values |= _ratios(UPDATE, updates, self._sizes)
        self._values |= _ratios(DRIFT, role_norms(self._changes(start)), lengths)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Takes the mean of the losses, and logs what was measured, on the main process."""
        num_steps = math.ceil(state.max_steps / _NUM_LOSSES)
        if state.global_step % num_steps == 0:
            self._means.append((state.global_step, self._loss / num_steps))
            self._loss = 0.0
        if not self._values:
            return
        values, self._values = self._values, {}
        if state.is_world_process_zero:
            should_log = control.should_log
            self._trainer.log(values)
            control.should_log = should_log  # Logging takes back the request to log, which stands for the loss.
            self._advise(state, kwargs["model"])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Adds to the record what is logged while training, but for the loss, which is logged as the user likes."""
        if self._is_training and logs is not None:
            self._record.add({name: value for name, value in logs.items() if name != "loss"}, step=state.global_step)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Looks for advice in the record."""
        if self._is_training:
            self._advise(state, kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Looks for advice in the record, and lets go of the weights of the start."""
        self._advise(state, kwargs["model"])
        self._is_training = False
        self._forget()

    def _watch(self, trainer: WatchingMixin) -> None:
        """Notes which parameters train, and keeps those weights that are not kept yet: they have not moved."""
        self._plan = plan_of(trainer.model)
        roles = {decision.name: decision.role for decision in self._plan.decisions if decision.trainable}
        parameters = named_parameters(trainer.model)
        self._watched = [(roles[name], parameter) for name, parameter in parameters if name in roles]
        is_sharded = any(isinstance(parameter, DTensor) for _, parameter in self._watched)
        self._measures = is_sharded or trainer.is_world_process_zero()
        if self._measures:
            self._start |= {p: _copy(p) for _, p in self._watched if p not in self._start}

    def _changes(self, earlier: list[torch.Tensor]) -> Iterator[Part]:
        """Yields how far the weights are from what they were earlier."""
        for (role, parameter), then in zip(self._watched, earlier, strict=True):
            yield Part(role, parameter, local(parameter) - then.to(parameter.device))

    def _advise(self, state: TrainerState, model: nn.Module) -> None:
        """Gives what the record advises and has not been given."""
        if not state.is_world_process_zero:
            return
        means = ((step, float(mean)) for step, mean in self._means)
        self._record.losses += [(step, mean) for step, mean in means if math.isfinite(mean)]
        self._means.clear()
        chance = _loss_of_guessing(model)
        for advice in advise(self._record, step=state.global_step, num_steps=state.max_steps, chance=chance):
            if (advice.kind, advice.subject) not in self._given:
                self._given.add((advice.kind, advice.subject))
                self.advice.append(advice.text)
                logger.warning("Advice: %s", advice.text)


def _copy(parameter: nn.Parameter) -> torch.Tensor:
    return local(parameter).to("cpu", copy=True)


def _ratios(name: str, changes: Mapping[str, float], sizes: Mapping[str, float]) -> dict[str, float]:
    return {f"{name}/{role}": change / sizes[role] for role, change in changes.items() if sizes[role] > 0}


def _loss_of_guessing(model: nn.Module) -> float | None:
    """Returns the loss of a classifier that gives every class the same probability, ln K for K classes."""
    inner = unwrap_model(model)
    if isinstance(inner, PeftModel):
        inner = inner.get_base_model()
    if not isinstance(inner, PreTrainedModel) or inner.config.problem_type != "single_label_classification":
        return None
    return math.log(int(inner.config.num_labels or 2))
