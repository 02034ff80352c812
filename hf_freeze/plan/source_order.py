"""The order in which a module's `forward` uses what is inside it, read from its source.

The order in which parts are registered is not the order in which they run: BART registers `layernorm_embedding` after
`layers` and runs it before, OPT registers `final_layer_norm` before `layers` and runs it after. The source tells.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FunctionType

from torch import nn

from hf_freeze.plan.wrappers import Node, join

# What is read from a parameter without computing with it.
_METADATA = frozenset({"device", "dtype", "is_meta", "ndim", "requires_grad", "shape", "size"})
# Functions that look at a module and do not run it.
_INSPECTORS = frozenset({"hasattr", "id", "isinstance", "len", "type"})
# Methods of containers that give what is in them.
_VIEWS = frozenset({"children", "items", "named_children", "values"})


@dataclass(frozen=True)
class _Method:
    """A method, on the node that it is called on."""

    node: Node
    function: FunctionType


@dataclass(frozen=True)
class _Super:
    """What `super()` gives inside a method of one class."""

    node: Node
    after: type


@dataclass(frozen=True)
class _Held:
    """A parameter held by a node."""

    node: Node
    name: str


@dataclass(frozen=True)
class _Element:
    """Some element of the list that a node is, as the variable of a loop over it."""

    node: Node


@dataclass(frozen=True)
class _Part:
    """A module inside some element of a list, which is used where it is called: RWKV first rescales those it has."""

    node: Node


_Value = Node | _Method | _Super | _Held | _Element | _Part | None


@dataclass
class _Frame:
    """One method that is being walked: what `self` is called and stands for, and what local variables stand for."""

    name: str
    node: Node
    function: FunctionType
    variables: dict[str, _Value] = field(default_factory=dict)


def uses(node: Node) -> tuple[str, ...]:
    """Returns the canonical paths that a module's `forward` uses, in the order of their first use.

    A use is a call, or a mention that may lead to one; reading an attribute, a length or a dtype is none. Methods are
    followed. Parts that the source does not name, or whose source cannot be read, are absent.

    Args:
        node: The module, as a node of the canonical tree.
    """
    reader = _Reader()
    forward = _method(type(node.inner), "forward")
    if forward is not None:
        reader.follow(node, forward)
    return tuple(reader.seen)


@functools.lru_cache(maxsize=4096)
def _parse(function: FunctionType) -> ast.FunctionDef | None:
    """Returns the syntax tree of a function, or None where its source cannot be had."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    return next((statement for statement in tree.body if isinstance(statement, ast.FunctionDef)), None)


def _method(owner: type, name: str) -> FunctionType | None:
    """Returns the undecorated function behind a method, or None where PyTorch itself defines it or nobody does."""
    for parent in owner.__mro__:
        if name in vars(parent):
            return _plain(vars(parent)[name]) if parent is not nn.Module else None
    return None


def _plain(attribute: object) -> FunctionType | None:
    if isinstance(attribute, property):
        attribute = attribute.fget
    if not isinstance(attribute, FunctionType):
        return None
    function = inspect.unwrap(attribute)
    return function if isinstance(function, FunctionType) else None


def _definer(owner: type, function: FunctionType) -> type | None:
    """Returns the class in whose body a function stands."""
    for parent in owner.__mro__:
        if _plain(vars(parent).get(function.__name__)) is function:
            return parent
    return None


