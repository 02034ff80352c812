"""YAML 1.2 text in, plain data out that remembers the line of every key.

The text is read event by event: nothing is constructed but text, numbers, booleans, null, lists and mappings, and what
would grow without bound is refused while it grows.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.reader import ReaderError

from hf_freeze.config.problems import Key, KeyPath, dotted, shown
from hf_freeze.errors import ConfigError

MOST_VALUES = 20_000  # values of one document, with those that its aliases repeat
DEEPEST = 64  # levels of lists and mappings inside each other

_NEW_LINE = "\n"
_RESOLVED = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "float", "int", "null")}


@dataclass(frozen=True)
class Located:
    """A value that knows where it was written.

    Attributes:
        value: A mapping or list of located values, or text, a number, a boolean or None.
        where: Such as `configs/x.yaml:7`, the line of the key that holds the value.
    """

    value: Any
    where: str

    def plain(self) -> Any:
        """Returns the value without the places."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def locate(self, path: KeyPath) -> str:
        """Returns where a path was written: the place of the deepest part of it that exists."""
        node = self
        for key in path:
            inside = dict(enumerate(node.value)) if isinstance(node.value, list) else node.value
            if not isinstance(inside, dict) or key not in inside:
                break
            node = inside[key]
        return node.where


def read_yaml(
    text: str, *, source: str, place: str | None = None, path: KeyPath = ()
) -> tuple[Located | None, list[str]]:
    """Reads one YAML 1.2 document.

    Args:
        text: The document.
        source: What messages call it, such as the name of its file.
        place: Where all of it was written; without it every value is at `source:line`.
        path: The key that will hold the value.

    Returns:
        The value, or None where the document is empty, and messages about keys and tags that cannot be taken.

    Raises:
        ConfigError: If it is no YAML, or larger or deeper than a config can be.
    """
    reader = _Reader(text, source, place)
    try:
        return reader.document(path), reader.problems
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = source if mark is None or place is not None else f"{source}:{mark.line + 1}:{mark.column + 1}"
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{at}: is not YAML; got {_line(text, mark, path)}. The reader says: {what}.") from None
    except ReaderError as error:
        at = reader.at(text.count(_NEW_LINE, 0, error.position) + 1)
        raise ConfigError(f"{at}: is not YAML; got the character {chr(error.character)!r}. Remove it.") from None


