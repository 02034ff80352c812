"""One LMDB environment per store and process: opened once, checked before it is read, grown and replaced in place."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import mmap
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import psutil

from hf_freeze.activation_cache.descriptions import (
    FORMAT_VERSION,
    Description,
    mark_in_use,
    one_at_a_time,
    read_description,
    remove_store,
    unmark_in_use,
    write_description,
)
from hf_freeze.activation_cache.pages import find_damage
from hf_freeze.errors import CacheError

logger = logging.getLogger(__name__)

# The map takes address space only, but a terabyte of it is refused under `ulimit -v`: it starts small and doubles.
INITIAL_MAP_SIZE = 1 << 30
# Slots for read transactions that are open at the same time, over all processes.
_MAX_READERS = 512
# Seconds between two writings of when a store was last used.
_TOUCH_INTERVAL = 60.0
DATA = "data.mdb"
_LOCK = "lock.mdb"
# What LMDB raises when a page is not what it should be.
DAMAGE = (
    lmdb.BadValsizeError,
    lmdb.CorruptedError,
    lmdb.CursorFullError,
    lmdb.IncompatibleError,
    lmdb.InvalidError,
    lmdb.PageFullError,
    lmdb.PageNotFoundError,
    lmdb.VersionMismatchError,
)


class SharedEnvironment:
    """The environment that all stores of one folder in one process share, since LMDB forbids opening a file twice.

    Attributes:
        folder: The store's folder.
        references: How many stores use it.
    """

    def __init__(self, folder: Path, description: Description) -> None:
        self.folder = folder
        self.references = 0
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._mark: int | None = None
        self._description = description
        self._open()

    def _open(self) -> None:
        self._touched = time.monotonic()
        with one_at_a_time(self.folder.parent):
            self._description = _prepare_folder(self.folder, self._description)
            mark = mark_in_use(self.folder)
            try:
                self._lmdb = _open_checked(self.folder)
            except BaseException:
                unmark_in_use(mark)
                raise
            self._mark = mark
        self._inode = self._current_inode()

    def check_process(self) -> None:
        """Makes sure that the environment is not used beyond a fork.

        Raises:
            CacheError: If this process is a fork of the one that opened the environment.
        """
        if os.getpid() != self._process:
            raise CacheError(
                f"activation_cache: a forked process cannot use the store that its parent has open; got "
                f"{str(self.folder)!r}, opened by process {self._process}. Read and write the store in the process "
                f"that opened it, or start the other one with the method 'spawn'."
            )

    @property
    def is_replaced(self) -> bool:
        """Whether other files lie in the folder by now than those that are open."""
        return self._current_inode() != self._inode

    @property
    def num_rows(self) -> int:
        """How many rows are stored."""
        return self._lmdb.stat()["entries"]

    @property
    def page_size(self) -> int:
        """The size of a page, in bytes."""
        return self._lmdb.stat()["psize"]

    @property
    def used_bytes(self) -> int:
        """How far the pages in use reach, in bytes."""
        return _used_bytes(self._lmdb)

    @contextlib.contextmanager
    def transaction(self, *, write: bool = False) -> Iterator[lmdb.Transaction[memoryview]]:
        """Yields a transaction, which is committed at the end unless an exception leaves it.

        Args:
            write: Whether it may write; one may at a time, over all processes.
        """
        self.check_process()
        with self._lock, self._begin(write) as transaction:
            yield transaction

    def _begin(self, write: bool) -> lmdb.Transaction[memoryview]:
        try:
            return self._lmdb.begin(write=write, buffers=True)
        except lmdb.MapResizedError:
            self._lmdb.set_mapsize(0)  # another process has grown the map: takes over its size
        except lmdb.ReadersFullError:
            self._lmdb.reader_check()  # frees the slots of processes that were killed
        return self._lmdb.begin(write=write, buffers=True)

    def grow(self) -> None:
        """Doubles the size that the file may grow to.

        Raises:
            OSError: If there is no address space for it.
        """
        with self._lock:
            size = 2 * self._lmdb.info()["map_size"]
            _check_address_space(size)
            self._lmdb.set_mapsize(size)

    def start_anew(self, problem: object) -> None:
        """Discards all rows, unless another process has done so already.

        Args:
            problem: What was found to be wrong.
        """
        with one_at_a_time(self.folder.parent), self._lock:
            self.check_process()
            self._lmdb.close()
            if not self.is_replaced:
                _discard(self.folder, problem)
            self._lmdb = _open_checked(self.folder)
            self._inode = self._current_inode()

    def touch(self) -> None:
        """Notes that the store is in use, at most once a minute."""
        if time.monotonic() - self._touched >= _TOUCH_INTERVAL:
            self.describe(last_used=time.time())

    def describe(self, **changes: Any) -> None:
        """Changes what `meta.json` says; where it cannot be written, nothing is lost but the order of eviction.

        Args:
            **changes: Fields of the description.
        """
        self._touched = time.monotonic()
        self._description = dataclasses.replace(self._description, **changes)
        with contextlib.suppress(OSError):
            write_description(self.folder, self._description)

    @property
    def description(self) -> Description:
        """What `meta.json` says."""
        return self._description

    def reopen(self) -> None:
        """Opens what lies in the folder by now."""
        with self._lock:
            self.close()
            self._open()

    def close(self) -> None:
        """Closes the environment; in a forked child it is left alone, for closing it would disturb the parent."""
        if os.getpid() == self._process:
            with self._lock:
                self._lmdb.close()
                if self._mark is not None:
                    unmark_in_use(self._mark)
                    self._mark = None

    def _current_inode(self) -> int:
        with contextlib.suppress(OSError):
            return (self.folder / DATA).stat().st_ino
        return 0


_open_environments: dict[Path, SharedEnvironment] = {}
_registry_lock = threading.Lock()


def acquire(folder: Path, description: Description) -> SharedEnvironment:
    """Returns the environment of a folder, which is opened unless it is open already.

    Args:
        folder: The store's folder; it is created where it is missing.
        description: What `meta.json` shall say if the store is new.

    Raises:
        CacheError: If the environment cannot be opened, or was opened before this process was forked.
    """
    folder = folder.resolve()
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # In this order everywhere: the folder of all stores, the register, the store. Or threads wait in vain.
        with one_at_a_time(folder.parent), _registry_lock:
            shared = _open_environments.get(folder)
            if shared is None:
                shared = _open_environments[folder] = SharedEnvironment(folder, description)
            shared.check_process()
            if shared.is_replaced:
                shared.reopen()
            shared.references += 1
            return shared
    except (lmdb.Error, OSError) as error:
        raise CacheError(
            f"activation_cache.dir: cannot open the store of this folder; got {str(folder)!r} ({error}). Set "
            f"activation_cache.dir to a folder on a local disk that can be written."
        ) from error


def release(shared: SharedEnvironment) -> None:
    """Gives an environment back, which is closed when no other store of this process uses it.

    Args:
        shared: What `acquire` returned.
    """
    with _registry_lock:
        shared.references -= 1
        if shared.references == 0:
            shared.close()
            # In a forked child the parent's stays listed: what is not closed must not be opened either.
            if os.getpid() == shared._process:
                del _open_environments[shared.folder]


def measure(folder: Path) -> tuple[int, int]:
    """Returns how many rows a store holds, and how much of the disk they take in bytes, without using it.

    Args:
        folder: The store's folder; where its file does not tell, there are no rows.
    """
    with _registry_lock:
        shared = _open_environments.get(folder.resolve())
        if shared is not None and not shared.is_replaced:
            return shared.num_rows, shared.used_bytes
        try:
            size = (folder / DATA).stat().st_size
        except OSError:
            return 0, 0
        # Reads the first two pages only, so that neither a lock nor the rest of the file is needed.
        with contextlib.suppress(lmdb.Error):
            environment = lmdb.open(str(folder), map_size=1 << 20, readonly=True, lock=False, create=False)
            with environment:
                if not _missing_bytes(environment, folder):
                    return environment.stat()["entries"], _used_bytes(environment)
        return 0, size


def _prepare_folder(folder: Path, description: Description) -> Description:
    """Makes a folder hold this version's store, or nothing, and returns what its `meta.json` says now."""
    found = read_description(folder)
    if found is not None and found.format_version == FORMAT_VERSION:
        description = dataclasses.replace(found, last_used=time.time())
    elif found is not None:
        logger.info("activation_cache: %s has format %d and is built anew.", folder, found.format_version)
        remove_store(folder)
    elif (folder / DATA).exists():
        _discard(folder, "its meta.json does not describe it")
    folder.mkdir(mode=0o700, exist_ok=True)
    write_description(folder, description)
    return description


