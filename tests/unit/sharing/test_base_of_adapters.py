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
from tests.unit.training.runs import arguments, rows


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


class TestABaseBesideItsAdapters:
    """A folder that holds both a whole model and adapters."""

    @staticmethod
    def beside(trained: Trained, folder: Path) -> Path:
        both = Path(shutil.copytree(trained.folder, folder))
        for name in ("config.json", "model.safetensors"):
            shutil.copy(trained.base / name, both / name)
        return both

    def test_it_is_the_base_whatever_name_the_adapters_have_for_it(self, trained: Trained, tmp_path: Path) -> None:
        both = self.beside(trained, tmp_path / "both")
        config = json.loads((both / "adapter_config.json").read_text())
        nowhere = {**config, "base_model_name_or_path": str(tmp_path / "nowhere")}
        (both / "adapter_config.json").write_text(json.dumps(nowhere))
        assert torch.equal(logits(load_model(both)), logits(trained.model))
        assert verify_model(both).holds
        torch.testing.assert_close(logits(merged_model(both)), logits(trained.model), rtol=0, atol=1e-6)
        (both / "hf_freeze_plan.json").unlink()
        assert torch.equal(logits(load_model(both)), logits(trained.model))
        plainly = AutoModelForSequenceClassification.from_pretrained(both).eval()
        assert torch.equal(logits(plainly), logits(trained.model)), "Transformers takes the same base"

    def test_one_that_the_adapters_were_not_trained_on_is_refused(self, trained: Trained, tmp_path: Path) -> None:
        both = self.beside(trained, tmp_path / "both")
        encoder_of_bert(seed=1).save_pretrained(both)
        with pytest.raises(PlanError, match="these adapters were trained on another base model; got"):
            load_model(both)
        assert torch.equal(logits(load_model(both, base=trained.base)), logits(trained.model))

    def test_adapters_that_were_saved_into_the_folder_of_their_base(self, tmp_path: Path) -> None:
        encoder_of_bert().save_pretrained(tmp_path)
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        trainer = FreezeTrainer(model, arguments(tmp_path), train_dataset=rows(), **KINDS["mixed"])
        trainer.train()
        trainer.save_model()
        assert torch.equal(logits(load_model(tmp_path)), logits(trainer.model.eval()))


def test_a_head_that_neither_the_adapters_nor_the_base_hold_is_refused(trained: Trained, tmp_path: Path) -> None:
    """Adapters without a record: what would be random is no model."""
    folder = Path(shutil.copytree(trained.folder, tmp_path / "adapters"))
    (folder / "hf_freeze_plan.json").unlink()
    tensors = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "classifier" not in name}
    safetensors.torch.save_file(kept, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text())
    modules = [name for name in config["modules_to_save"] if name != "classifier"]
    (folder / "adapter_config.json").write_text(json.dumps({**config, "modules_to_save": modules}))
    with pytest.raises(PlanError) as caught:
        load_model(folder)
    assert str(caught.value) == (
        f"{folder}: neither these adapters nor their base model hold all weights; got {str(trained.base)!r}, in which "
        "'classifier.bias' and 1 more are missing or have another shape: they would be random. Pass a model that has "
        "them as base, or load it yourself, and the adapters with peft.PeftModel."
    )


def test_peft_alone_loads_the_folder(trained: Trained) -> None:
    base = AutoModelForSequenceClassification.from_pretrained(trained.base)
    loaded = PeftModel.from_pretrained(base, trained.folder).eval()
    assert torch.equal(logits(loaded), logits(trained.model))


def test_keys_stand_for_names_under_a_tuner_and_without_one() -> None:
    assert "classifier.weight" in held_names(["base_model.model.classifier.weight"])
    assert "model.norm.weight" in held_names(["base_model.model.norm.weight"])
