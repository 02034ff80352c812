"""The modules of a model under the names they have without PEFT, DDP, FSDP, DeepSpeed and torch.compile around them.

Wrappers rename parameters: `query.weight` is `query.base_layer.weight` under LoRA and `module.query.weight` under DDP.
Whatever plans or applies a plan speaks of *canonical* names, which are those of the model before anything wrapped it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from peft import PeftModel
from peft.tuners.adaption_prompt import AdaptionPromptModel
from peft.tuners.adaption_prompt.layer import AdaptedAttention, AdaptedAttentionGPT
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import ActivationWrapper
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.nn.parallel import DataParallel, DistributedDataParallel

from hf_freeze.plan.zero import engine_classes

Kind = Literal["base", "adapter"]

# Each of these holds the wrapped module as one child and adds nothing that is trained.
# The child's name is theirs, and is part of every name in a state dict, so it cannot change without notice.
_PLAIN_WRAPPERS: tuple[tuple[type[nn.Module], str], ...] = (
    (DistributedDataParallel, "module"),
    (DataParallel, "module"),
    (FullyShardedDataParallel, "_fsdp_wrapped_module"),
    (OptimizedModule, "_orig_mod"),
    (ActivationWrapper, "_checkpoint_wrapped_module"),
)

# Each of these holds the wrapped module as one child; their other children and parameters are adapters.
_ADAPTER_WRAPPERS: tuple[tuple[type[object], str], ...] = (
    (PeftModel, "base_model"),
    (BaseTuner, "model"),
    (AdaptionPromptModel, "model"),
    (BaseTunerLayer, "base_layer"),
    (AdaptedAttention, "model"),
    (AdaptedAttentionGPT, "model"),
    (TrainableTokensWrapper, "token_adapter"),
)


class Leaf(NamedTuple):
    """One parameter at one of its places.

    Attributes:
        parameter: The parameter.
        kind: Whether an adapter method added it.
        idle: Whether PEFT keeps it from being trained: a copy that it does not run, an adapter that is not active, a
            count that an adapter method keeps for itself.
    """

    parameter: nn.Parameter
    kind: Kind
    idle: bool


@dataclass(eq=False)
class Node:
    """One module of the canonical tree.

    Attributes:
        path: The canonical path, empty at the top.
        outer: The outermost module at this path: a wrapper, where there is one. `train` and `eval` belong to it.
        inner: The module itself, whose `forward` says what happens here.
        kind: Whether an adapter method added it.
        idle: Whether PEFT keeps everything in it from being trained.
        children: The modules inside, by their own name, in the order of `named_modules`.
        leaves: The parameters held here directly, by their own name.
        prompts: The names of the children that a prompt-learning method put in front of the model.
    """

    path: str
    outer: nn.Module
    inner: nn.Module
    kind: Kind
    idle: bool
    children: dict[str, Node] = field(default_factory=dict)
    leaves: dict[str, Leaf] = field(default_factory=dict)
    prompts: frozenset[str] = frozenset()

    def walk(self) -> Iterator[Node]:
        """Yields this node and all below it, parents first."""
        yield self
        for child in self.children.values():
            yield from child.walk()

    def named_leaves(self) -> Iterator[tuple[str, Leaf]]:
        """Yields every parameter below with its canonical name, a tied one at each of its places."""
        for node in self.walk():
            for name, leaf in node.leaves.items():
                yield join(node.path, name), leaf


def join(*parts: str) -> str:
    """Joins the parts of a dotted path, leaving out empty ones."""
    return ".".join(part for part in parts if part)


def canonical_tree(model: nn.Module) -> Node:
    """Returns the tree of the model's modules without its wrappers.

    Args:
        model: Any module, wrapped or not.
    """
    return _build(model, "", kind="base", idle=False)


def unwrap_model(model: nn.Module) -> nn.Module:
    """Returns the model inside DDP, FSDP, DeepSpeed, activation-checkpoint and torch.compile wrappers.

    A `PeftModel` stays one.

    Args:
        model: Any module, wrapped or not.
    """
    while (name := _wrapped_name(model)) is not None:
        model = model.get_submodule(name)
    return model


def reshard(model: nn.Module) -> None:
    """Has FSDP2 give every parameter back to its shards.

    Accelerate 1.15 keeps the final norm and the head whole after a forward pass, for the backward pass that follows.
    None follows an evaluation: what is then read from the model would be the whole weights in place of the shards, and
    whole weights that were viewed as an array cannot be given back any more.

    Args:
        model: The model, sharded or not.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yields each distinct parameter once under its canonical name, in the order of `model.named_parameters()`.

    Args:
        model: Any module, wrapped or not.
    """
    seen: set[int] = set()
    for name, leaf in canonical_tree(model).named_leaves():
        if id(leaf.parameter) not in seen:
            seen.add(id(leaf.parameter))
            yield name, leaf.parameter


def resolve_module(model: nn.Module, path: str) -> nn.Module:
    """Returns the module that stands at a canonical path: the outermost wrapper, where there is one.

    Args:
        model: Any module, wrapped or not.
        path: A canonical path; the empty one is the model.

    Raises:
        KeyError: If there is no module at that path.
    """
    for node in canonical_tree(model).walk():
        if node.path == path:
            return node.outer
    raise KeyError(path)


def canonical_name(name: str) -> str:
    """Returns the canonical form of one name in `named_parameters()`, as far as the name alone tells.

    Where the model is at hand, use `named_parameters`, which looks at the modules and never guesses.

    Args:
        name: A parameter's name, possibly with the marks of DDP, FSDP, torch.compile and PEFT in it.
    """
    parts = name.split(".")
    marks = {child for _, child in _PLAIN_WRAPPERS if child != "module"}
    parts = [part for part in parts if part not in marks]
    if parts[0] == "module":
        parts = parts[1:]
    if parts[:2] == ["base_model", "model"]:
        parts = parts[2:]
    kept: list[str] = []
    skip_next = False
    for part in parts:
        if skip_next:
            skip_next = False
        elif part == "modules_to_save":
            skip_next = True
        elif part not in ("base_layer", "default"):
            kept.append(part)
    return ".".join(kept)


def _wrapped_name(module: nn.Module) -> str | None:
    """Returns the name of the child that a plain wrapper holds; None for any other module."""
    return _child_name(module, (*_PLAIN_WRAPPERS, *((engine, "module") for engine in engine_classes())))


def _child_name(module: nn.Module, wrappers: tuple[tuple[type[object], str], ...]) -> str | None:
    return next((child for kind, child in wrappers if isinstance(module, kind) and child in module._modules), None)


def _build(module: nn.Module, path: str, *, kind: Kind, idle: bool) -> Node:
    """Builds the node at a path, going through wrappers until a module that is none."""
    if isinstance(module, ModulesToSaveWrapper):
        return _build_saved(module, path, kind=kind, idle=idle)
    if (name := _wrapped_name(module)) is not None:
        node = _build(module.get_submodule(name), path, kind=kind, idle=idle)
    elif (name := _child_name(module, _ADAPTER_WRAPPERS)) is not None:
        node = _build(module.get_submodule(name), path, kind=kind, idle=idle)
        _add_adapters(node, module, base=name)
    else:
        node = Node(path, module, module, kind, idle)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                node.leaves[name] = Leaf(parameter, kind, idle)
        for name, child in module._modules.items():
            if child is not None:
                node.children[name] = _build(child, join(path, name), kind=kind, idle=idle)
    node.outer = module
    return node


def _build_saved(wrapper: ModulesToSaveWrapper, path: str, *, kind: Kind, idle: bool) -> Node:
    """Builds the node of a module that PEFT trains as a copy: the copy stands for it, the others are idle."""
    copies = wrapper.modules_to_save
    active = next((name for name in wrapper.active_adapters if name in copies), None)
    node = _build(copies[active] if active is not None else wrapper.original_module, path, kind=kind, idle=idle)
    node.outer = wrapper
    spare = {f"modules_to_save.{name}": copy for name, copy in copies.items() if name != active}
    if active is not None:
        spare["original_module"] = wrapper.original_module
    for name, copy in spare.items():
        node.children[name] = _build(copy, join(path, name), kind=kind, idle=True)
    return node


def _add_adapters(node: Node, wrapper: nn.Module, *, base: str) -> None:
    """Adds what an adapter method put beside the module it wraps."""
    wrapped = {id(module) for module in node.inner.modules()}
    names = []
    for name, parameter in wrapper._parameters.items():
        if parameter is not None:
            node.leaves[_free_name(node, name)] = Leaf(parameter, "adapter", _is_kept(wrapper, name))
    for name, child in wrapper._modules.items():
        # A prompt-tuned PeftModel also registers the model's own embeddings, under a name of its own.
        if name == base or child is None or id(child) in wrapped:
            continue
        free = _free_name(node, name)
        names.append(free)
        for label, idle, entry in _entries(wrapper, free, child):
            idle = idle or _is_kept(wrapper, name)
            if isinstance(entry, nn.Parameter):
                node.leaves[label] = Leaf(entry, "adapter", idle)
            else:
                node.children[label] = _build(entry, join(node.path, label), kind="adapter", idle=idle)
    if isinstance(wrapper, PeftModel):
        node.prompts = frozenset(names)


def _entries(wrapper: nn.Module, name: str, child: nn.Module) -> Iterator[tuple[str, bool, nn.Parameter | nn.Module]]:
    """Yields name, idleness and value of what stands under one name of a wrapper.

    PEFT keeps one entry per adapter (`lora_A.default`). The only one loses that name; of several, the active ones run.
    """
    if not isinstance(child, nn.ModuleDict | nn.ParameterDict):
        yield name, False, child
        return
    active = set(wrapper.active_adapters) if isinstance(wrapper, PeftModel | BaseTuner | BaseTunerLayer) else set()
    for key, entry in child.items():
        yield name if len(child) == 1 else f"{name}.{key}", bool(active & set(child)) and key not in active, entry


def _is_kept(wrapper: nn.Module, name: str) -> bool:
    """Whether an adapter method keeps a value for itself, as AdaLoRA does the number of its ranks."""
    return isinstance(wrapper, BaseTunerLayer) and name in wrapper.other_param_names


def _free_name(node: Node, name: str) -> str:
    """Returns the name, marked where a tuner layer inside this one has taken it (several parameters of one module)."""
    while name in node.leaves or name in node.children:
        name = f"base_layer.{name}"
    return name
