"""The manifest that declares a checkpoint complete, and what is written while it is made."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch

from hf_freeze.training import FreezeTrainer
from hf_freeze.training.manifest import (
    MANIFEST_FILE,
    ManifestWriter,
    damaged_files,
    is_complete,
    is_intact,
    write_manifest,
)
from tests.tiny import tiny_bert
from tests.unit.training.runs import arguments, rows


def test_every_file_is_in_the_manifest_whether_or_not_it_was_added_before(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"1234")
    with ManifestWriter(tmp_path) as manifest:
        manifest.add(tmp_path / "weights")
        (tmp_path / "inner").mkdir()
        (tmp_path / "inner" / "state").write_bytes(b"")
        manifest.write()
    entries = json.loads((tmp_path / MANIFEST_FILE).read_text())
    assert {name: size for name, (size, _) in entries.items()} == {"weights": 4, "inner/state": 0}
    assert is_complete(tmp_path)


def test_a_file_that_vanishes_while_it_is_digested_leaves_no_manifest(tmp_path: Path) -> None:
    with ManifestWriter(tmp_path) as manifest:
        manifest.add(tmp_path / "nowhere")
        with pytest.raises(FileNotFoundError):
            manifest.write()
    assert not (tmp_path / MANIFEST_FILE).exists()


@pytest.mark.parametrize("size", [1, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, 1 << 20])
def test_a_changed_last_byte_is_noticed(tmp_path: Path, size: int) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(size))
    write_manifest(tmp_path)
    assert is_complete(tmp_path)
    file.write_bytes(bytes(size - 1) + b"\1")
    assert not is_complete(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", "3", '{"weights": 1}', '{"weights": [4]}', '{"weights": [4, 5]}']
)
def test_a_manifest_that_says_nothing_makes_a_checkpoint_incomplete(tmp_path: Path, content: str) -> None:
    (tmp_path / "weights").write_bytes(b"1234")
    (tmp_path / MANIFEST_FILE).write_text(content)
    assert list(damaged_files(tmp_path)) == [MANIFEST_FILE]
    assert not is_intact(tmp_path, "weights")


def test_a_file_is_intact_where_the_manifest_has_its_digest(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"1234")
    write_manifest(tmp_path)
    (tmp_path / "other").write_bytes(b"1234")
    assert is_intact(tmp_path, "weights")
    assert not is_intact(tmp_path, "other")
    (tmp_path / "weights").write_bytes(b"1235")
    assert not is_intact(tmp_path, "weights")


@pytest.mark.parametrize(("checkpoints", "has_checksums"), [("small", False), ("full", True)])
def test_small_checkpoints_leave_out_checksums_that_digests_replace(
    tmp_path: Path, checkpoints: str, has_checksums: bool
) -> None:
    args = arguments(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    freeze, save = {"blocks": {"first": 2}}, {"checkpoints": checkpoints}
    trainer = FreezeTrainer(tiny_bert(), args, train_dataset=rows(), freeze=freeze, save=save)
    trainer.train()
    file = tmp_path / "checkpoint-1" / "optimizer.pt"
    with zipfile.ZipFile(file) as archive:
        assert (archive.testzip() is None) == has_checksums
    assert torch.serialization.get_crc32_options()  # Others' files keep theirs.
    state = torch.load(file, weights_only=True)["state"]
    current = trainer.optimizer.state_dict()["state"]
    assert all(torch.equal(state[index]["exp_avg"], current[index]["exp_avg"]) for index in current)
    assert state.keys() == current.keys() != set()
