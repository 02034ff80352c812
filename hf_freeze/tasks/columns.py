"""Which columns of a dataset hold the texts, and which the label. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

from datasets import ClassLabel, LargeList, List, Value

from hf_freeze.errors import ConfigError, did_you_mean

# A dataset's columns and what each holds, as `datasets` describes it.
Columns: TypeAlias = Mapping[str, object]

# Names that mean "this is the label", the most telling first.
LABEL_NAMES = (
    "label",
    "labels",
    "target",
    "targets",
    "class",
    "category",
    "sentiment",
    "score",
    "similarity_score",
    "stars",
    "rating",
)

# Pairs of columns that the common sentence-pair datasets use.
TEXT_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("text_a", "text_b"),
    ("text1", "text2"),
)

# Columns that number the rows.
_ROW_NAMES = frozenset({"id", "idx", "index", "guid", "Unnamed: 0", "__index_level_0__"})

_STRINGS = frozenset({"string", "large_string", "string_view"})


def holds_strings(feature: object) -> bool:
    """Returns whether a column of this feature holds one string per row."""
    return isinstance(feature, Value) and feature.dtype in _STRINGS


def holds_floats(feature: object) -> bool:
    """Returns whether a column of this feature holds one floating-point number per row."""
    return isinstance(feature, Value) and feature.dtype.startswith(("float", "double"))


def holds_integers(feature: object) -> bool:
    """Returns whether a column of this feature holds one whole number per row."""
    return isinstance(feature, Value) and feature.dtype.startswith(("int", "uint"))


def listed(names: Collection[str]) -> str:
    """Returns names as they stand in a message: sorted, with commas."""
    return ", ".join(sorted(names))


def _check_columns_exist(key: str, wanted: Sequence[str], columns: Columns) -> None:
    for name in wanted:
        if name not in columns:
            raise ConfigError(
                f"{key}: the dataset has no column {name!r}; it has {listed(columns)}.{did_you_mean(name, columns)}"
            )


def find_label_columns(
    columns: Columns, *, label_column: str | Sequence[str] | None, text_columns: str | Sequence[str] | None
) -> tuple[str, ...]:
    """Returns the column that holds the label, or the several columns of a multi-label task.

    Args:
        columns: The dataset's columns.
        label_column: What the user named, if anything.
        text_columns: The text columns that the user named, if any.

    Raises:
        ConfigError: A named column does not exist, or no column stands out.
    """
    if label_column is not None:
        named = (label_column,) if isinstance(label_column, str) else tuple(label_column)
        _check_columns_exist("data.label_column", named, columns)
        return named
    texts = {text_columns} if isinstance(text_columns, str) else set(text_columns or ())
    rest = [name for name in columns if name not in texts and name not in _ROW_NAMES]
    for name in LABEL_NAMES:
        if name in rest:
            return (name,)
    if texts and len(rest) == 1:
        return (rest[0],)
    not_strings = [name for name in rest if not holds_strings(columns[name])]
    if len(not_strings) == 1:
        return (not_strings[0],)
    raise ConfigError(
        f"data.label_column: no column stands out as the label; the dataset has {listed(columns)}. "
        "Set data.label_column to one of them."
    )


def find_text_columns(
    columns: Columns, *, text_columns: str | Sequence[str] | None, label_columns: Sequence[str]
) -> tuple[str, ...]:
    """Returns the column of texts, or the two columns of a sentence pair.

    Args:
        columns: The dataset's columns.
        text_columns: What the user named, if anything.
        label_columns: The columns that hold the label.

    Raises:
        ConfigError: A named column does not exist or holds no texts, or no column stands out.
    """
    if text_columns is not None:
        named = (text_columns,) if isinstance(text_columns, str) else tuple(text_columns)
        return _checked_text_columns(named, columns, label_columns)
    candidates = [name for name, feature in columns.items() if holds_strings(feature) and name not in label_columns]
    for pair in TEXT_PAIRS:
        if all(name in candidates for name in pair):
            return pair
    plain = [name for name in candidates if name not in LABEL_NAMES and name not in _ROW_NAMES]
    if len(plain) == 1:
        return (plain[0],)
    problem = "several columns hold texts" if plain else "no column holds texts"
    raise ConfigError(
        f"data.text_columns: {problem}; the dataset has {listed(columns)}. "
        "Set data.text_columns to one of them, or to two for sentence pairs."
    )


def _checked_text_columns(named: tuple[str, ...], columns: Columns, label_columns: Sequence[str]) -> tuple[str, ...]:
    """Returns the text columns that the user named, once they are known to be usable."""
    if len(named) not in (1, 2):
        raise ConfigError(
            f"data.text_columns: a row is one text or a pair of texts; got {len(named)} columns. Name one or two."
        )
    _check_columns_exist("data.text_columns", named, columns)
    for name in named:
        if name in label_columns:
            raise ConfigError(
                f"data.text_columns: {name!r} is the label column; the dataset has {listed(columns)}. "
                "Set data.label_column too, or name another column."
            )
        if not holds_strings(columns[name]):
            strings = listed([key for key in columns if holds_strings(columns[key])])
            raise ConfigError(
                f"data.text_columns: the column {name!r} does not hold strings; got {describe(columns[name])}. "
                f"The columns that hold strings: {strings or 'none'}."
            )
    return named


def describe(feature: object) -> str:
    """Returns a few words for what a column holds."""
    if isinstance(feature, ClassLabel):
        return "class labels"
    if isinstance(feature, Value):
        return "strings" if holds_strings(feature) else f"{feature.dtype} values"
    return "lists" if item_of(feature) is not feature else "nested values"


def item_of(feature: object) -> object:
    """Returns what the items of a list column hold, or the feature itself where the column holds no lists."""
    return feature.feature if isinstance(feature, List | LargeList) else feature