def _open_checked(folder: Path) -> lmdb.Environment:
    """Opens an environment whose file can be read to its end; one that cannot is discarded.

    The check is made here only: a file that is cut off while it is open kills its reader with SIGBUS, as it does with
    every memory map.
    """
    if not (folder / DATA).exists():
        return _open(folder)
    problem: object
    try:
        problem = "it is empty" if not (folder / DATA).stat().st_size else None
        environment = _open(folder)
        problem = problem or _find_problem(environment, folder)
        if problem is None:
            return environment
        environment.close()
    except lmdb.Error as error:
        if not isinstance(error, DAMAGE) and not _opens_elsewhere(folder):
            raise
        problem = error
    _discard(folder, problem)
    return _open(folder)


def _open(folder: Path) -> lmdb.Environment:
    size, map_size = 0, INITIAL_MAP_SIZE
    with contextlib.suppress(FileNotFoundError):
        size = (folder / DATA).stat().st_size
    while map_size < size:
        map_size *= 2
    # Without `metasync` a commit waits for its pages to be on the disk, but not for the note that they are the newest:
    # a power failure may cost the last rows, not the file. It halves the price of a commit.
    environment = lmdb.open(
        str(folder),
        map_size=map_size,
        mode=0o700,
        metasync=False,
        max_readers=_MAX_READERS,
        create=False,
        # What the system reads ahead for one row serves others, as long as memory can keep them.
        readahead=size <= psutil.virtual_memory().total // 2,
    )
    environment.reader_check()
    return environment


