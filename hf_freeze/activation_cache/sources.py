"""The source files that say what modules compute: those of their classes, and what these import of the user's own."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

# Told apart by their versions, or no part of what a model computes.
_COVERED = frozenset({"hf_freeze", "torch", "transformers"})
# Where libraries are installed.
_INSTALLED = frozenset({"dist-packages", "site-packages"})


def source_digests(classes: Iterable[type]) -> tuple[str, ...]:
    """Returns the digests of the source files of some classes, of their bases, and of what those files import.

    Imports are followed between files that are not installed: those of a project, or of a model's own code on the Hub.

    Args:
        classes: Classes of modules; those of torch and of Python itself do not count.
    """
    pending = {base.__module__ for cls in classes for base in cls.__mro__}
    files: dict[str, Path] = {}
    while pending:
        name = pending.pop()
        path = _file_of(name)
        if name in files or path is None:
            continue
        files[name] = path
        if _is_own(name, path):
            pending.update(
                other for other in _imports(name, path) if (file := _file_of(other)) and _is_own(other, file)
            )
    return tuple(sorted({hashlib.sha256(path.read_bytes()).hexdigest() for path in files.values()}))


def _file_of(name: str) -> Path | None:
    """Returns the file of a module that was imported, or None for those of torch, of Python, and without a file."""
    top = name.partition(".")[0]
    if top == "torch" or top in sys.stdlib_module_names or name not in sys.modules:
        return None
    file = vars(sys.modules[name]).get("__file__")  # An interactive session has none.
    return Path(file) if file is not None and Path(file).is_file() else None


def _is_own(name: str, path: Path) -> bool:
    return name.partition(".")[0] not in _COVERED and path.suffix == ".py" and _INSTALLED.isdisjoint(path.parts)


def _imports(name: str, path: Path) -> Iterator[str]:
    """Yields the names of modules that a file imports, and of what may be modules."""
    module = sys.modules[name]
    package = name if "__path__" in vars(module) else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)
