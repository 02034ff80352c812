"""Fixed parameter groups, one per role and weight-decay class, with the learning rates that the multipliers ask for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import nn

from hf_freeze.config import LearningRateMultipliers
from hf_freeze.errors import PlanViolation
from hf_freeze.plan.layout import Layout
from hf_freeze.plan.places import ROLE_EMBEDDINGS, ROLE_HEAD, block_role
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.plan.wrappers import named_parameters


def role_multipliers(layout: Layout, multipliers: LearningRateMultipliers) -> dict[str, float]:
    """Returns the factor on the learning rate of every role.

    With block decay d, block i of N has d ** (N - i) and the embeddings have d ** (N + 1), N being the number of blocks
    of the longest stack there; the head has 1. The factors for the embeddings and the head come on top.
    Source: Clark et al. 2020 (ELECTRA), Bao et al. 2022 (BEiT).

    Args:
        layout: Where the roles are.
        multipliers: The `lr_multipliers` section.
    """
    decay = multipliers.block_decay
    longest = max(stack.num_blocks for stack in layout.stacks)
    factors = {ROLE_EMBEDDINGS: multipliers.embeddings * decay ** (longest + 1)}
    for stack in layout.stacks:
        for index in range(stack.num_blocks):
            factors[block_role(stack.name, index)] = decay ** (stack.num_blocks - index)
    factors[ROLE_HEAD] = multipliers.head
    return factors


def parameter_groups(
    model: nn.Module,
    plan: FreezePlan,
    *,
    factors: Mapping[str, float],
    decayed_names: Collection[str],
    learning_rate: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Returns the groups of an optimizer: one per role and weight-decay class, none of them empty.

    Args:
        model: The model that carries the plan.
        plan: What trains.
        factors: Factor on the learning rate per role.
        decayed_names: The parameters, named as `model.named_parameters()` does, that weight decay applies to.
        learning_rate: The learning rate of a factor of 1.
        weight_decay: The weight decay of `decayed_names`.
    """
    roles = {decision.name: decision.role for decision in plan.decisions if decision.trainable}
    decayed = {id(parameter) for name, parameter in model.named_parameters() if name in decayed_names}
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for role in plan.treatments:
        for decays in (True, False):
            groups[role, decays] = {
                "params": [],
                "name": role,
                "lr": learning_rate * factors[role],
                "weight_decay": weight_decay if decays else 0.0,
            }
    for name, parameter in named_parameters(model):
        if name in roles:
            groups[roles[name], id(parameter) in decayed]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def free_state(optimizer: Any, parameters: Iterable[nn.Parameter]) -> None:
    """Frees what an optimizer knows about some parameters, and the memory for it.

    Args:
        optimizer: An optimizer, also one that accelerate prepared.
        parameters: The parameters.
    """
    for parameter in parameters:
        optimizer.state.pop(parameter, None)


def check_groups(model: nn.Module, plan: FreezePlan, groups: list[dict[str, Any]]) -> None:
    """Checks that every parameter that trains is in exactly one group.

    A frozen parameter in a group costs nothing: optimizers skip parameters without a gradient.

    Args:
        model: The model that carries the plan.
        plan: What trains.
        groups: The `param_groups` of an optimizer.

    Raises:
        PlanViolation: A parameter that trains is missing or doubled.
    """
    count = Counter(id(parameter) for group in groups for parameter in group["params"])
    trainable = plan.is_trainable()
    for name, parameter in named_parameters(model):
        if trainable[name] and count[id(parameter)] != 1:
            raise PlanViolation(
                f"{name}: this parameter trains and must be in one group of the optimizer; got "
                f"{count[id(parameter)]}. The optimizer has {len(groups)} groups with {count.total()} parameters. "
                "Make the optimizer after freeze_model, from the parameters that require a gradient."
            )
