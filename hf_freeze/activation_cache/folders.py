"""Where stores lie: the default folder, whether a folder can hold them, and how much of its disk they may take."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import psutil

from hf_freeze.errors import CacheError

# Filesystems whose memory maps and locks, which LMDB relies on, are not shared between machines.
_NETWORK_TYPES = frozenset(
    {
        *("9p", "acfs", "afp", "afpfs", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fhgfs", "gfs", "gfs2"),
        *("glusterfs", "gpfs", "lustre", "mfs", "mmfs", "moosefs", "ncp", "ncpfs", "nfs", "nfs3", "nfs4", "ocfs2"),
        *("orangefs", "panfs", "pnfs", "prl_fs", "pvfs2", "s3fs", "smb", "smb2", "smb3", "smbfs", "sshfs", "vboxsf"),
        *("virtiofs", "vmhgfs", "wekafs"),
    }
)
# What a program serves by way of FUSE is named after a dot (fuse.sshfs) or not at all. Most of it is a network or an
# object store; these keep their files on a local disk.
_LOCAL_PROGRAMS = frozenset(
    {
        *("bindfs", "cryfs", "dislocker", "encfs", "exfat", "ext2", "fuse-overlayfs", "gocryptfs", "lxcfs", "mergerfs"),
        *("ntfs", "ntfs-3g", "securefs", "unionfs", "unionfs-fuse", "veracrypt", "zfs-fuse"),
    }
)
_DEFAULT_FRACTION_OF_FREE = 0.2
_DEFAULT_MAX_BYTES = 50 * 10**9


def default_folder() -> Path:
    """Returns where stores lie unless `activation_cache.dir` says otherwise."""
    if folder := os.environ.get("HF_FREEZE_CACHE"):
        return Path(folder).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "hf_freeze" / "activations"


def default_max_size(root: Path, *, num_stored: int) -> int:
    """Returns how many bytes the stores of a folder may take together: 20 % of the free disk, at most 50 GB.

    Args:
        root: The folder with the stores; it need not exist yet.
        num_stored: How many bytes they take, which count as free: else they would be too large once they are written.
    """
    free = shutil.disk_usage(nearest_existing(root)).free + num_stored
    return min(int(_DEFAULT_FRACTION_OF_FREE * free), _DEFAULT_MAX_BYTES)


def check_folder(root: Path, *, creates: bool = True) -> None:
    """Creates the folder of the stores, and makes sure that it can hold them.

    Args:
        root: What `activation_cache.dir` names.
        creates: Whether to create it; else it is only found out whether it could be.

    Raises:
        CacheError: If the folder cannot be written, or lies on what may be a network filesystem.
    """
    partitions = [(partition.mountpoint, partition.fstype) for partition in psutil.disk_partitions(all=True)]
    network = network_filesystem(nearest_existing(root), partitions)
    if network is not None:
        raise CacheError(
            f"activation_cache.dir: a filesystem that may be on a network cannot hold the cache safely; got "
            f"{str(root)!r}, which is on {network}. Set activation_cache.dir to a folder on a local disk."
        )
    try:
        if creates:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=nearest_existing(root)):
            pass
    except OSError as error:
        raise CacheError(
            f"activation_cache.dir: cannot write to this folder; got {str(root)!r} ({error.strerror}). "
            f"Set activation_cache.dir to a folder on a local disk that can be written."
        ) from error


def network_filesystem(path: Path, partitions: Iterable[tuple[str, str]]) -> str | None:
    """Returns the type of the filesystem that a path is on where it may be one of a network, or None on a local one.

    Args:
        path: Any path that exists.
        partitions: Mount point and type of every filesystem; of two at one mount point the later hides the earlier.
    """
    path = path.resolve()
    deepest, found = 0, ""
    for mountpoint, kind in partitions:
        depth = len(Path(mountpoint).parts)
        if path.is_relative_to(mountpoint) and depth >= deepest:
            deepest, found = depth, kind
    kind, _, program = found.lower().partition(".")
    if kind == "fuse":
        return None if program in _LOCAL_PROGRAMS else found
    return found if kind in _NETWORK_TYPES else None


def nearest_existing(path: Path) -> Path:
    """Returns a path itself where it exists, or else the deepest folder above it that does.

    Args:
        path: Any path.
    """
    path = path.absolute()
    return next((each for each in (path, *path.parents) if each.exists()), path)
