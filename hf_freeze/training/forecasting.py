"""How long a run of a trainer is and how much memory it takes, told from its rows and arguments before it begins."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import psutil
import torch
from torch.utils.data import DataLoader
from transformers.trainer_utils import IntervalStrategy

from hf_freeze.plan.cost import Processes, peak_bytes, prefix_roles, role_costs
from hf_freeze.plan.optimizer_state import optimizer_kind
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.plan.timing import RunLength
from hf_freeze.plan.tracing import trace_step
from hf_freeze.training.rehearsing import training_batches

# Batches that a typical one is chosen from.
_NUM_SAMPLED: Final = 16
# How much more than its tensors a process takes where they come from the allocator of C, fragments included: 1.1 to 1.3
# times as much in `python -m benchmarks.cost memory`.
_FRAGMENTS: Final = 1.3
_HALVES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}
Batch = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Sample:
    """Batches that stand for those of a run.

    Attributes:
        typical: One of about the mean size.
        longest: The largest.
        density: The share of positions in batches that is no padding.
    """

    typical: Batch
    longest: Batch
    density: float

    @property
    def num_rows(self) -> int:
        """Rows of a batch."""
        return len(next(iter(self.typical.values())))


@dataclass(frozen=True)
class Forecast:
    """How long a run is predicted to take, in seconds.

    Attributes:
        without_cache: Without the activation cache.
        with_cache: With it, its build included; None where it is off.
    """

    without_cache: float
    with_cache: float | None

    @property
    def seconds(self) -> float:
        """The run as it would be: the cache is used where that is faster."""
        return self.without_cache if self.with_cache is None else min(self.without_cache, self.with_cache)


def sampled(trainer: Any, *, by: str) -> Sample:
    """Looks at a few batches of training.

    Args:
        trainer: The trainer.
        by: The name of the automatic selection, for messages.

    Raises:
        PlanError: There are no training rows.
    """
    batches = [
        {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
        for batch in itertools.islice(training_batches(trainer, by=by), _NUM_SAMPLED)
    ]
    rows = max(map(_num_rows, batches))
    whole = [batch for batch in batches if _num_rows(batch) == rows]
    mean = sum(map(_size, whole)) / len(whole)
    masks = [batch["attention_mask"] for batch in batches if "attention_mask" in batch]
    density = sum(float(mask.float().mean()) for mask in masks) / len(masks) if masks else 1.0
    return Sample(min(whole, key=lambda batch: abs(_size(batch) - mean)), max(whole, key=_size), density)


def _num_rows(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _size(batch: Batch) -> int:
    return max(value.numel() for value in batch.values())


def run_length_of(trainer: Any, sample: Sample) -> RunLength:
    """Returns how much there is to do in one process.

    Args:
        trainer: The trainer.
        sample: What its batches are like.
    """
    args, loader = trainer.args, trainer.get_train_dataloader()
    num_batches = _num_batches(loader)
    steps_an_epoch = max(1, math.ceil((num_batches or args.max_steps) / args.gradient_accumulation_steps))
    num_steps = args.max_steps if args.max_steps > 0 else math.ceil(steps_an_epoch * args.num_train_epochs)
    evaluated = _num_evaluated(trainer) / sample.num_rows / args.world_size
    num_evaluations = _num_evaluations(args, num_steps, steps_an_epoch) if evaluated else 0
    trained = min(1.0, num_steps / steps_an_epoch) * steps_an_epoch * args.gradient_accumulation_steps
    return RunLength(
        num_steps=num_steps,
        accumulation=args.gradient_accumulation_steps,
        evaluation_batches=num_evaluations * evaluated,
        build_batches=sample.density * (trained + (evaluated if num_evaluations else 0.0)),
    )


def _num_batches(loader: DataLoader[Any]) -> int:
    try:
        return len(loader)
    except TypeError:
        return 0  # A stream: `max_steps` says how long training is.


def _num_evaluated(trainer: Any) -> int:
    rows = trainer.eval_dataset
    if rows is None or trainer.args.eval_strategy == IntervalStrategy.NO:
        return 0
    return sum(map(len, rows.values())) if isinstance(rows, dict) else len(rows)


def _num_evaluations(args: Any, num_steps: int, steps_an_epoch: int) -> int:
    first = int(bool(args.eval_on_start))
    if args.eval_strategy == IntervalStrategy.EPOCH:
        return first + math.ceil(num_steps / steps_an_epoch)
    interval = float(args.eval_steps or args.logging_steps)
    return first + int(num_steps // (math.ceil(num_steps * interval) if interval < 1 else interval))


def predicted_peak(trainer: Any, plan: FreezePlan, batch: Batch, *, is_cached: bool) -> int:
    """Returns the most bytes that training takes at once: of a GPU, or of this process where there is none.

    Args:
        trainer: The trainer, whose model carries the plan.
        plan: What trains.
        batch: The largest batch.
        is_cached: Whether the forward pass of the frozen prefix is spared.
    """
    args, precision = trainer.args, trainer.accelerator.mixed_precision
    on_gpu = args.device.type != "cpu"
    processes = Processes(args.world_size, args.device.type, precision, copies_gradients=args.world_size > 1)
    half, checkpoints = _HALVES.get(precision), args.activation_checkpointing
    step = trace_step(trainer.model, batch, autocast=half, fuses_attention=on_gpu, checkpoints=checkpoints)
    options = dict(part.split("=", 1) for part in (args.optim_args or "").split(",") if "=" in part)
    kind = optimizer_kind(getattr(args.optim, "value", args.optim), options)
    costs = role_costs(plan, optimizer=kind, processes=processes, step=step)
    peak = peak_bytes(
        costs,
        step,
        processes=processes,
        accumulates=args.gradient_accumulation_steps > 1,
        cached=prefix_roles(plan) if is_cached else (),
    )
    if on_gpu:
        return peak
    found = psutil.Process().memory_info()._asdict()
    weights = sum(cost.weights for cost in costs)
    return round(_FRAGMENTS * peak) + max(0, int(found["rss"]) - int(found.get("shared", 0)) - weights)
