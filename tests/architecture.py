"""The rules of test_architecture.py, as functions from source texts to the violations found in them."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import PurePosixPath

PACKAGE = "hf_freeze"
# Imports go down these lists (to an earlier entry), never up. Entries of one line may import each other, in no circle.
LEVELS = (
    ("errors",),
    ("config",),
    ("plan",),
    ("schedules", "activation_cache"),
    ("training",),
    ("tasks",),
    ("sharing", "insight"),
    ("run",),
    ("cli",),
)
# Other modules of `plan` stand as high as the highest of these that they import, by whatever way.
PLAN_LEVELS = (
    ("selection", "layout"),
    ("resolve",),
    ("apply", "adapters", "optimizer", "cost"),
)
MAX_FILE_LINES = 399
MAX_FUNCTION_LINES = 49
WRITER_OF_REQUIRES_GRAD = "hf_freeze/plan/apply.py"
PRINTERS = "hf_freeze/cli/"
CATCH_ALL_NAMES = frozenset({"base", "common", "core", "helpers", "misc", "util", "utils"})
PICKLING_MODULES = frozenset({"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"})


def module_name(path: str) -> str:
    """Returns the dotted name of a file, `hf_freeze.plan` for `hf_freeze/plan/__init__.py`."""
    parts = PurePosixPath(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(source: str, modules: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Yields line and name of every module of this package that a source imports, wherever the import stands.

    Args:
        source: Python source.
        modules: The dotted names of the package's modules: an import of one from its package counts as the module.
    """
    known = set(modules)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == PACKAGE:
                    yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield node.lineno, submodule if submodule in known else node.module


def _rank(name: str, levels: tuple[tuple[str, ...], ...]) -> int | None:
    return next((rank for rank, level in enumerate(levels) if name in level), None)


def _plan_ranks(graph: Mapping[str, set[str]]) -> dict[str, int]:
    """Returns how high every module of `plan` stands."""
    listed = {f"{PACKAGE}.plan.{name}": rank for rank, level in enumerate(PLAN_LEVELS) for name in level}
    ranks: dict[str, int] = {}

    def rank(name: str) -> int:
        if name not in ranks:
            ranks[name] = listed.get(name, 0)  # also ends the search in a circle
            if name not in listed:
                ranks[name] = max((rank(other) for other in graph.get(name, ()) if ".plan." in other), default=0)
        return ranks[name]

    for name in {*graph, *(name for imported in graph.values() for name in imported)}:
        rank(name)
    return ranks


def _import_violation(importer: str, imported: str, plan_ranks: Mapping[str, int]) -> str | None:
    """Says what is wrong with one import, or returns None."""
    if imported == PACKAGE:
        return "imports the package itself; import from the module that defines the name"
    own, other = importer.split(".")[1:], imported.split(".")[1:]
    for name in (own[0], other[0]):
        if _rank(name, LEVELS) is None:
            return f"{PACKAGE}.{name} is not in LEVELS of tests/architecture.py"
    if own[0] != other[0]:
        goes_up = _rank(own[0], LEVELS) < _rank(other[0], LEVELS)
    elif own[0] != "plan" or len(own) < 2:
        goes_up = False
    elif len(other) < 2:
        return f"imports {imported} itself; import from the module that defines the name"
    else:
        goes_up = plan_ranks[importer] < plan_ranks[imported]
    return f"imports {imported}, which stands above it" if goes_up else None


def import_violations(sources: Mapping[str, str]) -> list[str]:
    """Lists the imports that go up, or in a circle.

    Args:
        sources: The package's files: path, as `hf_freeze/plan/apply.py`, to source.
    """
    modules = {path: module_name(path) for path in sources}
    # Without the package's own file: the table of public names loads nothing by itself.
    imports = {
        path: list(imported_modules(source, modules.values()))
        for path, source in sources.items()
        if modules[path] != PACKAGE
    }
    graph = {modules[path]: {name for _, name in found} - {modules[path]} for path, found in imports.items()}
    plan_ranks = _plan_ranks(graph)
    violations = [
        f"{path}:{line}: {problem}"
        for path, found in imports.items()
        for line, imported in found
        if (problem := _import_violation(modules[path], imported, plan_ranks)) is not None
    ]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        violations.append("imports in a circle: " + " <- ".join(error.args[1]))
    return violations


def size_violations(path: str, source: str) -> list[str]:
    """Lists what is longer than a file or a function may be."""
    violations = []
    num_lines = len(source.splitlines())
    if num_lines > MAX_FILE_LINES:
        violations.append(f"{path}: {num_lines} lines")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            num_lines = node.end_lineno - node.lineno + 1
            if num_lines > MAX_FUNCTION_LINES:
                violations.append(f"{path}:{node.lineno}: {node.name} has {num_lines} lines")
    return violations


def name_violations(path: str) -> list[str]:
    """Lists the parts of a path that name no purpose."""
    parts = PurePosixPath(path).with_suffix("").parts
    return [f"{path}: {part!r} says nothing about what is inside" for part in parts if part in CATCH_ALL_NAMES]


def _is_requires_grad_write(node: ast.AST) -> bool:
    match node:
        case ast.Attribute(attr="requires_grad", ctx=ast.Store() | ast.Del()):
            return True
        case ast.Call(func=ast.Attribute(attr="requires_grad_")):
            return True
        case ast.Call(func=ast.Name(id="setattr"), args=[_, ast.Constant(value="requires_grad"), *_]):
            return True
    return False


def _keyword(call: ast.Call, name: str) -> object:
    """Returns the constant that a call passes for a keyword, or None."""
    values = [
        keyword.value.value
        for keyword in call.keywords
        if keyword.arg == name and isinstance(keyword.value, ast.Constant)
    ]
    return values[0] if values else None


def _unsafe_loading(node: ast.AST) -> str | None:
    """Says which way of running code from a file a node uses, or returns None."""
    match node:
        case ast.Import(names=names):
            imported = [alias.name.split(".")[0] for alias in names]
        case ast.ImportFrom(module=str(module)):
            imported = [module.split(".")[0]]
        case _:
            imported = []
    if PICKLING_MODULES.intersection(imported):
        return "imports a module that unpickles"
    if "yaml" in imported:
        return "imports PyYAML, which reads YAML 1.1; ruamel.yaml reads 1.2"
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load")) if (
            _keyword(node, "weights_only") is not True
        ):
            return "calls torch.load without weights_only=True"
        case ast.Call(func=ast.Name(id="YAML") | ast.Attribute(attr="YAML")) if _keyword(node, "typ") == "unsafe":
            return "loads YAML that may run code"
        case ast.Call() if _keyword(node, "allow_pickle") is True:
            return "allows pickles"
        case ast.Call(func=ast.Name(id="eval" | "exec")):
            return "runs code from a string"
    return None


def code_violations(path: str, source: str) -> list[str]:
    """Lists writes of requires_grad, prints and unsafe loading in places that may not have them."""
    violations = []
    for node in ast.walk(ast.parse(source)):
        if _is_requires_grad_write(node) and path != WRITER_OF_REQUIRES_GRAD:
            violations.append(f"{path}:{node.lineno}: writes requires_grad")
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
            and not path.startswith(PRINTERS)
        ):
            violations.append(f"{path}:{node.lineno}: prints")
        problem = _unsafe_loading(node)
        if problem is not None:
            violations.append(f"{path}:{node.lineno}: {problem}")
    return violations
