"""What the cache may take of the disk: the reasons where that is too little, and what goes to make room."""

from __future__ import annotations

import collections
import dataclasses
import logging
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_freeze import ActivationCache, CacheError
from hf_freeze.activation_cache.descriptions import read_description, write_description
from hf_freeze.activation_cache.housekeeping import list_stores
from hf_freeze.activation_cache.shelf import Shelf
from hf_freeze.activation_cache.store import ActivationStore, size_in_file
from hf_freeze.config import ActivationCacheConfig
from tests.conftest import REPOSITORY
from tests.unit.activation_cache.examples import cache_of, evaluate, frozen_bert, hits_and_misses, loader_of, rows_of

ROWS = rows_of(40, longest=60)
ALL_HIT, ALL_MISS = (40, 0), (0, 40)
# Of the rows in the tiny model's float32, without the first two pages of the file.
NUM_BYTES = sum(size_in_file(4 * 32 * len(row["input_ids"])) for row in ROWS)
EMPTY = 8192
DAY = 86_400.0
usage = collections.namedtuple("usage", ["total", "used", "free"])


def mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"


def store_of(root: Path, name: str, num_bytes: int, *, unused_days: float = 0.0) -> ActivationStore:
    """A store of about `num_bytes` bytes that is open, and was last used so many days ago once it is closed."""
    store = ActivationStore(root, name)
    store.put((bytes([number]) * 16, torch.zeros(10_000)) for number in range(num_bytes // 40_960))
    description = read_description(root / name)
    assert description is not None
    write_description(
        root / name, dataclasses.replace(description, last_used=description.last_used - unused_days * DAY)
    )
    return store


def have_free(monkeypatch: pytest.MonkeyPatch, root: Path, size: int) -> None:
    """Has the disk be one of `size` bytes that holds nothing but what lies in a folder."""

    def disk_usage(path: object) -> Any:
        used = sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
        return usage(size, used, max(0, size - used))

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)


def names(root: Path) -> list[str]:
    """The stores of a folder but that of the model."""
    return sorted(info.fingerprint for info in list_stores(root) if not info.model)


def assert_refused(cache: ActivationCache, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    """Asserts that `true` refuses to build and `auto` says why it does not, and that no store is left behind."""
    sentence = f"{reason[0].upper()}{reason[1:]}."
    expected = evaluate(frozen_bert(), loader_of(ROWS))
    if cache.section.enabled is True:
        message = (
            f"activation_cache.enabled: the cache cannot be used here; got True. {sentence} Set "
            "activation_cache.enabled to auto or false, or change what stands in its way."
        )
        with pytest.raises(CacheError, match=f"^{re.escape(message)}$"):
            cache.build(loader_of(ROWS), show_progress=False)
    else:
        with caplog.at_level(logging.WARNING, logger="hf_freeze"):
            cache.build(loader_of(ROWS), show_progress=False)
            assert all(map(torch.equal, evaluate(cache.model, loader_of(ROWS), cache.serve), expected))
        assert caplog.messages == [f"activation_cache: off. {sentence}"]
    assert (cache.is_on, cache.reason) == (False, reason)
    assert [info for info in list_stores(cache._shelf.root) if info.model] == []


@pytest.mark.parametrize("enabled", ["auto", True])
class TestReasons:
    def test_more_than_max_size(self, tmp_path: Path, caplog: pytest.LogCaptureFixture, enabled: object) -> None:
        cache = cache_of(frozen_bert(), tmp_path, enabled=enabled, max_size=NUM_BYTES)
        reason = f"the rows need about {mb(EMPTY + NUM_BYTES)}, and activation_cache.max_size allows {mb(NUM_BYTES)}"
        assert_refused(cache, reason, caplog)

    def test_more_than_the_disk_has(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, enabled: object
    ) -> None:
        have_free(monkeypatch, tmp_path, 100_000)
        cache = cache_of(frozen_bert(), tmp_path, enabled=enabled, max_size="1 GB")
        assert_refused(
            cache, f"the rows need about {mb(EMPTY + NUM_BYTES)}, and 0.1 MB are free on the disk of {tmp_path}", caplog
        )

    def test_more_than_stores_in_use_leave(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, enabled: object
    ) -> None:
        other = store_of(tmp_path, "other", 400_000)
        (info,) = list_stores(tmp_path)
        cache = cache_of(frozen_bert(), tmp_path, enabled=enabled, max_size="0.5 MB")
        reason = (
            f"the rows need about {mb(EMPTY + NUM_BYTES)}, and stores that are in use take {mb(info.num_bytes)} of the "
            "0.5 MB that activation_cache.max_size allows"
        )
        assert_refused(cache, reason, caplog)
        other.close()
        assert names(tmp_path) == ["other"]

    def test_more_than_stores_in_use_leave_of_the_disk(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, enabled: object
    ) -> None:
        other = store_of(tmp_path, "other", 400_000)
        have_free(monkeypatch, tmp_path, 550_000)
        cache = cache_of(frozen_bert(), tmp_path, enabled=enabled, max_size="1 GB")
        assert_refused(
            cache, f"the rows need about {mb(EMPTY + NUM_BYTES)}, and 0.1 MB are free on the disk of {tmp_path}", caplog
        )
        other.close()


def test_the_estimate_is_what_building_takes(tmp_path: Path) -> None:
    """To the pages of the index, and not beyond the limit that has just room for it."""
    cache = cache_of(frozen_bert(), tmp_path, enabled=True, max_size=int(1.2 * NUM_BYTES))
    cache.build(loader_of(ROWS), show_progress=False)
    assert cache.num_rows == len(ROWS)
    assert NUM_BYTES < cache.stats.num_bytes < 1.2 * NUM_BYTES
    cache.close()


class TestRoom:
    """`first` is unused for the longest, then `second`, then `third`."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        for place, name in enumerate(["third", "second", "first"]):
            store_of(tmp_path, name, 200_000, unused_days=1.0 + place).close()
        return tmp_path

    @pytest.mark.parametrize(("spare", "stay"), [(700_000, ["second", "third"]), (450_000, ["third"]), (200_000, [])])
    @pytest.mark.parametrize("build", ["eager", "lazy"])
    def test_stores_go_the_longest_unused_first(self, root: Path, spare: int, stay: list[str], build: str) -> None:
        cache = cache_of(frozen_bert(), root, enabled=True, build=build, max_size=spare + NUM_BYTES // 2)
        if build == "eager":
            cache.build(loader_of(ROWS), show_progress=False)
        else:
            evaluate(cache.model, loader_of(ROWS), cache.serve)
        assert hits_and_misses(cache, loader_of(ROWS)) == ALL_HIT
        assert names(root) == stay
        # The limit is on rows: the file with the model's locks comes on top.
        assert sum(info.num_bytes for info in list_stores(root)) <= spare + NUM_BYTES // 2 + 40_000

    def test_stores_go_where_the_disk_is_full_of_them(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        have_free(monkeypatch, root, 750_000)
        cache = cache_of(frozen_bert(), root, enabled=True, max_size="1 GB")
        cache.build(loader_of(ROWS), show_progress=False)
        assert hits_and_misses(cache, loader_of(ROWS)) == ALL_HIT
        assert names(root) == ["second", "third"]

    def test_nothing_goes_where_there_is_room(self, root: Path) -> None:
        cache = cache_of(frozen_bert(), root, enabled=True, max_size="1 MB")
        cache.build(loader_of(ROWS), show_progress=False)
        cache.close()
        assert names(root) == ["first", "second", "third"]

    def test_nothing_goes_where_all_of_it_would_not_be_enough(self, root: Path) -> None:
        cache = cache_of(frozen_bert(), root, enabled="auto", max_size=NUM_BYTES)
        cache.build(loader_of(ROWS), show_progress=False)
        assert not cache.is_on
        assert names(root) == ["first", "second", "third"]

    def test_what_has_expired_goes_when_a_cache_is_opened(self, root: Path) -> None:
        cache = cache_of(frozen_bert(), root, enabled=True, expire_after=2.5)
        evaluate(cache.model, loader_of(ROWS), cache.serve)
        assert names(root) == ["second", "third"]
        cache.close()

    def test_without_an_age_nothing_expires(self, root: Path) -> None:
        cache = cache_of(frozen_bert(), root, enabled=True, expire_after=None)
        evaluate(cache.model, loader_of(ROWS), cache.serve)
        assert names(root) == ["first", "second", "third"]
        cache.close()


def test_a_store_that_has_expired_is_read_all_the_same_where_it_is_the_one_that_is_needed(tmp_path: Path) -> None:
    cache = cache_of(frozen_bert(), tmp_path)
    evaluate(cache.model, loader_of(ROWS), cache.serve)
    cache.close()
    (info,) = list_stores(tmp_path)
    description = read_description(info.folder)
    assert description is not None
    write_description(info.folder, dataclasses.replace(description, last_used=time.time() - 99 * DAY))
    again = cache_of(frozen_bert(), tmp_path, expire_after=1)
    assert hits_and_misses(again, loader_of(ROWS)) == ALL_HIT
    assert list_stores(tmp_path)[0].last_used > time.time() - DAY


def test_what_is_full_by_default_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `max_size` a fifth of the disk may be taken, of which what is stored is a part."""
    have_free(monkeypatch, tmp_path, int(5.5 * NUM_BYTES))
    for expected in (ALL_HIT, ALL_HIT):
        cache = cache_of(frozen_bert(), tmp_path, enabled=True)
        cache.build(loader_of(ROWS), show_progress=False)
        assert hits_and_misses(cache, loader_of(ROWS)) == expected


class TestLimit:
    """Rows that are stored when they are needed, until that is no longer possible."""

    def test_writing_ends_where_the_store_alone_is_too_large(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        cache = cache_of(frozen_bert(), tmp_path, enabled=True, max_size=NUM_BYTES // 2)
        self.assert_writing_ends(cache, caplog)

    def test_writing_ends_where_stores_in_use_take_the_rest(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        other = store_of(tmp_path, "other", 400_000)
        cache = cache_of(frozen_bert(), tmp_path, enabled=True, max_size=500_000)
        self.assert_writing_ends(cache, caplog)
        other.close()
        assert names(tmp_path) == ["other"]

    def test_nothing_is_written_where_stores_in_use_take_it_all(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        other = store_of(tmp_path, "other", 400_000)
        cache = cache_of(frozen_bert(), tmp_path, enabled=True, max_size=300_000)
        with caplog.at_level(logging.WARNING, logger="hf_freeze"):
            assert hits_and_misses(cache, loader_of(ROWS)) == ALL_MISS
        folder = next(info.folder for info in list_stores(tmp_path) if info.model)
        assert caplog.messages == [
            (
                f"activation_cache: {folder} has reached what activation_cache.max_size leaves it, 0 bytes. Training "
                "goes on without storing more rows."
            )
        ]
        other.close()

    @staticmethod
    def assert_writing_ends(cache: ActivationCache, caplog: pytest.LogCaptureFixture) -> None:
        expected = evaluate(frozen_bert(), loader_of(ROWS))
        root = cache._shelf.root
        with caplog.at_level(logging.WARNING, logger="hf_freeze"):
            for _ in range(2):
                served = evaluate(cache.model, loader_of(ROWS), cache.serve)
                assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(served, expected, strict=True))
        store = cache._outputs.store  # type: ignore[union-attr]
        assert 0 < cache.num_rows < len(ROWS)
        assert (cache.stats.hits, cache.stats.misses) == (cache.num_rows, 80 - cache.num_rows)
        room = cache._shelf.max_size - sum(info.num_bytes for info in list_stores(root) if not info.model)
        assert store.num_bytes <= room + 4096
        assert caplog.messages == [
            (
                f"activation_cache: {store.folder} has reached what activation_cache.max_size leaves it, {room} bytes. "
                "Training goes on without storing more rows."
            )
        ]
        cache.close()


MEGABYTE = 10**6
FILL = """
import sys
from pathlib import Path
import torch
from hf_freeze.activation_cache.shelf import Shelf
from hf_freeze.config import ActivationCacheConfig
section = ActivationCacheConfig(dir=sys.argv[1], max_size=4_000_000)
store, _ = Shelf(section).open([sys.argv[2]], model="", dtype=torch.float32)
print("open", flush=True)
sys.stdin.readline()
for number in range(200):
    store.put((bytes([number, part]) * 8, torch.zeros(10_000)) for part in range(2))
print(len(store), store.num_bytes)
sys.stdin.readline()
"""


def size_of(root: Path) -> int:
    return sum(file.stat().st_size for file in root.rglob("*") if file.is_file())


class TestStoresThatAreFilledAtOnce:
    """They share `max_size`, whoever was there first. The index of the last rows, and a file of locks, may be above."""

    SLACK = 50_000

    def test_in_one_process(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        shelf = Shelf(ActivationCacheConfig(dir=str(tmp_path), max_size=4 * MEGABYTE))
        stores = [shelf.open([name], model="", dtype=torch.float32)[0] for name in ("one", "other")]
        for number in range(200):
            for store in stores:
                store.put([(bytes([number]) * 16, torch.zeros(10_000))])
        assert 3.8 * MEGABYTE < size_of(tmp_path) <= 4 * MEGABYTE + self.SLACK
        assert [len(store) for store in stores] == pytest.approx([48, 48], abs=2)
        assert [store.writable for store in stores] == [False, False]
        assert len(caplog.messages) == 2
        for store in stores:
            store.close()

    @pytest.mark.distributed
    def test_in_two_processes(self, tmp_path: Path) -> None:
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", FILL, str(tmp_path), name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=REPOSITORY,
            )
            for name in ("one", "other")
        ]
        pipes = [(process.stdin, process.stdout) for process in processes]
        assert [told.readline() for _, told in pipes if told] == ["open\n", "open\n"]
        for asked, _ in pipes:
            assert asked is not None
            asked.write("\n")
            asked.flush()
        found = [told.readline().split() for _, told in pipes if told]
        assert 3.8 * MEGABYTE < size_of(tmp_path) <= 4 * MEGABYTE + self.SLACK
        for process in processes:
            process.communicate("\n", timeout=60)
        assert [process.returncode for process in processes] == [0, 0]
        assert sum(int(num_rows) for num_rows, _ in found) == pytest.approx(96, abs=4)


SMALL_DISK = """
import logging, sys
from pathlib import Path
from tests.unit.activation_cache.examples import cache_of, evaluate, frozen_bert, loader_of, rows_of
logging.basicConfig(format="%(message)s", stream=sys.stdout)
root, rows = Path(sys.argv[1]), rows_of(40, longest=60)
cache = cache_of(frozen_bert(), root, max_size="1 GB")
cache.build(loader_of(rows), show_progress=False)
print(cache.is_on)
cache = cache_of(frozen_bert(), root, max_size="1 GB", build="lazy")
for _ in range(2):
    evaluate(cache.model, loader_of(rows), cache.serve)
print(0 < cache.num_rows < 40, cache.stats.hits == cache.num_rows, cache.stats.misses == 80 - cache.num_rows)
"""


@pytest.mark.slow
def test_a_small_filesystem(tmp_path: Path) -> None:
    """The rows are never all stored, whether that is seen before or when it is full.

    Where nothing can be mounted, tests that limit the size of files show the latter.
    """
    mount = f'mount -t tmpfs -o size=131072 tmpfs {tmp_path} && exec {sys.executable} -c "$1" {tmp_path}'
    enter = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    attempt = f"unshare {' '.join(enter[1:-2])} mount -t tmpfs tmpfs {tmp_path}"
    if subprocess.run(["sh", "-c", attempt], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine lets no process mount a filesystem of its own")
    done = subprocess.run(
        [*enter, mount, "sh", SMALL_DISK], capture_output=True, text=True, cwd=REPOSITORY, timeout=120, check=True
    )
    refused, is_on, full, result = done.stdout.splitlines()
    assert refused == (
        f"activation_cache: off. The rows need about {mb(EMPTY + NUM_BYTES)}, and 0.1 MB are free on the disk of "
        f"{tmp_path}."
    )
    assert (is_on, result) == ("False", "True True True")
    assert re.fullmatch(
        rf"activation_cache: {tmp_path}/[0-9a-f]+ takes no more rows \(.*(No space left on device|Input/output error)"
        r"\)\. Training goes on without storing more rows\.",
        full,
    )
