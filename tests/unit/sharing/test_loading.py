"""Whatever a run has saved loads as it was, to the bit, or is refused in words."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM, BertConfig, BertModel, PreTrainedModel

from hf_freeze import load_model
from hf_freeze.errors import ConfigError, PlanError
from hf_freeze.plan.wrappers import named_parameters
from tests.tiny import tiny_bert, tiny_gpt2
from tests.unit.sharing.trained import KINDS, Trained, logits, tiny_mixtral, train, train_gpt2

WRITE_AGAIN = "Save or download the folder again."


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    return {kind: train(tmp_path_factory.mktemp(kind), kind) for kind in ("plain", "delta", "mixed")}


@pytest.fixture
def copy_of(made: dict[str, Trained], tmp_path: Path) -> Callable[[str], Path]:
    def copied(kind: str) -> Path:
        return Path(shutil.copytree(made[kind].folder, tmp_path / kind))

    return copied


def message_of(folder: Path, error: type[Exception] = ConfigError, **options: Any) -> str:
    with pytest.raises(error) as caught:
        load_model(folder, **options)
    return str(caught.value)


def test_every_kind_loads_as_it_was_to_the_bit(trained: Trained) -> None:
    model = load_model(trained.folder)
    assert not model.training
    assert torch.equal(logits(model), logits(trained.model))
    ours, theirs = dict(named_parameters(trained.model)), dict(named_parameters(model))
    names = {name for name in theirs if "original_module" not in name}
    assert names == set(ours)
    assert [name for name in names if not torch.equal(ours[name], theirs[name])] == []


def test_adapters_load_as_a_peft_model_and_the_rest_plainly(made: dict[str, Trained]) -> None:
    kinds = {kind: type(load_model(it.folder)) for kind, it in made.items()}
    assert issubclass(kinds.pop("mixed"), PeftModel)
    assert set(kinds.values()) == {transformers.BertForSequenceClassification}


def test_labels_come_back_with_adapters(tmp_path: Path) -> None:
    names = {"id2label": {0: "bad", 1: "so", 2: "good"}, "label2id": {"bad": 0, "so": 1, "good": 2}}
    model = load_model(train(tmp_path, "adapters", load=names).folder)
    assert model.config.id2label == names["id2label"]


@pytest.mark.parametrize("dtype", ["float16", torch.bfloat16])
def test_a_dtype_converts_what_was_saved(made: dict[str, Trained], dtype: Any) -> None:
    wanted = torch.float16 if dtype == "float16" else dtype
    for kind in ("plain", "delta"):
        model = load_model(made[kind].folder, dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {wanted}
        trained = dict(made[kind].model.named_parameters())
        assert all(torch.equal(p, trained[name].to(wanted)) for name, p in model.named_parameters())


class TestDeltas:
    def test_it_holds_what_trained_and_the_fresh_head(self, made: dict[str, Trained]) -> None:
        held = safetensors.torch.load_file(made["delta"].folder / "hf_freeze_delta.safetensors")
        prefixes = ("bert.encoder.layer.2.", "bert.encoder.layer.3.", "bert.pooler.", "classifier.")
        names = {name for name, _ in made["delta"].model.named_parameters()}
        assert set(held) == {name for name in names if name.startswith(prefixes)}

    def test_a_frozen_fresh_head_comes_back(self, tmp_path: Path) -> None:
        trained = train(tmp_path, "delta", freeze={"blocks": {"first": 2}, "head": "frozen"})
        assert torch.equal(logits(load_model(trained.folder)), logits(trained.model))

    def test_tied_weights_are_held_once(self, tmp_path: Path) -> None:
        trained = train_gpt2(tmp_path, "delta", freeze={"blocks": {"first": 1}, "embeddings": "full"})
        held = safetensors.torch.load_file(trained.folder / "hf_freeze_delta.safetensors")
        assert "transformer.wte.weight" in held
        assert "lm_head.weight" not in held
        model = load_model(trained.folder)
        assert torch.equal(logits(model), logits(trained.model))
        assert model.lm_head.weight is model.transformer.wte.weight

    def test_models_that_are_converted_on_load_come_back(self, tmp_path: Path) -> None:
        trained = train(tmp_path, "delta", make=tiny_mixtral, auto_class=AutoModelForCausalLM, labels="words")
        assert torch.equal(logits(load_model(trained.folder)), logits(trained.model))

    def test_half_precision_comes_back(self, tmp_path: Path) -> None:
        trained = train(tmp_path, "delta", load={"dtype": torch.bfloat16})
        model = load_model(trained.folder)
        assert model.dtype == torch.bfloat16
        assert torch.equal(logits(model), logits(trained.model))

    def test_a_base_that_moved_is_named(self, copy_of: Callable[[str], Path], made: dict[str, Trained]) -> None:
        folder = copy_of("delta")
        described = json.loads((folder / "hf_freeze_delta.json").read_text())
        described["base"] = "/nowhere/at/all"
        (folder / "hf_freeze_delta.json").write_text(json.dumps(described))
        assert "/nowhere/at/all: no BertForSequenceClassification can be loaded from it; got the error " in message_of(
            folder, PlanError
        )
        assert torch.equal(logits(load_model(folder, base=made["delta"].base)), logits(made["delta"].model))

    @pytest.mark.parametrize("other", ["weights", "architecture"])
    def test_another_base_is_refused_with_both_digests(
        self, made: dict[str, Trained], tmp_path: Path, other: str
    ) -> None:
        model = tiny_bert(seed=1).base_model if other == "weights" else tiny_gpt2()
        model.save_pretrained(tmp_path / "other")
        message = message_of(made["delta"].folder, PlanError, base=tmp_path / "other")
        described = json.loads((made["delta"].folder / "hf_freeze_delta.json").read_text())
        found = re.escape(str(tmp_path / "other"))
        assert re.fullmatch(
            rf"{re.escape(str(made['delta'].folder))}: this delta was made from another base model; got '{found}' with "
            rf"the digest [0-9a-f]{{32}}\. It was made from '{re.escape(str(made['delta'].base))}' with the digest "
            rf"{described['base_digest']}\. Pass that model as base\.",
            message,
        )

    def test_a_base_that_changed_in_one_bit_is_refused(self, made: dict[str, Trained], tmp_path: Path) -> None:
        model = BertModel.from_pretrained(made["delta"].base)
        with torch.no_grad():
            weight = model.encoder.layer[0].attention.self.query.weight
            weight.view(torch.int32)[3, 5] ^= 1
        model.save_pretrained(tmp_path / "other")
        assert "another base model" in message_of(made["delta"].folder, PlanError, base=tmp_path / "other")

    def test_tensors_of_another_delta_are_refused(self, copy_of: Callable[[str], Path], tmp_path: Path) -> None:
        folder = copy_of("delta")
        other = train_gpt2(tmp_path / "gpt2", "delta")
        shutil.copyfile(other.folder / "hf_freeze_delta.safetensors", folder / "hf_freeze_delta.safetensors")
        assert message_of(folder) == (
            f"{folder / 'hf_freeze_delta.safetensors'}: this file is not the one that hf_freeze_delta.json was written "
            "with; got other tensors in it. Copy both files from the same folder."
        )

    def test_a_delta_of_another_architecture_is_refused(self, copy_of: Callable[[str], Path], tmp_path: Path) -> None:
        """Description and tensors of one model, over the class of another."""
        folder, other = copy_of("delta"), train_gpt2(tmp_path / "gpt2", "delta")
        base = json.loads((folder / "hf_freeze_delta.json").read_text())
        shutil.copyfile(other.folder / "hf_freeze_delta.safetensors", folder / "hf_freeze_delta.safetensors")
        base["weights_digest"] = json.loads((other.folder / "hf_freeze_delta.json").read_text())["weights_digest"]
        (folder / "hf_freeze_delta.json").write_text(json.dumps(base))
        first = next(iter(safetensors.torch.load_file(folder / "hf_freeze_delta.safetensors").items()))
        assert message_of(folder, PlanError) == (
            f"{folder}: this delta does not fit its model; got {first[0]!r} in the shape {list(first[1].shape)}. "
            f"A BertForSequenceClassification with this config has no tensor of this name. {WRITE_AGAIN}"
        )

    def test_another_shape_is_refused(self, copy_of: Callable[[str], Path]) -> None:
        folder = copy_of("delta")
        described = json.loads((folder / "hf_freeze_delta.json").read_text())
        described["model_config"]["id2label"] = {"0": "a", "1": "b", "2": "c"}
        described["model_config"]["label2id"] = {"a": 0, "b": 1, "c": 2}
        (folder / "hf_freeze_delta.json").write_text(json.dumps(described))
        assert re.fullmatch(
            rf"{re.escape(str(folder))}: this delta does not fit its model; got 'classifier.(weight|bias)' in the shape "
            rf"\[2(, 32)?\]\. A BertForSequenceClassification with this config has it in the shape \[3(, 32)?\]\. "
            rf"{re.escape(WRITE_AGAIN)}",
            message_of(folder, PlanError),
        )

    @pytest.mark.parametrize("content", ["", "{}", "[1]", '{"format_version": 1}'])
    def test_a_damaged_description_is_refused(self, copy_of: Callable[[str], Path], content: str) -> None:
        file = copy_of("delta") / "hf_freeze_delta.json"
        file.write_text(content)
        assert re.fullmatch(
            rf"{re.escape(str(file))}: this file does not say how the model was trained; got (JSONDecode|Key|Type)Error "
            r"reading it\. hf_freeze writes it when it saves a model\. Save or download the folder again\.",
            message_of(file.parent, PlanError),
        )

    def test_another_version_is_refused(self, copy_of: Callable[[str], Path]) -> None:
        file = copy_of("delta") / "hf_freeze_delta.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": 2}))
        assert message_of(file.parent, PlanError) == (
            f"{file}: this file has another format; got version 2. This hf_freeze reads version 1. Load it with the "
            "release that wrote it."
        )
