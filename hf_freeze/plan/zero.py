"""What DeepSpeed makes of a model and its parameters, told without DeepSpeed: it is optional, and slow to import.

Where nobody has imported it, no module is an engine, and no parameter is split by ZeRO stage 3.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn


def engine_classes() -> tuple[type[nn.Module], ...]:
    """Returns the classes of the modules that DeepSpeed wraps around a model: they hold it as `module`."""
    deepspeed = sys.modules.get("deepspeed")
    return () if deepspeed is None else (deepspeed.DeepSpeedEngine,)


def whole_shape(parameter: torch.Tensor) -> torch.Size:
    """Returns the shape of a parameter, which is the one before ZeRO stage 3 split it.

    Args:
        parameter: Any parameter.
    """
    split = _split(parameter)
    shape: torch.Size = parameter.shape if split is None else split.ds_shape
    return shape


def kept_part(parameter: torch.Tensor) -> torch.Tensor:
    """Returns what this process keeps of a parameter: the shard where ZeRO stage 3 split it, else the whole.

    What such a parameter itself holds comes and goes.

    Args:
        parameter: Any parameter.
    """
    split = _split(parameter)
    part: torch.Tensor = parameter if split is None else split.ds_tensor
    return part


def _split(parameter: torch.Tensor) -> Any:
    """Returns the parameter if ZeRO stage 3 split it, else None."""
    zero = sys.modules.get("deepspeed.runtime.zero.utils")
    return parameter if zero is not None and zero.is_zero_param(parameter) else None
