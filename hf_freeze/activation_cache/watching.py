"""Whether what the frozen prefix computes with is still in place and frozen, looked up once per batch."""

from __future__ import annotations

from torch import nn
from torch.distributed.fsdp import FSDPModule

from hf_freeze.activation_cache.replay import Replay
from hf_freeze.activation_cache.stand_ins import real_module
from hf_freeze.plan.places import ROLE_EMBEDDINGS, block_role
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.plan.wrappers import canonical_tree, named_parameters, unwrap_model


def reason_of_flags(model: nn.Module, plan: FreezePlan) -> str | None:
    """Returns why the model trains what the plan has in the frozen prefix, or None.

    Args:
        model: The model that carries the plan, wrapped or not.
        plan: What is frozen.
    """
    roles = _prefix_roles(plan)
    frozen = {decision.name for decision in plan.decisions if decision.role in roles}
    asking = (name for name, parameter in named_parameters(model) if parameter.requires_grad and name in frozen)
    name = next(asking, None)
    return None if name is None else f"{name} asks for a gradient, though the plan freezes it"


def _prefix_roles(plan: FreezePlan) -> set[str]:
    first = plan.layout.stacks[0].name
    return {ROLE_EMBEDDINGS, *(block_role(first, index) for index in range(plan.depth))}


class PrefixWatch:
    """Remembers the modules and parameters of the prefix, where they are registered, and how it is computed.

    Nothing is watched but the mode where parameters are sharded: they come and go.

    Args:
        model: The model that carries the plan, wrapped or not.
        plan: What is frozen.
        replay: The replay of its prefix.
    """

    def __init__(self, model: nn.Module, plan: FreezePlan, replay: Replay) -> None:
        self._replay = replay
        self._mode = replay.mode
        self._modules: list[tuple[dict[str, nn.Module | None], str, nn.Module]] = []
        self._parameters: list[tuple[dict[str, nn.Parameter | None], str, nn.Parameter, int, int]] = []
        inner = unwrap_model(model)
        if isinstance(inner, FSDPModule):
            return
        roles = _prefix_roles(plan)
        names = {decision.name for decision in plan.decisions if decision.role in roles}
        paths = {path for role in roles for path in plan.layout.modules.get(role, ())}
        tree = canonical_tree(model)
        parameters = {id(leaf.parameter) for name, leaf in tree.named_leaves() if name in names}
        inside = {id(each) for node in tree.walk() if node.path in paths for each in node.outer.modules()}
        for module in inner.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and id(parameter) in parameters:
                    inside.add(id(module))
                    seen = parameter._version, parameter.data_ptr()
                    self._parameters.append((module._parameters, name, parameter, *seen))
        for holder in inner.modules():
            for name, child in holder._modules.items():
                # What lies in the prefix, and what leads there.
                if child is not None and any(id(each) in inside for each in child.modules()):
                    self._modules.append((holder._modules, name, child))

    def has_changed(self) -> bool:
        """Returns whether a module, a parameter, its values, its memory or the mode changed, or a parameter trains."""
        for modules, name, module in self._modules:
            found = modules.get(name)
            if found is not module and real_module(found) is not module:
                return True
        for parameters, name, parameter, version, address in self._parameters:
            if (
                parameters.get(name) is not parameter
                or parameter._version != version
                or parameter.data_ptr() != address
                or parameter.requires_grad
            ):
                return True
        return self._replay.mode != self._mode
