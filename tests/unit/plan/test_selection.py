"""Selections become block indices."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_freeze.config import Selection
from hf_freeze.errors import PlanError
from hf_freeze.plan.selection import select_blocks


def select(value: object, num_blocks: int = 12) -> tuple[int, ...]:
    return select_blocks(Selection.parse(value), num_blocks, key="freeze.blocks", where="bert.encoder.layer")


@pytest.mark.parametrize(
    ("value", "num_blocks", "expected"),
    [
        ("all", 3, (0, 1, 2)),
        ("none", 3, ()),
        ({"first": 0}, 3, ()),
        ({"first": 2}, 3, (0, 1)),
        ({"first": 3}, 3, (0, 1, 2)),
        ({"last": 0}, 3, ()),
        ({"last": 1}, 3, (2,)),
        ({"last": 3}, 3, (0, 1, 2)),
        ({"fraction": 0}, 4, ()),
        ({"fraction": 0.5}, 4, (0, 1)),
        ({"fraction": 0.5}, 5, (0, 1)),  # 2.5 rounds down
        ({"fraction": 0.75}, 6, (0, 1, 2, 3)),  # 4.5 rounds down
        ({"fraction": 0.66}, 3, (0, 1)),  # 1.98
        ({"fraction": 0.29}, 100, tuple(range(29))),  # 28.999999999999996 in floating point
        ({"fraction": 1}, 4, (0, 1, 2, 3)),
        ({"indices": [2, 0]}, 3, (0, 2)),
        ({"indices": [-1, 0]}, 3, (0, 2)),
        ({"indices": [-3]}, 3, (0,)),
        ({"last": 1}, 1, (0,)),
    ],
)
def test_selections_select_these_blocks(value: object, num_blocks: int, expected: tuple[int, ...]) -> None:
    assert select(value, num_blocks) == expected


@pytest.mark.parametrize(
    ("value", "num_blocks", "message"),
    [
        (
            {"first": 14},
            12,
            "freeze.blocks: cannot select the first 14 blocks; bert.encoder.layer has 12. Select at most 12.",
        ),
        (
            {"last": 13},
            12,
            "freeze.blocks: cannot select the last 13 blocks; bert.encoder.layer has 12. Select at most 12.",
        ),
        (
            {"fraction": 0.01},
            12,
            (
                "freeze.blocks: a fraction of 0.01 comes to no block; bert.encoder.layer has 12. "
                "Select {first: 1} or a fraction of 0.083 or more, or write none."
            ),
        ),
        (
            {"indices": [12]},
            12,
            (
                "freeze.blocks: cannot select block 12; bert.encoder.layer has 12. "
                "Blocks are numbered 0 to 11 from the input, and -1 to -12 from the output."
            ),
        ),
        (
            {"indices": [3, 15, -13]},
            12,
            (
                "freeze.blocks: cannot select blocks -13, 15; bert.encoder.layer has 12. "
                "Blocks are numbered 0 to 11 from the input, and -1 to -12 from the output."
            ),
        ),
        (
            {"indices": [11, -1]},
            12,
            (
                "freeze.blocks: block 11 selected twice; got [11, -1]. "
                "bert.encoder.layer has 12, and negative numbers count from the output. Name each block once."
            ),
        ),
        (
            {"indices": [0, 11, -1, -12]},
            12,
            (
                "freeze.blocks: blocks 0, 11 selected twice; got [0, 11, -1, -12]. "
                "bert.encoder.layer has 12, and negative numbers count from the output. Name each block once."
            ),
        ),
    ],
)
def test_what_cannot_be_selected_is_an_error(value: object, num_blocks: int, message: str) -> None:
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        select(value, num_blocks)


@given(num_blocks=st.integers(1, 200), data=st.data())
def test_first_and_the_rest_as_last_partition_the_blocks(num_blocks: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, num_blocks))
    assert select({"first": count}, num_blocks) + select({"last": num_blocks - count}, num_blocks) == select(
        "all", num_blocks
    )


@given(num_blocks=st.integers(1, 200), data=st.data())
def test_negative_indices_count_from_the_output(num_blocks: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, num_blocks - 1))
    assert select({"indices": [index]}, num_blocks) == select({"indices": [index - num_blocks]}, num_blocks)


@given(num_blocks=st.integers(1, 200), hundredths=st.integers(0, 100))
def test_fractions_are_rounded_to_the_nearest_block_with_halves_down(num_blocks: int, hundredths: int) -> None:
    exact = Fraction(hundredths, 100) * num_blocks
    whole = exact.numerator // exact.denominator
    expected = whole if exact - whole <= Fraction(1, 2) else whole + 1
    if hundredths and not expected:
        with pytest.raises(PlanError, match="comes to no block"):
            select({"fraction": hundredths / 100}, num_blocks)
    else:
        assert select({"fraction": hundredths / 100}, num_blocks) == tuple(range(expected))
