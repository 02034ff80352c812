"""The outputs of one frozen prefix: read where they are stored, computed and stored where they are not.

Shapes: `B` batch, `L` sequence length of the batch, padding included, `H` hidden.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch.distributed.fsdp import FSDPModule

from hf_freeze.activation_cache.keys import KEY_SIZE, batch_size, row_keys, row_lengths
from hf_freeze.activation_cache.records import dtype_name, overflown
from hf_freeze.activation_cache.replay import Replay, select_rows
from hf_freeze.activation_cache.store import ActivationStore, size_in_file
from hf_freeze.activation_cache.watching import PrefixWatch

logger = logging.getLogger(__name__)


@dataclass
class CacheStats:
    """What a cache did so far.

    Attributes:
        hits: Rows that were served from the store.
        misses: Rows that had to be computed while training or evaluating.
        built: Rows that were computed and stored before training.
        build_seconds: How long that took, in seconds.
        read_seconds: How long reading took, in seconds.
        write_seconds: How long storing rows took while training or evaluating, in seconds.
        num_bytes: The size of the store, in bytes.
    """

    hits: int = 0
    misses: int = 0
    built: int = 0
    build_seconds: float = 0.0
    read_seconds: float = 0.0
    write_seconds: float = 0.0
    num_bytes: int = 0
    served_positions: int = 0
    computed_positions: int = 0
    compute_seconds: float = 0.0

    @property
    def seconds_saved(self) -> float:
        """The seconds that the prefix would have taken for the rows that hit, less what storing and reading took.

        The prefix is taken to need as long for a position, padding included, as it did where it ran.
        """
        spent = self.build_seconds + self.write_seconds + self.read_seconds
        return self.served_positions * self.position_seconds - spent

    @property
    def position_seconds(self) -> float:
        """How long the prefix takes for a position, in seconds; 0 before it ran."""
        return self.compute_seconds / max(1, self.computed_positions)

    def time_prefix(self, replay: Replay, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Runs a prefix, counts how long it takes, and returns its output of shape (B, L, H).

        Args:
            replay: The prefix.
            inputs: The model's inputs.
        """
        start = time.perf_counter()
        hidden = replay.prefix(inputs)
        hidden.flatten()[0].item()  # waits for the device
        self.compute_seconds += time.perf_counter() - start
        self.computed_positions += hidden[..., 0].numel()
        return hidden


