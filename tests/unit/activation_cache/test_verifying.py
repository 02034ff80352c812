"""A check reads every row, says what is damaged, and leaves no trace of itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hf_freeze.activation_cache.descriptions import read_description, write_description
from hf_freeze.activation_cache.store import ActivationStore
from hf_freeze.activation_cache.verifying import Verdict, verify
from hf_freeze.errors import CacheError
from tests.unit.activation_cache.rows import FINGERPRINT, put, row

LAST_USED = 1_000_000.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store of 40 rows that was last used long ago."""
    store = ActivationStore(tmp_path, FINGERPRINT, model="tiny", depth=2)
    put(store, range(40))
    store.close()
    use(store.folder, LAST_USED)
    return store.folder


def use(folder: Path, last_used: float) -> None:
    description = read_description(folder)
    assert description is not None
    write_description(folder, dataclasses.replace(description, last_used=last_used))


def last_used(folder: Path) -> float:
    description = read_description(folder)
    assert description is not None
    return description.last_used


def test_intact_rows_are_counted(folder: Path) -> None:
    verdict = verify(folder)
    assert verdict == Verdict(intact=40, damaged=0, is_discarded=False)
    assert verdict.is_sound


def test_flipped_bytes_are_found_and_left(folder: Path) -> None:
    content = bytearray((folder / "data.mdb").read_bytes())
    for number in (5, 13):
        content[content.index(row(number).numpy().tobytes()) + 1000] ^= 0xFF
    (folder / "data.mdb").write_bytes(content)
    verdict = verify(folder)
    assert verdict == Verdict(intact=38, damaged=2, is_discarded=False)
    assert not verdict.is_sound
    assert (folder / "data.mdb").read_bytes() == content


@pytest.mark.parametrize("size", [0, 5000, 50_000])
def test_a_file_that_was_cut_off_is_found_although_it_is_replaced(
    folder: Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    with (folder / "data.mdb").open("r+b") as file:
        file.truncate(size)
    verdict = verify(folder)
    assert verdict == Verdict(intact=0, damaged=0, is_discarded=True)
    assert not verdict.is_sound
    assert len(caplog.messages) == 1


def test_a_check_is_no_use(folder: Path) -> None:
    verify(folder)
    assert last_used(folder) == LAST_USED


def test_a_use_while_it_is_checked_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later = 4_000_000_000.0

    def use_and_verify(self: ActivationStore) -> tuple[int, int]:
        use(folder, later)
        return read_all(self)

    read_all = ActivationStore.verify
    monkeypatch.setattr(ActivationStore, "verify", use_and_verify)
    assert verify(folder).intact == 40
    assert last_used(folder) == later


def test_a_store_that_is_open_stays_open(folder: Path) -> None:
    store = ActivationStore(folder.parent, FINGERPRINT)
    assert len(store) == 40
    opened = last_used(folder)
    assert verify(folder).intact == 40
    assert last_used(folder) == opened
    assert store.verify() == (40, 0)
    store.close()


def test_a_store_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / FINGERPRINT
    with pytest.raises(CacheError) as caught:
        verify(folder)
    assert str(caught.value) == (
        f"activation_cache.dir: cannot open the store of this folder; got {str(folder)!r} ([Errno 17] File exists: "
        f"{str(folder.parent)!r}). Set activation_cache.dir to a folder on a local disk that can be written."
    )
