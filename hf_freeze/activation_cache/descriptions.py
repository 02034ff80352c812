"""What lies in a store's folder besides the rows: its description in meta.json, and the locks that processes hold."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Raised whenever keys, records or the files of a store change: stores of other versions are ignored and built anew.
FORMAT_VERSION = 1
_META = "meta.json"
_IN_USE = "in_use.lock"
_ONE_AT_A_TIME = ".lock"
# Threads of this process, and the folders that it is in.
_threads = threading.RLock()
_entered: set[Path] = set()


@dataclasses.dataclass(frozen=True)
class Description:
    """What `meta.json` says about a store.

    Attributes:
        fingerprint: Of everything that its rows were made with; also the name of its folder.
        model: The model's name, for people.
        depth: How many blocks the rows went through.
        dtype: What the rows are stored in, as `float32`; empty before the first row.
        created: Unix time, in seconds.
        last_used: Unix time, in seconds.
        format_version: The version of the store's own layout.
    """

    fingerprint: str
    model: str
    depth: int
    dtype: str
    created: float
    last_used: float
    format_version: int = FORMAT_VERSION


def read_description(folder: Path) -> Description | None:
    """Returns what a folder's `meta.json` says, or None where the folder is not that of a store.

    Args:
        folder: Any folder.
    """
    try:
        said: dict[str, Any] = json.loads((folder / _META).read_text(encoding="utf-8"))
        description = Description(
            fingerprint=str(said["fingerprint"]),
            model=str(said.get("model", "")),
            depth=int(said.get("depth", 0)),
            dtype=str(said.get("dtype", "")),
            created=float(said.get("created", 0)),
            last_used=float(said.get("last_used", 0)),
            format_version=int(said["format_version"]),
        )
    except (OSError, AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return None
    # Stores get deleted: a folder that merely has a meta.json must not be taken for one.
    return description if description.fingerprint == folder.name else None


def write_description(folder: Path, description: Description) -> None:
    """Writes `meta.json` in one step, so that nobody reads half of it.

    Args:
        folder: The store's folder.
        description: What it shall say.
    """
    handle, name = tempfile.mkstemp(prefix=f"{_META}.", dir=folder)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(description), indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(folder / _META)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def remove_store(folder: Path) -> None:
    """Removes the folder of a store that nobody uses; `meta.json` goes last, so that what is left over is recognised.

    Args:
        folder: The store's folder.
    """
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _META:
            path.unlink()
    (folder / _META).unlink()
    folder.rmdir()


@contextlib.contextmanager
def one_at_a_time(root: Path) -> Iterator[None]:
    """Makes processes open, fill, replace and remove the stores of a folder one after the other.

    Args:
        root: The folder with the stores. What is entered again inside for the same folder goes on at once.
    """
    root = root.resolve()
    with _threads:
        if root in _entered:
            yield
            return
        handle = _open_lock(root / _ONE_AT_A_TIME)
        _entered.add(root)
        try:
            _flock(handle, "exclusive")
            yield
        finally:
            _entered.discard(root)
            _flock(handle, "unlock")  # a child that was forked meanwhile has inherited the open file
            os.close(handle)


def mark_in_use(folder: Path) -> int:
    """Returns the descriptor of an open file that tells other processes that a store is in use.

    Args:
        folder: The store's folder.
    """
    handle = _open_lock(folder / _IN_USE)
    _flock(handle, "shared")
    return handle


def unmark_in_use(handle: int) -> None:
    """Ends what `mark_in_use` began, also where a forked worker has inherited the open file.

    Args:
        handle: What `mark_in_use` returned.
    """
    _flock(handle, "unlock")
    os.close(handle)


def is_in_use(folder: Path) -> bool:
    """Says whether any process, this one included, has a store open.

    Args:
        folder: The store's folder.
    """
    handle = _open_lock(folder / _IN_USE)
    try:
        _flock(handle, "try")
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _open_lock(path: Path) -> int:
    # A bare descriptor: a file object that a forked child, or a store that nobody closed, lets go of would warn.
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _flock(handle: int, operation: str) -> None:
    if sys.platform == "win32":
        return  # a file that is open cannot be removed there, which is what the locks are for
    import fcntl

    operations = {
        "exclusive": fcntl.LOCK_EX,
        "shared": fcntl.LOCK_SH,
        "try": fcntl.LOCK_EX | fcntl.LOCK_NB,
        "unlock": fcntl.LOCK_UN,
    }
    fcntl.flock(handle, operations[operation])