class PrefixOutputs:
    """The outputs of a prefix by the keys of rows.

    Attributes:
        replay: The prefix.
        store: Where its outputs are.
        watch: Whether the weights are still those that the store belongs to.
        trims: Whether rows are stored without their padding.
        stats: What was done.
        position_bytes: How many bytes one position of a row takes in the store.
        runs_on_all: Whether all processes have to run the prefix together, as under FSDP.

    Args:
        replay: The prefix.
        store: Where its outputs are.
        shallower: Stores of shorter prefixes of the same model by their depth, the deepest first.
        watch: Whether the weights are still those that the stores belong to.
        trims: Whether rows are stored without their padding.
        stored_dtype: What rows are stored in.
        hidden: An output of the prefix, for its dtype and the shape of one position: (B, L, H).
        stats: Where to count.
    """

    def __init__(
        self,
        replay: Replay,
        store: ActivationStore,
        shallower: Mapping[int, ActivationStore],
        watch: PrefixWatch,
        *,
        trims: bool,
        stored_dtype: torch.dtype,
        hidden: torch.Tensor,
        stats: CacheStats,
    ) -> None:
        self.replay = replay
        self.store = store
        self.watch = watch
        self.trims = trims
        self.stats = stats
        self.shallower = shallower
        self.stored_dtype = stored_dtype
        self._dtype = hidden.dtype
        self._inner = hidden.shape[2:]
        self._positions = hidden.shape[1] if hidden.ndim > 2 else 1
        self.position_bytes = self._inner.numel() * stored_dtype.itemsize
        self._has_warned = self._has_warned_of_dtype = False
        self.runs_on_all = isinstance(replay.model, FSDPModule) and torch.distributed.is_initialized()

    def names(self, keyed: Mapping[str, Any], keys: torch.Tensor | None) -> list[bytes]:
        """Returns what the rows of a batch are stored under.

        Args:
            keyed: What of the batch the prefix reads.
            keys: The keys of its rows, of shape (B, 2 * KEY_SIZE); None where the batch has none yet.
        """
        keys = row_keys(keyed) if keys is None else keys
        half = keys[:, :KEY_SIZE] if self.trims else keys[:, KEY_SIZE:]
        joined = half.contiguous().cpu().numpy().tobytes()
        return [joined[start : start + KEY_SIZE] for start in range(0, len(joined), KEY_SIZE)]

    @contextlib.contextmanager
    def serve(self, inputs: Mapping[str, Any], keyed: Mapping[str, Any], keys: torch.Tensor | None) -> Iterator[None]:
        """Has the model's calls with a batch start behind the prefix; rows that no call used do not count as served.

        Args:
            inputs: The batch.
            keyed: What of it the prefix reads.
            keys: The keys of its rows; None where it has none yet.
        """
        counted = self.stats.hits, self.stats.served_positions
        hidden = self.fetch(inputs, keyed, self.names(keyed, keys))
        with self.replay.serve(hidden, keyed) as guard:
            yield
        if guard.num_answered:
            return
        self.stats.hits, self.stats.served_positions = counted
        if guard.left_out and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "activation_cache: the model runs in full, as it is called without %s, which the batch holds. Name "
                "what only the loss reads among the label_names, and leave out what nothing reads.",
                ", ".join(sorted(guard.left_out)),
            )

    def fetch(self, inputs: Mapping[str, Any], keyed: Mapping[str, Any], names: Sequence[bytes]) -> torch.Tensor:
        """Returns the prefix's output for a batch, of shape (B, L, H), on the device of its inputs.

        Args:
            inputs: The batch.
            keyed: What of it the prefix reads.
            names: What its rows are stored under.
        """
        start = time.perf_counter()
        self.store.touch()
        stored = self._read(keyed, names)
        missing = [index for index, row in enumerate(names) if not stored.found[index]]
        self.stats.read_seconds += time.perf_counter() - start
        self.stats.hits += len(names) - len(missing)
        self.stats.misses += len(missing)
        fresh = None
        if self.anywhere(bool(missing)):
            # Under FSDP every process has to take part in the forward pass: one without a missing row repeats one.
            fresh = self.compute(inputs, keyed, missing or [0], names)
            if self.store.writable:
                start = time.perf_counter()
                self.put(self._as_stored(keyed, missing, fresh, names))
                self.stats.write_seconds += time.perf_counter() - start
            rounded = fresh.to(self.stored_dtype)
            fresh = torch.where(overflown(fresh, rounded), fresh, rounded.to(self._dtype))
        device = next(value.device for value in keyed.values() if isinstance(value, torch.Tensor))
        if fresh is not None and len(missing) == len(names):
            return fresh
        hidden = stored.hidden.to(device, non_blocking=True).to(self._dtype)
        if fresh is not None and missing:
            hidden[missing] = fresh
        self.stats.served_positions += (len(names) - len(missing)) * hidden[0, ..., 0].numel()
        return hidden

    def stored_beside(
        self, hidden: torch.Tensor, keyed: Mapping[str, Any]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields what is stored of the rows of a batch, each beside what would be stored now.

        Args:
            hidden: The prefix's output for the batch, of shape (B, L, H).
            keyed: What of it the prefix reads.
        """
        names = self.names(keyed, None)
        fresh = dict(self._as_stored(keyed, range(len(names)), hidden, names))
        for name, stored in zip(names, self.store.get(names), strict=True):
            if stored is not None and name in fresh:
                yield stored, fresh[name]

    def compute(
        self, inputs: Mapping[str, Any], keyed: Mapping[str, Any], rows: Sequence[int], names: Sequence[bytes]
    ) -> torch.Tensor:
        """Computes the prefix's output for some rows of a batch, from that of a shorter prefix where it is stored.

        Args:
            inputs: The batch.
            keyed: What of it the prefix reads.
            rows: Which rows.
            names: What the rows of the batch are stored under.
        """
        chosen = select_rows(inputs, rows, len(names))
        depth, hidden = self._shallower_output(keyed, [names[row] for row in rows])
        if depth == 0:
            return self.stats.time_prefix(self.replay, chosen)
        return self.replay.prefix(chosen, start=depth, hidden=hidden)

    def missing(
        self, inputs: Mapping[str, Any], keyed: Mapping[str, Any], names: Sequence[bytes]
    ) -> list[tuple[bytes, torch.Tensor]]:
        """Returns names and values of the rows of a batch that are not stored.

        Args:
            inputs: The batch.
            keyed: What of it the prefix reads.
            names: What its rows are stored under.
        """
        rows = [index for index, is_stored in enumerate(self.store.has(names)) if not is_stored]
        if not self.anywhere(bool(rows)):
            return []
        return self._as_stored(keyed, rows, self.compute(inputs, keyed, rows or [0], names), names)

    def put(self, rows: Sequence[tuple[bytes, torch.Tensor]]) -> int:
        """Stores rows that were computed, and returns how many; none where the weights are no longer the store's.

        Args:
            rows: Names and values.
        """
        return self.store.put(rows) if rows and not self.watch.values_changed() else 0

    def num_positions(self, keyed: Mapping[str, Any]) -> list[int]:
        """Returns how many positions each row of a batch takes in the store.

        Args:
            keyed: What of the batch the prefix reads.
        """
        lengths = row_lengths(keyed) if self.trims else None
        return lengths if lengths is not None else [self._positions] * batch_size(keyed)

    def stored_bytes(self, positions: int) -> int:
        """Returns how many bytes of the disk a row takes.

        Args:
            positions: How many positions it has.
        """
        return size_in_file(positions * self.position_bytes)

    def _read(self, keyed: Mapping[str, Any], names: Sequence[bytes]) -> _Stored:
        mask = keyed.get("attention_mask") if self.trims else None
        if mask is not None and mask.ndim == 2:  # Rows of any other batch are real from end to end.
            out = torch.zeros((*mask.shape, *self._inner), dtype=self.stored_dtype)
            return _Stored(out, self.store.get_into(names, out))
        rows = self.store.get(names)
        like = next((row for row in rows if row is not None), None)
        if like is None:
            return _Stored(torch.empty(0), [False] * len(rows))
        fits = [row is not None and row.shape == like.shape and row.dtype == like.dtype for row in rows]
        return _Stored(
            torch.stack([row if row is not None and fit else like for row, fit in zip(rows, fits, strict=True)]), fits
        )

    def _shallower_output(self, keyed: Mapping[str, Any], names: Sequence[bytes]) -> tuple[int, torch.Tensor | None]:
        """Returns depth and stored output of the deepest shorter prefix that has all the rows; 0 where none has."""
        if self.runs_on_all:
            return 0, None  # Every process has to run the same blocks.
        device = next(value.device for value in keyed.values() if isinstance(value, torch.Tensor))
        for depth, store in self.shallower.items():
            if not store.folder.is_dir():
                continue  # It went to make room, and reading would make an empty one.
            rows = store.get(names)
            if all(row is not None for row in rows):
                whole = [row for row in rows if row is not None]
                mask = keyed.get("attention_mask") if self.trims else None
                width = whole[0].shape[0] if mask is None or mask.ndim != 2 else mask.shape[1]
                hidden = torch.zeros((len(whole), width, *whole[0].shape[1:]), dtype=self._dtype)
                for index, row in enumerate(whole):
                    hidden[index, : len(row)] = row
                return depth, hidden.to(device)
        return 0, None

    def _as_stored(
        self, keyed: Mapping[str, Any], rows: Sequence[int], hidden: torch.Tensor, names: Sequence[bytes]
    ) -> list[tuple[bytes, torch.Tensor]]:
        """Returns names and values of some rows of a batch, without those that the stored dtype cannot hold."""
        lengths = row_lengths(keyed) if self.trims else None
        output = hidden.to(self.stored_dtype)
        is_held = (~overflown(hidden, output).flatten(1).any(dim=1)).tolist()
        if not all(is_held) and not self._has_warned_of_dtype:
            self._has_warned_of_dtype = True
            logger.warning(
                "activation_cache: rows with numbers that %s cannot hold are not stored, and computed each time. Set "
                "activation_cache.dtype to auto or bfloat16 to store them.",
                dtype_name(self.stored_dtype),
            )
        output = output.cpu()
        return [
            (names[row], output[index, : lengths[row]] if lengths is not None else output[index])
            for index, row in enumerate(rows)
            if is_held[index]
        ]

    def anywhere(self, is_missing: bool) -> bool:
        """Returns whether rows are missing here or, where all processes run the prefix together, in any of them.

        Args:
            is_missing: Whether rows are missing here.
        """
        if not self.runs_on_all:
            return is_missing
        flag = torch.tensor(int(is_missing), device=next(self.replay.model.parameters()).device)
        torch.distributed.all_reduce(flag)
        return bool(flag.item())

    def close(self) -> None:
        """Closes the stores; the next use opens them again."""
        for store in (self.store, *self.shallower.values()):
            store.close()


@dataclass(frozen=True)
class _Stored:
    """What was read: rows of shape (B, L, H), and which of them were found."""

    hidden: torch.Tensor
    found: list[bool]
