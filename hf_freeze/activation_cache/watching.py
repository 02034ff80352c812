"""Whether what the frozen prefix computes with is still in place, frozen and as it was, looked up once per batch."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import xxhash
from torch import nn
from torch.distributed.fsdp import FSDPModule

from hf_freeze.activation_cache.processes import rank_and_world
from hf_freeze.activation_cache.records import byte_view
from hf_freeze.activation_cache.replay import Replay
from hf_freeze.activation_cache.stand_ins import real_module
from hf_freeze.plan.places import ROLE_EMBEDDINGS, block_role
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.plan.wrappers import canonical_tree, named_parameters, unwrap_model

# Values are read after so many batches that it is about as much for each: 1 MiB, which takes less than 0.1 ms.
_BYTES_A_BATCH = 1 << 20
# Where copying all values to the processor would take longer than adding them up.
_SUMMED_ON = frozenset({"cuda", "xpu"})


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

    PyTorch notes what is written into a parameter, but not what is written through `parameter.data`: values themselves
    are read now and then. Nothing is watched but the mode where parameters are sharded: they come and go.

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
        if not isinstance(unwrap_model(model), FSDPModule):
            self._find(model, plan)
        self._values = self._read()
        self._values_differ = False
        self._num_calls = 0
        num_bytes = sum(parameter.nbytes for _, _, parameter, _, _ in self._parameters)
        self._interval = max(1, num_bytes // _BYTES_A_BATCH)

    def _find(self, model: nn.Module, plan: FreezePlan) -> None:
        """Notes the modules and the parameters of the prefix."""
        inner = unwrap_model(model)
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

    def _read(self) -> list[bytes | float]:
        return _values_of(parameter for _, _, parameter, _, _ in self._parameters)

    def values_changed(self) -> bool:
        """Returns whether any value is another than at first, however it was written; reads all parameters."""
        self._values_differ = self._values_differ or self._read() != self._values
        return self._values_differ

    def has_changed(self) -> bool:
        """Returns whether a module, a parameter, its values, its memory or the mode changed, or a parameter trains.

        Values that were written through `parameter.data` are found every so many calls; where there are several
        processes, which have to find them together, only `values_changed` tells.
        """
        self._num_calls += 1
        if rank_and_world()[1] == 1 and (
            self._values_differ or (self._num_calls % self._interval == 0 and self.values_changed())
        ):
            return True
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


def _values_of(parameters: Iterable[nn.Parameter]) -> list[bytes | float]:
    """Returns digests of the values of parameters, or, where these are far from the processor, their sums."""
    found: list[torch.Tensor | bytes] = []
    for parameter in parameters:
        values = parameter.detach()
        if values.device.type in _SUMMED_ON:
            found.append(values.sum(dtype=torch.float64))
        else:
            found.append(xxhash.xxh3_128(byte_view(values.cpu().contiguous())).digest())
    return [each if isinstance(each, bytes) else each.item() for each in found]
