"""How long rows are in tokens, how many are cut, and how much of a batch is padding. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from hf_freeze.activation_cache.rows import expected_maximum

Array: TypeAlias = np.ndarray[Any, Any]

_KNOWN_ORDERS: Final = frozenset({"random", "sequential", "group_by_length"})
_SHORTEST_BIN: Final = 8  # tokens
_MAX_GROUPS: Final = 50  # batches that Transformers' LengthGroupedSampler sorts together, at most


@dataclass(frozen=True)
class Batching:
    """How rows become batches.

    Attributes:
        order: As `training.train_sampling_strategy` names it.
        batch_size: Rows of a batch.
        group_size: Rows that `group_by_length` takes for a batch: those of one step, accumulated batches together.
    """

    order: str
    batch_size: int
    group_size: int


@dataclass(frozen=True)
class LengthReport:
    """How long the rows of a split are.

    Attributes:
        median: In tokens, as the next two.
        percentile_95: 95 % of the rows are at most as long.
        longest: The longest row.
        num_cut: How many rows are cut.
        padding: The share of padding in what the model reads, from 0 to 1; None where it cannot be told.
        grouped_padding: The same if rows of like length shared a batch.
        histogram: The largest number of tokens of a bin, to the number of its rows; bins double, the last one ends the
            rows.
    """

    median: int
    percentile_95: int
    longest: int
    num_cut: int
    padding: float | None
    grouped_padding: float
    histogram: dict[int, int]


def length_report(lengths: Array, batching: Batching, *, max_length: int | None, lengths_are_cut: bool) -> LengthReport:
    """Returns how long rows are.

    Args:
        lengths: The number of tokens of every row, of shape (rows,); at least one row.
        batching: How rows become batches.
        max_length: The number of tokens at which rows are cut; None where they are not.
        lengths_are_cut: Whether the lengths were taken after cutting.
    """
    read = lengths if max_length is None else np.minimum(lengths, max_length)
    longest_read = max_length if max_length is None or not lengths_are_cut else max_length - 1
    grouped = Batching("group_by_length", batching.batch_size, batching.group_size)
    return LengthReport(
        median=int(np.percentile(lengths, 50, method="lower")),
        percentile_95=int(np.percentile(lengths, 95, method="lower")),
        longest=int(lengths.max()),
        num_cut=0 if longest_read is None else int((lengths > longest_read).sum()),
        padding=padding_share(read, batching) if batching.order in _KNOWN_ORDERS else None,
        grouped_padding=padding_share(read, grouped),
        histogram=_histogram(lengths),
    )


def padding_share(lengths: Array, batching: Batching) -> float:
    """Returns the share of positions in an epoch's batches that hold padding, each batch as wide as its longest row.

    For a random order the expected width of a batch is taken; rows grouped by length are permuted once.

    Args:
        lengths: The number of tokens that are read of every row, of shape (rows,).
        batching: How rows become batches.
    """
    if batching.order == "random":
        width = expected_maximum(lengths.tolist(), batching.batch_size)
        return max(0.0, 1 - float(lengths.mean()) / width)
    ordered = _grouped(lengths, batching.group_size) if batching.order == "group_by_length" else lengths
    starts = np.arange(0, len(ordered), batching.batch_size)
    sizes = np.diff(np.append(starts, len(ordered)))
    return 1 - float(ordered.sum()) / float((np.maximum.reduceat(ordered, starts) * sizes).sum())


def _grouped(lengths: Array, group_size: int) -> Array:
    """Returns the lengths in the order of Transformers' `LengthGroupedSampler`."""
    mixed = np.random.default_rng(0).permutation(lengths)
    together = group_size * max(1, min(len(lengths) // (group_size * 4), _MAX_GROUPS))
    return np.concatenate([-np.sort(-mixed[start : start + together]) for start in range(0, len(mixed), together)])


def _histogram(lengths: Array) -> dict[int, int]:
    edges = [_SHORTEST_BIN]
    while edges[-1] < lengths.max():
        edges.append(2 * edges[-1])
    places = np.searchsorted(edges, lengths)
    return dict(zip(edges, np.bincount(places, minlength=len(edges)).tolist(), strict=True))
