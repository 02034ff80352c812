"""Which role each module of a model runs in: before the blocks, as a block, or after them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from hf_freeze.plan.source_order import uses
from hf_freeze.plan.stacks import stack_names
from hf_freeze.plan.wrappers import Node, join

ROLE_EMBEDDINGS = "embeddings"
ROLE_HEAD = "head"


def block_role(stack: str, index: int) -> str:
    """Returns the role of one block: `encoder.blocks[3]`, or `blocks[3]` where the model has one stack.

    Args:
        stack: The stack's name, empty for the only one.
        index: The block's position, counted from the input.
    """
    return join(stack, f"blocks[{index}]")


@dataclass(frozen=True)
class Stack:
    """One ordered run of blocks.

    Attributes:
        name: `encoder`, `decoder`, `vision` and so on; empty for the only one.
        path: The canonical path of the `ModuleList`.
        blocks: The canonical paths of the blocks, from the input.
    """

    name: str
    path: str
    blocks: tuple[str, ...]

    @property
    def num_blocks(self) -> int:
        """How many blocks the stack has."""
        return len(self.blocks)


@dataclass(frozen=True)
class Places:
    """The stacks of a model, and the role of everything outside and inside them.

    Attributes:
        stacks: The stacks, in the order in which they run.
        straddlers: The modules between the top and the stacks.
        modules: For each role, from the input on, the largest modules that run in it.
        roles: The role of each of those modules, and of each parameter that the top or a straddler holds itself.
    """

    stacks: tuple[Stack, ...]
    straddlers: tuple[str, ...]
    modules: dict[str, tuple[str, ...]]
    roles: dict[str, str]

    def role(self, name: str) -> str:
        """Returns the role that a parameter has by its place."""
        return next(self.roles[prefix] for prefix in _prefixes(name) if prefix in self.roles)


@dataclass(frozen=True)
class _Order:
    """What the `forward` of one straddler uses before and after it enters the first stack below it."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    entered: tuple[str, ...] = ()


def find_places(root: Node, lists: list[Node]) -> Places:
    """Returns where everything in a model runs, given its stacks.

    Embeddings are what a straddler uses before it enters the first stack below it; the head is the rest. Where the
    source does not tell, the order of registration does.

    Args:
        root: The model, as the top of the canonical tree.
        lists: The `ModuleList`s of blocks.
    """
    leading = {prefix for node in lists for prefix in _prefixes(node.path)}
    straddlers = [node for node in root.walk() if node.path in leading and node not in lists]
    orders = {node.path: _order(node, leading, {node.path for node in lists}) for node in straddlers}
    stacks = _named(sorted(lists, key=lambda node: _turns(node, orders)))
    roles = {path: block_role(stack.name, i) for stack in stacks for i, path in enumerate(stack.blocks)}
    modules: dict[str, list[str]] = {role: [] for role in (ROLE_EMBEDDINGS, *roles.values(), ROLE_HEAD)}
    before = {path for order in orders.values() for used in order.before for path in _prefixes(used)}
    after = {path for order in orders.values() for used in order.after for path in _prefixes(used)}
    for straddler in straddlers:
        roles.update(_parts(straddler, leading, before, after))
    for node in root.walk():
        if node.path in roles and not node.idle:
            modules[roles[node.path]].append(node.path)
    return Places(
        stacks=stacks,
        straddlers=tuple(node.path for node in straddlers if node.path),
        modules={role: tuple(paths) for role, paths in modules.items()},
        roles=roles,
    )


def _prefixes(path: str) -> Iterator[str]:
    """Yields the path and every path above it, the empty one first."""
    yield ""
    parts = path.split(".") if path else []
    for i in range(1, len(parts) + 1):
        yield ".".join(parts[:i])


def _named(lists: list[Node]) -> tuple[Stack, ...]:
    names = stack_names([node.path for node in lists])
    return tuple(
        Stack(name, node.path, tuple(block.path for block in node.children.values()))
        for name, node in zip(names, lists, strict=True)
    )


def _order(node: Node, leading: set[str], lists: set[str]) -> _Order:
    """Splits what a straddler uses at its first entry into a stack below it."""
    below = node.path and f"{node.path}."
    inside = tuple(f"{path}." for path in lists)
    used = [path for path in uses(node) if path != node.path and path.startswith(below)]
    # Only modules are entered: a weight of a block can be looked at before anything runs.
    modules = {module.path for module in node.walk()}
    entries = [path for path in used if path in leading or (path.startswith(inside) and path in modules)]
    if not entries:
        return _Order()
    first = set(used[: used.index(entries[0])])
    parts = [path for path in used if path not in leading and not path.startswith(inside)]
    return _Order(
        before=tuple(path for path in parts if path in first),
        after=tuple(path for path in parts if path not in first),
        entered=tuple(entries),
    )


def _turns(node: Node, orders: dict[str, _Order]) -> list[int]:
    """Returns a key that sorts stacks by the order in which they are entered; the sort keeps unknown ones in place."""
    turns = []
    prefixes = list(_prefixes(node.path))
    for parent, child in itertools.pairwise(prefixes):
        entered = orders[parent].entered
        turns.append(next((i for i, path in enumerate(entered) if f"{path}.".startswith(f"{child}.")), len(entered)))
    return turns


def _parts(straddler: Node, leading: set[str], before: set[str], after: set[str]) -> Iterator[tuple[str, str]]:
    """Yields the path and role of everything that a straddler holds and that leads to no stack."""
    passed = False
    for name in (*straddler.leaves, *straddler.children):
        path = join(straddler.path, name)
        if path in leading:
            passed = True
            continue
        kind = straddler.leaves[name].kind if name in straddler.leaves else straddler.children[name].kind
        if path in before or name in straddler.prompts:
            yield path, ROLE_EMBEDDINGS
        elif path in after or kind == "adapter":
            # An adapter beside the model itself is a bank that its blocks draw on: they give it its role.
            yield path, ROLE_HEAD
        else:
            yield path, ROLE_HEAD if passed else ROLE_EMBEDDINGS
