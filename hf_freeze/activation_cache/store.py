"""The hidden states of one fingerprint, kept in LMDB: whole or absent, and never in the way of training.

Shapes: `B` batch, `L` sequence length of the batch, padding included, `H` hidden size, `l` length of a row.
"""

from __future__ import annotations

import contextlib
import logging
import math
import mmap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import lmdb
import torch

from hf_freeze.activation_cache.descriptions import Description, one_at_a_time
from hf_freeze.activation_cache.environment import DAMAGE, SharedEnvironment, acquire, release
from hf_freeze.activation_cache.records import Record, byte_view, decode, dtype_name, encode, to_tensor

logger = logging.getLogger(__name__)

_Found = TypeVar("_Found")

# Bytes and rows in one transaction; what is put at once beyond that takes several.
_MAX_TRANSACTION_SIZE = 64 << 20
_MAX_TRANSACTION_ROWS = 4096
# Added to the key of a row whose record is damaged.
_NEXT = b"+"
# A record larger than this, in bytes, fills pages of its own.
_MAX_INLINE_SIZE = 2000


class ActivationStore:
    """Rows of hidden states of one fingerprint, in one LMDB environment.

    The file is opened on first use. A process that was forked from one that has it open must not use it: dataloader
    workers never need it. Damage to a row is found by its digest, and the row counts as missing.

    Attributes:
        folder: Where the rows lie: `root/fingerprint`.
        writable: Whether rows are still stored; False after the disk, or `max_size`, was full.
        reason: Why rows are no longer stored.
        max_size: How large the file may become, in bytes; None leaves it to the disk.
        make_room: Asked before rows are written, with the store and the bytes that its file would take; returns what
            `max_size` is from then on. No other process fills a store of the same root meanwhile.

    Args:
        root: The folder with all stores, on a local disk.
        fingerprint: Of everything that the rows are made with; the name of a folder.
        model: The model's name, for people.
        depth: How many blocks the rows went through.
        dtype: What rows are stored in; None keeps what they come in.
        max_size: How large the file may become, in bytes; None leaves it to the disk.
    """

    def __init__(
        self,
        root: Path,
        fingerprint: str,
        *,
        model: str = "",
        depth: int = 0,
        dtype: torch.dtype | None = None,
        max_size: int | None = None,
    ) -> None:
        self.folder = root / fingerprint
        self.writable = True
        self.reason: str | None = None
        self._dtype = dtype
        self.max_size = max_size
        self.make_room: Callable[[ActivationStore, int], int] | None = None
        now = time.time()
        name = "" if dtype is None else dtype_name(dtype)
        self._description = Description(fingerprint, model, depth, name, created=now, last_used=now)
        self._shared: SharedEnvironment | None = None
        self._damaged: set[bytes] = set()
        self._is_unreadable = False

    def __len__(self) -> int:
        with contextlib.suppress(lmdb.Error):
            return self._environment().num_rows
        return 0

    @property
    def num_bytes(self) -> int:
        """How much of the disk the rows take, in bytes."""
        with contextlib.suppress(lmdb.Error):
            return self._environment().used_bytes
        return 0

    @property
    def damaged(self) -> int:
        """How many rows were asked for and found damaged."""
        return len(self._damaged)

    def get(self, keys: Sequence[bytes]) -> list[torch.Tensor | None]:
        """Returns the rows of some keys, in the shape and dtype that they are stored in; None for what is missing.

        Args:
            keys: What the rows were put under.

        Raises:
            CacheError: If the store cannot be opened, or belongs to the process that this one was forked from.
        """
        rows: list[torch.Tensor | None] = [None] * len(keys)
        for index, record in self._look_up(keys, self._find):
            rows[index] = to_tensor(record)
        return rows

    def get_into(self, keys: Sequence[bytes], out: torch.Tensor) -> list[bool]:
        """Writes rows to the beginnings of the rows of a batch, and returns for which keys it did.

        False stands for a row that is missing, or that does not fit: longer than `L`, or of another `H`.

        Args:
            keys: What the rows were put under, at most `B`.
            out: A CPU tensor of shape (B, L, H), zeros where nothing will be written.

        Raises:
            CacheError: If the store cannot be opened, or belongs to the process that this one was forked from.
        """
        found = [False] * len(keys)
        staged: dict[torch.dtype, tuple[torch.Tensor, list[tuple[int, int]]]] = {}
        direct = byte_view(out) if out.is_contiguous() else None
        cell, (length, *inner) = math.prod(out.shape[2:]), out.shape[1:]
        for index, record in self._look_up(keys, self._find):
            if len(record.shape) != 1 + len(inner) or [*record.shape[1:]] != inner or record.shape[0] > length:
                continue
            found[index] = True
            if direct is not None and record.dtype == out.dtype:
                view = direct
            else:  # one conversion of whole rows at the end is faster than one for each
                if record.dtype not in staged:
                    staged[record.dtype] = (torch.empty(out.shape, dtype=record.dtype), [])
                staging, written = staged[record.dtype]
                written.append((index, record.shape[0]))
                view = byte_view(staging)
            start = index * length * cell * record.dtype.itemsize
            view[start : start + len(record.values)] = record.values
        for staging, written in staged.values():
            for index, size in written:
                out[index, :size].copy_(staging[index, :size])
        return found

    def has(self, keys: Sequence[bytes]) -> list[bool]:
        """Says for which keys there is a row; whether it is intact shows when it is read.

        Args:
            keys: What the rows were put under.

        Raises:
            CacheError: If the store cannot be opened, or belongs to the process that this one was forked from.
        """
        found = [False] * len(keys)
        for index, _ in self._look_up(keys, lambda transaction, key: transaction.get(key)):
            found[index] = True
        return found

    def put(self, rows: Iterable[tuple[bytes, torch.Tensor]]) -> int:
        """Stores rows that are not stored, and returns how many it wrote.

        Where that is not possible any more, it says so once and sets `writable` to False: training can go on.

        Args:
            rows: Keys and rows; rows of any shape, on any device.

        Raises:
            CacheError: If a row's dtype cannot be stored, if the store cannot be opened, or belongs to the process that
                this one was forked from.
        """
        environment = self._environment()
        written = 0
        for records in self._transactions(rows):
            if not self.writable:
                break
            try:
                with self._room(environment, records):
                    written += self._write(environment, records)
            except (lmdb.Error, OSError) as error:
                self._stop_writing(f"{self.folder} takes no more rows ({error})")
        return written

    def verify(self) -> tuple[int, int]:
        """Reads every row, and returns how many are intact and how many are damaged.

        Rows behind a damaged page, which cannot be reached, count as one.

        Raises:
            CacheError: If the store cannot be opened, or belongs to the process that this one was forked from.
        """
        intact = damaged = 0
        try:
            with self._environment().transaction() as transaction, transaction.cursor() as cursor:
                for name, stored in cursor:
                    is_intact, is_replaced = _examine(transaction, bytes(name), stored)
                    intact += is_intact
                    damaged += not is_intact and not is_replaced
        except lmdb.Error:
            damaged += 1
        return intact, damaged

    def touch(self) -> None:
        """Notes that the store is in use, at most once a minute: the longest unused is the first to be removed."""
        self._environment().touch()

    def close(self) -> None:
        """Closes the file, unless another store of this process reads it; the next use opens it again."""
        if self._shared is not None:
            release(self._shared)
            self._shared = None

    def _environment(self) -> SharedEnvironment:
        if self._shared is None:
            self._shared = acquire(self.folder, self._description)
        self._shared.check_process()
        return self._shared

    def _look_up(
        self, keys: Sequence[bytes], find: Callable[[lmdb.Transaction[memoryview], bytes], _Found | None]
    ) -> Iterator[tuple[int, _Found]]:
        """Yields the position of each key under which something is found, and what."""
        pending = iter(enumerate(keys))
        try:
            while True:
                with self._environment().transaction() as transaction:
                    for index, key in pending:
                        try:
                            found = find(transaction, key)
                        except lmdb.Error:  # also ends the transaction
                            self._note_damage(key)
                            break
                        if found is not None:
                            yield index, found
                    else:
                        return
        except lmdb.Error as error:
            if not self._is_unreadable:
                self._is_unreadable = True
                logger.warning(
                    "activation_cache: %s cannot be read (%s). Its rows are computed again.", self.folder, error
                )

    def _find(self, transaction: lmdb.Transaction[memoryview], key: bytes) -> Record | None:
        record, name = _find_intact(transaction, key)
        if record is None and name != key:
            self._note_damage(key)
        return record

    def _note_damage(self, key: bytes) -> None:
        if not self._damaged:
            logger.warning("activation_cache: %s has damaged rows. They are computed again.", self.folder)
        self._damaged.add(key)

    def _transactions(self, rows: Iterable[tuple[bytes, torch.Tensor]]) -> Iterator[dict[bytes, bytes]]:
        """Yields the records of rows, as many at a time as one transaction takes."""
        records: dict[bytes, bytes] = {}
        size = 0
        for key, row in rows:
            records[key] = encode(key, row, self._dtype)
            size += len(records[key])
            if size >= _MAX_TRANSACTION_SIZE or len(records) >= _MAX_TRANSACTION_ROWS:
                yield records
                records, size = {}, 0
        if records:
            yield records

    @contextlib.contextmanager
    def _room(self, environment: SharedEnvironment, records: dict[bytes, bytes]) -> Iterator[None]:
        """Finds room for records, and keeps it free from all others until they are written."""
        if self.make_room is None:
            yield
            return
        with one_at_a_time(self.folder.parent):
            needed = sum(size_in_file(len(record), environment.page_size) for record in records.values())
            self.max_size = self.make_room(self, environment.used_bytes + needed)
            yield

    def _write(self, environment: SharedEnvironment, records: dict[bytes, bytes]) -> int:
        """Writes records in one transaction, after as many attempts as the file has to grow, and returns how many."""
        is_new = False
        while True:
            try:
                with environment.transaction(write=True) as transaction:
                    written = self._fill(environment, transaction, records)
                break
            except lmdb.MapFullError:
                environment.grow()
            except DAMAGE as error:
                if is_new:
                    raise
                is_new = True
                environment.start_anew(error)
        if not environment.description.dtype:
            key, record = next(iter(records.items()))
            if (stored := decode(key, memoryview(record))) is not None:
                environment.describe(dtype=dtype_name(stored.dtype))
        return written

    def _fill(
        self, environment: SharedEnvironment, transaction: lmdb.Transaction[memoryview], records: dict[bytes, bytes]
    ) -> int:
        written, size, page_size = 0, environment.used_bytes, environment.page_size
        for key, record in records.items():
            intact, name = _find_intact(transaction, key)
            if intact is not None:
                continue
            size += size_in_file(len(record), page_size)
            if self.max_size is not None and size > self.max_size:
                self._stop_writing(
                    f"{self.folder} has reached what activation_cache.max_size leaves it, {self.max_size} bytes"
                )
                break
            transaction.put(name, record)
            written += 1
        return written

    def _stop_writing(self, reason: str) -> None:
        self.writable, self.reason = False, reason
        logger.warning("activation_cache: %s. Training goes on without storing more rows.", reason)


