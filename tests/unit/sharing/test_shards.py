"""Weights in several files: Transformers reads whatever their index names, so what it may name is checked first."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from hf_freeze import load_model
from hf_freeze.errors import ConfigError
from hf_freeze.tasks.models import load_classifier
from hf_freeze.training.checkpoint import read_whole
from tests.tiny import tiny_bert
from tests.unit.sharing.trained import Trained, logits, train

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    return {kind: train(tmp_path_factory.mktemp(kind), kind) for kind in ("plain", "delta", "mixed")}


@pytest.fixture
def plain(made: dict[str, Trained], tmp_path: Path) -> Path:
    """A copy of a plain model without its weights."""
    folder = Path(shutil.copytree(made["plain"].folder, tmp_path / "plain"))
    (folder / "model.safetensors").unlink()
    return folder


def message_of(folder: Path, *, base: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_model(folder, base=base)
    return str(caught.value)


def pickled(source: Path, target: Path, named: str) -> Path:
    """A copy of a model whose weights are pickled, with an index that names a file."""
    folder = Path(shutil.copytree(source, target))
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, named)}))
    return folder


def names_a_pickle(folder: Path, named: str) -> str:
    return (
        f"{folder / INDEX}: weights are read from safetensors files beside this one only, since a pickle runs code; "
        f"got {named!r}. Load the model in a place that you trust and save it with save_pretrained."
    )


@pytest.mark.parametrize("named", ["pytorch_model.bin", "../other/model.safetensors", "/tmp/model.safetensors"])
def test_an_index_that_names_other_files_is_refused(made: dict[str, Trained], tmp_path: Path, named: str) -> None:
    shutil.copytree(made["plain"].folder, tmp_path / "other")
    run = pickled(made["plain"].folder, tmp_path / "run", named)
    assert message_of(run) == names_a_pickle(run, named)
    base = pickled(made["delta"].base, tmp_path / "base", named)
    for kind in ("delta", "mixed"):
        assert message_of(made[kind].folder, base=base) == names_a_pickle(base, named)


def test_so_it_is_where_training_or_a_checkpoint_begins(made: dict[str, Trained], tmp_path: Path) -> None:
    run = pickled(made["plain"].folder, tmp_path / "run", "pytorch_model.bin")
    (run / "pytorch_model.bin").rename(run / "weights.bin")
    named = names_a_pickle(run, "pytorch_model.bin")
    with pytest.raises(ConfigError) as caught:
        read_whole(tiny_bert(), run)
    assert str(caught.value) == named
    with pytest.raises(ConfigError) as caught:
        load_classifier(str(run), labels=("a", "b"), problem_type=None)
    assert str(caught.value) == named


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"weight_map": {}}', '{"metadata": {}, "weight_map": [1]}'])
def test_a_damaged_index_is_refused(plain: Path, content: str) -> None:
    (plain / INDEX).write_text(content)
    assert re.fullmatch(
        rf"{re.escape(str(plain / INDEX))}: this file does not say where the weights are; got "
        r"(Attribute|JSONDecode|Key|Type)Error reading it\. Save or download the model again\.",
        message_of(plain),
    )


def test_shards_load_and_those_that_are_missing_are_named(plain: Path, made: dict[str, Trained]) -> None:
    made["plain"].model.save_pretrained(plain, max_shard_size="20KB")
    assert torch.equal(logits(load_model(plain)), logits(made["plain"].model))
    first, second, *_ = sorted(plain.glob("model-*"))
    first.unlink()
    second.unlink()
    assert message_of(plain) == (
        f"{plain / INDEX}: weights that this file names are missing; got no {first.name!r} and 1 more. Save or "
        "download the model again."
    )


@pytest.mark.parametrize("name", ["adapter_model.bin", "sub/model.safetensors", f"sub/{INDEX}"])
def test_a_config_that_names_weights_elsewhere_is_refused(made: dict[str, Trained], tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(made["plain"].folder, tmp_path / "named"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": name}))
    assert message_of(folder) == (
        f"{folder}: weights are read from safetensors files in the folder of the model only, since a pickle runs code; "
        f"got transformers_weights={name!r} in its config. Save the model again with save_pretrained."
    )
