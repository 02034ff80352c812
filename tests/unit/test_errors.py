"""The exception tree and the search for the nearest name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_freeze import errors
from hf_freeze.errors import (
    CacheError,
    ConfigError,
    FreezeError,
    LayoutError,
    PlanError,
    PlanViolation,
    SearchError,
    ShareError,
    did_you_mean,
    nearest,
)

OPTIONS = ["blocks", "embeddings", "head", "keep_dropout"]


@pytest.mark.parametrize(
    "error", [CacheError, ConfigError, LayoutError, PlanError, PlanViolation, SearchError, ShareError]
)
def test_every_error_is_a_freeze_error(error: type[Exception]) -> None:
    assert issubclass(error, FreezeError)


@pytest.mark.parametrize("error", [ConfigError, LayoutError, PlanError])
def test_what_a_user_can_get_wrong_is_a_value_error(error: type[Exception]) -> None:
    assert issubclass(error, ValueError)


@pytest.mark.parametrize("error", [FreezeError, CacheError, PlanViolation, SearchError, ShareError])
def test_what_is_not_a_value_given_is_no_value_error(error: type[Exception]) -> None:
    assert not issubclass(error, ValueError)


def test_the_tree_in_the_docstring_names_every_error() -> None:
    tree = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert errors.__doc__ is not None
    assert {word for word in errors.__doc__.split() if word in tree} == tree


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("block", "blocks"),
        ("emebddings", "embeddings"),
        ("keep-dropout", "keep_dropout"),
        ("head", "head"),
        ("optimizer", None),
        ("", None),
    ],
)
def test_nearest_finds_what_is_spelt_alike_and_nothing_else(word: str, expected: str | None) -> None:
    assert nearest(word, OPTIONS) == expected


def test_nearest_finds_nothing_among_nothing() -> None:
    assert nearest("blocks", []) is None


def test_did_you_mean_is_a_sentence_of_its_own() -> None:
    assert did_you_mean("block", OPTIONS) == " Did you mean 'blocks'?"
    assert did_you_mean("optimizer", OPTIONS) == ""


@given(word=st.text(max_size=12), options=st.sets(st.text(max_size=12), max_size=6))
def test_nearest_does_not_depend_on_the_order_of_the_options(word: str, options: set[str]) -> None:
    match = nearest(word, sorted(options))
    assert match == nearest(word, sorted(options, reverse=True))
    assert match is None or match in options


@given(options=st.sets(st.text(min_size=1, max_size=12), min_size=1, max_size=6), data=st.data())
def test_nearest_of_an_option_is_itself(options: set[str], data: st.DataObject) -> None:
    option = data.draw(st.sampled_from(sorted(options)))
    assert nearest(option, options) == option
