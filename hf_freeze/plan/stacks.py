"""The stacks of repeated blocks in a model, found by their structure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_freeze.errors import LayoutError, did_you_mean
from hf_freeze.plan.wrappers import Node
from hf_freeze.plan.zero import whole_shape


def find_stacks(root: Node, *, blocks_path: str | None = None) -> list[Node]:
    """Returns the `ModuleList`s that hold the model's blocks, in the order of their registration.

    Args:
        root: The model, as the top of the canonical tree.
        blocks_path: The canonical path of the only stack, where the user names it.

    Raises:
        LayoutError: If there is none, if `blocks_path` names none, or if blocks are shared.
    """
    lists = [node for node in root.walk() if _is_list(node)]
    name = own_class(root.inner).__name__
    if blocks_path is not None:
        stacks = [node for node in lists if node.path == blocks_path]
        if not stacks:
            hint = did_you_mean(blocks_path, [node.path for node in lists])
            raise LayoutError(
                f"model.blocks_path: {name} has no such ModuleList; got {blocks_path!r}.{hint} {_listing(lists)}"
            )
    else:
        stacks = _by_tower(root, lists) or _outermost(filter(_holds_one_class, lists))
        if not stacks:
            raise LayoutError(f"{name}: no stack of repeated blocks was found. {_listing(lists)}")
        _refuse_scattered_blocks(name, stacks)
        for stack in stacks:
            _refuse_too_few_blocks(name, root, stack)
    for stack in stacks:
        _refuse_repeated_blocks(name, stack)
    return stacks


def _is_list(node: Node) -> bool:
    """Whether a node is a list of modules and nothing else: a weight norm is one too, and holds parameters itself."""
    return isinstance(node.inner, nn.ModuleList) and bool(node.children) and not node.leaves and not node.idle


def stack_names(paths: list[str]) -> list[str]:
    """Returns a short name for each stack: what tells its path from the others, empty for the only one.

    Args:
        paths: The stacks' canonical paths, all different.
    """
    if len(paths) == 1:
        return [""]
    split = [path.split(".") for path in paths]
    shared = 0
    while all(len(parts) > shared + 1 for parts in split) and len({parts[shared] for parts in split}) == 1:
        shared += 1
    if shared and any(parts[shared].isdigit() for parts in split):
        shared -= 1  # stages are told apart by number: what they are called comes first
    rest = [parts[shared:] for parts in split]
    raw: list[list[str]] = []
    for i, parts in enumerate(rest):
        others = rest[:i] + rest[i + 1 :]
        length = next(n for n in range(1, len(parts) + 1) if all(other[:n] != parts[:n] for other in others))
        raw.append(parts[:length])
    short = ["_".join(_short(part) for part in parts) for parts in raw]
    return short if len(set(short)) == len(short) else ["_".join(parts) for parts in raw]


def own_class(module: nn.Module) -> type[nn.Module]:
    """Returns a module's class as its author wrote it; FSDP2 puts one of its own in front.

    Args:
        module: Any module that is no wrapper.
    """
    for parent in type(module).__mro__:
        if issubclass(parent, nn.Module) and not issubclass(parent, FSDPModule):
            return parent
    return type(module)


def _short(component: str) -> str:
    return re.sub(r"_(model|tower|layers|layer|blocks|block)$", "", component)


def _holds_checkpointing_layers(node: Node) -> bool:
    """Whether every element is a block in Transformers' sense, or a list of such blocks (Funnel's stages)."""
    return all(
        isinstance(child.inner, GradientCheckpointingLayer)
        or (isinstance(child.inner, nn.ModuleList) and bool(child.children) and _holds_checkpointing_layers(child))
        for child in node.children.values()
    )


def _holds_one_class(node: Node) -> bool:
    return len({own_class(child.inner) for child in node.children.values()}) == 1


def _outermost(lists: Iterable[Node]) -> list[Node]:
    found: list[Node] = []
    for node in lists:
        if not any(_is_below(node, outer.path) for outer in found):
            found.append(node)
    return found


def _tower(root: Node, node: Node) -> Node:
    """Returns the innermost model with a config of its own that holds a node, or the top."""
    tower = here = root
    for name in node.path.split(".") if node.path else ():
        if isinstance(here.inner, PreTrainedModel):
            tower = here
        if name not in here.children:
            break
        here = here.children[name]
    return tower


def _declared(tower: Node) -> int | None:
    """Returns the number of blocks that a tower's config declares."""
    if not isinstance(tower.inner, PreTrainedModel):
        return None
    # Configs are open-ended: a model made of several others, or of stages, need not have this number.
    number = getattr(tower.inner.config, "num_hidden_layers", None)
    return number if isinstance(number, int) else None


