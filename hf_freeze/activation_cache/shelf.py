"""The folder of all stores as the `activation_cache` section describes it: opened, and kept below its size."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from hf_freeze.activation_cache.folders import check_folder, default_folder, default_max_size, nearest_existing
from hf_freeze.activation_cache.housekeeping import list_stores, prune, stored_bytes
from hf_freeze.activation_cache.store import ActivationStore
from hf_freeze.config import ActivationCacheConfig
from hf_freeze.errors import CacheError

_SECONDS_A_DAY = 24 * 60 * 60


class Shelf:
    """All stores of one folder.

    Attributes:
        root: The folder.

    Args:
        section: The `activation_cache` section.
    """

    def __init__(self, section: ActivationCacheConfig) -> None:
        self.root = Path(section.dir).expanduser() if section.dir is not None else default_folder()
        self._section = section

    @property
    def max_size(self) -> int:
        """How many bytes all stores may take together."""
        if self._section.max_size is not None:
            return self._section.max_size
        return default_max_size(self.root, num_stored=stored_bytes(self.root))

    def may_hold(self, depth: int) -> bool:
        """Returns whether there are stores that a prefix could read, or be computed from, whatever they were made with.

        Args:
            depth: The number of blocks in the prefix.
        """
        return any(info.depth <= depth for info in list_stores(self.root))

    def open(
        self, fingerprints: Sequence[str], *, model: str, dtype: torch.dtype
    ) -> tuple[ActivationStore, dict[int, ActivationStore]]:
        """Opens the store of a prefix, and those of shorter prefixes by their depth, the deepest first, that exist.

        Stores that no run has used for `expire_after` days are removed first.

        Args:
            fingerprints: Those of the prefixes of depth 1, 2 and so on.
            model: The model's name, for people.
            dtype: What rows are stored in.

        Raises:
            CacheError: The folder cannot hold a cache, or the store cannot be opened.
        """
        try:
            return self._open(fingerprints, model=model, dtype=dtype)
        except OSError as error:
            raise CacheError(
                f"activation_cache.dir: the folder cannot be used; got {self.root} ({error}). Name one that you may "
                "write to."
            ) from error

    def _open(
        self, fingerprints: Sequence[str], *, model: str, dtype: torch.dtype
    ) -> tuple[ActivationStore, dict[int, ActivationStore]]:
        check_folder(self.root)
        days = self._section.expire_after
        prune(
            self.root,
            max_size=None,
            expire_after=days * _SECONDS_A_DAY if days is not None else None,
            keep=fingerprints,
        )
        depth = len(fingerprints)
        store = ActivationStore(self.root, fingerprints[-1], model=model, depth=depth, dtype=dtype)
        store.touch()
        store.make_room = self._make_room
        shallower = {
            shorter: ActivationStore(self.root, fingerprints[shorter - 1], model=model, depth=shorter, dtype=dtype)
            for shorter in range(depth - 1, 0, -1)
            if (self.root / fingerprints[shorter - 1]).is_dir()
        }
        return store, shallower

    def reason_of_size(self, num_bytes: int, store: ActivationStore | None = None) -> str | None:
        """Returns why rows do not fit whatever else is removed, or None; nothing is removed or created.

        Args:
            num_bytes: What they take, in bytes.
            store: The store that they would be added to; None for one that does not exist yet.
        """
        own, others = (0, stored_bytes(self.root)) if store is None else (store.num_bytes, self._size_of_others(store))
        limit, needed = self.max_size, own + num_bytes
        rows = f"the rows need about {needed / 1e6:,.1f} MB"
        if num_bytes > self._free + others:
            return f"{rows}, and {self._free / 1e6:,.1f} MB are free on the disk of {self.root}"
        if needed > limit:
            return f"{rows}, and activation_cache.max_size allows {limit / 1e6:,.1f} MB"
        return None

    def reserve(self, store: ActivationStore, num_bytes: int) -> str | None:
        """Makes room in the folder by removing stores that are longest unused; returns the reason where there is none.

        Args:
            store: The store that will grow.
            num_bytes: By how much it will, in bytes.
        """
        limit, needed = self.max_size, store.num_bytes + num_bytes
        rows = f"the rows need about {needed / 1e6:,.1f} MB"
        if (reason := self.reason_of_size(num_bytes, store)) is not None:
            return reason
        store.max_size = self._make_room(store, needed, limit=limit)
        if num_bytes > self._free:
            return f"{rows}, and {self._free / 1e6:,.1f} MB are free on the disk of {self.root}"
        if needed > store.max_size:
            return (
                f"{rows}, and stores that are in use take {(limit - store.max_size) / 1e6:,.1f} MB of the "
                f"{limit / 1e6:,.1f} MB that activation_cache.max_size allows"
            )
        return None

    @property
    def _free(self) -> int:
        return shutil.disk_usage(nearest_existing(self.root)).free

    def _make_room(self, store: ActivationStore, needed: int, *, limit: int | None = None) -> int:
        """Removes the longest unused of the other stores, and returns how large a store may become.

        What all stores take is looked up on the disk, since others grow meanwhile. Beyond `limit` may come the pages of
        the index that one transaction adds, and the file of the store's own locks (40 KB).

        Args:
            store: The store.
            needed: How large it shall be, in bytes; where that is too much in any case, nothing is removed.
            limit: What all stores may take together, in bytes; None reads it.
        """
        limit = self.max_size if limit is None else limit
        others = self._size_of_others(store)
        growth = needed - store.num_bytes
        allowed = min(limit, store.num_bytes + others + self._free)
        if needed <= limit and others + needed > allowed:
            prune(self.root, max_size=allowed - growth, expire_after=None, keep=(store.folder.name,))
            others = self._size_of_others(store)
        return max(0, limit - others)

    def _size_of_others(self, store: ActivationStore) -> int:
        return stored_bytes(self.root, besides=store.folder)
