"""The collator that adds keys: last in the batch, for batches of one row per row of the dataset, in any worker."""

from __future__ import annotations

import copy
import operator
from collections import UserDict
from typing import Any

import pytest
import torch
from transformers import BatchEncoding, DataCollatorWithPadding

from hf_freeze.activation_cache.collator import KeyCollator, keyed_inputs
from hf_freeze.activation_cache.keys import KEY_SIZE, KEYS, row_keys
from tests.tiny import tiny_tokenizer
from tests.unit.activation_cache.examples import collate, rows_of


def test_keys_come_last_and_the_rest_is_as_before() -> None:
    rows = rows_of(3)
    plain, batch = collate(rows), KeyCollator(collate)(rows)
    assert list(batch) == [*plain, KEYS]
    assert all(torch.equal(batch[name], plain[name]) for name in plain)
    assert batch[KEYS].shape == (3, 2 * KEY_SIZE)
    assert batch[KEYS].dtype == torch.uint8
    assert torch.equal(batch[KEYS], row_keys(keyed_inputs(plain, ("labels",))))


@pytest.mark.parametrize("kind", [dict, BatchEncoding, UserDict])
def test_every_kind_of_mapping_carries_keys(kind: Any) -> None:
    batch = KeyCollator(lambda rows: kind(collate(rows)))(rows_of(3))
    assert isinstance(batch, kind)
    assert list(batch)[-1] == KEYS


def test_labels_by_other_names_do_not_count() -> None:
    def with_scores(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {**collate(rows), "scores": torch.rand(len(rows))}

    rows = rows_of(3)
    first, second = (KeyCollator(with_scores, ("labels", "scores"))(rows)[KEYS] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(*(KeyCollator(with_scores)(rows)[KEYS] for _ in range(2)))


def packed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"input_ids": torch.tensor([[token for row in rows for token in row["input_ids"]]])}


@pytest.mark.parametrize(
    "other",
    [packed, lambda rows: list(collate(rows).values()), lambda rows: {"text": ["a"] * len(rows), "size": 3}],
    ids=["packed", "a list", "no tensors"],
)
def test_a_batch_that_does_not_have_one_row_for_each_row_of_the_dataset_gets_no_keys(other: Any) -> None:
    rows = rows_of(3)
    batch, plain = KeyCollator(other)(rows), other(rows)
    assert len(batch) == len(plain)
    assert KEYS not in batch


def test_rows_that_cannot_be_counted_get_no_keys() -> None:
    assert KEYS not in KeyCollator(lambda rows: collate(list(rows)))(iter(rows_of(3)))


def test_no_keys_are_added_while_they_are_not_wanted() -> None:
    collator = KeyCollator(collate)
    collator.adds_keys = False
    assert KEYS not in collator(rows_of(3))


def test_a_collator_is_wrapped_once() -> None:
    collator = KeyCollator(KeyCollator(collate, ("labels",)), ("labels", "scores"))
    assert collator.collate is collate
    assert collator.unkeyed == {"labels", "scores"}


def test_keys_that_are_there_stay() -> None:
    keys = torch.zeros(3, 2 * KEY_SIZE, dtype=torch.uint8)
    assert KeyCollator(lambda rows: {**collate(rows), KEYS: keys})(rows_of(3))[KEYS] is keys


def test_other_attributes_are_those_of_the_collator_inside() -> None:
    inside = DataCollatorWithPadding(tiny_tokenizer())
    collator = KeyCollator(inside)
    assert collator.tokenizer is inside.tokenizer
    assert collator.padding is True
    with pytest.raises(AttributeError, match=r"^'DataCollatorWithPadding' object has no attribute 'nothing'$"):
        operator.attrgetter("nothing")(collator)


def test_a_copy_gives_the_same_keys() -> None:
    collator = KeyCollator(collate, ("labels",))
    assert torch.equal(copy.deepcopy(collator)(rows_of())[KEYS], collator(rows_of())[KEYS])
