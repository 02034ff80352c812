"""Values are compared with type annotations without converting anything."""

from __future__ import annotations

import enum
from typing import Any, Literal

import pytest

from hf_freeze.config.hints import described, enumerated, fits


class Order(enum.Enum):
    FIRST = "first"
    LAST = "last"


class Options:
    """Stands for a class that only Python can make."""


PATTERN = bool | Literal["gaussian", "pissa_niter_[number of iters]"]


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (1, int),
        (1, float),
        (2e-5, float),
        (True, bool),
        ("x", str),
        (None, float | None),
        (3, int | None),
        ("first", Order | str),
        ("first", Order),
        (["a"], list[str]),
        (["a"], str | list[str] | None),
        ([[1, 2]], list[tuple[int, int]]),
        ({"a": 1}, dict),
        ({"a": True}, dict[str, bool]),
        ({"a": [1]}, list[int] | dict[str, list[int]]),
        ("anything", Any),
        ("none", Literal["none", "all"]),
        (False, str | Literal[False] | None),
        ("text", str | Literal[False] | None),
        (True, PATTERN),
        ("gaussian", PATTERN),
        ("pissa_niter_4", PATTERN),
        (Options(), Options | None),
    ],
)
def test_values_that_fit(value: object, hint: Any) -> None:
    assert fits(value, hint)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("2e-5", float),
        (True, int),
        (True, float),
        (1.0, int),
        (1, bool),
        (1, str),
        (None, float),
        ("middle", Order | str),
        ("middle", Order),
        (1, Order | str),
        ("a", list[str]),
        ([1], list[str]),
        ([1, 2], list[tuple[int, int]]),
        ({"a": "yes"}, dict[str, bool]),
        ("some", Literal["none", "all"]),
        (0, str | Literal[False] | None),
        (True, str | Literal[False] | None),
        ("pissa", PATTERN),
        ({}, Options | None),
    ],
)
def test_values_that_do_not_fit(value: object, hint: Any) -> None:
    assert not fits(value, hint)


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (float, "a number"),
        (int | None, "a whole number or null"),
        (bool, "true or false"),
        (str | list[str] | None, "a list or text or null"),
        (dict[str, Any] | str, "a mapping or text"),
        (Order | str, "one of 'first', 'last'"),
        (str | Literal[False] | None, "false or text or null"),
        (PATTERN, "one of 'gaussian', 'pissa_niter_[number of iters]' or true or false"),
        (Options | None, "an object of Options or null"),
    ],
)
def test_annotations_in_words(hint: Any, words: str) -> None:
    assert described(hint) == words


@pytest.mark.parametrize(
    ("hint", "words"),
    [(Order | str, ["first", "last"]), (Order, ["first", "last"]), (str, []), (Literal["a"] | str, []), (int, [])],
)
def test_the_texts_that_an_annotation_enumerates(hint: Any, words: list[str]) -> None:
    assert enumerated(hint) == words
