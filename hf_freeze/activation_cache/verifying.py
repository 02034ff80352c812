"""Whether a store's rows are intact, found by reading all of them; a store is no younger for having been checked."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hf_freeze.activation_cache.descriptions import is_in_use, one_at_a_time, read_description, write_description
from hf_freeze.activation_cache.environment import DATA
from hf_freeze.activation_cache.store import ActivationStore


@dataclass(frozen=True)
class Verdict:
    """What was found in a store.

    Attributes:
        intact: How many rows are intact.
        damaged: How many rows are damaged; those behind a damaged page, which cannot be reached, count as one.
        is_discarded: Whether its file could not be read at all: its rows are gone, as they are whenever it is opened.
    """

    intact: int
    damaged: int
    is_discarded: bool

    @property
    def is_sound(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damaged and not self.is_discarded


def verify(folder: Path) -> Verdict:
    """Reads every row of a store; other processes may use it meanwhile.

    Args:
        folder: The store's folder, of this version's format.

    Raises:
        CacheError: If the store cannot be opened.
    """
    before = read_description(folder)
    store = ActivationStore(folder.parent, folder.name)
    with _held(folder / DATA) as handle:
        try:
            len(store)  # opens it
            opened = read_description(folder)
            intact, damaged = store.verify()
            is_discarded = handle is not None and os.fstat(handle).st_nlink == 0
        finally:
            store.close()
    if before is not None and opened is not None:
        _note_last_use(folder, before.last_used, unless_after=opened.last_used)
    return Verdict(intact, damaged, is_discarded)


@contextlib.contextmanager
def _held(path: Path) -> Iterator[int | None]:
    """Yields the descriptor of a file, which tells whether the file is removed, or None where it cannot be opened."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # the store says so in words where it needs the file
        yield None
        return
    try:
        yield handle
    finally:
        os.close(handle)


def _note_last_use(folder: Path, last_used: float, *, unless_after: float) -> None:
    """Sets back when a store was last used, unless somebody has used it since it was opened."""
    with one_at_a_time(folder.parent):
        now = read_description(folder)
        if now is not None and now.last_used <= unless_after and not is_in_use(folder):
            write_description(folder, replace(now, last_used=last_used))
