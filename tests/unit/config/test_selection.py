"""Selections are spelled in six ways, and every other spelling is refused in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_freeze.config import FreezeConfig, Selection, parse_section
from hf_freeze.errors import ConfigError, PlanError

SELECTIONS = "Selections: all, none, {first: n}, {last: n}, {fraction: f}, {indices: [i, ...]}."
FROM_ZERO = "Write a whole number from 0 up."
COUNTED = "Blocks count from 0, negative numbers from the last block."
KEYS = "Known keys: first, fraction, indices, last."

selections = st.one_of(
    st.sampled_from([Selection("all"), Selection("none")]),
    st.builds(Selection, st.sampled_from(["first", "last"]), st.integers(0, 200)),
    st.builds(Selection, st.just("fraction"), st.floats(0, 1)),
    st.builds(
        Selection,
        st.just("indices"),
        st.lists(st.integers(-99, 99), min_size=1, max_size=5, unique=True).map(tuple),
    ),
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("all", Selection("all")),
        ("none", Selection("none")),
        ({"first": 0}, Selection("first", 0)),
        ({"first": 8}, Selection("first", 8)),
        ({"last": 2}, Selection("last", 2)),
        ({"fraction": 0.25}, Selection("fraction", 0.25)),
        ({"fraction": 1}, Selection("fraction", 1.0)),
        ({"indices": [0, -1]}, Selection("indices", (0, -1))),
        ({"indices": (3,)}, Selection("indices", (3,))),
        (Selection("last", 2), Selection("last", 2)),
    ],
)
def test_spellings(value: object, expected: Selection) -> None:
    assert Selection.parse(value) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("frist", f"b: unknown selection; got 'frist'. {SELECTIONS} Did you mean 'first'?"),
        ("auto", f"b: unknown selection; got 'auto'. {SELECTIONS}"),
        ("", f"b: unknown selection; got ''. {SELECTIONS}"),
        (8, f"b: is not a selection; got 8. {SELECTIONS}"),
        (True, f"b: is not a selection; got True. {SELECTIONS}"),
        (None, f"b: is not a selection; got None. {SELECTIONS}"),
        ([0, 1], f"b: is not a selection; got [0, 1]. {SELECTIONS}"),
        ({}, f"b: has no selector; got {{}}. {SELECTIONS} Write one of them."),
        (
            {"first": 4, "last": 2},
            f"b: has 2 selectors; got {{'first': 4, 'last': 2}}. {SELECTIONS} Keep one of them.",
        ),
        ({"frist": 8}, f"b.frist: unknown key; got 8. {KEYS} Did you mean 'first'?"),
        ({"all": True}, f"b.all: unknown key; got True. {KEYS}"),
        (
            {"frist": 8, "latsss": 8},
            (
                f"b.frist: unknown key; got 8. {KEYS} Did you mean 'first'?\n"
                f"b.latsss: unknown key; got 8. {KEYS} Did you mean 'last'?"
            ),
        ),
        ({"first": True}, f"b.first: is not a number of blocks; got True. {FROM_ZERO}"),
        ({"first": -1}, f"b.first: is not a number of blocks; got -1. {FROM_ZERO}"),
        ({"last": 2.0}, f"b.last: is not a number of blocks; got 2.0. {FROM_ZERO}"),
        ({"last": "2"}, f"b.last: is not a number of blocks; got '2'. {FROM_ZERO}"),
        ({"fraction": 1.5}, "b.fraction: is not a share of the blocks; got 1.5. Write a number from 0 to 1."),
        ({"fraction": -0.1}, "b.fraction: is not a share of the blocks; got -0.1. Write a number from 0 to 1."),
        ({"fraction": True}, "b.fraction: is not a share of the blocks; got True. Write a number from 0 to 1."),
        (
            {"fraction": float("nan")},
            "b.fraction: is not a share of the blocks; got nan. Write a number from 0 to 1.",
        ),
        ({"indices": 3}, f"b.indices: is not a list of block numbers; got 3. {COUNTED}"),
        ({"indices": "0-3"}, f"b.indices: is not a list of block numbers; got '0-3'. {COUNTED}"),
        ({"indices": [0, True]}, f"b.indices: is not a list of block numbers; got [0, True]. {COUNTED}"),
        ({"indices": []}, "b.indices: selects no block; got []. To select none, write none."),
        ({"indices": [1, 1]}, f"b.indices: names a block twice; got [1, 1]. {COUNTED} Name each block once."),
        (Selection("first", -1), f"b.first: is not a number of blocks; got -1. {FROM_ZERO}"),
    ],
)
def test_other_spellings_are_refused(value: object, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        Selection.parse(value, key="b")
    assert str(caught.value) == message


@given(selections)
def test_a_selection_reads_back_from_its_spelling(selection: Selection) -> None:
    assert Selection.parse(selection.spelling) == selection


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("all", Selection("all")),
        (
            {"encoder": {"first": 6}, "decoder": "none"},
            {"encoder": Selection("first", 6), "decoder": Selection("none")},
        ),
        ({"encoder": Selection("last", 1)}, {"encoder": Selection("last", 1)}),
    ],
)
def test_blocks_are_one_selection_or_one_for_each_stack(value: object, expected: object) -> None:
    assert parse_section(FreezeConfig, {"blocks": value}, key="freeze").blocks == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"encoder": {"first": -6}, "decoder": "noen"},
            (
                f"freeze.blocks.encoder.first: is not a number of blocks; got -6. {FROM_ZERO}\n"
                f"freeze.blocks.decoder: unknown selection; got 'noen'. {SELECTIONS} Did you mean 'none'?"
            ),
        ),
        ({"encoder": 6}, f"freeze.blocks.encoder: unknown key; got 6. {KEYS}"),
        (
            {"frist": "8"},
            f"freeze.blocks.frist: unknown key; got '8'. {KEYS} Did you mean 'first'?",
        ),
        (
            {"first": 4, "encoder": "all"},
            f"freeze.blocks.encoder: unknown key; got 'all'. {KEYS}",
        ),
        ({1: "all"}, f"freeze.blocks.1: unknown key; got 'all'. {KEYS}"),
    ],
)
def test_blocks_spelled_otherwise_are_refused(value: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_section(FreezeConfig, {"blocks": value}, key="freeze")
    assert str(caught.value) == message
