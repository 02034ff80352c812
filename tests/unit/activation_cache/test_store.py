"""Rows come back from a store as they were put, or not at all."""

from __future__ import annotations

import json
import logging
import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import lmdb
import psutil
import pytest
import torch

from hf_freeze.activation_cache import environment
from hf_freeze.activation_cache import store as store_module
from hf_freeze.activation_cache.descriptions import read_description
from hf_freeze.activation_cache.store import ActivationStore
from hf_freeze.errors import CacheError
from tests.unit.activation_cache.rows import FINGERPRINT, key, num_right, put, row


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ActivationStore]:
    store = ActivationStore(tmp_path / "root", FINGERPRINT, model="tiny", depth=2)
    yield store
    store.close()


class TestGetAndPut:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
    def test_rows_come_back_in_their_dtype(self, store: ActivationStore, dtype: torch.dtype) -> None:
        rows = {key(number): torch.randn(number, 5).to(dtype) for number in range(4)}
        assert store.put(rows.items()) == 4
        for stored, (name, expected) in zip(store.get(list(rows)), rows.items(), strict=True):
            assert stored is not None
            assert stored.dtype == dtype
            assert torch.equal(stored, expected), name

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_rows_are_stored_in_the_dtype_that_was_asked_for(self, tmp_path: Path, dtype: torch.dtype) -> None:
        store = ActivationStore(tmp_path, FINGERPRINT, dtype=dtype)
        expected = torch.randn(3, 5)
        store.put([(key(0), expected)])
        (stored,) = store.get([key(0)])
        assert stored is not None
        assert stored.dtype == dtype
        assert torch.equal(stored, expected.to(dtype))
        store.close()

    def test_a_row_can_be_changed_without_changing_the_store(self, store: ActivationStore) -> None:
        put(store, range(1))
        (stored,) = store.get([key(0)])
        assert stored is not None
        stored.fill_(7.0)
        assert num_right(store, range(1)) == 1

    def test_what_is_missing_is_none(self, store: ActivationStore) -> None:
        put(store, range(2))
        assert [stored is None for stored in store.get([key(0), key(5), key(1)])] == [False, True, False]
        assert store.has([key(0), key(5), key(1)]) == [True, False, True]
        assert store.get([]) == store.has([]) == []

    def test_what_is_there_is_not_written_again(self, store: ActivationStore) -> None:
        put(store, range(3))
        assert store.put((key(number), row(number)) for number in range(5)) == 2
        assert len(store) == 5

    def test_many_rows_take_several_transactions(self, store: ActivationStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store_module, "_MAX_TRANSACTION_ROWS", 3)
        assert store.put((key(number), row(number)) for number in range(10)) == 10
        monkeypatch.setattr(store_module, "_MAX_TRANSACTION_SIZE", 1)
        assert store.put((key(number), row(number)) for number in range(20)) == 10
        assert num_right(store, range(20)) == 20

    def test_size_and_number_of_rows_grow(self, store: ActivationStore) -> None:
        assert len(store) == 0
        before = store.num_bytes
        put(store, range(50))
        assert len(store) == 50
        assert store.num_bytes > before + sum(row(number).nbytes for number in range(50))

    def test_every_row_verifies(self, store: ActivationStore) -> None:
        assert store.verify() == (0, 0)
        put(store, range(50))
        assert store.verify() == (50, 0)


class TestGetInto:
    def test_rows_go_to_the_beginnings_of_a_batch(self, store: ActivationStore) -> None:
        rows = [torch.randn(length, 4) for length in (3, 1, 5)]
        store.put((key(number), tensor) for number, tensor in enumerate(rows))
        out = torch.zeros(4, 5, 4)
        assert store.get_into([key(0), key(9), key(1), key(2)], out) == [True, False, True, True]
        expected = torch.zeros(4, 5, 4)
        expected[0, :3], expected[2, :1], expected[3, :5] = rows
        assert torch.equal(out, expected)

    @pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("wanted", [torch.float32, torch.float16, torch.bfloat16])
    def test_rows_are_converted(self, store: ActivationStore, stored: torch.dtype, wanted: torch.dtype) -> None:
        rows = [torch.randn(length, 4).to(stored) for length in (3, 1)]
        store.put((key(number), tensor) for number, tensor in enumerate(rows))
        out = torch.full((2, 3, 4), 9.0, dtype=wanted)
        assert store.get_into([key(0), key(1)], out) == [True, True]
        assert torch.equal(out[0], rows[0].to(wanted))
        assert torch.equal(out[1, :1], rows[1].to(wanted))
        assert (out[1, 1:] == 9.0).all(), "what lies behind a row is left alone"

    def test_a_batch_need_not_lie_in_order_in_memory(self, store: ActivationStore) -> None:
        rows = [torch.randn(3, 4), torch.randn(2, 4)]
        store.put((key(number), tensor) for number, tensor in enumerate(rows))
        out = torch.zeros(3, 4, 2).permute(2, 0, 1)
        assert store.get_into([key(0), key(1)], out) == [True, True]
        assert torch.equal(out[0], rows[0])
        assert torch.equal(out[1, :2], rows[1])

    @pytest.mark.parametrize("shape", [(4, 4), (2, 5), (2,), (2, 4, 1), ()])
    def test_a_row_that_does_not_fit_is_not_written(self, store: ActivationStore, shape: tuple[int, ...]) -> None:
        store.put([(key(0), torch.ones(shape)), (key(1), torch.ones(3, 4))])
        out = torch.zeros(2, 3, 4)
        assert store.get_into([key(0), key(1)], out) == [False, True]
        assert (out[0] == 0).all()
        assert store.damaged == 0


