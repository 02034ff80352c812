"""`hf-freeze merge`, `verify` and `export` say what they did, and exit with 1 or 2 where something is wrong."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner, Result

from hf_freeze.cli import app
from tests.unit.sharing.trained import Trained, train


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("plain"), "plain")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_merge_writes_a_plain_model_and_says_where(plain: Trained, tmp_path: Path) -> None:
    result = call("merge", plain.folder, tmp_path / "merged")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"A BertForSequenceClassification in float32 is in {tmp_path / 'merged'}.\n"
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")


def test_export_writes_the_type_that_is_asked_for(plain: Trained, tmp_path: Path) -> None:
    result = call("export", plain.folder, tmp_path / "half", "--format", "transformers", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == (
        f"A BertForSequenceClassification in bfloat16 is in {tmp_path / 'half'}, in the format transformers.\n"
    )
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "half").dtype == torch.bfloat16


def test_what_is_refused_exits_with_2(plain: Trained, tmp_path: Path) -> None:
    for command in (
        ("merge", tmp_path, tmp_path / "out"),
        ("export", plain.folder, tmp_path / "out", "--dtype", "no"),
        ("verify", tmp_path),
    ):
        result = call(*command)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr


def test_verify_shows_how_far_each_role_moved(plain: Trained) -> None:
    result = call("verify", plain.folder)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == f"{plain.folder} against {plain.base}"
    assert lines[2].split() == ["role", "frozen", "trained", "fresh", "moved", "change", "relative"]
    assert lines[4].split() == ["embeddings", "5", "0", "0", "0", "0", "0"]
    assert lines[5].split() == ["blocks[0]", "16", "0", "0", "0", "0", "0"]
    assert re.fullmatch(r" ?blocks\[2\] +0 +16 +0 +16 +[0-9.]+ +[0-9.]+", lines[7])
    assert re.fullmatch(r" ?head +0 +4 +2 +2 +[0-9.]+ +[0-9.]+", lines[9])
    assert lines[-1] == "All 37 frozen tensors that the base has are equal to it, to the bit."


def test_verify_exits_with_1_where_a_frozen_tensor_moved(plain: Trained, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain.folder, tmp_path / "copy"))
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    for index in range(11):
        tensors[sorted(name for name in tensors if ".layer.0." in name)[index]].add_(1)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    result = call("verify", folder)
    assert result.exit_code == 1, result.stderr
    lines = result.stdout.splitlines()
    start = lines.index("11 of 37 frozen tensors are not those of the base:")
    assert len(lines[start + 1 :]) == 11
    assert lines[start + 1].startswith("  bert.encoder.layer.0.attention.")
    assert lines[-1] == "  and 1 more"
