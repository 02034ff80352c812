"""The rows behind a data loader: fetched outside of training, by length, and surveyed before anything is stored.

Shapes: `B` batch, `L` sequence length of the batch, padding included.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from accelerate.data_loader import IterableDatasetShard
from torch.utils.data import DataLoader, IterableDataset

from hf_freeze.activation_cache.collator import KeyCollator, keyed_inputs
from hf_freeze.activation_cache.keys import KEY_SIZE, KEYS

# What gives its rows one after the other only.
_STREAMS = (datasets.IterableDataset, IterableDataset)
# What a dataset or a collator may raise for rows that it is not asked for in training, or not alone.
_FETCH_ERRORS = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
# Rows that are looked at in place of all.
_SAMPLE_SIZE = 64
# So many of these are fetched together, and timed.
_SAMPLED_AT_ONCE = 8
# Batches whose rows are fetched together where it takes that to tell how long they are.
_BATCHES_AT_ONCE = 16


@runtime_checkable
class _FollowsEpochs(Protocol):
    """A dataset whose rows may be other ones in each epoch."""

    def set_epoch(self, epoch: int) -> None: ...


class Rows:
    """The rows of one data loader, which gives them in batches as training will.

    Args:
        loader: A `DataLoader`, prepared by accelerate or not.
        unkeyed: Names of entries of a batch that the prefix does not read: labels, and inputs of a decoder.
    """

    def __init__(self, loader: DataLoader[Any], unkeyed: Collection[str]) -> None:
        self.loader = loader
        self.dataset: Any = loader.dataset
        if isinstance(self.dataset, IterableDatasetShard):
            self.dataset = self.dataset.dataset
        # Loaders that accelerate prepared have a batch sampler in place of a batch size.
        self.batch_size: int = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 1
        self._collate = KeyCollator(loader.collate_fn, unkeyed)
        self._unkeyed = unkeyed

    @property
    def has_length(self) -> bool:
        """Whether rows can be fetched by their number."""
        return isinstance(self.dataset, Sized) and not isinstance(self.dataset, _STREAMS)

    def __len__(self) -> int:
        return len(self.dataset)

    def fetch(self, indices: Sequence[int]) -> dict[str, Any]:
        """Returns a batch of some rows, keys included.

        Args:
            indices: Which rows.
        """
        batch = next(self._load([indices], self._collate)) if self.has_length else self._first_batch(len(indices))
        if not isinstance(batch, Mapping):
            raise TypeError(f"the collator makes a {type(batch).__name__} of its rows in place of a mapping")
        return dict(batch)

    def probe(self, count: int, *, reads_any_stream: bool) -> tuple[dict[str, Any] | None, bool, str | None]:
        """Fetches a few rows of different lengths, and leaves random state as it is.

        Args:
            count: How many rows.
            reads_any_stream: Whether a stream may be read that might not give what was read again: where the reason is
                an error, training does not miss it.

        Returns:
            A batch of the rows, whether rows come out otherwise beside others, padding included, and None; or None,
            True, and the reason why the rows cannot be stored.
        """
        with kept_random_state():
            try:
                batch, reason = self._fetch_probe(count, reads_any_stream=reads_any_stream)
                return batch, batch is None or not self._repeat_in_any_company(batch), reason
            except _FETCH_ERRORS as error:
                return None, True, f"rows cannot be fetched outside of training ({type(error).__name__}: {error})"

    def _fetch_probe(self, count: int, *, reads_any_stream: bool) -> tuple[dict[str, Any] | None, str | None]:
        """Returns a batch of a few rows of different lengths, or the reason why its rows cannot be stored.

        Args:
            count: How many rows.
            reads_any_stream: Whether a stream may be read that might not give what was read again: where the reason is
                an error, training does not miss it.
        """
        if not self.has_length and not isinstance(self.dataset, datasets.IterableDataset):
            kind = type(self.dataset).__name__
            if not reads_any_stream:
                return None, (
                    f"looking at rows of a {kind}, to see whether they stay the same, might use them up; with enabled: "
                    "true they are looked at, and those of a datasets.IterableDataset or a dataset with a length always"
                )
            if iter(self.dataset) is iter(self.dataset):
                return None, (
                    f"the rows of a {kind} come once, and it cannot be seen whether they stay the same; an __iter__ "
                    "that starts anew each time, a datasets.IterableDataset or a dataset with a length shows it"
                )
        indices = self.spread(count) if self.has_length else range(len(self._first(count)))
        if not indices:
            return None, "there are no rows"
        first, second = self._fetch_twice(indices)
        if KEYS not in first:
            return None, "the collator does not make one row of the batch from each row of the dataset"
        if not torch.equal(first[KEYS], second[KEYS]):
            return None, "the same rows give other inputs each time they are fetched (augmentation, masking)"
        return first, None

    def _fetch_twice(self, indices: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Fetches the same rows twice: in two epochs where the dataset is told of them, as accelerate tells it."""
        # That of a stream decides which rows come first.
        if not self.has_length or not isinstance(self.dataset, _FollowsEpochs):
            return self.fetch(indices), self.fetch(indices)
        try:
            self.dataset.set_epoch(1)
            second = self.fetch(indices)
        finally:
            self.dataset.set_epoch(0)
        return self.fetch(indices), second

    def _repeat_in_any_company(self, probe: Mapping[str, Any]) -> bool:
        """Returns whether rows are the same, padding included, by themselves and in a batch with others.

        Args:
            probe: What `_fetch_probe` returned.
        """
        together = probe[KEYS]
        # A stream gives its first rows only.
        alone = [self.fetch([index])[KEYS] for index in (self.spread(len(together)) if self.has_length else [0])]
        return torch.equal(torch.cat(alone)[:, KEY_SIZE:], together[: len(alone), KEY_SIZE:])

    def _first_batch(self, count: int) -> Any:
        return self._collate(self._first(count))

    def _first(self, count: int) -> list[Any]:
        return list(itertools.islice(iter(self.dataset), count))

    @functools.cached_property
    def lengths(self) -> list[int] | None:
        """The number of tokens of every row, or None where rows have none, or would have to be fetched to tell."""
        return token_lengths(self.dataset) if isinstance(self.dataset, datasets.Dataset) else None

    def batches(self, order: Sequence[int], size: int) -> Iterator[dict[str, Any]]:
        """Yields batches of rows of like length, each row fetched once, as the loader fetches it.

        Where it takes fetching to tell how long rows are, those of some batches are fetched together, and sorted then.

        Args:
            order: Which rows: by length where that is known.
            size: How many rows at a time.
        """
        at_once = size * (_BATCHES_AT_ONCE if self.lengths is None and self._have_tokens else 1)
        collate = functools.partial(_sorted_batches, collate=self._collate, size=size)
        for batches in self._load(_parts(order, at_once), collate, num_workers=self.loader.num_workers):
            yield from map(dict, batches)

    def sample(self) -> tuple[list[dict[str, Any]], float]:
        """Returns a sample of rows, evenly spread over the dataset, and the seconds that fetching a row takes.

        The rows are in batches of one: without padding between them. Workers share the seconds.
        """
        fetched = iter(self._load(_parts(self.spread(_SAMPLE_SIZE), _SAMPLED_AT_ONCE), list))
        batches, seconds = [], []
        start = time.perf_counter()
        for rows in fetched:
            seconds.append((time.perf_counter() - start) / len(rows))
            batches += [dict(self._collate([row])) for row in rows]
            start = time.perf_counter()
        return batches, statistics.median(seconds) / max(1, self.loader.num_workers)

    @property
    def _have_tokens(self) -> bool:
        return _num_tokens(next(self._load([[0]], list))) is not None

    def _load(
        self, parts: Sequence[Sequence[int]], collate: Callable[[list[Any]], Any], *, num_workers: int = 0
    ) -> Iterator[Any]:
        """Fetches rows as the loader does, some at a time, and yields what `collate` makes of them."""
        loader: DataLoader[Any] = DataLoader(
            self.dataset,
            batch_sampler=[list(part) for part in parts],
            collate_fn=collate,
            num_workers=num_workers,
            worker_init_fn=self.loader.worker_init_fn,
            multiprocessing_context=self.loader.multiprocessing_context if num_workers else None,
        )
        return iter(loader)

    def keyed(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what of a batch the prefix reads.

        Args:
            batch: A batch.
        """
        return keyed_inputs(batch, self._unkeyed)

    def by_length(self) -> list[int]:
        """Returns the numbers of all rows, the shortest row first; in their own order where lengths are not known."""
        numbers = range(len(self))
        return list(numbers) if self.lengths is None else sorted(numbers, key=self.lengths.__getitem__)

    def spread(self, count: int) -> list[int]:
        """Returns the numbers of up to `count` rows, evenly spread over `by_length`.

        Args:
            count: How many.
        """
        order = self.by_length()
        chosen = np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))
        return [order[int(place)] for place in chosen]


def token_lengths(rows: datasets.Dataset) -> list[int] | None:
    """Returns the number of tokens of every row, or None where rows have no `input_ids`.

    Args:
        rows: Tokenised rows.
    """
    if "input_ids" not in rows.column_names:
        return None
    column = rows.select_columns("input_ids").with_format("arrow")[:]["input_ids"]
    return [int(length) for length in pc.list_value_length(column).to_pylist()]


def _parts(numbers: Sequence[int], size: int) -> list[Sequence[int]]:
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


def _num_tokens(rows: Sequence[Any]) -> list[int] | None:
    """Returns the number of tokens of each row, or None where rows have no tokens."""
    if not all(isinstance(row, Mapping) and "input_ids" in row for row in rows):
        return None
    return [len(row["input_ids"]) for row in rows]


def _sorted_batches(rows: Sequence[Any], *, collate: Callable[[Any], Any], size: int) -> list[Any]:
    """Returns batches of rows, the shortest rows first.

    Args:
        rows: What the dataset gave.
        collate: Makes a batch.
        size: The number of rows in one.
    """
    lengths = _num_tokens(rows)
    order = range(len(rows)) if lengths is None else sorted(range(len(rows)), key=lengths.__getitem__)
    return [collate([rows[index] for index in part]) for part in _parts(order, size)]


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much some rows are.

    Attributes:
        num_rows: How many there are.
        stored_share: Which share of them is stored, from 0 to 1.
        row_bytes: The mean size of a stored row, in bytes.
        positions: The mean number of positions of a row that are computed when it is stored.
        padded_positions: The mean number of positions that a row takes in a batch of training, padding included.
        fetch_seconds: How long fetching a row takes.
    """

    num_rows: int
    stored_share: float
    row_bytes: float
    positions: float
    padded_positions: float
    fetch_seconds: float

    @property
    def num_missing(self) -> float:
        """How many of the rows are not stored."""
        return self.num_rows * (1 - self.stored_share)

    @property
    def missing_bytes(self) -> int:
        """How many bytes the rows take that are not stored."""
        return int(self.num_missing * self.row_bytes)


@dataclass(frozen=True, kw_only=True)
class Survey(Amount):
    """What a sample says about the rows of one loader.

    Attributes:
        rows: The rows.
    """

    rows: Rows


def expected_maximum(values: Sequence[int], count: int) -> float:
    """Returns the expected largest of `count` values drawn at random: the width of a batch of that many rows.

    Args:
        values: What is drawn from, with replacement.
        count: How many are drawn.
    """
    ordered, size = sorted(values), len(values)
    return sum(v * (((i + 1) / size) ** count - (i / size) ** count) for i, v in enumerate(ordered))


@contextlib.contextmanager
def kept_random_state() -> Iterator[None]:
    """Gives all random number generators their state back: what is drawn inside changes nothing outside."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.accelerator.device_count())) if torch.accelerator.is_available() else []
    device_type = accelerator.type if (accelerator := torch.accelerator.current_accelerator()) else "cuda"
    with torch.random.fork_rng(devices, device_type=device_type):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
