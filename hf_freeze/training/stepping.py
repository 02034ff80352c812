"""Takes a few real steps as the Trainer does, and says how long their parts take."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_freeze.plan.apply import plan_of
from hf_freeze.plan.timing import Timing
from hf_freeze.plan.tracing import activation_checkpointing
from hf_freeze.plan.wrappers import resolve_module

NUM_STEPS: Final = 4
_WARM_UP: Final = 1  # steps that are not counted: the optimizer makes its state, allocators fill
_HALVES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Steps:
    """Takes steps as the Trainer does, on one batch.

    Args:
        batch: A typical batch.
        args: The training arguments.
        device: Where they are taken.
        precision: `no`, `fp16` or `bf16`: what the forward pass computes in.
    """

    def __init__(
        self, batch: Mapping[str, torch.Tensor], args: TrainingArguments, *, device: torch.device, precision: str
    ) -> None:
        self._device = device
        self._batch = {name: value.to(device) for name, value in batch.items()}
        self._args = args
        self._half = _HALVES.get(precision)

    def timing(self, model: nn.Module) -> Timing:
        """Measures a model that carries a plan."""
        model.to(self._device)
        plan = plan_of(model)
        first = plan.layout.stacks[0].blocks[: plan.depth]
        prefix = [resolve_module(model, path) for path in first]
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(self._args)
        optimizer = optimizer_class(trained, **options)

        def update() -> None:
            if self._args.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(trained, self._args.max_grad_norm)
            optimizer.step()

        model.train()
        passes, updates, prefixes = [], [], []
        for _ in range(_WARM_UP + NUM_STEPS):
            checkpointing = activation_checkpointing(model, is_on=bool(self._args.activation_checkpointing))
            with checkpointing, _timed(prefix, self._now) as spent:
                passes.append(self._seconds(lambda: torch.autograd.backward(self._forward(model)["loss"])))
            prefixes.append(spent["seconds"])
            updates.append(self._seconds(update))
            optimizer.zero_grad()
        model.eval()
        evaluations, evaluated = [], []
        for _ in range(_WARM_UP + NUM_STEPS):
            with torch.no_grad(), _timed(prefix, self._now) as spent:
                evaluations.append(self._seconds(lambda: self._forward(model)))
            evaluated.append(spent["seconds"])
        batches = self._args.gradient_accumulation_steps
        return Timing(
            step=batches * _typical(passes) + _typical(updates),
            evaluation=_typical(evaluations),
            prefix_step=batches * _typical(prefixes),
            prefix_evaluation=_typical(evaluated),
        )

    def _forward(self, model: nn.Module) -> Any:
        with torch.autocast(self._device.type, dtype=self._half or torch.bfloat16, enabled=self._half is not None):
            return model(**self._batch)

    def _seconds(self, work: Callable[[], object]) -> float:
        start = self._now()
        work()
        return self._now() - start

    def _now(self) -> float:
        """Returns the time, in seconds, when the device has done what it was asked for."""
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        return time.perf_counter()


@contextlib.contextmanager
def _timed(modules: Iterable[nn.Module], now: Callable[[], float]) -> Iterator[Mapping[str, float]]:
    """Yields what the forward passes of these modules took together, in seconds."""
    spent = {"seconds": 0.0}

    def enter(module: nn.Module, args: Any) -> None:
        spent["seconds"] -= now()

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        spent["seconds"] += now()

    handles = [module.register_forward_pre_hook(enter) for module in modules]
    # Activation checkpointing leaves a forward pass by an exception when it has what it needs.
    handles += [module.register_forward_hook(leave, always_call=True) for module in modules]
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()


def _typical(seconds: list[float]) -> float:
    return statistics.median(seconds[_WARM_UP:])
