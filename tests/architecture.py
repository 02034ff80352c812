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
PLAN_LEVELS = (
    ("selection", "layout"),
    ("resolve",),
    ("apply", "adapters", "optimizer", "cost"),
)
MAX_FILE_LINES = 399
MAX_FUNCTION_LINES = 49
WRITER_OF_REQUIRES_GRAD = "hf_freeze/plan/apply.py"
PRINTER = "hf_freeze/cli.py"
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


def _import_violation(importer: str, imported: str) -> str | None:
    """Says what is wrong with one import, or returns None."""
    if imported == PACKAGE:
        return "imports the package itself; import from the module that defines the name"
    own, other = importer.split(".")[1:], imported.split(".")[1:]
    for name, levels, where in ((own, LEVELS, "LEVELS"), (other, LEVELS, "LEVELS")):
        if _rank(name[0], levels) is None:
            return f"{'.'.join([PACKAGE, name[0]])} is not in {where} of tests/architecture.py"
    if own[0] != other[0]:
        return f"imports {imported}, which stands above it" if _rank(own[0], LEVELS) < _rank(other[0], LEVELS) else None
    if importer == imported:
        return None
    if own[0] != "plan" or len(own) < 2:
        return None
    if len(other) < 2:
        return "imports hf_freeze.plan itself; import from the module that defines the name"
    own_rank, other_rank = _rank(own[1], PLAN_LEVELS), _rank(other[1], PLAN_LEVELS)
    for name, rank in ((own[1], own_rank), (other[1], other_rank)):
        if rank is None:
            return f"hf_freeze.plan.{name} is not in PLAN_LEVELS of tests/architecture.py"
    return f"imports {imported}, which stands above it" if own_rank < other_rank else None


def import_violations(sources: Mapping[str, str]) -> list[str]:
    """Lists the imports that go up, or in a circle.

    Args:
        sources: The package's files: path, as `hf_freeze/plan/apply.py`, to source.
    """
    violations = []
    graph: dict[str, set[str]] = {}
    modules = [module_name(path) for path in sources]
    for path, source in sources.items():
        importer = module_name(path)
        if importer == PACKAGE:
            continue  # the table of public names, which loads nothing by itself
        for line, imported in imported_modules(source, modules):
            problem = _import_violation(importer, imported)
            if problem is not None:
                violations.append(f"{path}:{line}: {problem}")
            elif importer != imported:
                graph.setdefault(importer, set()).add(imported)
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
            and path != PRINTER
        ):
            violations.append(f"{path}:{node.lineno}: prints")
        problem = _unsafe_loading(node)
        if problem is not None:
            violations.append(f"{path}:{node.lineno}: {problem}")
    return violations
