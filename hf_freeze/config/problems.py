"""What is wrong with a config: collected, so that every problem is reported and not only the first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from hf_freeze.errors import did_you_mean, nearest

Key = str | int
KeyPath = tuple[Key, ...]

_MOST_SHOWN = 120  # characters of a value that a message repeats
_MOST_LISTED = 20  # known keys that a message lists

# Where configs may hold credentials: they are not written beside the model, which is made to be shared, nor shown.
SECRETS: Final = frozenset({"hub_token", "proxies", "storage_options", "token"})
_HIDDEN: Final = "a value that is not shown"
_TOKEN: Final = re.compile(r"hf_(?!freeze)\w{10,}")
_ASSIGNED: Final = re.compile(rf"\b({'|'.join(sorted(SECRETS))})(\W*[:=]).+", re.DOTALL)  # in a line of text

# What pydantic puts into the path of a value that may be of two types: they are no keys.
LIST_TAG: Final = "[list]"
RANGE_TAG: Final = "[range]"

# One sentence for each kind of error that pydantic can report about the sections of a config.
_SENTENCES: Mapping[str, str] = {
    "bool_type": "is neither true nor false",
    "dict_type": "is not a mapping",
    "finite_number": "is not a finite number",
    "float_type": "is not a number",
    "greater_than": "is not above {gt}",
    "greater_than_equal": "is below {ge}",
    "int_type": "is not a whole number",
    "less_than": "is not below {lt}",
    "less_than_equal": "is above {le}",
    "string_too_short": "is empty",
    "string_type": "is not text",
    "too_long": "has more than {max_length} entries",
    "too_short": "has fewer than {min_length} entries",
    "tuple_type": "is not a list",
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the key where it is, and a message that follows that key."""

    path: KeyPath
    text: str

    def under(self, prefix: Iterable[Key]) -> Problem:
        """Returns the same problem, its path seen from further outside."""
        return Problem((*prefix, *self.path), self.text)


class ProblemsFound(ValueError):
    """Carries problems through pydantic, which keeps a ValueError raised by a validator."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        """Keeps the problems; the message lists them."""
        super().__init__("\n".join(f"{dotted(problem.path)}: {problem.text}" for problem in problems))
        self.problems = tuple(problems)


def dotted(path: KeyPath, *, root: str = "config") -> str:
    """Returns `adapters.0.r` for `("adapters", 0, "r")`, and `root` for the empty path."""
    return ".".join(str(key) if re.fullmatch(r"[\w*/-]+", str(key)) else repr(key) for key in path) or root


def shown(value: object, path: Iterable[Key | None] = ()) -> str:
    """Returns a value as messages show it: its repr, without credentials, cut where it is long.

    Args:
        value: The value.
        path: The key that holds it and where that stands: what is under a key for credentials is not shown at all.
    """
    if not SECRETS.isdisjoint(path):
        return _HIDDEN
    text = _TOKEN.sub("hf_***", repr(_without_secrets(value)))
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _without_secrets(value: object) -> object:
    if type(value) is dict:
        return {key: "***" if key in SECRETS else _without_secrets(entry) for key, entry in value.items()}
    if type(value) is list:
        return [_without_secrets(entry) for entry in value]
    return _ASSIGNED.sub(r"\1\2 ***", value) if isinstance(value, str) else value


def listed(words: Iterable[object]) -> str:
    """Returns the words sorted and joined by commas."""
    return ", ".join(sorted(str(word) for word in words))


def unknown_key(path: KeyPath, value: object, known: Iterable[str], *, owner: str = "") -> Problem:
    """Returns the problem of a key that does not exist, with those that do.

    Args:
        path: The key and where it stands.
        value: What it was given.
        known: The keys that exist there.
        owner: What to name instead where there are too many keys to list.
    """
    known = sorted(known)
    names = ", ".join(known) if len(known) <= _MOST_LISTED or not owner else f"the {len(known)} {owner}"
    given = shown(value, (*path, nearest(str(path[-1]), known)))  # The value of a misspelled token is one, too.
    return Problem(path, f"unknown key; got {given}. Known keys: {names}.{did_you_mean(str(path[-1]), known)}")


def unquoted(value: object) -> str:
    """Returns the advice to drop the quotes around a number, or an empty string where that is not what is wrong."""
    if not isinstance(value, str):
        return ""
    try:
        float(value)
    except ValueError:
        return ""
    return " Write it without quotes."


def problems_of(error: ValidationError, fields: Mapping[str, FieldInfo]) -> list[Problem]:
    """Turns what pydantic found in one section into problems.

    Args:
        error: What pydantic raised.
        fields: The fields of that section, for their names and descriptions.
    """
    return [problem for details in error.errors(include_url=False) for problem in _translated(details, fields)]


def _translated(details: ErrorDetails, fields: Mapping[str, FieldInfo]) -> list[Problem]:
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    path = tuple(key for key in details["loc"] if key not in {LIST_TAG, RANGE_TAG})
    given = shown(value, path)
    match kind:
        case "value_error" if isinstance(found := context["error"], ProblemsFound):
            return [problem.under(path) for problem in found.problems]
        case "string_type" if path[-1:] == ("[key]",):
            return [Problem(path[:-2], f"has a key that is no name; got {given}. Keys are text there.")]
        case "extra_forbidden" | "invalid_key":
            return [unknown_key(path, value if kind == "extra_forbidden" else path[-1], fields)]
        case "missing":
            there = listed(value) if isinstance(value, Mapping) and value else "nothing"
            return [Problem(path, f"required key is missing; got {there}. {_description(path, fields)} Add it.")]
        case "literal_error":
            meant = did_you_mean(str(value), re.findall(r"'([^']*)'", context["expected"]))
            text = f"is none of its values; got {given}. It takes {context['expected']}.{meant}"
            return [Problem(path, text)]
        case "model_type":
            return [Problem(path, f"is not a mapping; got {given}. Known keys: {listed(fields)}.")]
    sentence = _SENTENCES[kind].format(**context)
    hint = unquoted(value) if kind in {"int_type", "float_type"} else ""
    return [Problem(path, f"{sentence}; got {given}. {_description(path, fields)}{hint}".rstrip())]


def _description(path: KeyPath, fields: Mapping[str, FieldInfo]) -> str:
    field = fields.get(str(path[0])) if path else None
    return field.description or "" if field is not None else ""
