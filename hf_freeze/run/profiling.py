"""What a run will take in seconds, from a few real steps of it; nothing is written."""

from __future__ import annotations

import contextlib
import copy
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_freeze.errors import ConfigError
from hf_freeze.plan.apply import apply_plan, plan_of
from hf_freeze.plan.cost import PlanCost, Seconds
from hf_freeze.plan.prepare import freeze_model
from hf_freeze.plan.timing import Speedup, Timing
from hf_freeze.plan.wrappers import resolve_module
from hf_freeze.run.batches import Batch, batches_of
from hf_freeze.run.planning import Prepared
from hf_freeze.run.settings import Settings, lengths_of
from hf_freeze.tasks import get_task
from hf_freeze.training.arguments import training_arguments

_WARM_UP: Final = 1  # steps that are not counted: the optimizer makes its state, allocators fill
_NUM_STEPS: Final = 4
_HALVES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}


def with_seconds(cost: PlanCost, made: Prepared, *, target: str) -> PlanCost:
    """Returns a cost with what a few real steps tell, speed-ups included.

    The plan, full fine-tuning and the frozen loop each take a few steps on a typical batch, one after the other, in
    this process.

    Args:
        cost: What was predicted.
        made: The plan.
        target: What it was made from, for messages.

    Raises:
        ConfigError: There are no weights or no rows.
    """
    lengths = None if made.data is None else lengths_of(made.data)
    if made.data is None or lengths is None:
        why = "it is a model, not a config" if not made.training else made.problem or "its rows have no tokens"
        raise ConfigError(
            f"--profile: steps are measured on the rows that a config names; got {target!r}. There are none: "
            f"{why.rstrip('.')}. Give a config whose data can be read, or leave --profile out."
        )
    settings = Settings(made.training)
    loaded = get_task(made.request.model.task).load_model(
        made.request.model.name_or_path,
        made.data,
        trust_remote_code=made.request.model.trust_remote_code,
        from_pretrained=made.request.model.from_pretrained_options,
    )
    batch, _ = batches_of(made, settings, lengths)
    steps = _Steps(batch, settings, training_arguments(made.training), cost)
    request, path = made.request, made.request.model.blocks_path
    own = freeze_model(copy.deepcopy(loaded.model), request.freeze, request.adapters, blocks_path=path)
    plan = steps.timing(own)
    apply_plan(own, replace(plan_of(own), keep_dropout=True))
    loop = steps.timing(own) if made.plan.frozen_names else plan
    del own
    full = steps.timing(freeze_model(loaded.model, blocks_path=path)) if made.plan.frozen_names else plan
    return _with_timings(cost, plan, full, loop, settings.run_length(lengths, num_processes=cost.processes.count))


def _with_timings(cost: PlanCost, plan: Timing, full: Timing, loop: Timing, length: Any) -> PlanCost:
    is_cached = cost.cached_over_full is not None

    def over(other: Timing, *, cached: bool) -> Speedup:
        step, run = (plan.cached_step(), plan.cached_run(length)) if cached else (plan.step, plan.run(length))
        return Speedup(other.step / step, other.run(length) / run)

    return replace(
        cost,
        over_full=over(full, cached=False),
        over_loop=over(loop, cached=False),
        cached_over_full=over(full, cached=True) if is_cached else None,
        cached_over_loop=over(loop, cached=True) if is_cached else None,
        cache=cost.cache and replace(cost.cache, build_steps=plan.build(length) / plan.step),
        seconds=Seconds(
            step=plan.step,
            cached_step=plan.cached_step() if is_cached else None,
            run=plan.run(length),
            cached_run=plan.cached_run(length) if is_cached else None,
            build=plan.build(length) if is_cached else None,
            full_step=full.step,
            loop_step=loop.step,
        ),
    )


class _Steps:
    """Takes steps as the Trainer does, on one batch.

    Args:
        batch: A typical batch.
        settings: The training section.
        args: The same, as the Trainer reads it.
        cost: The cost, which knows the device and the precision.
    """

    def __init__(self, batch: Batch, settings: Settings, args: TrainingArguments, cost: PlanCost) -> None:
        self._device = torch.device(cost.processes.device)
        self._batch = {name: value.to(self._device) for name, value in batch.items()}
        self._settings = settings
        self._args = args
        self._half = _HALVES.get(cost.processes.precision)

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
            if self._settings.clips:
                torch.nn.utils.clip_grad_norm_(trained, self._args.max_grad_norm)
            optimizer.step()

        model.train()
        passes, updates, prefixes = [], [], []
        for _ in range(_WARM_UP + _NUM_STEPS):
            with _timed(prefix, self._now) as spent:
                passes.append(self._seconds(lambda: torch.autograd.backward(self._forward(model)["loss"])))
            prefixes.append(spent["seconds"])
            updates.append(self._seconds(update))
            optimizer.zero_grad()
        model.eval()
        evaluations, evaluated = [], []
        for _ in range(_WARM_UP + _NUM_STEPS):
            with torch.no_grad(), _timed(prefix, self._now) as spent:
                evaluations.append(self._seconds(lambda: self._forward(model)))
            evaluated.append(spent["seconds"])
        batches = self._settings.accumulation
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
    handles += [module.register_forward_hook(leave) for module in modules]
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()


def _typical(seconds: list[float]) -> float:
    return statistics.median(seconds[_WARM_UP:])
