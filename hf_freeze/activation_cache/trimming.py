"""Whether rows can be stored without their padding.

Shapes: `B` batch, `L` sequence length of the batch, padding included, `H` hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_freeze.activation_cache.checks import tells_widths
from hf_freeze.activation_cache.comparing import PADDING_TOLERANCE, Loss, differs_in_training, is_close
from hf_freeze.activation_cache.keys import batch_size, row_lengths
from hf_freeze.activation_cache.replay import ModulesReplaced, Replay, select_rows

# Losses and outputs may be this far apart where nothing but what stands at padding differs: kernels of other shapes.
_UNPADDED_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
# A row of so many tokens shows what any wider batch changes.
_SHORT = 4


def reason_to_keep_padding(
    replay: Replay, inputs: Mapping[str, Any], keyed: Mapping[str, Any], loss: Loss | None
) -> str | None:
    """Returns why rows cannot be stored without their padding, or None.

    Under FSDP all processes run the prefix together: how often does not depend on the rows of the batch.

    Args:
        replay: The prefix.
        inputs: A batch, labels included.
        keyed: What of it the prefix reads.
        loss: What computes the loss, where that is not the model.
    """
    if padding_matters(replay, inputs):
        return "padding changes them or they have other positions"
    # What is behind the prefix must not read padding either.
    padded = _with_padding(replay.model, inputs)
    padded_keyed = {name: padded[name] for name in keyed}
    served = replay.prefix(padded).clone()
    for index, length in enumerate(row_lengths(padded_keyed) or ()):
        served[index, length:] = 0
    if differs_in_training(replay, padded, padded_keyed, served, _UNPADDED_TOLERANCE[served.dtype], loss):
        return "the loss, or what the model makes of a row, depends on what stands at its padding"
    return None


def padding_matters(replay: Replay, inputs: Mapping[str, Any]) -> bool:
    """Returns whether the prefix computes something else for real tokens when there is padding behind them.

    A row is cut, to its half and to a few tokens, and computed once more at full length with the rest masked. Where
    hidden states do not follow the mask position by position, it counts as mattering.

    Args:
        replay: The prefix.
        inputs: A batch; its `attention_mask` has the shape (B, L).
    """
    mask, lengths = inputs.get("attention_mask"), row_lengths(inputs)
    if mask is None or lengths is None or tells_widths(replay.model):
        return True
    row = max(range(len(lengths)), key=lengths.__getitem__)
    half, width = lengths[row] // 2, mask.shape[1]
    whole = select_rows(inputs, [row, row], batch_size(inputs))
    if replay.prefix(whole).shape[1] != width:
        return True
    cuts = max(1, half), max(1, min(half, _SHORT))
    try:
        changes = [_changes_behind(replay, whole, width, length) for length in cuts]
    except (IndexError, ModulesReplaced, RuntimeError, ValueError):
        return True  # The model takes rows of one length only.
    return any(changes) or half == 0  # A row of one token tells nothing.


def _changes_behind(replay: Replay, whole: Mapping[str, Any], width: int, length: int) -> bool:
    """Returns whether padding up to `width` changes the first `length` positions of two equal rows."""
    masked = {**whole, "attention_mask": whole["attention_mask"].clone()}
    masked["attention_mask"][:, length:] = 0
    cut = {
        name: value[:, :length] if isinstance(value, torch.Tensor) and value.shape[:2] == (2, width) else value
        for name, value in whole.items()
    }
    padded, alone = replay.prefix(masked)[:, :length], replay.prefix(cut)
    return padded.shape != alone.shape or not is_close(padded, alone, PADDING_TOLERANCE[alone.dtype])


def reason_of_widths(why: str) -> str:
    """Returns why rows that keep their padding are not worth storing where batches are of many widths.

    Args:
        why: Why they keep it.
    """
    return (
        f"hidden states cannot be cut to the real tokens of a row, since {why}, and batches are padded to different "
        "lengths; rows padded to one length can be cached"
    )


def _with_padding(model: nn.Module, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the batch itself where a row has padding, or else with the second half of every other row made padding.

    Args:
        model: The model, for its padding token.
        inputs: A batch, labels included; its `attention_mask` has the shape (B, L).
    """
    mask = inputs["attention_mask"]
    if not bool(mask.all()):
        return inputs
    pad = model.config.pad_token_id if isinstance(model, PreTrainedModel) else None
    fills = {"attention_mask": 0, "labels": -100} | ({} if pad is None else {"input_ids": pad})
    padded = dict(inputs)
    for name in fills.keys() & padded.keys():
        if padded[name].shape == mask.shape:
            padded[name] = padded[name].clone()
            padded[name][::2, mask.shape[1] // 2 :] = fills[name]
    return padded


def pads_to_the_longest(keyed: Mapping[str, Any]) -> bool:
    """Whether a batch is as wide as its longest row and no wider, while rows differ in length.

    Args:
        keyed: What of a batch the prefix reads.
    """
    mask = keyed.get("attention_mask")
    if mask is None or mask.ndim != 2:
        return False
    real = mask.sum(dim=1)
    return bool(real.min() < real.max() == mask.shape[1])


def pads_on_the_left(keyed: Mapping[str, Any]) -> bool:
    """Whether a row of a batch has padding in front of its tokens, which stays with a stored row.

    Args:
        keyed: What of a batch the prefix reads.
    """
    mask = keyed.get("attention_mask")
    return mask is not None and mask.ndim == 2 and not bool(mask[:, 0].all())
