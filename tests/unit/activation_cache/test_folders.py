"""Where stores may lie, and how much room they take."""

from __future__ import annotations

import collections
import re
import shutil
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from hf_freeze.activation_cache.folders import check_folder, default_folder, default_max_size, network_filesystem
from hf_freeze.errors import CacheError

PARTITIONS = [
    ("/", "ext4"),
    ("/home", "nfs4"),
    ("/home/me/local", "xfs"),
    ("/mnt/a", "fuse.sshfs"),
    ("/mnt/b", "fuse.gocryptfs"),
    ("/mnt/c", "ext4"),
    ("/mnt/c", "CIFS"),
    ("/mnt/d", "nfs"),
    ("/mnt/d", "tmpfs"),
]


class TestNetworkFilesystem:
    @pytest.mark.parametrize(
        ("path", "kind"),
        [
            ("/", None),
            ("/var/cache", None),
            ("/home", "nfs4"),
            ("/home/me", "nfs4"),
            ("/home/me/local/cache", None),
            ("/homeless", None),
            ("/mnt/a/x", "fuse.sshfs"),
            ("/mnt/b/x", None),
            ("/mnt/c/x", "CIFS"),
            ("/mnt/d/x", None),
        ],
    )
    def test_the_deepest_and_latest_mount_decides(self, path: str, kind: str | None) -> None:
        assert network_filesystem(Path(path), PARTITIONS) == kind

    @pytest.mark.parametrize(
        "kind",
        [
            *("nfs", "nfs4", "cifs", "smbfs", "smb3", "lustre", "gpfs", "ceph", "9p", "afs", "beegfs", "fuse.sshfs"),
            *("pnfs", "prl_fs", "vboxsf"),
        ],
    )
    def test_network_filesystems_are_known(self, kind: str) -> None:
        assert network_filesystem(Path("/data"), [("/", kind)]) == kind

    @pytest.mark.parametrize(
        "kind",
        [
            *("fuse", "fuse.alluxio-fuse", "fuse.blobfuse2", "fuse.ceph-fuse", "fuse.gcsfuse", "fuse.glusterfs"),
            *("fuse.juicefs", "fuse.mount-s3", "fuse.quobyte", "fuse.rclone", "fuse.s3fs", "fuse.seaweedfs"),
            *("fuse.vmhgfs-fuse", "fuse.something-new"),
        ],
    )
    def test_programs_that_are_not_known_to_be_local_are_taken_for_one(self, kind: str) -> None:
        assert network_filesystem(Path("/data"), [("/", kind)]) == kind

    @pytest.mark.parametrize(
        "kind", ["fuse.bindfs", "fuse.encfs", "fuse.fuse-overlayfs", "fuse.gocryptfs", "fuse.mergerfs", "fuse.ntfs-3g"]
    )
    def test_programs_that_keep_their_files_on_a_local_disk_are_not(self, kind: str) -> None:
        assert network_filesystem(Path("/data"), [("/", kind)]) is None

    @pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "apfs", "NTFS", "fuseblk", ""])
    def test_local_filesystems_are_not_taken_for_one(self, kind: str) -> None:
        assert network_filesystem(Path("/data"), [("/", kind)]) is None

    def test_links_are_followed(self, tmp_path: Path) -> None:
        (tmp_path / "far").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "far")
        assert network_filesystem(tmp_path / "link", [("/", "ext4"), (str(tmp_path / "far"), "nfs")]) == "nfs"


