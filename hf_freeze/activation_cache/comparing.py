"""Whether two outputs are the same but for rounding, and whether a model that trains gives the same from stored rows.

Shapes: `B` batch, `L` sequence length of the batch, padding included, `H` hidden.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from hf_freeze.activation_cache.replay import Replay, in_mode, tensors_of
from hf_freeze.activation_cache.rows import kept_random_state

# Returns the loss of a batch, labels included, as a training loop computes it with the model.
Loss = Callable[[nn.Module, dict[str, Any]], torch.Tensor]
# How far outputs may be apart, as a share of the largest: rounding in the dtype of the stored rows, never dropout.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
# Hidden states of real tokens may be this far apart, as a share of the largest, when padding is added behind them.
PADDING_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def differs_in_training(
    replay: Replay,
    inputs: Mapping[str, Any],
    keyed: Mapping[str, Any],
    hidden: torch.Tensor,
    tolerance: float,
    loss: Loss | None = None,
) -> bool:
    """Returns whether the model in train mode, or its loss, is something else from stored rows than in full.

    Both calls draw the same random numbers. Dropout that is left in the prefix shows here only: in eval mode it is off.
    Random state, buffers and modes are as before afterwards.

    Args:
        replay: The prefix.
        inputs: A batch, labels included.
        keyed: What of it the prefix reads.
        hidden: The prefix's output as the store would return it, of shape (B, L, H).
        tolerance: How far apart they may be, as a share of the largest.
        loss: What computes the loss, where that is not the model.
    """

    def computed() -> list[torch.Tensor]:
        outputs = tensors_of(replay.model(**inputs))
        if loss is None:
            return outputs
        # What computes a loss may write to its batch.
        copied = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
        return [*outputs, loss(replay.model, copied)]

    mask = keyed.get("attention_mask")
    with torch.no_grad(), in_mode(replay.model, training=True):
        with kept_random_state(), kept_buffers(replay.model):
            full = computed()
        with kept_random_state(), kept_buffers(replay.model), replay.serve(hidden, keyed):
            served = computed()
    if len(full) != len(served):
        return True
    return not all(is_close(_real(a, mask), _real(b, mask), tolerance) for a, b in zip(full, served, strict=True))


def _real(output: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Returns an output without what belongs to padding."""
    if mask is None or mask.ndim != 2 or output.shape[:2] != mask.shape:
        return output
    return output[mask.to(output.device).bool()]


def is_close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
    """Returns whether two tensors are the same but for rounding.

    Args:
        a: One.
        b: The other.
        tolerance: How far apart they may be, as a share of the largest.
    """
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    a, b = a.float(), b.float()
    # Some models mask logits with the lowest number there is.
    is_finite = a.isfinite() & b.isfinite() & (a.abs() < 1e30)
    if not torch.equal(a[~is_finite], b[~is_finite]):
        return False
    if not is_finite.any():
        return True
    a, b = a[is_finite], b[is_finite]
    return bool((a - b).abs().max() <= tolerance * max(1.0, float(a.abs().max())))


@contextlib.contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Gives all buffers their values back: the statistics of BatchNorm move in train mode.

    Args:
        model: The model.
    """
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
