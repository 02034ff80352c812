"""Quick padding: the batches of `DataCollatorWithPadding`, or the collator itself where they would differ."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import BatchEncoding, DataCollatorForTokenClassification, DataCollatorWithPadding

from hf_freeze.activation_cache.padding import NUM_CHECKED, QuickPadding, quick_padding
from tests.tiny import tiny_tokenizer

ROWS = [
    {"input_ids": [2, 7, 3], "token_type_ids": [0, 0, 1], "attention_mask": [1, 1, 1], "label": 1},
    {"input_ids": [2, 7, 8, 9, 3], "token_type_ids": [0] * 5, "attention_mask": [1, 1, 0, 1, 1], "label": 0},
    {"input_ids": [2], "token_type_ids": [0], "attention_mask": [1], "label": 1},
]


class Counting(DataCollatorWithPadding):
    """Counts its batches; looked at as if it were the class itself."""

    num_batches = 0

    def __call__(self, features: Any) -> Any:
        Counting.num_batches += 1
        return super().__call__(features)


def collator(**options: Any) -> DataCollatorWithPadding:
    return DataCollatorWithPadding(tiny_tokenizer(), **options)


def assert_same(quick: Any, batch: Any) -> None:
    assert type(quick) is type(batch) is BatchEncoding
    assert list(quick) == list(batch)
    for name, value in batch.items():
        assert quick[name].dtype == value.dtype
        assert torch.equal(quick[name], value)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("multiple", [None, 4])
@pytest.mark.parametrize("label", [{"label": 1}, {"label": 0.5}, {"label_ids": 3}, {"labels": 0}, {}])
def test_batches_are_those_of_the_collator(side: str, multiple: int | None, label: dict[str, Any]) -> None:
    rows = [{**{name: value for name, value in row.items() if name != "label"}, **label} for row in ROWS]
    plain = collator(pad_to_multiple_of=multiple)
    plain.tokenizer.padding_side = side
    quick = quick_padding(plain)
    assert isinstance(quick, QuickPadding)
    for _ in range(NUM_CHECKED + 1):
        assert_same(quick(rows), plain(rows))
    assert quick.is_trusted
    assert_same(quick(rows[1:2]), plain(rows[1:2]))
    assert_same(quick(rows[::-1]), plain(rows[::-1]))


def test_the_collator_makes_the_first_batches_only(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = QuickPadding(Counting(tiny_tokenizer()))
    monkeypatch.setattr(Counting, "num_batches", 0)
    for _ in range(NUM_CHECKED + 5):
        quick(ROWS)
    assert Counting.num_batches == NUM_CHECKED


def test_a_difference_ends_it_for_good() -> None:
    without_mask = [{"input_ids": row["input_ids"]} for row in ROWS]  # The tokenizer adds the mask.
    plain = collator()
    quick = QuickPadding(plain)
    assert_same(quick(without_mask), plain(without_mask))
    assert not quick.is_trusted
    assert_same(quick(ROWS), plain(ROWS))


@pytest.mark.parametrize(
    "change",
    [
        {"input_ids": torch.tensor([2, 7, 3])},
        {"label": torch.tensor(1)},
        {"label": True},
        {"label": 0.5},
    ],
    ids=["tensors", "a label as a tensor", "a truth value", "numbers of two kinds"],
)
def test_rows_that_hold_something_else_are_left_to_the_collator(change: dict[str, Any]) -> None:
    plain = collator()
    quick = QuickPadding(plain)
    for _ in range(NUM_CHECKED):
        quick(ROWS)
    rows = [{**ROWS[0], **change}, *ROWS[1:]]
    assert_same(quick(rows), plain(rows))
    assert quick.is_trusted


@pytest.mark.parametrize(
    "rows",
    [
        [{**row, "text": "a"} for row in ROWS],
        [{**row, "scores": [0] * index} for index, row in enumerate(ROWS, 1)],
        [{"label": 1}, {"label": 0}],
    ],
    ids=["text", "lists of their own lengths", "no tokens"],
)
def test_what_the_collator_refuses_is_refused_as_it_does(rows: list[dict[str, Any]]) -> None:
    plain = collator()
    quick = QuickPadding(plain)
    with pytest.raises(ValueError, match=r"tensor|encoding") as expected:
        plain(rows)
    with pytest.raises(ValueError, match=r"tensor|encoding") as raised:
        quick(rows)
    assert str(raised.value) == str(expected.value)


def test_batches_do_not_share_memory_with_rows_or_each_other() -> None:
    quick = QuickPadding(collator())
    for _ in range(NUM_CHECKED):
        quick(ROWS)
    first, second = quick(ROWS), quick(ROWS)
    first["input_ids"].zero_()
    assert second["input_ids"].any()
    assert ROWS[0]["input_ids"] == [2, 7, 3]


def test_copies_pad_alike() -> None:
    quick = QuickPadding(collator())
    quick(ROWS)
    assert_same(copy.deepcopy(quick)(ROWS), quick(ROWS))


@pytest.mark.parametrize(
    "other",
    [
        lambda: collator(padding="max_length", max_length=8),
        lambda: collator(padding=False),
        lambda: collator(return_tensors="np"),
        lambda: Counting(tiny_tokenizer()),
        lambda: DataCollatorForTokenClassification(tiny_tokenizer()),
        lambda: len,
    ],
    ids=["to one length", "no padding", "NumPy", "a subclass", "another collator", "a function"],
)
def test_other_collators_are_left_alone(other: Any) -> None:
    collate = other()
    assert quick_padding(collate) is collate


def test_a_tokenizer_that_pads_in_its_own_way_is_left_alone() -> None:
    tokenizer = tiny_tokenizer()
    own = type("Own", (type(tokenizer),), {"_pad": lambda self, inputs, **options: inputs})
    tokenizer.__class__ = own
    collate = DataCollatorWithPadding(tokenizer)
    assert quick_padding(collate) is collate
