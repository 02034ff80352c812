"""The shapes of what is read back from JSON files of hf_freeze, checked where they are read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError


@dataclass(frozen=True)
class RoleShape:
    """What is said of a role."""

    treatment: str
    trains: list[str]


@dataclass(frozen=True)
class PlanShape:
    """What `plan_record` returns."""

    digest: str
    keep_dropout: bool
    roles: dict[str, RoleShape]


@dataclass(frozen=True)
class _Versioned:
    format_version: int


VERSIONED: Final = TypeAdapter(_Versioned)


def parsed(text: bytes, shape: TypeAdapter[Any]) -> dict[str, Any]:
    """Returns what a JSON file says, keys that the shape has not included.

    Args:
        text: The file.
        shape: What it has to say at least.

    Raises:
        ValueError: It has another shape; the message says where.
    """
    try:
        content: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise ValueError("no JSON") from error
    try:
        shape.validate_python(content)
    except ValidationError as error:
        place = ".".join(str(key) for key in error.errors(include_url=False)[0]["loc"])
        raise ValueError(f"{place!r} missing or of another kind" if place else "no mapping") from error
    return content
