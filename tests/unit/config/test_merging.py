"""Configs lie over each other key by key; selections and lists replace what they cover."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_freeze.config import parse_overrides
from hf_freeze.config.merging import merge, overlay
from hf_freeze.config.yaml_source import Located
from hf_freeze.errors import ConfigError


def located(value: Any, where: str) -> Located:
    """Returns plain data as if all of it had been written in one place."""
    if isinstance(value, dict):
        return Located({key: located(child, where) for key, child in value.items()}, where)
    if isinstance(value, list):
        return Located([located(child, where) for child in value], where)
    return Located(value, where)


def merged(base: Any, over: Any) -> Any:
    return merge(located(base, "base"), located(over, "over")).plain()


@pytest.mark.parametrize(
    ("base", "over", "expected"),
    [
        ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": 1}, {"a": 2}, {"a": 2}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}, {"a": {"b": 1, "c": 3}}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
        ({"a": None}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        # a selection is one value
        (
            {"freeze": {"blocks": {"first": 4}}},
            {"freeze": {"blocks": {"last": 2}}},
            {"freeze": {"blocks": {"last": 2}}},
        ),
        ({"freeze": {"blocks": "all"}}, {"freeze": {"blocks": {"last": 2}}}, {"freeze": {"blocks": {"last": 2}}}),
        ({"freeze": {"blocks": {"first": 4}}}, {"freeze": {"blocks": "none"}}, {"freeze": {"blocks": "none"}}),
        (
            {"freeze": {"blocks": {"first": 4}, "head": "frozen"}},
            {"freeze": {"blocks": {"encoder": "all"}}},
            {"freeze": {"blocks": {"encoder": "all"}, "head": "frozen"}},
        ),
        (
            {"freeze": {"blocks": {"encoder": "all"}}},
            {"freeze": {"blocks": {"first": 4}}},
            {"freeze": {"blocks": {"first": 4}}},
        ),
        # selections for several stacks merge, each of them being one value
        (
            {"freeze": {"blocks": {"encoder": {"first": 4}, "decoder": "all"}}},
            {"freeze": {"blocks": {"encoder": {"last": 2}}}},
            {"freeze": {"blocks": {"encoder": {"last": 2}, "decoder": "all"}}},
        ),
        # elsewhere the same words are keys like any other
        ({"training": {"first": 4}}, {"training": {"last": 2}}, {"training": {"first": 4, "last": 2}}),
        (
            {"data": {"blocks": {"first": 4}}},
            {"data": {"blocks": {"last": 2}}},
            {"data": {"blocks": {"first": 4, "last": 2}}},
        ),
    ],
)
def test_later_keys_win(base: Any, over: Any, expected: Any) -> None:
    assert merged(base, over) == expected


def test_every_key_keeps_the_place_that_set_it() -> None:
    tree = merge(located({"a": {"b": 1, "c": 2}}, "base"), located({"a": {"c": 3}}, "over"))
    assert tree.locate(("a", "b")) == "base"
    assert tree.locate(("a", "c")) == "over"
    assert tree.locate(("a",)) == "over"


trees = st.dictionaries(
    st.sampled_from(["freeze", "blocks", "first", "encoder", "a"]),
    st.recursive(
        st.integers() | st.none() | st.lists(st.integers(), max_size=2),
        lambda inner: st.dictionaries(
            st.sampled_from(["freeze", "blocks", "first", "last", "encoder"]), inner, max_size=3
        ),
        max_leaves=6,
    ),
    max_size=3,
)


@given(trees)
def test_a_config_over_itself_or_over_nothing_is_itself(tree: Any) -> None:
    assert merged(tree, tree) == tree
    assert merged({}, tree) == tree
    assert merged(tree, {}) == tree


BASE = {"freeze": {"blocks": {"first": 4}}, "adapters": [{"r": 8}, {"r": 16, "blocks": {"first": 1}}], "run": None}


def overridden(keys: tuple[str | int, ...], value: Any) -> Any:
    base = located(BASE, "base")
    return merge(base, overlay(base, keys, located(value, "command line"))).plain()


@pytest.mark.parametrize(
    ("keys", "value", "expected"),
    [
        (("freeze", "blocks", "first"), 8, BASE | {"freeze": {"blocks": {"first": 8}}}),
        (("freeze", "blocks", "last"), 8, BASE | {"freeze": {"blocks": {"last": 8}}}),
        (("freeze", "blocks"), "all", BASE | {"freeze": {"blocks": "all"}}),
        (("freeze", "blocks", "encoder", "last"), 2, BASE | {"freeze": {"blocks": {"encoder": {"last": 2}}}}),
        (("adapters", 0, "r"), 4, BASE | {"adapters": [{"r": 4}, BASE["adapters"][1]]}),
        (("adapters", 0, "bias"), "all", BASE | {"adapters": [{"r": 8, "bias": "all"}, BASE["adapters"][1]]}),
        (
            ("adapters", 1, "blocks", "last"),
            2,
            BASE | {"adapters": [{"r": 8}, {"r": 16, "blocks": {"last": 2}}]},
        ),
        (("adapters",), [], BASE | {"adapters": []}),
        (("run", "name"), "x", BASE | {"run": {"name": "x"}}),
        (("new", "deep", 0), "x", BASE | {"new": {"deep": {0: "x"}}}),
    ],
)
def test_an_override_sets_one_key(keys: tuple[str | int, ...], value: Any, expected: Any) -> None:
    assert overridden(keys, value) == expected


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            ("adapters", 2, "r"),
            "command line: adapters.2: no such entry; got 2. adapters has 2 entries, counted from 0.",
        ),
        (
            ("adapters", "r"),
            "command line: adapters.r: no such entry; got 'r'. adapters has 2 entries, counted from 0.",
        ),
    ],
)
def test_an_override_of_an_entry_that_does_not_exist_is_refused(keys: tuple[str | int, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        overridden(keys, 4)
    assert str(caught.value) == message


def test_overrides_without_a_file() -> None:
    assert parse_overrides(["freeze.blocks.first=8", "freeze.blocks.last=2", "training.learning_rate=2e-5", "a="]) == {
        "freeze": {"blocks": {"last": 2}},
        "training": {"learning_rate": 2e-5},
        "a": None,
    }


def test_overrides_that_cannot_be_read_are_told_together() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_overrides(["freeze", "a..b=1", "=1", "a=[1", "a=!x 1", "a={b: 1, b: 2}"])
    assert str(caught.value).splitlines() == [
        "command line: is not key=value; got 'freeze'. Write it like freeze.blocks.first=8.",
        "command line: is not key=value; got 'a..b=1'. Write it like freeze.blocks.first=8.",
        "command line: is not key=value; got '=1'. Write it like freeze.blocks.first=8.",
        (
            "command line: a: is not YAML; got '[1'. The reader says: while parsing a flow sequence, "
            "expected ',' or ']', but got '<stream end>'."
        ),
        "command line: a: has a tag; got '!x'. A config holds plain data and no objects. Remove the tag.",
        "command line: a.b: stands twice; got 2. It is at command line too. Keep one of them.",
    ]