class TestFile:
    def test_rows_outlive_the_store(self, store: ActivationStore, tmp_path: Path) -> None:
        put(store, range(20))
        store.close()
        again = ActivationStore(tmp_path / "root", FINGERPRINT)
        assert num_right(again, range(20)) == 20
        again.close()

    def test_a_closed_store_opens_again_on_use(self, store: ActivationStore) -> None:
        put(store, range(3))
        store.close()
        store.close()
        assert num_right(store, range(3)) == 3

    def test_nothing_is_opened_before_use(self, store: ActivationStore, tmp_path: Path) -> None:
        assert list(tmp_path.iterdir()) == []

    def test_two_stores_share_one_environment(self, store: ActivationStore, tmp_path: Path) -> None:
        other = ActivationStore(tmp_path / "root", FINGERPRINT)
        put(store, range(3))
        assert num_right(other, range(3)) == 3
        store.close()
        put(other, range(3, 6))
        other.close()
        assert num_right(store, range(6)) == 6

    def test_another_path_to_the_folder_is_the_same_folder(self, store: ActivationStore, tmp_path: Path) -> None:
        put(store, range(3))
        (tmp_path / "link").symlink_to(tmp_path / "root")
        other = ActivationStore(tmp_path / "link", FINGERPRINT)
        assert num_right(other, range(3)) == 3
        other.close()

    def test_a_folder_that_was_removed_meanwhile_is_made_anew(self, store: ActivationStore, tmp_path: Path) -> None:
        put(store, range(3))
        for path in (tmp_path / "root" / FINGERPRINT).iterdir():
            path.unlink()
        other = ActivationStore(tmp_path / "root", FINGERPRINT)
        assert num_right(other, range(3)) == 0
        put(other, range(3))
        other.close()
        assert num_right(store, range(3)) == 3

    def test_only_the_user_may_read_it(self, store: ActivationStore, tmp_path: Path) -> None:
        put(store, range(3))
        folder = tmp_path / "root" / FINGERPRINT
        assert sorted(path.name for path in folder.iterdir()) == ["data.mdb", "in_use.lock", "lock.mdb", "meta.json"]
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "root", folder, *folder.iterdir())}
        assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
        assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}

    def test_the_map_doubles_when_it_is_full(
        self, store: ActivationStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(environment, "INITIAL_MAP_SIZE", 1 << 16)
        store.put((key(number), torch.full((16, 384), float(number))) for number in range(40))
        assert len(store) == 40
        store.close()
        assert store.verify() == (40, 0)
        assert store.writable

    def test_a_path_below_a_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        folder = tmp_path / "file" / "root" / FINGERPRINT
        message = (
            f"activation_cache.dir: cannot open the store of this folder; got {str(folder)!r} ([Errno 20] Not a "
            f"directory: {str(folder.parent)!r}). Set activation_cache.dir to a folder on a local disk that can be "
            f"written."
        )
        with pytest.raises(CacheError, match=f"^{re.escape(message)}$"):
            ActivationStore(folder.parent, FINGERPRINT).has([key(0)])


class TestLimit:
    def test_the_largest_size_is_kept(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        store = ActivationStore(tmp_path, FINGERPRINT, max_size=200_000)
        put(store, range(200))
        num_stored = len(store)
        put(store, range(200))
        assert 30 < num_stored == len(store) < 100
        assert 150_000 < store.num_bytes < 220_000
        assert num_right(store, range(200)) == num_stored
        reason = f"{tmp_path / FINGERPRINT} has reached what activation_cache.max_size leaves it, 200000 bytes"
        assert (store.writable, store.reason) == (False, reason)
        assert caplog.messages == [f"activation_cache: {reason}. Training goes on without storing more rows."]
        store.close()

    def test_a_store_that_has_room_is_writable(self, store: ActivationStore) -> None:
        put(store, range(3))
        assert (store.writable, store.reason) == (True, None)

    def test_no_address_space_ends_the_writing_only(
        self, store: ActivationStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(size: int) -> None:
            raise OSError(12, "Cannot allocate memory")

        monkeypatch.setattr(environment, "INITIAL_MAP_SIZE", 1 << 18)
        monkeypatch.setattr(environment, "_check_address_space", refuse)
        put(store, range(200))
        assert not store.writable
        assert num_right(store, range(200)) == len(store) > 0
        assert store.reason == f"{store.folder} takes no more rows ([Errno 12] Cannot allocate memory)"
        assert caplog.messages == [f"activation_cache: {store.reason}. Training goes on without storing more rows."]


class TestDescription:
    def test_it_says_what_is_stored(self, store: ActivationStore) -> None:
        before = time.time()
        assert len(store) == 0
        description = read_description(store.folder)
        assert description is not None
        assert (description.fingerprint, description.model, description.depth) == (FINGERPRINT, "tiny", 2)
        assert (description.dtype, description.format_version) == ("", 1)
        assert before - 60 < description.created == description.last_used <= time.time()
        put(store, range(1))
        assert json.loads((store.folder / "meta.json").read_text(encoding="utf-8"))["dtype"] == "float32"

    def test_opening_is_use_and_does_not_change_the_rest(self, store: ActivationStore, tmp_path: Path) -> None:
        put(store, range(1))
        store.close()
        first = read_description(store.folder)
        other = ActivationStore(tmp_path / "root", FINGERPRINT, model="other")
        assert len(other) == 1
        second = read_description(store.folder)
        other.close()
        assert first is not None
        assert second is not None
        assert second.last_used > first.last_used
        assert (second.created, second.model) == (first.created, first.model)

    def test_use_is_noted_once_a_minute(self, store: ActivationStore, monkeypatch: pytest.MonkeyPatch) -> None:
        def last_used() -> float:
            description = read_description(store.folder)
            assert description is not None
            return description.last_used

        store.touch()
        opened = last_used()
        store.touch()
        assert last_used() == opened
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 61.0)
        store.touch()
        touched = last_used()
        assert touched > opened
        store.touch()
        assert last_used() == touched

    def test_a_note_that_cannot_be_written_is_let_go(
        self, store: ActivationStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(self: Path, target: Path) -> Path:
            raise OSError(28, "No space left on device")

        store.touch()
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 61.0)
        monkeypatch.setattr(Path, "replace", refuse)
        store.touch()
        assert not list(store.folder.glob("meta.json.*")), "nothing half written is left behind"

    def test_another_format_is_built_anew(
        self, store: ActivationStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        put(store, range(3))
        store.close()
        meta = store.folder / "meta.json"
        said = json.loads(meta.read_text(encoding="utf-8"))
        meta.write_text(json.dumps(said | {"format_version": 99}), encoding="utf-8")
        (store.folder / "rows.bin").touch()
        assert len(store) == 0
        assert not (store.folder / "rows.bin").exists()
        put(store, range(3))
        assert num_right(store, range(3)) == 3
        description = read_description(store.folder)
        assert description is not None
        assert description.format_version == 1
        assert caplog.messages == [f"activation_cache: {store.folder} has format 99 and is built anew."]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how a map is read ahead")
def test_a_store_larger_than_memory_keeps_is_not_read_ahead(store: ActivationStore) -> None:
    put(store, range(2))
    assert not is_read_at_random(store)
    store.close()
    os.truncate(store.folder / "data.mdb", psutil.virtual_memory().total)  # with a hole: it takes no room on the disk
    assert num_right(store, range(2)) == 2
    assert is_read_at_random(store)


def is_read_at_random(store: ActivationStore) -> bool:
    """Says whether the system has been told not to read ahead in a store's map: the flag `rr` of `/proc/self/smaps`."""
    _, _, after = Path("/proc/self/smaps").read_text().partition(str(store.folder / "data.mdb"))
    flags = re.search(r"^VmFlags: (.*)$", after, re.MULTILINE)
    assert flags is not None
    return "rr" in flags[1].split()


def test_a_store_that_cannot_be_read_misses_and_says_so_once(
    store: ActivationStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(store, range(3))

    def refuse(self: environment.SharedEnvironment, write: bool) -> lmdb.Transaction[memoryview]:
        raise lmdb.PanicError("MDB_PANIC")

    monkeypatch.setattr(environment.SharedEnvironment, "_begin", refuse)
    assert store.get([key(0), key(1)]) == [None, None]
    assert store.has([key(0)]) == [False]
    assert store.verify() == (0, 1)
    assert caplog.messages == [
        f"activation_cache: {store.folder} cannot be read (MDB_PANIC). Its rows are computed again."
    ]
