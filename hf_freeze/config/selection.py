"""How a config says which blocks: one selection, or one for each stack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hf_freeze.config.problems import Problem, ProblemsFound, dotted, shown, unknown_key
from hf_freeze.errors import PlanError, did_you_mean, nearest

SelectionKind = Literal["all", "first", "fraction", "indices", "last", "none"]

_WORDS = ("all", "none")
SELECTORS = ("first", "fraction", "indices", "last")
AUTO = "auto"
_SELECTIONS = "Selections: all, none, {first: n}, {last: n}, {fraction: f}, {indices: [i, ...]}."


@dataclass(frozen=True)
class Selection:
    """Which blocks of a stack: a rule that needs the number of blocks to become indices.

    Attributes:
        kind: The rule.
        value: A number of blocks for `first` and `last`, a share from 0 to 1 for `fraction`, block numbers for
            `indices` (negative ones count from the last block), None for `all` and `none`.
    """

    kind: SelectionKind
    value: int | float | tuple[int, ...] | None = None

    @classmethod
    def parse(cls, value: object, *, key: str = "selection") -> Selection:
        """Reads a selection as configs spell it.

        >>> Selection.parse({"first": 8})
        Selection(kind='first', value=8)
        >>> Selection.parse("all")
        Selection(kind='all', value=None)

        Args:
            value: `"all"`, `"none"`, or a mapping with exactly one of `first`, `last`, `fraction` and `indices`.
            key: What the message of an error calls it.

        Raises:
            PlanError: If it is spelled otherwise.
        """
        try:
            return _selection(value)
        except ProblemsFound as error:
            lines = [f"{dotted((key, *problem.path))}: {problem.text}" for problem in error.problems]
            raise PlanError("\n".join(lines)) from None

    @property
    def spelling(self) -> str | dict[str, Any]:
        """The selection as a config spells it."""
        if self.kind in _WORDS:
            return self.kind
        return {self.kind: list(self.value) if isinstance(self.value, tuple) else self.value}


def _selection(value: object) -> Selection:
    if isinstance(value, Selection):
        value = value.spelling  # checked like any other: a Selection can be made without parse
    if isinstance(value, str):
        if value not in _WORDS:
            meant = did_you_mean(value, [*_WORDS, *SELECTORS])
            raise _problem(f"unknown selection; got {value!r}. {_SELECTIONS}{meant}")
        return Selection("all" if value == "all" else "none")
    if not isinstance(value, Mapping):
        raise _problem(f"is not a selection; got {shown(value)}. {_SELECTIONS}")
    if not value:
        raise _problem(f"has no selector; got {{}}. {_SELECTIONS} Write one of them.")
    if AUTO in value:
        what = "It chooses from all blocks, for freeze.blocks as a whole. Write freeze.blocks: {auto: {by: ...}}."
        raise _problem(f"cannot be chosen automatically here; got {shown(value[AUTO])}. {what}", AUTO)
    unknown = [unknown_key((key,), value[key], SELECTORS) for key in value if key not in SELECTORS]
    if unknown:
        raise ProblemsFound(unknown)
    if len(value) > 1:
        raise _problem(f"has {len(value)} selectors; got {shown(dict(value))}. {_SELECTIONS} Keep one of them.")
    [(kind, argument)] = value.items()
    return _SELECTOR_READERS[kind](argument)


def _problem(text: str, *path: str) -> ProblemsFound:
    return ProblemsFound([Problem(path, text)])


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _count(kind: Literal["first", "last"], value: Any) -> Selection:
    if not _is_whole(value) or value < 0:
        raise _problem(f"is not a number of blocks; got {shown(value)}. Write a whole number from 0 up.", kind)
    return Selection(kind, value)


def _fraction(value: Any) -> Selection:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise _problem(f"is not a share of the blocks; got {shown(value)}. Write a number from 0 to 1.", "fraction")
    return Selection("fraction", float(value))


def _indices(value: Any) -> Selection:
    advice = "Blocks count from 0, negative numbers from the last block."
    if not isinstance(value, list | tuple) or not all(_is_whole(index) for index in value):
        raise _problem(f"is not a list of block numbers; got {shown(value)}. {advice}", "indices")
    if not value:
        raise _problem("selects no block; got []. To select none, write none.", "indices")
    if len(set(value)) < len(value):
        raise _problem(f"names a block twice; got {shown(value)}. {advice} Name each block once.", "indices")
    return Selection("indices", tuple(value))


_SELECTOR_READERS: dict[str, Callable[[Any], Selection]] = {
    "first": lambda value: _count("first", value),
    "fraction": _fraction,
    "indices": _indices,
    "last": lambda value: _count("last", value),
}


def read_blocks(value: object) -> Selection | dict[str, Selection]:
    """Reads one selection, or one for each stack.

    Args:
        value: A selection as configs spell it, or a mapping from names of stacks to selections.

    Raises:
        ProblemsFound: If it is spelled otherwise.
    """
    if not isinstance(value, Mapping) or not value or not all(_names_stack(*entry) for entry in value.items()):
        return _selection(value)
    selections, found = {}, []
    for stack, selection in value.items():
        try:
            selections[stack] = _selection(selection)
        except ProblemsFound as error:
            found += [problem.under((stack,)) for problem in error.problems]
    if found:
        raise ProblemsFound(found)
    return selections


def _names_stack(key: object, value: object) -> bool:
    # {frist: 8} is a misspelt selector and {encoder: {first: 8}} is a stack: what it holds tells them apart.
    is_selection = isinstance(value, str | Mapping | Selection)
    return isinstance(key, str) and is_selection and nearest(key, (*SELECTORS, AUTO)) is None


def spell_blocks(blocks: Selection | Mapping[str, Selection]) -> Any:
    """Returns what `read_blocks` reads as these blocks.

    Args:
        blocks: One selection, or one for each stack.
    """
    if isinstance(blocks, Selection):
        return blocks.spelling
    return {stack: selection.spelling for stack, selection in blocks.items()}


_WHOLE = {"type": "integer", "minimum": 0}
_ARGUMENTS: Mapping[str, dict[str, Any]] = {
    "first": {**_WHOLE, "description": "Number of blocks, counted from the input."},
    "last": {**_WHOLE, "description": "Number of blocks, counted from the output."},
    "fraction": {"type": "number", "minimum": 0, "maximum": 1, "description": "Share of the blocks, from the input."},
    "indices": {
        "type": "array",
        "items": {"type": "integer"},
        "minItems": 1,
        "uniqueItems": True,
        "description": "Block numbers; negative ones count from the last block.",
    },
}
_SELECTION_SCHEMA: dict[str, Any] = {
    "oneOf": [
        {"enum": list(_WORDS)},
        *(
            {"type": "object", "properties": {kind: argument}, "required": [kind], "additionalProperties": False}
            for kind, argument in _ARGUMENTS.items()
        ),
    ]
}
BLOCKS_SCHEMA: dict[str, Any] = {
    "oneOf": [
        *_SELECTION_SCHEMA["oneOf"],
        {
            "type": "object",
            "description": "A selection for each stack, such as encoder and decoder.",
            "minProperties": 1,
            "propertyNames": {"not": {"enum": list(SELECTORS)}},
            "additionalProperties": _SELECTION_SCHEMA,
        },
    ]
}
