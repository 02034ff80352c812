"""How many bytes of state an optimizer keeps for what trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class OptimizerKind:
    """What an optimizer keeps.

    Attributes:
        num_bytes: Bytes of state for a parameter of a shape and an element size.
        is_known: Whether this is what the optimizer keeps; otherwise AdamW stands for it.
    """

    num_bytes: Callable[[tuple[int, ...], int], int]
    is_known: bool = True


def optimizer_kind(name: str, options: Mapping[str, str]) -> OptimizerKind:
    """Returns what an optimizer keeps for every parameter that trains.

    Source: the documentation of torch.optim and bitsandbytes; Shazeer & Stern 2018 for Adafactor, whose second moment
    of a matrix is a row and a column.

    Args:
        name: `training.optim`.
        options: `training.optim_args`, such as `momentum`.
    """
    numbers = {
        "sgd": 1 if float(options.get("momentum", 0)) else 0,
        "adagrad": 1,
        "rmsprop": 1,
        "lion_32bit": 1,
        "paged_lion_32bit": 1,
    }
    if name == "adafactor":
        return OptimizerKind(lambda shape, size: 4 * _factored(shape))
    if name in numbers:
        return OptimizerKind(lambda shape, size: numbers[name] * math.prod(shape) * size)
    if name in ("lion_8bit", "paged_lion_8bit", "rmsprop_bnb_8bit"):
        return OptimizerKind(lambda shape, size: math.prod(shape))
    if name in ("adamw_torch_8bit", "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit"):
        return OptimizerKind(lambda shape, size: 2 * math.prod(shape))
    if name == "adamw_torch_4bit":
        return OptimizerKind(lambda shape, size: math.prod(shape))
    known = ("adamw_torch", "adamw_torch_fused", "adamw_torch_npu_fused", "adamw_torch_xla", "paged_adamw_32bit")
    return OptimizerKind(lambda shape, size: 2 * math.prod(shape) * size, is_known=name in known)


def _factored(shape: tuple[int, ...]) -> int:
    return math.prod(shape) if len(shape) < 2 else math.prod(shape[:-1]) + math.prod((*shape[:-2], shape[-1]))