def _find_intact(transaction: lmdb.Transaction[memoryview], key: bytes) -> tuple[Record | None, bytes]:
    """Returns the row of a key, or else the name to store it under.

    A damaged record stays where it is, and the next one of its key gets a longer name: to free its pages, LMDB would
    believe what they say.

    Args:
        transaction: Where to look.
        key: What the row was put under.
    """
    name = key
    while (stored := transaction.get(name)) is not None:
        if (record := decode(key, stored)) is not None:
            return record, name
        name += _NEXT
    return None, name


def _examine(transaction: lmdb.Transaction[memoryview], name: bytes, stored: memoryview) -> tuple[bool, bool]:
    """Says whether a record is intact, and whether there is an intact one of the same key.

    Args:
        transaction: Where the record was read.
        name: What it is stored under.
        stored: The record.
    """
    keys = [name]
    while keys[-1].endswith(_NEXT):
        keys.append(keys[-1].removesuffix(_NEXT))
    if any(decode(key, stored) is not None for key in keys):
        return True, True
    return False, any(_find_intact(transaction, key)[0] is not None for key in keys)


def size_in_file(record_size: int, page_size: int = mmap.PAGESIZE) -> int:
    """Returns about how many bytes a record adds to the file; a large one has a header and fills whole pages.

    Args:
        record_size: The size of the record, in bytes.
        page_size: That of a page of the file, in bytes.
    """
    if record_size <= _MAX_INLINE_SIZE:
        return record_size + 32
    return -(-(record_size + 16) // page_size) * page_size