def _by_tower(root: Node, lists: list[Node]) -> list[Node]:
    """Returns each tower's stacks: its lists of checkpointing layers, else its lists of the declared length.

    Several can qualify in one tower, as wav2vec2's convolutions do: those of the declared length win, then those whose
    blocks are all of one shape.
    """
    blocks = _outermost(filter(_holds_checkpointing_layers, lists))
    towers: dict[str, list[Node]] = {}
    for node in lists:
        towers.setdefault(_tower(root, node).path, []).append(node)
    stacks: list[Node] = []
    for path, members in towers.items():
        declared = _declared(_tower(root, members[0]))
        winners = [node for node in blocks if _is_below(node, path) and len(node.children) == declared]
        candidates = [node for node in members if node in blocks and (node in winners or not winners)]
        if candidates:
            stacks += list(filter(_is_uniform, candidates)) or candidates
        elif not winners:
            plain = _outermost(node for node in members if len(node.children) == declared and _holds_one_class(node))
            stacks += plain if not _side_by_side(plain) else []
    order = {node.path: i for i, node in enumerate(lists)}
    return _outermost(sorted(stacks, key=lambda node: order[node.path]))


def _is_below(node: Node, path: str) -> bool:
    return not path or node.path.startswith(f"{path}.")


def _is_uniform(node: Node) -> bool:
    shapes = {
        tuple(
            (name.removeprefix(child.path), tuple(whole_shape(leaf.parameter)))
            for name, leaf in child.named_leaves()
            if leaf.kind == "base" and not leaf.idle
        )
        for child in node.children.values()
    }
    return len(shapes) == 1


def _side_by_side(stacks: list[Node]) -> list[Node]:
    """Returns the stacks that one module holds together with another of them."""
    parents = [stack.path.rpartition(".")[0] for stack in stacks]
    return [stack for stack, parent in zip(stacks, parents, strict=True) if parents.count(parent) > 1]


def _refuse_scattered_blocks(name: str, stacks: list[Node]) -> None:
    """Refuses models that keep the parts of one block in several lists (XLM: attentions, norms, feed-forwards)."""
    beside = _side_by_side([stack for stack in stacks if not _holds_checkpointing_layers(stack)])
    if beside:
        raise LayoutError(
            f"{name}: which ModuleList holds the blocks cannot be told, as several stand side by side. "
            f"{_listing(beside)}"
        )


def _refuse_too_few_blocks(name: str, root: Node, stack: Node) -> None:
    """Refuses models that run few blocks many times (ALBERT)."""
    declared, found = _declared(_tower(root, stack)), len(stack.children)
    staged = any(isinstance(child.inner, nn.ModuleList) for child in stack.children.values())
    # Transformers' own blocks can be fewer than declared: LongCat-Flash counts two to a block, and users remove some.
    if declared is None or staged or _holds_checkpointing_layers(stack) or found >= declared or declared % found:
        return
    raise LayoutError(
        f"{name}: its blocks are shared; got config.num_hidden_layers={declared} and {found} in {stack.path!r}. "
        "A block that runs several times cannot be frozen in one place and trained in another. "
        f"Set model.blocks_path to {stack.path!r} to treat what is there as the blocks, "
        "or choose a model whose blocks have weights of their own."
    )


def _refuse_repeated_blocks(name: str, stack: Node) -> None:
    blocks = [block.inner for block in stack.children.values()]
    distinct = len({id(block) for block in blocks})
    if distinct < len(blocks):
        raise LayoutError(
            f"{name}: its blocks are shared; got {len(blocks)} entries in {stack.path!r}, of which {distinct} are "
            "distinct. A block that runs several times cannot be frozen in one place and trained in another. "
            "Choose a model whose blocks have weights of their own."
        )


def _listing(lists: Iterable[Node]) -> str:
    """Says which lists there are and what to do with them."""
    names = sorted(f"{node.path!r} ({len(node.children)} elements)" for node in _outermost(lists))
    if not names:
        return "There is no ModuleList in it. Keep its blocks in a torch.nn.ModuleList."
    return f"ModuleLists that exist: {', '.join(names)}. Set model.blocks_path to the one that holds the blocks."
