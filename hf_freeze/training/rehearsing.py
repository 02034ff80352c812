"""Steps taken before training that leave no trace: weights, buffers and random streams are as before, to the bit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from hf_freeze.activation_cache.replay import in_mode
from hf_freeze.activation_cache.rows import kept_random_state
from hf_freeze.errors import PlanError
from hf_freeze.plan.apply import apply_plan, plan_of
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.plan.wrappers import named_parameters


@contextlib.contextmanager
def rehearsal(model: Any, plan: FreezePlan) -> Iterator[None]:
    """Lets a model train under a plan, and takes everything back.

    Args:
        model: The model, which carries a plan of its own.
        plan: The plan that trains; others that train no more than it may be applied inside.
    """
    own, trained = plan_of(model), set(plan.trainable_names)
    moving = [parameter for name, parameter in named_parameters(model) if name in trained]
    kept = [(tensor, _copied(tensor)) for tensor in (*moving, *model.buffers())]
    apply_plan(model, plan)
    try:
        with kept_random_state(), in_mode(model, training=True):
            yield
    finally:
        with torch.no_grad():
            for tensor, values in kept:
                tensor.copy_(values)
        for parameter in model.parameters():
            parameter.grad = None
        apply_plan(model, own)


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a copy, in main memory where it can: that of a GPU may be full."""
    return tensor.detach().clone() if isinstance(tensor, DTensor) else tensor.detach().to("cpu", copy=True)


def training_batches(trainer: Any, *, by: str) -> Iterator[Mapping[str, Any]]:
    """Yields batches of training, over and over.

    Args:
        trainer: The trainer.
        by: The name of the automatic selection, for messages.

    Raises:
        PlanError: There are no training rows, or too few for a batch.
    """
    if trainer.train_dataset is None:
        raise PlanError(
            f"freeze.blocks.auto: choosing by {by} takes training rows; got train_dataset=None. "
            "Pass them to the trainer, or say which blocks are frozen."
        )
    loader = trainer.get_train_dataloader()
    while True:
        batch = None
        for batch in loader:
            yield batch
        if batch is None:
            raise PlanError(
                f"freeze.blocks.auto: choosing by {by} takes batches of training rows; got none of "
                f"{trainer.args.per_device_train_batch_size} rows. dataloader_drop_last is "
                f"{trainer.args.dataloader_drop_last}. Take more rows or smaller batches, or say which blocks are "
                "frozen."
            )
