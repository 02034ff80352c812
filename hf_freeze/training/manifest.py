"""Declares a checkpoint complete: name, size and digest of every file, written last, when all of them are on the disk.

Checkpoints are brought to the disk and digested in threads, while other files of the same checkpoint are still being
written: the disk and the processor work at the same time. What rotation keeps in the place of an older checkpoint has
then left the caches of the system.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import xxhash
from pydantic import TypeAdapter, ValidationError

from hf_freeze.training.earlier import checkpoint_steps, earlier_names

MANIFEST_FILE: Final = "manifest.json"
_CHUNK: Final = 1 << 18  # bytes read at a time: they stay in the processor's cache
_NUM_THREADS: Final = 4  # most of them wait for the disk
_ENTRIES: Final = TypeAdapter(dict[str, tuple[int, str]])


class ManifestWriter:
    """Collects the files of a checkpoint, and declares it complete.

    Leaving the `with` block waits for what is under way, whether or not the checkpoint was declared complete.
    """

    def __init__(self, folder: Path) -> None:
        """Begins with no files.

        Args:
            folder: The checkpoint folder; it need not exist yet.
        """
        self.folder = folder
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="hf_freeze-checkpoint")
        self._digests: dict[Path, Future[str]] = {}
        self._flushes: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._threads.shutdown(wait=True)

    def add(self, path: Path) -> None:
        """Begins to bring a file to the disk and to digest it; nothing may write to it any more.

        Args:
            path: A file of the checkpoint.
        """
        self._flushes.append(self._threads.submit(_flush, path))
        self._digests[path] = self._threads.submit(_file_digest, path)

    def write(self) -> None:
        """Adds the files that were not, waits for all, and writes the manifest; its replacement is atomic."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)
        for path in files:
            if path not in self._digests:
                self.add(path)
        entries = {
            str(path.relative_to(self.folder)): [path.stat().st_size, self._digests[path].result()] for path in files
        }
        temporary = self.folder / f".{MANIFEST_FILE}"
        temporary.write_text(json.dumps(entries, indent=1))
        for flush in [*self._flushes, self._threads.submit(_flush, temporary)]:
            flush.result()
        temporary.replace(self.folder / MANIFEST_FILE)


def write_manifest(folder: Path) -> None:
    """Declares a checkpoint complete.

    Args:
        folder: The checkpoint folder with all its files.
    """
    with ManifestWriter(folder) as manifest:
        manifest.write()


def is_complete(folder: Path) -> bool:
    """Returns whether every file that the manifest names is there with its size and digest.

    Args:
        folder: A checkpoint folder.
    """
    return next(damaged_files(folder), None) is None


def damaged_files(folder: Path) -> Iterator[str]:
    """Yields the names of the files of a checkpoint that are missing or not as the manifest says, itself included.

    Args:
        folder: A checkpoint folder.
    """
    entries = _entries(folder)
    if not entries:
        yield MANIFEST_FILE
    yield from (name for name, (size, digest) in entries.items() if not _is_as(folder / name, size, digest))


def is_intact(folder: Path, name: str) -> bool:
    """Returns whether the manifest names a file, which is there with its size and digest.

    Args:
        folder: A checkpoint folder.
        name: The file.
    """
    entries = _entries(folder)
    return name in entries and _is_as(folder / name, *entries[name])


def _entries(folder: Path) -> dict[str, tuple[int, str]]:
    """Returns size and digest of every file that a manifest names; none where it is missing or damaged."""
    try:
        return _ENTRIES.validate_json((folder / MANIFEST_FILE).read_bytes())
    except (OSError, ValidationError):
        return {}


def _is_as(file: Path, size: int, digest: str) -> bool:
    return file.is_file() and file.stat().st_size == size and _file_digest(file) == digest


def newest_complete(run: Path) -> Path | None:
    """Returns the newest complete checkpoint of the training that was started last in a folder, or None.

    Args:
        run: The output folder of a run.
    """
    return next(complete_checkpoints(run, besides=earlier_names(run)), None)


def complete_checkpoints(run: Path, *, besides: Collection[str] = ()) -> Iterator[Path]:
    """Yields the complete checkpoints in a folder, from the highest step to the lowest.

    Args:
        run: The output folder of a run.
        besides: The names of those that are left out.
    """
    steps = checkpoint_steps(run)
    for name in sorted(steps.keys() - set(besides), key=lambda name: steps[name], reverse=True):
        if is_complete(run / name):
            yield run / name


def _flush(path: Path) -> None:
    """Waits until a file is on the disk."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def _file_digest(path: Path) -> str:
    digest = xxhash.xxh3_128()  # Damage is looked for, not deceit; a cryptographic hash takes longer than writing.
    chunk = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as stream:
        while length := stream.readinto(chunk):
            digest.update(chunk[:length])
    return digest.hexdigest()
