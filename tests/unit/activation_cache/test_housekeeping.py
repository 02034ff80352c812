"""Stores are listed as they are, and the longest unused go first."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest
import torch

from hf_freeze.activation_cache.descriptions import read_description, write_description
from hf_freeze.activation_cache.housekeeping import StoreInfo, clear, list_stores, prune
from hf_freeze.activation_cache.store import ActivationStore
from tests.unit.activation_cache.rows import put

NAMES = ["oldest", "older", "newer", "newest"]
DAY = 86_400.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four stores of 20 rows, last used 40, 30, 20 and 10 days ago."""
    for index, name in enumerate(NAMES):
        store = ActivationStore(tmp_path, name, model=f"model {index}", depth=index, dtype=torch.float16)
        put(store, range(20))
        store.close()
        change(tmp_path, name, last_used=time.time() - (40 - 10 * index) * DAY)
    return tmp_path


def change(root: Path, name: str, **changes: float) -> None:
    description = read_description(root / name)
    assert description is not None
    write_description(root / name, dataclasses.replace(description, **changes))


def names(infos: list[StoreInfo]) -> list[str]:
    return [info.fingerprint for info in infos]


class TestList:
    def test_the_last_used_comes_first(self, root: Path) -> None:
        assert names(list_stores(root)) == NAMES[::-1]

    def test_it_says_what_a_store_holds(self, root: Path) -> None:
        info = list_stores(root)[1]
        assert (info.fingerprint, info.model, info.depth, info.dtype) == ("newer", "model 2", 2, "float16")
        assert (info.rows, info.format_version, info.folder) == (20, 1, root / "newer")
        assert 100_000 < info.num_bytes < 300_000
        assert info.created > time.time() - DAY > info.last_used > time.time() - 21 * DAY

    def test_a_store_that_is_open_is_listed_as_it_is_now(self, root: Path) -> None:
        store = ActivationStore(root, "newer")
        put(store, range(25))
        assert {info.fingerprint: info.rows for info in list_stores(root)}["newer"] == 25
        store.close()

    def test_a_store_of_another_format_is_listed_with_its_format(self, root: Path) -> None:
        change(root, "older", format_version=7)
        assert [info.format_version for info in list_stores(root)] == [1, 1, 7, 1]

    @pytest.mark.parametrize("content", [b"", b"garbage" * 5000, None])
    def test_a_store_that_is_damaged_is_listed_without_rows(self, root: Path, content: bytes | None) -> None:
        data = root / "older" / "data.mdb"
        data.unlink()
        if content is not None:
            data.write_bytes(content)
        info = next(info for info in list_stores(root) if info.fingerprint == "older")
        assert info.rows == 0
        assert info.num_bytes >= len(content or b"")

    def test_a_store_that_was_cut_off_is_listed_without_rows(self, root: Path) -> None:
        with (root / "older" / "data.mdb").open("r+b") as file:
            file.truncate(50_000)
        info = next(info for info in list_stores(root) if info.fingerprint == "older")
        assert info.rows == 0
        assert 50_000 < info.num_bytes < 100_000

    def test_what_is_no_store_is_not_listed(self, root: Path) -> None:
        (root / "notes.txt").touch()
        (root / "photos").mkdir()
        (root / "app").mkdir()
        (root / "app" / "meta.json").write_text('{"fingerprint": "x", "format_version": 1}', encoding="utf-8")
        assert names(list_stores(root)) == NAMES[::-1]

    def test_a_folder_that_does_not_exist_has_none(self, tmp_path: Path) -> None:
        assert list_stores(tmp_path / "nothing") == []
        (tmp_path / "file").touch()
        assert list_stores(tmp_path / "file") == []


class TestPrune:
    def test_without_limits_all_stay(self, root: Path) -> None:
        assert prune(root, max_size=None, expire_after=None) == []
        assert names(list_stores(root)) == NAMES[::-1]

    def test_what_is_too_much_goes_the_longest_unused_first(self, root: Path) -> None:
        size = sum(info.num_bytes for info in list_stores(root))
        assert names(prune(root, max_size=size, expire_after=None)) == []
        assert names(prune(root, max_size=size - 1, expire_after=None)) == ["oldest"]
        half = size // 2 + 100  # the descriptions differ in length
        assert names(prune(root, max_size=half, expire_after=None)) == ["older"]
        assert names(list_stores(root)) == ["newest", "newer"]
        assert sum(info.num_bytes for info in list_stores(root)) <= half

    def test_what_is_too_old_goes(self, root: Path) -> None:
        assert names(prune(root, max_size=None, expire_after=25 * DAY)) == ["oldest", "older"]
        assert sorted(path.name for path in root.iterdir()) == [".lock", "newer", "newest"]

    def test_what_is_to_be_kept_stays_and_counts(self, root: Path) -> None:
        size = max(info.num_bytes for info in list_stores(root))
        assert names(prune(root, max_size=size, expire_after=1.0, keep=["oldest"])) == ["older", "newer", "newest"]

    def test_a_store_that_is_open_stays(self, root: Path) -> None:
        store = ActivationStore(root, "oldest")
        assert len(store) == 20
        assert names(prune(root, max_size=0, expire_after=1.0)) == ["older", "newer", "newest"]
        store.close()
        assert names(prune(root, max_size=0, expire_after=None)) == ["oldest"]

    def test_a_store_of_another_format_goes_like_any_other(self, root: Path) -> None:
        change(root, "oldest", format_version=7)
        (root / "oldest" / "parts").mkdir()
        (root / "oldest" / "parts" / "0.bin").touch()
        assert names(prune(root, max_size=None, expire_after=35 * DAY)) == ["oldest"]
        assert not (root / "oldest").exists()

    def test_a_folder_that_does_not_exist_stays_so(self, tmp_path: Path) -> None:
        assert prune(tmp_path / "nothing", max_size=0, expire_after=0.0) == []
        assert not (tmp_path / "nothing").exists()


class TestClear:
    def test_all_stores_go_and_nothing_else(self, root: Path) -> None:
        (root / "photos").mkdir()
        (root / "notes.txt").touch()
        assert names(clear(root)) == NAMES
        assert sorted(path.name for path in root.iterdir()) == [".lock", "notes.txt", "photos"]

    def test_an_interrupted_removal_is_taken_up_again(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        unlink = Path.unlink

        def interrupt(self: Path, missing_ok: bool = False) -> None:
            if self.name == "meta.json":
                raise KeyboardInterrupt
            unlink(self, missing_ok)

        monkeypatch.setattr(Path, "unlink", interrupt)
        with pytest.raises(KeyboardInterrupt):
            clear(root)
        monkeypatch.undo()
        assert names(clear(root)) == NAMES
