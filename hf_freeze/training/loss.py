"""Finds out whether a model normalises its loss by the number of items, and corrects the Trainer's scale if not.

Transformers 5.23 assumes that every model whose forward takes `**kwargs` divides its loss by `num_items_in_batch`. The
BERT, T5 and BART families and most classifiers ignore it and return the mean over their own micro-batch, so under
gradient accumulation and under data parallelism their loss and gradients come out multiplied. Multiplying by the share
of the items that lies in the micro-batch makes the sum over micro-batches and processes the mean over the whole batch,
for token tasks with unequal counts too. Shapes: `B` batch, `L` sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def count_items(inputs: Mapping[str, Any], *, shifted: bool) -> torch.Tensor:
    """Counts the labels of one micro-batch that the loss averages over, as the Trainer counts them.

    Args:
        inputs: A batch with `labels` of shape (B,), (B, L) or (B, labels).
        shifted: Whether the loss drops the first position of each row, as causal language models do.
    """
    if "shift_labels" in inputs:
        labels = inputs["shift_labels"]
    else:
        labels = inputs["labels"][..., 1:] if shifted else inputs["labels"]
    counted: torch.Tensor = labels.ne(-100).sum()
    return counted


def scale_loss(loss: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Multiplies the mean over a micro-batch by the share of the batch's items that lies in it.

    Args:
        loss: The mean, of shape (); not a number where the micro-batch has no label.
        share: At least 0, of shape ().
    """
    share = share.to(loss.device)
    return torch.where(share > 0, loss * share, 0.0)


@torch.no_grad()
def loss_responds(model: nn.Module, inputs: Mapping[str, Any], num_items_in_batch: torch.Tensor | int) -> bool:
    """Returns whether the model's loss changes with `num_items_in_batch`.

    Runs the model twice in eval mode, without gradients; the mode and the random state are as before afterwards. Every
    label counts, those to be ignored too: a micro-batch without a label would have no loss to compare, and one process
    would then find out what the others do not.

    Args:
        model: The model as the training loop calls it, wrapped or not.
        inputs: A batch with labels.
        num_items_in_batch: The number of items that the batch is a part of; at least 1.
    """
    labelled = {
        name: value.masked_fill(value == -100, 0) if name in ("labels", "shift_labels") else value
        for name, value in inputs.items()
    }
    training = model.training
    with torch.random.fork_rng(devices=_devices(inputs)):
        model.eval()
        try:
            losses = [
                _loss(model(**labelled, num_items_in_batch=items))
                for items in (num_items_in_batch, 2 * num_items_in_batch)
            ]
        finally:
            model.train(training)
    return not torch.equal(*losses)


def _loss(outputs: Any) -> torch.Tensor:
    loss: torch.Tensor = outputs["loss"] if isinstance(outputs, dict) else outputs[0]
    return loss


def _devices(inputs: Mapping[str, Any]) -> list[torch.device]:
    devices = {value.device for value in inputs.values() if isinstance(value, torch.Tensor)}
    return [device for device in devices if device.type == "cuda"]