class TestCheckFolder:
    def test_the_folder_is_made_for_the_user_alone(self, tmp_path: Path) -> None:
        check_folder(tmp_path / "a" / "b")
        assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
        assert list((tmp_path / "a" / "b").iterdir()) == []
        check_folder(tmp_path / "a" / "b")

    def test_a_network_filesystem_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        partitions = [SimpleNamespace(mountpoint=str(tmp_path), fstype="nfs4")]
        monkeypatch.setattr(psutil, "disk_partitions", lambda **options: partitions if options == {"all": True} else [])
        root = tmp_path / "deep" / "cache"
        message = (
            f"activation_cache.dir: a filesystem that may be on a network cannot hold the cache safely; got "
            f"{str(root)!r}, which is on nfs4. Set activation_cache.dir to a folder on a local disk."
        )
        with pytest.raises(CacheError, match=f"^{re.escape(message)}$"):
            check_folder(root)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system is asked in other ways")
    def test_mounts_are_read_as_the_system_lists_them(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        far, near = tmp_path / "of the lab", tmp_path / "near"
        far.mkdir()
        near.mkdir()
        mounts = [
            "overlay / overlay rw,relatime,lowerdir=/l,upperdir=/u,workdir=/w 0 0",
            "proc /proc proc rw,nosuid,nodev,noexec,relatime 0 0",
            f"server:/export/lab {str(far).replace(' ', chr(92) + '040')} nfs4 rw,vers=4.2,addr=10.0.0.2 0 0",
            f"/dev/nvme1n1p1 {near} ext4 rw,relatime 0 0",
        ]
        (tmp_path / "proc" / "self").mkdir(parents=True)
        (tmp_path / "proc" / "self" / "mounts").write_text("\n".join(mounts) + "\n")
        monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "proc"))
        check_folder(near / "cache")
        root = far / "cache"
        message = (
            f"activation_cache.dir: a filesystem that may be on a network cannot hold the cache safely; got "
            f"{str(root)!r}, which is on nfs4. Set activation_cache.dir to a folder on a local disk."
        )
        with pytest.raises(CacheError, match=f"^{re.escape(message)}$"):
            check_folder(root)
        assert list(far.iterdir()) == []

    @pytest.mark.parametrize(
        ("below", "problem"), [("file/cache", "Not a directory"), ("file", "File exists")], ids=["below", "is a file"]
    )
    def test_a_folder_that_cannot_be_written_is_refused(self, tmp_path: Path, below: str, problem: str) -> None:
        (tmp_path / "file").touch()
        root = tmp_path / below
        message = (
            f"activation_cache.dir: cannot write to this folder; got {str(root)!r} ({problem}). "
            f"Set activation_cache.dir to a folder on a local disk that can be written."
        )
        with pytest.raises(CacheError, match=f"^{re.escape(message)}$"):
            check_folder(root)

    def test_a_folder_that_exists_and_takes_no_files_is_refused(self) -> None:
        message = (
            "activation_cache.dir: cannot write to this folder; got '/proc' (No such file or directory). "
            "Set activation_cache.dir to a folder on a local disk that can be written."
        )
        with pytest.raises(CacheError, match=f"^{re.escape(message)}$"):
            check_folder(Path("/proc"))


class TestDefaults:
    def test_the_variable_of_the_project_comes_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/me")
        monkeypatch.delenv("HF_FREEZE_CACHE", raising=False)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        assert default_folder() == Path("/home/me/.cache/hf_freeze/activations")
        monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
        assert default_folder() == Path("/cache/hf_freeze/activations")
        monkeypatch.setenv("HF_FREEZE_CACHE", "~/mine")
        assert default_folder() == Path("/home/me/mine")

    @pytest.mark.parametrize(
        ("free", "stored", "size"),
        [(10**9, 0, 2 * 10**8), (8 * 10**8, 2 * 10**8, 2 * 10**8), (10**12, 0, 50 * 10**9)],
    )
    def test_a_fifth_of_what_is_free_or_stored_up_to_50_gb(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, stored: int, size: int
    ) -> None:
        usage = collections.namedtuple("usage", ["total", "used", "free"])
        asked = []
        monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or usage(0, 0, free))
        assert default_max_size(tmp_path / "not" / "yet", num_stored=stored) == size
        assert asked == [tmp_path]