def _opens_elsewhere(folder: Path) -> bool:
    """Says whether a new environment can be opened: then it is the file's fault that this one cannot."""
    with tempfile.TemporaryDirectory(dir=folder) as empty, contextlib.suppress(lmdb.Error):
        _open(Path(empty)).close()
        return True
    return False


def _used_bytes(environment: lmdb.Environment) -> int:
    return (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]


def _find_problem(environment: lmdb.Environment, folder: Path) -> str | None:
    """Says why LMDB must not read a file: the beginnings of the first two pages are all that it has read so far."""
    if missing := _missing_bytes(environment, folder):
        return f"{missing} bytes are missing at its end"
    with environment.begin():  # keeps the pages as they are
        # Looked at twice: another process may just be writing which pages are the newest.
        return find_damage(folder / DATA) and find_damage(folder / DATA)


def _missing_bytes(environment: lmdb.Environment, folder: Path) -> int:
    return max(0, _used_bytes(environment) - (folder / DATA).stat().st_size)


def _discard(folder: Path, problem: object) -> None:
    logger.warning(
        "activation_cache: %s is damaged (%s). Its rows are discarded and computed again.", folder / DATA, problem
    )
    for name in (DATA, _LOCK):
        (folder / name).unlink(missing_ok=True)


def _check_address_space(size: int) -> None:
    """Raises an OSError where there is no room for a map: LMDB, once it has failed to grow one, has none left."""
    if sys.platform != "win32":
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ).close()
