"""What kind of problem the labels pose, what they are called, and which number each of them gets. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias, get_args

from datasets import ClassLabel, Value

from hf_freeze.errors import ConfigError, did_you_mean
from hf_freeze.tasks.columns import Columns, describe, holds_floats, holds_integers, item_of

# The words that transformers uses; they pick the loss in the model's forward.
ProblemType: TypeAlias = Literal["single_label_classification", "multi_label_classification", "regression"]

# `datasets` marks the labels that a published test split keeps back with this number.
MISSING_ID = -1

# A message names this many labels at most.
_NUM_LISTED = 20


def decide_problem_type(columns: Columns, *, label_columns: Sequence[str], problem_type: str | None) -> ProblemType:
    """Returns the kind of problem.

    Several columns and lists are multi label, floats are regression, anything else is single label.

    Args:
        columns: The dataset's columns.
        label_columns: The columns that hold the label.
        problem_type: What the user asked for, if anything.

    Raises:
        ConfigError: The columns hold nothing that can be a label, or nothing that fits what was asked for.
    """
    kinds: tuple[ProblemType, ...] = get_args(ProblemType)
    if problem_type is not None and problem_type not in kinds:
        raise ConfigError(
            f"data.problem_type: there is no such problem type; got {problem_type!r}. "
            f"The problem types are {', '.join(sorted(kinds))}.{did_you_mean(problem_type, kinds)}"
        )
    fitting = _fitting_problem_types(columns, label_columns)
    if problem_type is None:
        return fitting[0]
    for kind in fitting:
        if kind == problem_type:
            return kind
    raise ConfigError(
        f"data.problem_type: {problem_type!r} does not fit {_named(label_columns)}; got "
        f"{describe(columns[label_columns[0]])}. What fits: {', '.join(sorted(fitting))}."
    )


def _named(label_columns: Sequence[str]) -> str:
    return f"the column {label_columns[0]!r}" if len(label_columns) == 1 else f"the columns {', '.join(label_columns)}"


def _fitting_problem_types(columns: Columns, label_columns: Sequence[str]) -> tuple[ProblemType, ...]:
    """Returns the kinds of problem that the label columns can pose, the one to infer first."""
    if len(label_columns) > 1:
        for name in label_columns:
            feature = columns[name]
            if not (holds_floats(feature) or holds_integers(feature) or feature == Value("bool")):
                raise ConfigError(
                    f"data.label_column: each of several label columns holds 0 or 1; the column {name!r} holds "
                    f"{describe(feature)}. Name one column, or columns of numbers."
                )
        return ("multi_label_classification",)
    feature = columns[label_columns[0]]
    if item_of(feature) is not feature:
        return ("multi_label_classification",)
    if isinstance(feature, ClassLabel):
        return ("single_label_classification",)
    if not isinstance(feature, Value):
        raise ConfigError(
            f"data.label_column: the column {label_columns[0]!r} holds {describe(feature)}, which cannot be labels. "
            "Name a column of strings, numbers, class labels, or lists of them."
        )
    if holds_floats(feature):
        return ("regression", "single_label_classification")
    if holds_integers(feature):
        return ("single_label_classification", "regression")
    return ("single_label_classification",)


def label_name(value: Any, feature: object) -> str | None:
    """Returns what a label is called, or None where the value marks a missing label.

    Args:
        value: What stands in the dataset.
        feature: What the column, or the list in it, holds.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(feature, ClassLabel):
        return None if value == MISSING_ID else str(feature.names[value])
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if str(value).strip() else None


def infer_labels(values: Iterable[Any], feature: object) -> tuple[str, ...]:
    """Returns the names of the labels: those of the class labels, else what occurs, in the order of numbers or letters.

    Args:
        values: The distinct values of the training split.
        feature: What the column, or the list in it, holds.
    """
    if isinstance(feature, ClassLabel):
        return tuple(feature.names)
    found = {label_name(value, feature): value for value in values}
    found.pop(None, None)
    if holds_integers(feature):
        found.pop(str(MISSING_ID), None)
    numbers = all(isinstance(value, int | float) for value in found.values())
    return tuple(
        sorted((name for name in found if name is not None), key=lambda name: found[name] if numbers else name)
    )


def check_labels(labels: Sequence[object]) -> tuple[str, ...]:
    """Returns the labels that the user listed, as strings.

    Args:
        labels: Names, or numbers that stand for themselves.

    Raises:
        ConfigError: A label is listed twice, or none is.
    """
    names = tuple(str(label) for label in labels)
    if not names:
        raise ConfigError("data.labels: the list is empty. List the labels, or leave the key out to infer them.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"data.labels: a label is listed twice; got {twice[0]!r}. List each label once.")
    return names


def label_ids(values: Iterable[Any], feature: object, labels: Sequence[str]) -> dict[Any, int]:
    """Returns the id of every value that is one of the labels; values that are missing or unknown are left out.

    Whole numbers stand for themselves where every label is one ("1" to "5"), and for positions where labels have
    names (0 for the first).

    Args:
        values: The distinct values of a split.
        feature: What the column, or the list in it, holds.
        labels: The names of the labels in the order of their ids.
    """
    positions = {name: position for position, name in enumerate(labels)}
    if holds_integers(feature) and not all(name.removeprefix("-").isdigit() for name in labels):
        return {value: value for value in values if value is not None and 0 <= value < len(labels)}
    names = {value: label_name(value, feature) for value in values}
    return {value: positions[name] for value, name in names.items() if name is not None and name in positions}


def is_missing(value: Any, feature: object) -> bool:
    """Returns whether a value that has no id marks a missing label, rather than an unknown one.

    Args:
        value: What stands in the dataset.
        feature: What the column, or the list in it, holds.
    """
    return label_name(value, feature) is None or (holds_integers(feature) and value == MISSING_ID)


def missing_label_error(num_missing: int, *, row: int, value: Any, split: str, label_column: str) -> ConfigError:
    """Returns the error for rows without a label.

    Args:
        num_missing: How many rows have none.
        row: The first of them.
        value: What stands there.
        split: The split's name in the dataset.
        label_column: The label column.
    """
    more = f" and {num_missing - 1} more" if num_missing > 1 else ""
    hint = " Where -1 is a label, list it in data.labels." if value == MISSING_ID else ""
    return ConfigError(
        f"data.label_column: labels are missing in the column {label_column!r} of the split {split!r}; got {value!r} "
        f"in row {row}{more}, counted from 0. Remove these rows, or give them a label.{hint}"
    )


def unknown_label_error(value: Any, *, feature: object, row: int, split: str, labels: Sequence[str]) -> ConfigError:
    """Returns the error for a label that is not among the labels.

    Args:
        value: What stands in the dataset.
        feature: What the column, or the list in it, holds.
        row: The first row where it stands.
        split: The split's name in the dataset.
        labels: The names of the labels.
    """
    shown = sorted(labels)[:_NUM_LISTED]
    more = f" and {len(labels) - _NUM_LISTED} more" if len(labels) > _NUM_LISTED else ""
    name = label_name(value, feature) or ""
    return ConfigError(
        f"data.labels: a label is not among the labels; got {name!r} in row {row} of the "
        f"split {split!r}, counted from 0. The labels are {', '.join(shown)}{more}.{did_you_mean(name, labels)}"
    )
