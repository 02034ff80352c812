"""Turning the labels of a split into the numbers that the loss of its problem type wants."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from datasets import Dataset, Features, List, Value

from hf_freeze.errors import ConfigError
from hf_freeze.tasks.columns import holds_floats, item_of
from hf_freeze.tasks.labels import (
    ProblemType,
    is_missing,
    label_ids,
    missing_label_error,
    unknown_label_error,
)

Batch: TypeAlias = Mapping[str, list[Any]]


@dataclass(frozen=True)
class _Encoding:
    """How the labels of a split become the column `labels`: a function of a batch, its arguments, what it returns."""

    function: Callable[..., dict[str, list[Any]]]
    arguments: dict[str, Any]
    feature: object


def distinct_labels(dataset: Dataset, label_column: str) -> list[Any]:
    """Returns the distinct values of a label column, or of the lists in it, in the order in which they first occur.

    Args:
        dataset: The rows of a split.
        label_column: The label column.
    """
    feature = dataset.features[label_column]
    if item_of(feature) is feature:
        return list(dataset.unique(label_column))
    return list(dict.fromkeys(value for values in dataset[label_column][:] for value in _items(values)))


def _items(values: list[Any] | None) -> list[Any]:
    """Returns the items of a list in a dataset: a list that is missing counts as one item that is."""
    return [None] if values is None else values


def has_labels(dataset: Dataset, label_columns: Sequence[str]) -> bool:
    """Returns whether the rows have labels: published test splits keep theirs back.

    Args:
        dataset: The rows of a split.
        label_columns: The columns that hold the label.
    """
    for column in label_columns:
        item = item_of(dataset.features[column])
        if all(is_missing(value, item) for value in distinct_labels(dataset, column)):
            return False
    return True


def warn_about_one_class(values: Iterable[Any], *, split: str) -> None:
    """Warns where all rows to learn from have the same label.

    Args:
        values: The distinct labels of the split, by name or id.
        split: The split's name in the dataset.
    """
    found = list(values)
    if len(found) == 1:
        warnings.warn(
            f"data.label_column: all rows of the split {split!r} have the same label, {found[0]!r}; the model learns "
            "from them to give this label always.",
            UserWarning,
            stacklevel=2,
        )


def encode_labels(
    dataset: Dataset,
    *,
    text_columns: Sequence[str],
    label_columns: Sequence[str],
    problem_type: ProblemType,
    labels: Sequence[str],
    split: str,
) -> Dataset:
    """Returns the rows with nothing but the text columns and `labels`.

    Labels are ids for single label, rows of zeros and ones for multi label, and numbers for regression.

    Args:
        dataset: The rows of a split.
        text_columns: The columns of texts.
        label_columns: The columns that hold the label.
        problem_type: What kind of problem it is.
        labels: The names of the labels in the order of their ids.
        split: The split's name in the dataset.

    Raises:
        ConfigError: A label is missing, or is not among the labels.
    """
    column = label_columns[0]
    if problem_type == "regression":
        encoding = _numbers(dataset, column, split)
    elif problem_type == "single_label_classification":
        ids = _checked_ids(dataset, column, labels, split)
        encoding = _Encoding(_encode_ids, {"column": column, "ids": ids}, Value("int64"))
    elif len(label_columns) > 1:
        encoding = _shares_by_column(dataset, label_columns, split)
    elif holds_floats(item_of(dataset.features[column])):
        encoding = _shares_by_row(dataset, column, len(labels), split)
    else:
        ids = _checked_ids(dataset, column, labels, split)
        arguments = {"column": column, "ids": ids, "num_labels": len(labels)}
        encoding = _Encoding(_encode_sets, arguments, List(Value("float32")))
    texts = {name: dataset.features[name] for name in text_columns}
    encoded: Dataset = dataset.map(
        encoding.function,
        batched=True,
        fn_kwargs=encoding.arguments,
        remove_columns=[name for name in dataset.column_names if name not in texts],
        features=Features({**texts, "labels": encoding.feature}),
        desc=f"Reading the labels of {split}",
    )
    return encoded


def _encode_ids(batch: Batch, *, column: str, ids: Mapping[Any, int]) -> dict[str, list[Any]]:
    return {"labels": [ids[value] for value in batch[column]]}


def _encode_sets(batch: Batch, *, column: str, ids: Mapping[Any, int], num_labels: int) -> dict[str, list[Any]]:
    rows = []
    for values in batch[column]:
        present = {ids[value] for value in values}
        rows.append([float(position in present) for position in range(num_labels)])
    return {"labels": rows}


def _copy_column(batch: Batch, *, column: str) -> dict[str, list[Any]]:
    return {"labels": batch[column]}


def _join_columns(batch: Batch, *, columns: Sequence[str]) -> dict[str, list[Any]]:
    rows = zip(*(batch[name] for name in columns), strict=True)
    return {"labels": [[float(value) for value in row] for row in rows]}


def _numbers(dataset: Dataset, column: str, split: str) -> _Encoding:
    """Returns the encoding of a regression's labels, which must be finite numbers."""
    bad = {row: value for row, value in enumerate(dataset[column][:]) if value is None or not math.isfinite(value)}
    if bad:
        row, value = next(iter(bad.items()))
        raise missing_label_error(len(bad), row=row, value=value, split=split, label_column=column)
    return _Encoding(_copy_column, {"column": column}, Value("float32"))


def _is_share(value: Any) -> bool:
    return value is not None and 0 <= value <= 1


def _shares_by_column(dataset: Dataset, columns: Sequence[str], split: str) -> _Encoding:
    """Returns the encoding of labels with a column each, which hold how far the label applies: 0, 1, or between."""
    for column in columns:
        for row, value in enumerate(dataset[column][:]):
            if not _is_share(value):
                raise ConfigError(
                    f"data.label_column: with several label columns each value lies between 0 and 1; got {value!r} "
                    f"in row {row} of the split {split!r}, counted from 0, in the column {column!r}. Mend the row, or "
                    "name one column."
                )
    return _Encoding(_join_columns, {"columns": tuple(columns)}, List(Value("float32")))


def _shares_by_row(dataset: Dataset, column: str, num_labels: int, split: str) -> _Encoding:
    """Returns the encoding of lists that hold one number for each label: 0, 1, or between."""
    for row, values in enumerate(dataset[column][:]):
        if values is None or len(values) != num_labels or not all(_is_share(value) for value in values):
            raise ConfigError(
                f"data.label_column: a list of floats holds one number between 0 and 1 for each of the {num_labels} "
                f"labels; got {values!r} in row {row} of the split {split!r}, counted from 0, in the column "
                f"{column!r}. Mend the row, or list the labels in data.labels."
            )
    return _Encoding(_copy_column, {"column": column}, List(Value("float32")))


def _checked_ids(dataset: Dataset, column: str, labels: Sequence[str], split: str) -> dict[Any, int]:
    """Returns the id of every value in a label column, once all rows are known to have a label that exists."""
    feature = dataset.features[column]
    item = item_of(feature)
    ids = label_ids(distinct_labels(dataset, column), item, labels)
    rows = enumerate(dataset[column][:])
    values = ((row, value) for row, found in rows for value in ([found] if item is feature else _items(found)))
    bad = [(row, value) for row, value in values if value not in ids]
    for row, value in bad:
        if not is_missing(value, item):
            raise unknown_label_error(value, feature=item, row=row, split=split, labels=labels)
    if bad:
        row, value = bad[0]
        raise missing_label_error(len(bad), row=row, value=value, split=split, label_column=column)
    return ids
