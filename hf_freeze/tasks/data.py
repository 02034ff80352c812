"""Checking the texts of a dataset, and turning them into model inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_freeze.errors import ConfigError

# A message names this many rows at most.
_NUM_ROWS_SHOWN = 5


def check_texts(dataset: Dataset, *, text_columns: Sequence[str], split: str) -> None:
    """Raises where a text is missing or blank: nothing can be learned from it, and it is mostly a sign of broken files.

    Args:
        dataset: The rows of a split.
        text_columns: The columns of texts.
        split: The split's name in the dataset.

    Raises:
        ConfigError: Some texts are missing or blank.
    """
    for column in text_columns:
        rows = [row for row, text in enumerate(dataset[column][:]) if text is None or not text.strip()]
        if rows:
            raise ConfigError(
                f"data.text_columns: texts are empty or blank in the column {column!r} of the split {split!r}; got "
                f"{_listed_rows(rows)}. Remove these rows or fill them in; in csv files, words such as null and NA "
                "read as empty unless data.load_dataset.keep_default_na is false."
            )


def _listed_rows(rows: Sequence[int]) -> str:
    shown = ", ".join(str(row) for row in rows[:_NUM_ROWS_SHOWN])
    more = f" and {len(rows) - _NUM_ROWS_SHOWN} more" if len(rows) > _NUM_ROWS_SHOWN else ""
    return f"{len(rows)}: {'row' if len(rows) == 1 else 'rows'} {shown}{more}, counted from 0"


def tokenize_rows(
    dataset: Dataset,
    *,
    tokenizer: PreTrainedTokenizerBase,
    text_columns: Sequence[str],
    max_length: int | None,
    split: str,
) -> Dataset:
    """Returns the rows with model inputs in the place of texts; batches are padded later, each to its longest row.

    Args:
        dataset: The rows of a split: texts and `labels`.
        tokenizer: The model's tokenizer.
        text_columns: One column of texts, or two for pairs.
        max_length: Longer texts are cut to this many tokens; None cuts nothing.
        split: The split's name in the dataset.
    """
    tokenized: Dataset = dataset.map(
        _tokenize_batch,
        batched=True,
        fn_kwargs={"tokenizer": tokenizer, "text_columns": tuple(text_columns), "max_length": max_length},
        remove_columns=list(text_columns),
        desc=f"Tokenising {split}",
    )
    return tokenized


def _tokenize_batch(
    batch: Mapping[str, list[str]],
    *,
    tokenizer: PreTrainedTokenizerBase,
    text_columns: Sequence[str],
    max_length: int | None,
) -> Mapping[str, list[Any]]:
    texts = [batch[name] for name in text_columns]
    return dict(tokenizer(*texts, truncation=max_length is not None, max_length=max_length))


def count_tokens(
    dataset: Dataset, *, tokenizer: PreTrainedTokenizerBase, text_columns: Sequence[str], split: str
) -> np.ndarray[Any, Any]:
    """Returns how many tokens every row has before it is cut, of shape (rows,); a missing text counts as an empty one.

    Args:
        dataset: The rows of a split.
        tokenizer: The model's tokenizer.
        text_columns: One column of texts, or two for pairs.
        split: The split's name in the dataset.
    """
    counted = dataset.map(
        _count_batch,
        batched=True,
        fn_kwargs={"tokenizer": tokenizer, "text_columns": tuple(text_columns)},
        remove_columns=dataset.column_names,
        desc=f"Counting the tokens of {split}",
    )
    return np.asarray(counted["length"][:])


def _count_batch(
    batch: Mapping[str, list[str | None]], *, tokenizer: PreTrainedTokenizerBase, text_columns: Sequence[str]
) -> dict[str, list[int]]:
    texts = [[text or "" for text in batch[name]] for name in text_columns]
    # Not verbose: that rows are longer than the model can read is what the caller wants to know.
    ids = tokenizer(*texts, return_attention_mask=False, return_token_type_ids=False, verbose=False)["input_ids"]
    return {"length": [len(row) for row in ids]}
