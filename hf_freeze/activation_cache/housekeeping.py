"""All stores of a folder: listed, and removed when they are too large together, unused for long, or not wanted."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Collection
from pathlib import Path

from hf_freeze.activation_cache.descriptions import is_in_use, one_at_a_time, read_description, remove_store
from hf_freeze.activation_cache.environment import DATA, measure


@dataclasses.dataclass(frozen=True)
class StoreInfo:
    """What is known about a store without reading its rows.

    Attributes:
        fingerprint: Of everything that its rows were made with.
        model: The model's name.
        depth: How many blocks the rows went through.
        dtype: What the rows are stored in, as `float32`; empty where no row was stored.
        rows: How many there are; 0 where the file does not tell.
        num_bytes: The size on disk, in bytes.
        created: Unix time, in seconds.
        last_used: Unix time, in seconds.
        format_version: The version of the store's own layout; a store of another than this one's is never read.
        folder: Where it lies.
    """

    fingerprint: str
    model: str
    depth: int
    dtype: str
    rows: int
    num_bytes: int
    created: float
    last_used: float
    format_version: int
    folder: Path


def list_stores(root: Path) -> list[StoreInfo]:
    """Returns the stores of a folder, the last used first.

    Args:
        root: The folder with the stores; it need not exist.
    """
    infos = [info for folder in _folders(root) if (info := _info(folder)) is not None]
    return sorted(infos, key=lambda info: info.last_used, reverse=True)


def stored_bytes(root: Path, *, besides: Path | None = None) -> int:
    """Returns the size of the files of all stores of a folder, in bytes: quickly enough to ask before each writing.

    Args:
        root: The folder with the stores; it need not exist.
        besides: The folder of a store that does not count.
    """
    size = 0
    for folder in _folders(root):
        if folder != besides and read_description(folder) is not None:
            size += _file_sizes(folder)
    return size


def prune(
    root: Path, *, max_size: int | None, expire_after: float | None, keep: Collection[str] = ()
) -> list[StoreInfo]:
    """Removes the longest unused stores, and returns them; never one that a process has open.

    Args:
        root: The folder with the stores; it need not exist.
        max_size: How large those that stay may be together, in bytes; None sets no limit.
        expire_after: How long a store may be unused, in seconds; None sets no limit.
        keep: Fingerprints of stores that stay whatever happens. They count towards `max_size`.
    """
    if not root.is_dir():
        return []
    removed, now = [], time.time()
    with one_at_a_time(root):
        infos = list_stores(root)
        size = sum(info.num_bytes for info in infos)
        for info in reversed(infos):
            is_too_old = expire_after is not None and now - info.last_used > expire_after
            is_too_much = max_size is not None and size > max_size
            if (is_too_old or is_too_much) and info.fingerprint not in keep and not is_in_use(info.folder):
                remove_store(info.folder)
                removed.append(info)
                size -= info.num_bytes
    return removed


def remove_if_empty(folder: Path) -> None:
    """Removes a store that holds no rows, unless a process has it open.

    Args:
        folder: The store's folder.
    """
    with one_at_a_time(folder.parent):
        if folder.is_dir() and measure(folder)[0] == 0 and not is_in_use(folder):
            remove_store(folder)


def clear(root: Path) -> list[StoreInfo]:
    """Removes all stores of a folder that no process has open, and returns them.

    Args:
        root: The folder with the stores; it need not exist.
    """
    return prune(root, max_size=-1, expire_after=None)


def _info(folder: Path) -> StoreInfo | None:
    description = read_description(folder)
    if description is None:
        return None
    rows, num_bytes = measure(folder)
    num_bytes += _file_sizes(folder, but=DATA)
    return StoreInfo(**dataclasses.asdict(description), rows=rows, num_bytes=num_bytes, folder=folder)


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(root.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _file_sizes(folder: Path, *, but: str = "") -> int:
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # gone since it was listed
            size += path.lstat().st_size if path.name != but else 0
    return size
