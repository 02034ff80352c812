"""Whatever a run has saved loads as it was, to the bit, or is refused in words."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM, BertForSequenceClassification, BertModel

from hf_freeze import load_model
from hf_freeze.errors import ConfigError, PlanError
from hf_freeze.plan.wrappers import named_parameters
from hf_freeze.training import FreezeTrainer
from tests.tiny import tiny_bert, tiny_gpt2
from tests.unit.sharing.trained import KINDS, Trained, logits, tiny_mixtral, train, train_gpt2
from tests.unit.training.runs import arguments

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
        assert re.fullmatch(
            rf"{re.escape(str(folder))}: its base model '/nowhere/at/all' cannot be loaded; got the error \".*\"\. "
            r"There is no such folder here\. Pass the model that it was trained from as base, which is --base of a "
            r"command\.",
            message_of(folder, PlanError),
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
            rf"{re.escape(str(folder))}: this delta does not fit its model; got 'classifier.(weight|bias)' in the "
            r"shape \[2(, 32)?\]\. A BertForSequenceClassification with this config has it in the shape "
            rf"\[3(, 32)?\]\. {re.escape(WRITE_AGAIN)}",
            message_of(folder, PlanError),
        )

    @pytest.mark.parametrize(
        ("content", "what"),
        [
            ("", "no JSON"),
            ("[1]", "no mapping"),
            ("{}", "'format_version' missing or of another kind"),
            ('{"format_version": 1}', "'model_class' missing or of another kind"),
        ],
    )
    def test_a_damaged_description_is_refused(self, copy_of: Callable[[str], Path], content: str, what: str) -> None:
        file = copy_of("delta") / "hf_freeze_delta.json"
        file.write_text(content)
        assert message_of(file.parent, PlanError) == (
            f"{file}: this file does not say how the model was trained; got {what}. hf_freeze writes it when it saves "
            "a model. Save or download the folder again."
        )

    @pytest.mark.parametrize(
        ("changes", "place"),
        [
            ({"base": None}, "base"),
            ({"model_config": []}, "model_config"),
            ({"model_config": {}}, "model_config.model_type"),
            ({"plan": {}}, "plan.digest"),
            ({"dtype": "int7"}, "dtype"),
            ({"fresh": None}, "fresh"),
        ],
    )
    def test_a_description_of_another_shape_is_refused(
        self, copy_of: Callable[[str], Path], changes: dict[str, object], place: str
    ) -> None:
        file = copy_of("delta") / "hf_freeze_delta.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
        assert message_of(file.parent, PlanError) == (
            f"{file}: this file does not say how the model was trained; got {place!r} missing or of another kind. "
            "hf_freeze writes it when it saves a model. Save or download the folder again."
        )

    def test_another_version_is_refused(self, copy_of: Callable[[str], Path]) -> None:
        file = copy_of("delta") / "hf_freeze_delta.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": 2}))
        assert message_of(file.parent, PlanError) == (
            f"{file}: this file has another format; got version 2. This hf_freeze reads version 1. Load it with the "
            "release that wrote it."
        )


class TestBadFolders:
    @pytest.mark.parametrize(
        ("kind", "weights", "names"),
        [
            ("plain", "model.safetensors", "model.safetensors or model.safetensors.index.json"),
            ("mixed", "adapter_model.safetensors", "adapter_model.safetensors"),
            ("delta", "hf_freeze_delta.safetensors", "hf_freeze_delta.safetensors"),
        ],
    )
    @pytest.mark.parametrize("what", ["missing", "renamed"])
    def test_missing_and_renamed_weights_are_refused(
        self, copy_of: Callable[[str], Path], kind: str, weights: str, names: str, what: str
    ) -> None:
        folder = copy_of(kind)
        if what == "missing":
            (folder / weights).unlink()
        else:
            (folder / weights).rename(folder / "a_renamed_file.safetensors")
        config = {
            "plain": "config.json",
            "mixed": "adapter_config.json",
            "delta": "hf_freeze_delta.json",
        }[kind]
        files = ", ".join(sorted(path.name for path in folder.iterdir())[:10])
        assert message_of(folder) == (
            f"{folder}: the weights are missing; got a folder with {files}. Beside {config} it has to hold {names}. "
            "Save or download it again."
        )

    @pytest.mark.parametrize("kind", ["plain", "mixed", "delta"])
    def test_pickles_in_place_of_weights_are_refused(self, copy_of: Callable[[str], Path], kind: str) -> None:
        folder = copy_of(kind)
        for file in folder.glob("*.safetensors"):
            file.unlink()
        pickle = "adapter_model.bin" if kind == "mixed" else "pytorch_model.bin"
        torch.save({}, folder / pickle)
        assert message_of(folder) == (
            f"{folder}: the weights are pickled, and loading a pickle runs code from the file; got {pickle!r}. "
            "hf_freeze reads safetensors only. Load the weights in a place that you trust and save them with "
            "save_pretrained."
        )

    def test_a_pickle_with_the_name_of_safetensors_is_refused(self, copy_of: Callable[[str], Path]) -> None:
        for kind, name in (("plain", "model"), ("mixed", "adapter_model"), ("delta", "hf_freeze_delta")):
            folder = copy_of(kind)
            torch.save({"weight": torch.zeros(2)}, folder / f"{name}.safetensors")
            error = PlanError if kind == "plain" else ConfigError
            assert "header" in message_of(folder, error).lower()

    @pytest.mark.parametrize("kept", [0, 5, 200, -100])
    def test_truncated_weights_are_refused(self, copy_of: Callable[[str], Path], kept: int) -> None:
        for kind in ("mixed", "delta"):
            (file,) = copy_of(kind).glob("*.safetensors")
            file.write_bytes(file.read_bytes()[:kept])
            assert re.fullmatch(
                rf"{re.escape(str(file))}: this file is no sound safetensors file; got the error '.*'\. "
                r"Save or download it again\.",
                message_of(file.parent),
            )
        folder = copy_of("plain")
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:kept])
        assert re.fullmatch(
            rf"{re.escape(str(folder))}: no BertForSequenceClassification can be loaded from it; got the error "
            rf"['\"].*['\"]\. "
            r"hf_freeze reads safetensors only\. Name a folder, or a model on the Hub, that has a model\.safetensors\.",
            message_of(folder, PlanError),
        )

    @pytest.mark.parametrize("kind", ["plain", "delta", "mixed"])
    def test_a_type_that_does_not_exist_is_named(self, made: dict[str, Trained], kind: str) -> None:
        assert message_of(made[kind].folder, dtype="flot16") == (
            "dtype: weights cannot be in this type; got 'flot16'. Usual types are bfloat16, float16, float32 and auto, "
            "the type that they were saved in. Did you mean 'float16'?"
        )

    def test_a_folder_has_no_revisions(self, made: dict[str, Trained]) -> None:
        folder = made["plain"].folder
        assert message_of(folder, revision="v1") == (
            f"revision: a folder has no revisions; got 'v1' for {str(folder)!r}. Leave revision out, or name the "
            "repository on the Hub."
        )

    @pytest.mark.parametrize("content", ["{", "[]", "{}"])
    def test_a_damaged_adapter_config_is_refused(self, copy_of: Callable[[str], Path], content: str) -> None:
        folder = copy_of("mixed")
        for record in (folder / "hf_freeze_plan.json", None):
            (folder / "adapter_config.json").write_text(content)
            assert re.fullmatch(
                rf"{re.escape(str(folder))}: adapter_config\.json does not say what the adapters are; got "
                r"(Attribute|JSONDecode|Key|Type|Value)Error reading it\. Save or download the folder again\.",
                message_of(folder),
            )
            if record is not None:
                record.unlink()

    def test_a_class_that_the_config_is_not_of_is_refused(self, copy_of: Callable[[str], Path]) -> None:
        folder = copy_of("delta")
        described = json.loads((folder / "hf_freeze_delta.json").read_text())
        (folder / "hf_freeze_delta.json").write_text(json.dumps({**described, "model_class": "GPT2LMHeadModel"}))
        assert re.fullmatch(
            rf"{re.escape(str(folder))}: its base model '.*' cannot be loaded; got the error "
            r"\"'BertConfig' object has no attribute '\w+'\"\. Pass the model that it was trained from as base, which "
            r"is --base of a command\.",
            message_of(folder, PlanError),
        )

    @pytest.mark.parametrize("change", ["missing", "shape"])
    def test_a_plain_folder_with_other_tensors_is_refused(self, copy_of: Callable[[str], Path], change: str) -> None:
        folder = copy_of("plain")
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        name = "bert.encoder.layer.1.output.dense.bias"
        taken = tensors.pop(name)
        if change == "shape":
            tensors[name] = torch.zeros(len(taken) + 1)
        safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        assert message_of(folder, PlanError) == (
            f"{folder}: the weights are not those of this BertForSequenceClassification; {name!r} and 0 more are "
            f"missing "
            f"or have another shape. {WRITE_AGAIN}"
        )

    def test_adapters_without_some_of_their_tensors_are_refused(self, copy_of: Callable[[str], Path]) -> None:
        folder = copy_of("mixed")
        tensors = safetensors.torch.load_file(folder / "adapter_model.safetensors")
        name = min(name for name in tensors if "lora_A" in name)
        del tensors[name]
        safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        assert message_of(folder, PlanError) == (
            f"{folder}: these adapters are not whole; got no {name!r} and 0 more. adapter_config.json says that they "
            f"are "
            f"there. {WRITE_AGAIN}"
        )

    def test_adapters_on_a_base_of_another_size_are_refused(self, made: dict[str, Trained], tmp_path: Path) -> None:
        """Weights of other shapes start anew, so PEFT sees no difference."""
        tiny_bert(hidden_size=64).save_pretrained(tmp_path / "other")
        folder = made["mixed"].folder
        assert re.fullmatch(
            rf"{re.escape(str(folder))}: these adapters were trained on another base model; got "
            rf"'{re.escape(str(tmp_path / 'other'))}', in which 'bert\.[a-z0-9_.A-Z]+' and \d+ more are missing or "
            rf"have "
            r"another shape\. Pass the right model as base\.",
            message_of(folder, PlanError, base=tmp_path / "other"),
        )

    def test_adapters_that_peft_refuses_are_refused(self, copy_of: Callable[[str], Path]) -> None:
        folder = copy_of("mixed")
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "r": 8}))
        assert re.fullmatch(
            rf"{re.escape(str(folder))}: these adapters do not fit the base model '.*'; got the error ['\"].*['\"] "
            rf"from "
            r"PEFT\. Pass the model that they were trained on as base\.",
            message_of(folder, PlanError),
        )

    def test_a_checkpoint_is_no_model(self, copy_of: Callable[[str], Path], tmp_path: Path) -> None:
        folder = tmp_path / "checkpoint-1"
        folder.mkdir()
        (folder / "freeze_state.json").write_text("{}")
        assert message_of(folder) == (
            f"{folder}: this is a checkpoint, which holds only what can change; got a folder with freeze_state.json. "
            "To make a model of it, resume the run from it; the final model is in the output folder of the run."
        )

    def test_an_empty_folder_is_no_model(self, tmp_path: Path) -> None:
        assert message_of(tmp_path) == (
            f"{tmp_path}: there is no model here; got a folder with no files. A model has one of hf_freeze_delta.json, "
            "adapter_config.json, config.json. Name the folder that a run has written."
        )

    def test_a_hub_that_cannot_be_reached_is_said(self) -> None:
        assert message_of(Path("nobody/nothing")) == (
            "nobody/nothing: there is no folder of this name, and no such model can be read from the Hub; got the "
            "answer \"We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them "
            'in the cached files". Where it is on the Hub, unset HF_HUB_OFFLINE. Name the folder that a run has '
            "written, or a repository that you may read."
        )

    def test_a_plain_model_has_no_base(self, made: dict[str, Trained]) -> None:
        folder = made["plain"].folder
        assert message_of(folder, base="other") == (
            f"base: {str(folder)!r} holds all of its weights and has no base model; got 'other'. Leave base out."
        )

    def test_a_class_that_transformers_lacks_is_refused(self, copy_of: Callable[[str], Path]) -> None:
        folder = copy_of("plain")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForNothing"]}))
        assert message_of(folder) == (
            f"{folder}: transformers {transformers.__version__} has no model of this class; got 'BertForNothing'. "
            f"Load it "
            "with the release that wrote it, or set trust_remote_code where the model comes with its code."
        )

    @pytest.mark.parametrize("content", ["{", "[]", "1"])
    def test_a_damaged_config_is_refused(self, copy_of: Callable[[str], Path], content: str) -> None:
        folder = copy_of("plain")
        (folder / "config.json").write_text(content)
        assert re.fullmatch(
            rf"{re.escape(str(folder))}: the config of the model cannot be read; got the error ['\"].*['\"]\. "
            r"Save or download it again\.",
            message_of(folder),
        )


class TestAdaptersOfPeftAlone:
    """Folders that PEFT wrote say less: neither labels nor dtype."""

    def test_they_load_by_their_task_type(self, made: dict[str, Trained], copy_of: Callable[[str], Path]) -> None:
        folder = copy_of("mixed")
        (folder / "hf_freeze_plan.json").unlink()
        assert torch.equal(logits(load_model(folder)), logits(made["mixed"].model))

    def test_without_a_task_type_they_are_refused(self, copy_of: Callable[[str], Path]) -> None:
        folder = copy_of("mixed")
        (folder / "hf_freeze_plan.json").unlink()
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "task_type": None}))
        assert message_of(folder) == (
            f"{folder}: adapter_config.json does not say what kind of model it is for; got the task_type None. "
            "Load the base model yourself, and the adapters with peft.PeftModel."
        )
        (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
        assert message_of(folder) == (
            f"{folder}: adapter_config.json does not name the base model; got None. Pass the model as base."
        )


class TestRepositories:
    """The Hub's cache on the disk stands in for the Hub: nothing is downloaded."""

    @staticmethod
    def publish(folder: Path, repo: str, cache: Path, commit: str) -> None:
        """Puts a folder into the cache as if it had been downloaded from a repository."""
        root = cache / f"models--{repo.replace('/', '--')}"
        shutil.copytree(folder, root / "snapshots" / commit)
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / "main").write_text(commit)

    @pytest.fixture
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        return tmp_path / "hub"

    def test_a_delta_names_the_commit_of_its_base(self, cache: Path, tmp_path: Path) -> None:
        first, second = "1" * 40, "2" * 40
        for seed, commit in ((0, first), (1, second)):
            tiny_bert(seed=seed).save_pretrained(tmp_path / commit)
            self.publish(tmp_path / commit, "us/base", cache, commit)
        model = BertForSequenceClassification.from_pretrained("us/base", revision=first)
        trainer = FreezeTrainer(
            model,
            arguments(tmp_path / "out"),
            freeze={"blocks": {"first": 2}},
            save={"format": "delta"},
            base_revision=first,
        )
        trainer.save_model()
        described = json.loads((tmp_path / "out" / "hf_freeze_delta.json").read_text())
        assert (described["base"], described["revision"]) == ("us/base", first)
        self.publish(tmp_path / "out", "us/delta", cache, "3" * 40)
        assert torch.equal(logits(load_model("us/delta")), logits(model.eval()))
        with pytest.raises(PlanError, match=f"It was made from 'us/base' at revision {first} with the digest"):
            load_model("us/delta", base="us/base")

    def test_every_kind_loads_from_a_repository(self, cache: Path, made: dict[str, Trained]) -> None:
        for kind, trained in made.items():
            self.publish(trained.folder, f"us/{kind}", cache, "4" * 40)
            assert torch.equal(logits(load_model(f"us/{kind}")), logits(trained.model))
