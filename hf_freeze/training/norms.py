"""Norms per role, over the parameters of the role and the processes that share them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate

# The mesh that a parameter is spread over, and the dimensions of the mesh that hold different parts of it.
_Spread: TypeAlias = tuple[DeviceMesh, tuple[bool, ...]]


class Part(NamedTuple):
    """What is known of one parameter on this process.

    Attributes:
        role: The role of the parameter.
        parameter: The parameter, which tells how it is spread over processes.
        values: This process's part of a tensor of the parameter's shape: its weights, its gradient, their change.
    """

    role: str
    parameter: nn.Parameter
    values: torch.Tensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Returns this process's part of a tensor, detached; all of it where it is not sharded.

    Args:
        tensor: A tensor or a `DTensor`.
    """
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def role_norms(parts: Iterable[Part], *, order: int = 2) -> dict[str, float]:
    """Returns the norm of everything that belongs to a role, for every role that occurs.

    Sums are taken in float32 or wider, whatever the tensors are. Where parameters are sharded, all processes must call
    this with the same parameters in the same order, and all get the same norms.

    Args:
        parts: The parts; they are consumed one by one, so that what they are made of need not be held.
        order: 1 for sums of absolute values, 2 for the Euclidean norm.
    """
    norms: dict[tuple[_Spread | None, torch.device], dict[str, list[torch.Tensor]]] = {}
    for role, parameter, values in parts:
        dtype = torch.promote_types(values.dtype, torch.float32)
        norm = torch.linalg.vector_norm(values, order, dtype=dtype)
        norms.setdefault((_spread(parameter), norm.device), {}).setdefault(role, []).append(norm)
    whole: dict[str, float] = {}
    for (spread, _), by_role in norms.items():
        totals = torch.stack([torch.linalg.vector_norm(torch.stack(found), order) for found in by_role.values()])
        if spread is not None:
            totals = _summed(totals.double() ** order, spread) ** (1 / order)
        for role, total in zip(by_role, totals.tolist(), strict=True):
            before = whole.get(role, 0.0)
            whole[role] = before + total if order == 1 else math.hypot(before, total)
    return whole


def _spread(parameter: nn.Parameter) -> _Spread | None:
    if not isinstance(parameter, DTensor):
        return None
    return parameter.device_mesh, tuple(placement.is_shard() for placement in parameter.placements)


def _summed(totals: torch.Tensor, spread: _Spread) -> torch.Tensor:
    mesh, is_sharded = spread
    placements = [Partial() if shard else Replicate() for shard in is_sharded]
    summed: torch.Tensor = DTensor.from_local(totals, mesh, placements).full_tensor()
    return summed
