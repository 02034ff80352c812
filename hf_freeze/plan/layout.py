"""Where the parts of a model are: stacks, blocks, embeddings and head."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_freeze.plan.places import ROLE_EMBEDDINGS, ROLE_HEAD, Places, Stack, block_role, find_places
from hf_freeze.plan.stacks import find_stacks, own_class
from hf_freeze.plan.wrappers import (
    Kind,
    Leaf,
    Node,
    canonical_name,
    canonical_tree,
    named_parameters,
    resolve_module,
    unwrap_model,
)
from hf_freeze.plan.zero import whole_shape

__all__ = [
    "ROLE_EMBEDDINGS",
    "ROLE_HEAD",
    "Layout",
    "Parameter",
    "Stack",
    "block_role",
    "canonical_name",
    "find_layout",
    "named_parameters",
    "resolve_module",
    "unwrap_model",
]


@dataclass(frozen=True)
class Parameter:
    """One parameter, and what the plan must know about it.

    Attributes:
        name: Its canonical name.
        role: `embeddings`, `<stack>.blocks[i]` or `head`.
        shape: Its shape as stored.
        num_bytes: Its size as stored, in bytes.
        dtype: The name of its dtype, as in `float32`.
        kind: Whether an adapter method added it.
        constant: Whether it is never trained: the model itself keeps it so, or it is a copy that PEFT does not run.
        quantized: Whether it is stored in a form that cannot be trained.
        aliases: Other canonical names of the same tensor.
        outside_base: Whether it lies outside the base model.
        output_embedding: Whether it belongs to the language-model head.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    num_bytes: int
    dtype: str
    kind: Kind
    constant: bool = False
    quantized: bool = False
    aliases: tuple[str, ...] = ()
    outside_base: bool = False
    output_embedding: bool = False

    @property
    def numel(self) -> int:
        """The number of stored elements."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Layout:
    """Where the roles are in one model.

    Attributes:
        model_class: The name of the model's class.
        stacks: The stacks, in the order in which they run.
        parameters: Every distinct parameter, in the order of `named_parameters`.
        modules: For each role the largest modules that run as part of it, by canonical path, parameterless ones too. A
            tied weight follows the embeddings; the module that holds its other name runs where it runs.
        straddlers: The modules between the top and the stacks, which belong to no role.
    """

    model_class: str
    stacks: tuple[Stack, ...]
    parameters: tuple[Parameter, ...]
    modules: Mapping[str, tuple[str, ...]]
    straddlers: tuple[str, ...]

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role from the input on: embeddings, the blocks stack by stack, head."""
        blocks = (block_role(stack.name, i) for stack in self.stacks for i in range(stack.num_blocks))
        return (ROLE_EMBEDDINGS, *blocks, ROLE_HEAD)


def find_layout(model: nn.Module, *, blocks_path: str | None = None, constants: frozenset[str] | None = None) -> Layout:
    """Finds where the stacks, blocks, embeddings and head of a model are, by its structure.

    Args:
        model: A Transformers model or any other module, wrapped or not; weights are not needed.
        blocks_path: The canonical path of the `ModuleList` that holds the blocks, where structure does not tell.
        constants: The canonical names of the parameters that the model keeps constant, where they are known from
            before `requires_grad` was changed.

    Raises:
        LayoutError: If no stack is found, if `blocks_path` names none, or if blocks are shared.
    """
    root = canonical_tree(model)
    places = find_places(root, find_stacks(root, blocks_path=blocks_path))
    return Layout(
        model_class=own_class(root.inner).__name__,
        stacks=places.stacks,
        parameters=_parameters(root, places, _constants(root) if constants is None else constants),
        modules=places.modules,
        straddlers=places.straddlers,
    )


def _parameters(root: Node, places: Places, constants: frozenset[str]) -> tuple[Parameter, ...]:
    """Describes every distinct parameter once; a tied one has the earliest role of all its places."""
    places_of: dict[int, list[tuple[str, Leaf]]] = {}
    for name, leaf in root.named_leaves():
        places_of.setdefault(id(leaf.parameter), []).append((name, leaf))
    rank = {role: i for i, role in enumerate(places.modules)}
    base = _base_path(root)
    output = _output_embeddings(root)
    parameters = []
    for entries in places_of.values():
        (name, leaf), names = entries[0], [name for name, _ in entries]
        shape = whole_shape(leaf.parameter)
        role = min((places.role(alias) for alias in names), key=rank.__getitem__)
        outside = role == ROLE_HEAD if base is None else not any(alias.startswith(base) for alias in names)
        parameters.append(
            Parameter(
                name=name,
                role=role,
                shape=tuple(shape),
                num_bytes=shape.numel() * leaf.parameter.element_size(),
                dtype=str(leaf.parameter.dtype).removeprefix("torch."),
                kind=leaf.kind,
                constant=all(leaf.idle for _, leaf in entries) or not constants.isdisjoint(names),
                quantized=is_quantized(leaf.parameter),
                aliases=tuple(names[1:]),
                outside_base=outside and leaf.kind == "base",
                output_embedding=id(leaf.parameter) in output,
            )
        )
    return tuple(parameters)


def is_quantized(parameter: nn.Parameter) -> bool:
    """Returns whether gradients cannot be taken: integers, or floats of one byte.

    Args:
        parameter: The parameter.
    """
    return not (parameter.is_floating_point() or parameter.is_complex()) or parameter.dtype.itemsize == 1


def _base_path(root: Node) -> str | None:
    """Returns what the names of a Transformers model's base parameters begin with, or None for any other module."""
    if not isinstance(root.inner, PreTrainedModel):
        return None
    prefix = root.inner.base_model_prefix
    return f"{prefix}." if prefix in root.children else ""


def _output_embeddings(root: Node) -> frozenset[int]:
    """Returns the identities of the parameters of a language-model head."""
    if not isinstance(root.inner, PreTrainedModel):
        return frozenset()
    module: nn.Module | None = root.inner.get_output_embeddings()  # type: ignore[no-untyped-call]
    return frozenset(map(id, module.parameters())) if module is not None else frozenset()


def _made_anew(module: nn.Module) -> nn.Module | None:
    """Makes a Transformers model of the same class and config without weights, or returns None where that is no way."""
    if not isinstance(module, PreTrainedModel):
        return None
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        try:
            return own_class(module)(copy.deepcopy(module.config))
        except (RuntimeError, TypeError, ValueError):
            # A class of somebody's own may ask for more than a config, or compute with the numbers in its weights.
            return None


def _constants(root: Node) -> frozenset[str]:
    """Returns the names of the parameters that the model itself does not train, such as sinusoidal positions.

    What has been frozen since is told apart by a model of the same class, made anew without weights. A module that
    cannot be made anew is taken as it is, unless an adapter method has already frozen everything in it.
    """
    frozen = {
        name
        for name, (parameter, kind, idle) in root.named_leaves()
        if kind == "base" and not idle and not parameter.requires_grad and not is_quantized(parameter)
    }
    if not frozen:
        return frozenset()
    fresh = _made_anew(root.inner)
    if fresh is not None:
        return frozenset(name for name, parameter in named_parameters(fresh) if not parameter.requires_grad)
    adapted = any(leaf.kind == "adapter" for _, leaf in root.named_leaves())
    return frozenset() if adapted else frozenset(frozen)
