"""A config file, what it extends and what overrides it, in; a `RunConfig`, or every problem with its line, out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from hf_freeze.config.merging import merge, overlay
from hf_freeze.config.options import adapter_entry
from hf_freeze.config.problems import KeyPath, dotted, listed, problems_of, shown
from hf_freeze.config.schema import AdapterConfig, Adapters, RunConfig
from hf_freeze.config.section import Section
from hf_freeze.config.yaml_source import DEEPEST, Located, read_yaml
from hf_freeze.errors import ConfigError, nearest

LARGEST = 1 << 20  # bytes of a config file

_MOST_NAMES = 20  # files that a message lists
_COMMAND_LINE = "command line"

AnySection = TypeVar("AnySection", bound=Section)
Validated = TypeVar("Validated")


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Reads a config file, the files that it extends, and the overrides of the command line.

    Args:
        path: The YAML file.
        overrides: Such as `freeze.blocks.first=8` or `adapters.0.r=4`; the value is YAML. Later ones win.

    Raises:
        ConfigError: If the config cannot be carried out; the message lists every problem with its place.
    """
    problems: list[str] = []
    try:
        tree = _overridden(_read_chain(Path(path), problems), overrides, problems)
        config = _validated(TypeAdapter(RunConfig), tree.plain(), lambda problem: f"{tree.locate(problem)}: ")
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def parse_config(data: Mapping[str, Any], *, source: str | None = None) -> RunConfig:
    """Checks a config that is already in memory.

    Args:
        data: The sections, spelled as in a config file.
        source: What messages put before the key; nothing where it is None.

    Raises:
        ConfigError: If the config cannot be carried out; the message lists every problem.
    """
    return _validated(TypeAdapter(RunConfig), data, lambda _: f"{source}: " if source is not None else "")


def parse_section(section: type[AnySection], value: AnySection | Mapping[str, Any], key: str) -> AnySection:
    """Checks one section of a config.

    Args:
        section: Its class, such as `FreezeConfig`.
        value: The section, or a mapping spelled as in a config file.
        key: What messages call it, such as `freeze`.

    Raises:
        ConfigError: If it cannot be carried out; the message lists every problem.
    """
    return _validated(TypeAdapter(section), value, lambda _: "", key)


