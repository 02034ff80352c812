"""Checks, on the model itself, that training does what the plan says; a failure is a `PlanViolation`."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

import torch
from torch import nn

from hf_freeze.errors import PlanViolation
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.plan.wrappers import named_parameters
from hf_freeze.plan.zero import kept_part

# Bytes hashed at a time: bounds the copy that a tensor on an accelerator needs.
_CHUNK = 1 << 26


def tensor_digest(tensor: torch.Tensor) -> str:
    """Returns a hash (blake2b, 16 bytes, hexadecimal) of the values, dtype and shape of a tensor.

    Args:
        tensor: Any dense tensor; of a sharded one, the local shard.
    """
    local = kept_part(tensor).detach()
    if isinstance(local, torch.distributed.tensor.DTensor):
        local = local.to_local()
    digest = hashlib.blake2b(f"{local.dtype}{tuple(local.shape)}".encode(), digest_size=16)
    flat = local.contiguous().reshape(-1).view(torch.uint8)
    for start in range(0, flat.numel(), _CHUNK):
        digest.update(flat[start : start + _CHUNK].cpu().numpy().data)
    return digest.hexdigest()


def parameter_digests(model: nn.Module, names: Collection[str]) -> dict[str, str]:
    """Returns the digests of some parameters by canonical name.

    Args:
        model: The model that carries the plan.
        names: Their canonical names.
    """
    return {name: tensor_digest(p) for name, p in named_parameters(model) if name in names}


def check_unchanged(model: nn.Module, digests: Mapping[str, str]) -> None:
    """Checks that the parameters still have the values that the digests were taken from.

    Args:
        model: The model that carries the plan.
        digests: What `parameter_digests` returned earlier.

    Raises:
        PlanViolation: A frozen parameter moved.
    """
    moved = [name for name, p in named_parameters(model) if name in digests and tensor_digest(p) != digests[name]]
    if moved:
        raise PlanViolation(
            f"{moved[0]}: a frozen parameter moved, and {len(moved) - 1} others did. The plan freezes "
            f"{len(digests)} parameters. Look for code that writes weights: a callback, an optimizer made by hand, "
            "weights loaded while training."
        )


def check_gradients(model: nn.Module, plan: FreezePlan) -> tuple[str, ...]:
    """Checks, between the backward pass and the optimizer step, that gradients are where the plan says.

    Args:
        model: The model that carries the plan.
        plan: What trains.

    Returns:
        Canonical names of parameters that train but were not reached, such as XLNet's `mask_emb` or an unused pooler.

    Raises:
        PlanViolation: A role that trains got no gradient at all, or a frozen parameter got one or requires one.
    """
    trainable = plan.is_trainable()
    roles = {decision.name: decision.role for decision in plan.decisions}
    unreached: list[str] = []
    reached: set[str] = set()
    for name, parameter in named_parameters(model):
        if not trainable[name]:
            if parameter.grad is not None or parameter.requires_grad:
                what = "has a gradient" if parameter.grad is not None else "requires a gradient"
                raise PlanViolation(
                    f"{name}: this parameter is frozen but {what}. {roles[name]} is "
                    f"{plan.treatments[roles[name]]} in the plan. "
                    "Look for code that sets requires_grad, and change the plan instead: apply_plan(model, plan)."
                )
        elif parameter.grad is None:
            unreached.append(name)
        else:
            reached.add(roles[name])
    missing = [role for role in plan.trainable_roles if role not in reached]
    if missing:
        raise PlanViolation(
            f"{missing[0]}: the plan trains this role but no gradient reached it. Gradients reached "
            f"{', '.join(role for role in plan.treatments if role in reached) or 'nothing'}. "
            "Look for torch.no_grad(), detach(), or code that sets requires_grad."
        )
    return tuple(unreached)
