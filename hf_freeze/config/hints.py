"""Whether a plain value fits a type annotation, and how that annotation reads in words."""

from __future__ import annotations

import enum
import types
from typing import Any, Literal, Union, get_args, get_origin

_WORDS: dict[object, str] = {
    bool: "true or false",
    dict: "a mapping",
    float: "a number",
    int: "a whole number",
    list: "a list",
    str: "text",
    tuple: "a list",
    types.NoneType: "null",
}


def fits(value: object, hint: Any) -> bool:
    """Tells whether a value read from YAML is of the annotated type.

    Nothing is converted: the text `"2e-5"` is no number, and `true` is no whole number.

    Args:
        value: Text, a number, a boolean, None, a list or a mapping.
        hint: A resolved annotation, such as `float | None`.
    """
    choices = enumerated(hint)
    if choices and isinstance(value, str):
        return any(_is_choice(value, choice) for choice in choices)
    return any(_fits_arm(value, arm) for arm in _arms(hint))


def enumerated(hint: Any) -> list[str]:
    """Returns the texts that an annotation enumerates, or an empty list where any text will do.

    `SchedulerType | str` enumerates: the text there is how the member of the enumeration is written.

    Args:
        hint: A resolved annotation.
    """
    arms = _arms(hint)
    members = [str(member.value) for arm in arms if _is_enum(arm) for member in arm]
    literals = [word for arm in arms if get_origin(arm) is Literal for word in get_args(arm) if isinstance(word, str)]
    return members + literals if members or str not in arms else []


def described(hint: Any) -> str:
    """Returns an annotation in the words of YAML, such as `a number or null`.

    Args:
        hint: A resolved annotation.
    """
    choices = enumerated(hint)
    first = [f"one of {', '.join(repr(choice) for choice in sorted(choices))}"] if choices else []
    arms = {_described_arm(arm) for arm in _arms(hint) if not (choices and arm is str)}
    # Sorted, because Python does not keep the order of equal unions apart.
    words = sorted((word for word in arms if word is not None), key=lambda word: (word == "null", word))
    return " or ".join(first + words)


def _arms(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in {Union, types.UnionType} else (hint,)


def _is_enum(arm: Any) -> bool:
    return isinstance(arm, type) and issubclass(arm, enum.Enum)


def _is_choice(value: str, choice: str) -> bool:
    # PEFT writes a family of values as one literal with a placeholder: "pissa_niter_[number of iters]".
    stem, placeholder, _ = choice.partition("[")
    return value.startswith(stem) if placeholder else value == choice


def _fits_arm(value: object, arm: Any) -> bool:
    origin, arguments = get_origin(arm) or arm, get_args(arm)
    if origin is Any:
        return True
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in arguments)
    if origin in {float, int}:
        return isinstance(value, int | float if origin is float else int) and not isinstance(value, bool)
    if origin is tuple:
        return isinstance(value, list)
    if not isinstance(value, origin):
        return False
    if isinstance(value, dict) and len(arguments) == 2:
        return all(fits(entry, arguments[1]) for entry in value.values())
    return not isinstance(value, list) or all(fits(entry, hint) for entry in value for hint in arguments)


def _described_arm(arm: Any) -> str | None:
    origin = get_origin(arm) or arm
    if origin is Literal:
        others = [repr(option).lower() for option in get_args(arm) if not isinstance(option, str)]
        return " or ".join(others) or None
    if _is_enum(arm):
        return None
    return _WORDS.get(origin) or f"an object of {origin.__name__}"