class _Reader:
    """Builds located values from the events of one document."""

    def __init__(self, text: str, source: str, place: str | None) -> None:
        self._text = text
        self._source = source
        self._place = place
        self._yaml = YAML(typ="safe", pure=True)
        self._events: Iterator[Event] = iter(())
        self._anchors: dict[str, Located] = {}
        self._num_values = 0
        self.problems: list[str] = []

    def at(self, line: int) -> str:
        """Returns what a message that stops the reading calls a line, counted from 1."""
        return f"{self._source}:{line}" if self._place is None else self._source

    def document(self, path: KeyPath) -> Located | None:
        """Returns the value of the only document, or None where there is none."""
        self._check_directives()
        self._events = self._parsed()
        root = None
        for event in self._events:
            if isinstance(event, NodeEvent):
                if root is not None:
                    raise self._refusal(event, "holds a second document; got ---. A config is one document. Remove it.")
                root = self._node(event, path, depth=0)
        return root

    def _parsed(self) -> Iterator[Event]:
        try:
            yield from self._yaml.parse(self._text)
        except (OverflowError, ValueError):  # ruamel.yaml passes any number after \U on to chr()
            escapes = re.finditer(r"\\U([0-9A-Fa-f]{8})", self._text)
            position = next(escape.start() for escape in escapes if int(escape[1], 16) > sys.maxunicode)
            what = "is not YAML; got an escape for a character that does not exist. Escapes end at \\U0010FFFF."
            raise ConfigError(f"{self.at(self._text.count(_NEW_LINE, 0, position) + 1)}: {what}") from None

    def _check_directives(self) -> None:
        for number, line in enumerate(self._text.splitlines(), start=1):
            if line.startswith("%") and line.split() != ["%YAML", "1.2"]:
                what = f"has a directive; got {shown(line.strip())}. Configs are YAML 1.2. Remove the line."
                raise ConfigError(f"{self.at(number)}: {what}")
            if line.strip() and line[0] not in "%#":
                return

    def _node(self, event: Event, path: KeyPath, *, depth: int, where: str | None = None) -> Located:
        where = where or self._where(event)
        if isinstance(event, AliasEvent):
            return self._aliased(event, where, depth)
        self._grow(event, 1, depth)
        value: Any
        match event:
            case MappingStartEvent():
                value = self._mapping(path, depth + 1)
            case SequenceStartEvent():
                value = self._sequence(path, depth + 1)
            case _:
                assert isinstance(event, ScalarEvent)
                value = self._scalar(event)
        if event.tag is not None:
            what = f"has a tag; got {event.tag!r}. A config holds plain data and no objects. Remove the tag."
            self.problems.append(f"{where}: {dotted(path)}: {what}")
        node = Located(value, where)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _mapping(self, path: KeyPath, depth: int) -> dict[Key, Located]:
        entries: dict[Key, Located] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            where = self._where(event)
            key = self._node(event, path, depth=depth).plain()
            merges = key == "<<" and isinstance(event, ScalarEvent) and event.implicit[0]  # without quotes
            inside = (*path, key if type(key) in {str, int} else "?")
            value = self._node(next(self._events), inside, depth=depth, where=where)
            if type(key) not in {str, int}:
                what = f"has a key that is no name; got {shown(key)}. Keys are text or whole numbers."
                self.problems.append(f"{where}: {dotted(path)}: {what}")
            elif merges:
                what = "has a merge key; got <<. YAML 1.2 has none. Use extends, or write the keys out."
                self.problems.append(f"{where}: {dotted(path)}: {what}")
            elif key in entries:
                given = shown(value.plain(), inside)
                what = f"stands twice; got {given}. It is at {entries[key].where} too. Keep one of them."
                self.problems.append(f"{where}: {dotted(inside)}: {what}")
            else:
                entries[key] = value
        return entries

    def _sequence(self, path: KeyPath, depth: int) -> list[Located]:
        entries: list[Located] = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            entries.append(self._node(event, (*path, len(entries)), depth=depth))
        return entries

    def _scalar(self, event: ScalarEvent) -> Any:
        tag = self._yaml.resolver.resolve(ScalarNode, event.value, event.implicit)
        if event.tag is not None or str(tag) not in _RESOLVED:
            return event.value  # dates too: YAML 1.2 has none
        try:
            return self._yaml.constructor.construct_object(ScalarNode(tag, event.value))
        except ValueError:  # Python reads no whole number of more than 4300 digits
            return event.value

    def _aliased(self, event: AliasEvent, where: str, depth: int) -> Located:
        if event.anchor not in self._anchors:
            raise self._refusal(
                event, f"has an alias to nothing; got *{event.anchor}. Write &{event.anchor} before it."
            )
        target = self._anchors[event.anchor]
        num_values, height = _measured(target)
        self._grow(event, num_values, depth + height)
        return Located(target.value, where)

    def _grow(self, event: Event, num_values: int, depth: int) -> None:
        self._num_values += num_values
        if self._num_values > MOST_VALUES:
            what = f"grows too large; got more than {MOST_VALUES} values, each alias counted as what it repeats."
            raise self._refusal(event, f"{what} A config holds fewer. Write them into a file of data.")
        if depth > DEEPEST:
            what = f"is too deep; got more than {DEEPEST} levels of lists and mappings. A config has fewer."
            raise self._refusal(event, f"{what} Remove some.")

    def _refusal(self, event: Event, what: str) -> ConfigError:
        return ConfigError(f"{self.at(event.start_mark.line + 1)}: {what}")

    def _where(self, event: Event) -> str:
        return self._place or self.at(event.start_mark.line + 1)


def _measured(node: Located) -> tuple[int, int]:
    """Returns the number of values in a tree, and how many levels lie below its root."""
    children = node.value.values() if isinstance(node.value, dict) else node.value
    if not isinstance(node.value, dict | list):
        return 1, 0
    measures = [_measured(child) for child in children]
    return 1 + sum(number for number, _ in measures), 1 + max((height for _, height in measures), default=0)


def _line(text: str, mark: Any, path: KeyPath) -> str:
    lines = text.splitlines()
    number = mark.line if mark is not None else 0
    return shown(lines[number].strip(), path) if number < len(lines) else "the end of the text"