def parse_adapters(
    values: Iterable[AdapterConfig | Mapping[str, Any] | object], key: str = "adapters"
) -> tuple[AdapterConfig, ...]:
    """Checks the entries of `adapters`, each on its own and that they are of one method.

    Args:
        values: The entries, mappings spelled as in a config file, or PEFT config objects.
        key: What messages call them.

    Raises:
        ConfigError: If they cannot be carried out; the message lists every problem.
    """
    entries = [adapter_entry(value) for value in values] if isinstance(values, list | tuple) else values
    adapters: TypeAdapter[tuple[AdapterConfig, ...]] = TypeAdapter(Adapters)
    return _validated(adapters, entries, lambda _: "", key)


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Reads overrides where there is no file for them to lie over.

    >>> parse_overrides(["freeze.blocks.first=8", "freeze.head=frozen"])
    {'freeze': {'blocks': {'first': 8}, 'head': 'frozen'}}

    Args:
        overrides: Such as `freeze.blocks.first=8`; the value is YAML. Later ones win.

    Raises:
        ConfigError: If one of them is not `key=value` or its value is no YAML.
    """
    problems: list[str] = []
    tree = _overridden(Located({}, _COMMAND_LINE), overrides, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    plain: dict[str, Any] = tree.plain()
    return plain


def _validated(
    kind: TypeAdapter[Validated], value: object, place: Callable[[KeyPath], str], key: str = ""
) -> Validated:
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        prefix = (key,) if key else ()
        lines = [
            f"{place(problem.path)}{dotted((*prefix, *problem.path))}: {problem.text}"
            for problem in problems_of(error, {})
        ]
        raise ConfigError("\n".join(lines)) from None


def _read_chain(top: Path, problems: list[str]) -> Located:
    """Returns a config file laid over the files that it extends."""
    layers: list[Located] = []
    chain: list[Path] = []
    path, named_by = top, "config"
    while True:
        tree = _read_mapping(path, named_by, problems)
        layers.append(tree)
        chain.append(path)
        extends = tree.value.pop("extends", None)
        if extends is None:
            break
        path, named_by = _extended(path, extends, top), f"{extends.where}: extends"
        if os.path.realpath(path) in {os.path.realpath(link) for link in chain}:
            circle = " -> ".join(str(link) for link in [*chain, path])
            raise ConfigError(f"{extends.where}: extends: goes in a circle; got {circle}. Remove one of its links.")
    tree = layers.pop()
    while layers:
        tree = merge(tree, layers.pop())
    return tree


def _extended(path: Path, extends: Located, top: Path) -> Path:
    """Returns the file that a config extends, which lies where the user keeps configs."""
    if not isinstance(extends.value, str) or not extends.value.isprintable() or not extends.value:
        what = f"is not the name of a file; got {shown(extends.plain())}."
        raise ConfigError(f"{extends.where}: extends: {what} Write one path, relative to this file.")
    target = Path(os.path.normpath(path.parent / extends.value))
    roots = (Path(os.path.realpath(top.parent)), Path.cwd())
    inside = any(Path(os.path.realpath(target)).is_relative_to(root) for root in roots)
    if Path(extends.value).is_absolute() or not inside:
        what = f"leaves the folder of the config; got {extends.value!r}."
        advice = "Write a path relative to this file, to a file below that folder or the current one."
        raise ConfigError(f"{extends.where}: extends: {what} {advice}")
    return target


def _read_mapping(path: Path, named_by: str, problems: list[str]) -> Located:
    tree, found = read_yaml(_read_text(path, named_by), source=str(path))
    problems += found
    sections = listed(RunConfig.model_fields)
    if tree is None or tree.value is None:
        raise ConfigError(f"{path}: is empty; got no keys. Sections: {sections}. Write model, data and training.")
    if not isinstance(tree.value, dict):
        kind = "a list" if isinstance(tree.value, list) else "a single value"
        raise ConfigError(
            f"{tree.where}: is {kind}, not a mapping; got {shown(tree.plain())}. Sections: {sections}. "
            "Write model, data and training."
        )
    return tree


def _read_text(path: Path, named_by: str) -> str:
    """Returns the text of a file; `named_by` is what a message calls the one who named it."""
    try:
        if path.is_dir():
            raise ConfigError(f"{named_by}: is a folder; got {str(path)!r}. {_configs_in(path, path)} Name a file.")
        if not path.is_file():
            what = "is not a regular file" if path.exists() else "no such file"
            raise ConfigError(f"{named_by}: {what}; got {str(path)!r}. {_configs_in(path.parent, path)}")
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise ConfigError(f"{named_by}: cannot be read; got {str(path)!r}. {error.strerror}.") from None
    if len(content) > LARGEST:
        size = f"{path.stat().st_size} bytes"
        raise ConfigError(f"{path}: is too large; got {size}. A config has at most {LARGEST} bytes. Name a config.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = f"the byte 0x{content[error.start]:02x}"
        raise ConfigError(f"{path}:{line}: is not text; got {byte}. A config is UTF-8. Save it as UTF-8.") from None


def _configs_in(folder: Path, wanted: Path) -> str:
    """Returns what a folder holds, for the message that a file is missing."""
    found = folder.iterdir() if folder.is_dir() else ()
    names = sorted(entry.name for entry in found if entry.suffix in {".yaml", ".yml"})
    if not names:
        return f"The folder {folder} holds no YAML files."
    shortened = [*names[:_MOST_NAMES], "..."] if len(names) > _MOST_NAMES else names
    stem = nearest(wanted.stem, [Path(name).stem for name in names])
    meant = next((f" Did you mean {name!r}?" for name in names if Path(name).stem == stem), "")
    return f"The folder {folder} holds {', '.join(shortened)}.{meant}"


def _overridden(tree: Located, overrides: Iterable[str], problems: list[str]) -> Located:
    """Returns the config with the overrides laid over it, one after the other."""
    for override in overrides:
        dotted_key, equals, text = override.partition("=")
        keys = tuple(int(part) if part.isdecimal() else part for part in dotted_key.strip().split("."))
        if not equals or "" in keys or len(keys) > DEEPEST:
            what = f"is not key=value; got {shown(override)}. Write it like freeze.blocks.first=8."
            problems.append(f"{_COMMAND_LINE}: {what}")
            continue
        try:
            source = f"{_COMMAND_LINE}: {dotted(keys)}"
            leaf, found = read_yaml(text, source=source, place=_COMMAND_LINE, path=keys)
            problems += found
            tree = merge(tree, overlay(tree, keys, leaf or Located(None, _COMMAND_LINE)))
        except ConfigError as error:
            problems.append(str(error))
    return tree