class _Reader(ast.NodeVisitor):
    """Walks sources in the order in which Python would run them, noting what is used."""

    def __init__(self) -> None:
        self.seen: dict[str, None] = {}
        self._followed: set[tuple[str, FunctionType]] = set()
        self._frame: _Frame | None = None

    def follow(self, node: Node, function: FunctionType) -> None:
        """Walks one method of a node; a second time has nothing new to tell."""
        tree = _parse(function)
        if (node.path, function) in self._followed or tree is None or not tree.args.args:
            return
        self._followed.add((node.path, function))
        outer, self._frame = self._frame, _Frame(tree.args.args[0].arg, node, function)
        for statement in tree.body:
            self.visit(statement)
        self._frame = outer

    def visit_Assign(self, node: ast.Assign) -> None:
        self._assign(node.targets, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._assign([node.target], node.value)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self._assign([node.target], node.value)

    def visit_For(self, node: ast.For) -> None:
        self._iterate(node.target, node.iter)
        for part in (*node.body, *node.orelse):
            self.visit(part)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._iterate(node.target, node.iter)
        for condition in node.ifs:
            self.visit(condition)

    def _assign(self, targets: list[ast.expr], expression: ast.expr) -> None:
        """Remembers what a variable stands for: giving a part another name is no use of it."""
        for target in targets:
            if isinstance(target, ast.Tuple) and isinstance(expression, ast.Tuple):
                for part, value in zip(target.elts, expression.elts, strict=False):
                    self._assign([part], value)
                return
        stands_for = self._value(expression)
        if stands_for is None:
            self.visit(expression)
        for target in targets:
            self._bind(target, stands_for)

    def _iterate(self, target: ast.expr, iterable: ast.expr) -> None:
        """Remembers what a loop's variables stand for: BigBird has one that only sets an option of each block."""
        name = iterable.func.id if isinstance(iterable, ast.Call) and isinstance(iterable.func, ast.Name) else None
        parts = target.elts if isinstance(target, ast.Tuple) else []
        if isinstance(iterable, ast.Call) and name == "enumerate" and len(parts) == 2:
            self._iterate(parts[1], iterable.args[0])
        elif isinstance(iterable, ast.Call) and name == "zip" and len(parts) == len(iterable.args):
            for part, argument in zip(parts, iterable.args, strict=True):
                self._iterate(part, argument)
        else:
            value = self._value(iterable)
            if not isinstance(value, Node):
                self.visit(iterable)
            self._bind(target, _Element(value) if isinstance(value, Node) else None)

    def _bind(self, target: ast.expr, value: _Value) -> None:
        if self._frame is None:
            return
        if isinstance(target, ast.Name):
            self._frame.variables[target.id] = value
        else:
            for name in ast.walk(target):
                if isinstance(name, ast.Name):
                    self._frame.variables.pop(name.id, None)
            self._note(value)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        for part in (node.test, node.body, node.orelse):
            self.visit(part)

    def generic_visit(self, node: ast.AST) -> None:
        """Visits the parts of a node in the order of the grammar, but where a comprehension comes from first."""
        parts = list(ast.iter_child_nodes(node))
        for part in sorted(parts, key=lambda part: not isinstance(part, ast.comprehension)):
            self.visit(part)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for statement in node.body:
            self.visit(statement)

    def visit_Compare(self, node: ast.Compare) -> None:
        against_none = all(isinstance(other, ast.Constant) and other.value is None for other in node.comparators)
        if not (against_none and self._value(node.left) is not None):
            self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in _INSPECTORS:
            return
        if self._value(node) is not None:
            self._note(self._value(node))
            return
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            self.visit(argument)
        self._reach(node.func)
        if isinstance(part := self._value(node.func), _Part):
            self.seen.setdefault(part.node.path)

    def visit_Name(self, node: ast.Name) -> None:
        if self._frame is not None and node.id != self._frame.name:
            self._reach(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._reach(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.visit(node.slice)
        self._reach(node)

    def _reach(self, node: ast.expr) -> None:
        """Notes what an expression stands for, or looks inside it where it stands for nothing known."""
        value = self._value(node)
        if isinstance(value, _Method):
            self.follow(value.node, value.function)
        elif value is not None:
            self._note(value)
        elif isinstance(node, ast.Attribute):
            base = self._value(node.value)
            if isinstance(base, _Held) and node.attr not in _METADATA:
                self._note(base)
            elif isinstance(base, Node):
                self._read_property(base, node.attr)
            elif base is None:
                self.visit(node.value)
        elif isinstance(node, ast.Subscript):
            self.visit(node.value)
        elif not isinstance(node, ast.Name):
            self.visit(node)

    def _read_property(self, base: Node, name: str) -> None:
        attribute = inspect.getattr_static(type(base.inner), name, None)
        if isinstance(attribute, property) and (function := _plain(attribute)) is not None:
            self.follow(base, function)

    def _note(self, value: _Value) -> None:
        if isinstance(value, Node):
            self.seen.setdefault(value.path)
        elif isinstance(value, _Element):
            self.seen.setdefault(value.node.path)
        elif isinstance(value, _Held):
            self.seen.setdefault(join(value.node.path, value.name))

    def _value(self, node: ast.expr) -> _Value:
        """Returns the part of the model that an expression stands for, or None for anything else."""
        if self._frame is None:
            return None
        if isinstance(node, ast.Name):
            return self._frame.node if node.id == self._frame.name else self._frame.variables.get(node.id)
        if isinstance(node, ast.Attribute):
            return self._attribute(self._value(node.value), node.attr)
        if isinstance(node, ast.Subscript):
            return self._element(self._value(node.value), node.slice)
        if isinstance(node, ast.Call):
            return self._called(node, self._frame)
        return None

    def _attribute(self, base: _Value, name: str) -> _Value:
        if isinstance(base, _Super):
            classes = type(base.node.inner).__mro__
            for parent in classes[classes.index(base.after) + 1 :]:
                if name in vars(parent) and parent is not nn.Module:
                    function = _plain(vars(parent)[name])
                    return _Method(base.node, function) if function is not None else None
            return None
        if isinstance(base, _Element):
            return _of_an_element(base, name)
        if isinstance(base, _Part):
            return _Part(base.node.children[name]) if name in base.node.children else None
        if not isinstance(base, Node):
            return None
        if name in base.children:
            return base.children[name]
        if name in base.leaves:
            return _Held(base, name)
        attribute = inspect.getattr_static(type(base.inner), name, None)
        if isinstance(attribute, FunctionType) and (function := _method(type(base.inner), name)) is not None:
            return _Method(base, function)
        return None

    def _element(self, base: _Value, index: ast.expr) -> _Value:
        if not isinstance(base, Node) or not base.children:
            return None
        if isinstance(index, ast.Constant):
            return base.children.get(str(index.value), base)
        return base

    def _called(self, node: ast.Call, frame: _Frame) -> _Value:
        """Returns what a call gives where that can be told without running it: `getattr`, `super()`, the embeddings."""
        if isinstance(node.func, ast.Name) and node.func.id == "super" and not node.args:
            definer = _definer(type(frame.node.inner), frame.function)
            return _Super(frame.node, definer) if definer is not None else None
        if isinstance(node.func, ast.Name) and node.func.id == "getattr" and len(node.args) >= 2:
            name = self._string(node.args[1])
            return self._attribute(self._value(node.args[0]), name) if name is not None else None
        if isinstance(node.func, ast.Attribute) and node.func.attr == "get_input_embeddings":
            return _input_embeddings(self._value(node.func.value))
        if isinstance(node.func, ast.Attribute) and node.func.attr in _VIEWS:
            base = self._value(node.func.value)
            return base if isinstance(base, Node) else None
        return None

    def _string(self, node: ast.expr) -> str | None:
        """Returns a string that is written out, or kept by the class as `base_model_prefix` is."""
        if isinstance(node, ast.Constant):
            return node.value if isinstance(node.value, str) else None
        base = self._value(node.value) if isinstance(node, ast.Attribute) else None
        if isinstance(node, ast.Attribute) and isinstance(base, Node):
            value = inspect.getattr_static(base.inner, node.attr, None)
            return value if isinstance(value, str) else None
        return None


def _of_an_element(element: _Element, name: str) -> _Value:
    """Returns what an element of a list holds under a name, going by the first that has it."""
    if name in ("__call__", "forward"):
        return element
    for child in element.node.children.values():
        if name in child.children:
            return _Part(child.children[name])
    return None


def _input_embeddings(base: _Value) -> Node | None:
    """Returns the node of a model's input embeddings, which Transformers finds by rules of its own."""
    if not isinstance(base, Node):
        return None
    getter: Callable[[], nn.Module] | None = inspect.getattr_static(type(base.inner), "get_input_embeddings", None)
    if getter is None:
        return None
    try:
        embeddings = base.inner.get_input_embeddings()  # type: ignore[operator]
    except NotImplementedError:
        return None
    return next((node for node in base.walk() if embeddings is node.inner or embeddings is node.outer), None)
