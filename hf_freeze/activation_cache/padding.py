"""Pads a batch of tokenized rows as `DataCollatorWithPadding` does, several times as fast.

Next to a step that trains a head alone, the tokenizer's own padding takes longer than everything else.

Shapes: `B` batch, `L` length of the longest row.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from transformers import BatchEncoding, DataCollatorWithPadding, PreTrainedTokenizerBase

# So many batches are padded both ways before the quick way is relied on.
NUM_CHECKED: Final = 4

_LABELS = ("label", "label_ids")  # what `DataCollatorWithPadding` calls labels


class QuickPadding:
    """Stands in for a `DataCollatorWithPadding` of a tokenizer that pads as the base class of tokenizers does.

    The first batches are padded both ways. From the first difference on, and wherever rows hold anything but lists of
    whole numbers and plain labels, the collator itself makes the batch.

    Attributes:
        collate: The collator.
        is_trusted: Whether no difference was found.

    Args:
        collate: The collator.
    """

    def __init__(self, collate: DataCollatorWithPadding) -> None:
        self.collate = collate
        self.is_trusted = True
        self._left_to_check = NUM_CHECKED

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        """Returns the batch of some rows: tensors of shape (B, L), and labels of shape (B).

        Args:
            rows: Mappings with lists of whole numbers by the names of inputs, and labels.
        """
        quick = self._padded(rows) if self.is_trusted else None
        if quick is not None and not self._left_to_check:
            return quick
        batch = self.collate(rows)
        if quick is not None:
            self._left_to_check -= 1
            self.is_trusted = _is_equal(quick, batch)
        return batch

    def _padded(self, rows: Sequence[Mapping[str, Any]]) -> BatchEncoding | None:
        """Returns the batch, or None where rows hold something else."""
        tokenizer = self.collate.tokenizer
        main = tokenizer.model_input_names[0]
        fills = {
            main: tokenizer.pad_token_id,
            "attention_mask": 0,
            "token_type_ids": tokenizer.pad_token_type_id,
            "special_tokens_mask": 1,
        }
        try:
            lengths = [len(row[main]) for row in rows]
            columns = {name: [row[name] for row in rows] for name in rows[0]}
            batch = {
                name: self._rectangle(values, fills[name], lengths) if type(values[0]) is list else _vector(values)
                for name, values in columns.items()
            }
        except (KeyError, OverflowError, TypeError, _NotPlain):
            return None
        for name in _LABELS:
            if name in batch:
                batch["labels"] = batch.pop(name)
        return BatchEncoding(batch)

    def _rectangle(self, values: Sequence[list[int]], fill: int, lengths: Sequence[int]) -> torch.Tensor:
        """Returns lists of whole numbers as a tensor of shape (B, L)."""
        multiple = self.collate.pad_to_multiple_of or 1
        width = -(-max(lengths) // multiple) * multiple
        is_left = self.collate.tokenizer.padding_side == "left"
        numbers = array("q")
        for value, length in zip(values, lengths, strict=True):
            if type(value) is not list or len(value) != length:
                raise _NotPlain
            padding = [fill] * (width - length)
            numbers.fromlist(padding + value if is_left else value + padding)
        if not width:
            raise _NotPlain
        return torch.frombuffer(numbers, dtype=torch.int64).view(len(values), width)


class _NotPlain(Exception):
    """Rows hold something that is padded in another way."""


def quick_padding(collate: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Returns a quicker collator that makes the same batches, or the collator itself where there is none.

    Args:
        collate: Any collator.
    """
    if type(collate) is not DataCollatorWithPadding or collate.return_tensors != "pt":
        return collate
    base, own = PreTrainedTokenizerBase, type(collate.tokenizer)
    is_plain = own.pad is base.pad and own._pad is base._pad
    pads_to_longest = collate.padding is True or collate.padding == "longest"
    return QuickPadding(collate) if is_plain and pads_to_longest else collate


def _vector(values: Sequence[Any]) -> torch.Tensor:
    """Returns whole or real numbers as a tensor of shape (B)."""
    if any(type(value) is not type(values[0]) for value in values) or type(values[0]) not in (int, float):
        raise _NotPlain
    return torch.tensor(values)


def _is_equal(quick: Mapping[str, Any], batch: Mapping[str, Any]) -> bool:
    return list(quick) == list(batch) and all(
        isinstance(value, torch.Tensor) and value.dtype == quick[name].dtype and torch.equal(value, quick[name])
        for name, value in batch.items()
    )
