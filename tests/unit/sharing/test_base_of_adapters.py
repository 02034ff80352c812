"""Adapters are loaded on the base that they were trained on, or refused: weights of the same shapes are told apart."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from hf_freeze import load_model
from hf_freeze.errors import PlanError
from hf_freeze.sharing.merging import merged_model
from hf_freeze.sharing.verify import verify_model
from hf_freeze.training import FreezeTrainer
from hf_freeze.training.saving import held_names
from tests.unit.sharing.trained import KINDS, Trained, encoder_of_bert, logits, train, train_gpt2
from tests.unit.training.runs import arguments


@pytest.fixture(scope="module", params=["adapters", "mixed"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def base_with_another_bit(trained: Trained, tmp_path: Path) -> Callable[[str], Path]:
    def changed(name: str) -> Path:
        base = Path(shutil.copytree(trained.base, tmp_path / "changed"))
        tensors = safetensors.torch.load_file(base / "model.safetensors")
        tensors[name].view(torch.int32)[0] ^= 1
        safetensors.torch.save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
        return base

    return changed


def digest_of(folder: Path) -> str:
    digest: str = json.loads((folder / "hf_freeze_plan.json").read_text())["frozen_digest"]
    return digest


@pytest.mark.parametrize("load", [load_model, merged_model, verify_model])
def test_another_base_of_the_same_shapes_is_refused_with_both_digests(
    trained: Trained, tmp_path: Path, load: Callable[..., object]
) -> None:
    encoder_of_bert(seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(PlanError) as caught:
        load(trained.folder, base=tmp_path / "other")
    found = re.fullmatch(
        rf"{re.escape(str(trained.folder))}: these adapters were trained on another base model; got "
        rf"'{re.escape(str(tmp_path / 'other'))}' with the digest ([0-9a-f]{{32}})\. They were trained on "
        rf"'{re.escape(str(trained.base))}' with the digest {digest_of(trained.folder)}\. Pass that model as base\.",
        str(caught.value),
    )
    assert found is not None
    assert found[1] != digest_of(trained.folder)


def test_a_base_that_has_moved_is_accepted(trained: Trained, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(trained.base, tmp_path / "moved"))
    assert torch.equal(logits(load_model(trained.folder, base=moved)), logits(trained.model))


def test_one_bit_of_what_was_frozen_is_found(trained: Trained, base_with_another_bit: Callable[[str], Path]) -> None:
    base = base_with_another_bit("encoder.layer.1.output.dense.bias")
    with pytest.raises(PlanError, match="these adapters were trained on another base model; got"):
        load_model(trained.folder, base=base)


def test_the_base_of_what_the_folder_holds_does_not_matter(
    tmp_path: Path, base_with_another_bit: Callable[[str], Path]
) -> None:
    trained = train(tmp_path, "mixed")  # Its last block trained in full, and is in the folder.
    base = base_with_another_bit("encoder.layer.3.output.dense.bias")
    assert torch.equal(logits(load_model(trained.folder, base=base)), logits(trained.model))


def test_a_model_that_was_not_trained_has_the_same_digest(tmp_path: Path) -> None:
    """Without training there are no digests of the audit to take it from."""
    trained = train(tmp_path / "trained", "adapters")
    model = AutoModelForSequenceClassification.from_pretrained(trained.base)
    FreezeTrainer(model, arguments(tmp_path / "out"), **KINDS["adapters"]).save_model()
    assert digest_of(tmp_path / "out") == digest_of(trained.folder)


def test_weights_that_were_cast_are_left_out(tmp_path: Path) -> None:
    trained = train(tmp_path / "trained", "adapters")
    model = AutoModelForSequenceClassification.from_pretrained(trained.base, dtype=torch.bfloat16)
    model.bert.embeddings.LayerNorm.float()
    FreezeTrainer(model, arguments(tmp_path / "out"), **KINDS["adapters"]).save_model()
    record = json.loads((tmp_path / "out" / "hf_freeze_plan.json").read_text())
    norm = {f"bert.embeddings.LayerNorm.{name}" for name in ("weight", "bias")}
    assert norm <= set(record["undigested"])
    assert record["frozen_digest"] is not None
    load_model(tmp_path / "out")


def test_tied_weights_are_digested_once(tmp_path: Path) -> None:
    lora = {"peft_type": "LORA", "target_modules": ["c_attn"], "r": 2}
    trained = train_gpt2(tmp_path, "adapters", adapters=(lora,))
    assert torch.equal(logits(load_model(trained.folder)), logits(trained.model))


def test_peft_alone_loads_the_folder(trained: Trained) -> None:
    base = AutoModelForSequenceClassification.from_pretrained(trained.base)
    loaded = PeftModel.from_pretrained(base, trained.folder).eval()
    assert torch.equal(logits(loaded), logits(trained.model))


def test_keys_stand_for_names_under_a_tuner_and_without_one() -> None:
    assert "classifier.weight" in held_names(["base_model.model.classifier.weight"])
    assert "model.norm.weight" in held_names(["base_model.model.norm.weight"])
