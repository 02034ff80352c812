"""Loading pretrained models: what is fresh, what is refused, and models without weights."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForMaskedLM, BertModel, ViTConfig

from hf_freeze.errors import ConfigError
from hf_freeze.tasks import models
from hf_freeze.tasks.models import build_empty_classifier, load_classifier
from tests.tiny import tiny_bert, tiny_gpt2


def load(path: Path | str, *, labels: tuple[str, ...] = ("a", "b"), **from_pretrained: Any) -> Any:
    return load_classifier(
        str(path), labels=labels, problem_type="single_label_classification", from_pretrained=from_pretrained
    )


def saved_base(folder: Path, **config: Any) -> BertModel:
    """Saves an encoder without a head."""
    base: BertModel = tiny_bert(**config).base_model
    base.save_pretrained(folder)
    return base


class TestLoading:
    def test_the_head_of_a_checkpoint_without_one_is_fresh_and_nothing_else(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        base = saved_base(tmp_path)
        with caplog.at_level(logging.INFO):
            model, fresh = load(tmp_path, labels=("a", "b", "c"))
        assert fresh == ("classifier.bias", "classifier.weight")
        assert caplog.messages == [
            "The head is not in the checkpoint and starts anew: classifier.bias, classifier.weight."
        ]
        for name, parameter in base.named_parameters():
            assert torch.equal(parameter, model.get_parameter(f"bert.{name}")), name

    def test_the_config_says_what_the_outputs_mean(self, tmp_path: Path) -> None:
        saved_base(tmp_path)
        model, _ = load(tmp_path, labels=("no", "yes", "perhaps"))
        assert model.config.id2label == {0: "no", 1: "yes", 2: "perhaps"}
        assert model.config.label2id == {"no": 0, "yes": 1, "perhaps": 2}
        assert (model.config.num_labels, model.config.problem_type) == (3, "single_label_classification")

    def test_a_regression_has_one_output(self, tmp_path: Path) -> None:
        saved_base(tmp_path)
        model, _ = load_classifier(str(tmp_path), labels=(), problem_type="regression")
        assert (model.config.num_labels, model.config.problem_type) == (1, "regression")

    def test_a_regression_keeps_the_head_of_a_regression(self, tmp_path: Path) -> None:
        tiny_bert(num_labels=1).save_pretrained(tmp_path)
        _, fresh = load_classifier(str(tmp_path), labels=(), problem_type="regression")
        assert fresh == ()

    def test_parts_of_the_model_that_are_missing_are_a_warning(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        config = tiny_bert().config
        BertForMaskedLM(config).save_pretrained(tmp_path)
        _, fresh = load(tmp_path)
        assert fresh == (
            "bert.pooler.dense.bias",
            "bert.pooler.dense.weight",
            "classifier.bias",
            "classifier.weight",
        )
        assert caplog.messages == [
            (
                "Parts of the model itself are not in the checkpoint and start anew: "
                "bert.pooler.dense.bias, bert.pooler.dense.weight."
            )
        ]

    def test_other_warnings_of_transformers_are_still_heard(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        saved_base(tmp_path)
        original = models.AutoModelForSequenceClassification.from_pretrained

        def from_pretrained(*args: Any, **kwargs: Any) -> Any:
            logging.getLogger("transformers.modeling_utils").error("something else")
            return original(*args, **kwargs)

        monkeypatch.setattr(models.AutoModelForSequenceClassification, "from_pretrained", from_pretrained)
        load(tmp_path)
        assert "something else" in caplog.messages

    @pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
    def test_weights_are_read_in_float32(self, tmp_path: Path, stored: torch.dtype) -> None:
        tiny_bert().to(stored).save_pretrained(tmp_path)
        model, _ = load(tmp_path)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}

    @pytest.mark.parametrize(
        ("dtype", "expected"),
        [("bfloat16", torch.bfloat16), (torch.bfloat16, torch.bfloat16), ("auto", torch.float16)],
    )
    def test_weights_are_read_in_the_type_that_is_asked_for(
        self, tmp_path: Path, dtype: object, expected: torch.dtype
    ) -> None:
        tiny_bert().to(torch.float16).save_pretrained(tmp_path)
        model, _ = load(tmp_path, dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {expected}

    def test_other_keys_reach_the_config_and_from_pretrained(self, tmp_path: Path) -> None:
        saved_base(tmp_path)
        model, _ = load(tmp_path, hidden_dropout_prob=0.25, attn_implementation="eager", use_safetensors=True)
        assert model.config.hidden_dropout_prob == 0.25
        assert model.config._attn_implementation == "eager"


class TestBadModels:
    @pytest.mark.parametrize("from_pretrained", [{}, {"token": "hf_abcdefghijk"}])
    def test_a_name_that_is_not_in_the_cache_is_an_error_offline(self, from_pretrained: dict[str, Any]) -> None:
        message = (
            "model.name_or_path: there is no folder 'no/such', and no model of that name could be loaded: the hub is "
            "switched off (HF_HUB_OFFLINE), and the model is not in the local cache. Check the spelling, sign in with "
            "`hf auth login`, or give the folder of a saved model."
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            load("no/such", **from_pretrained)

    def test_a_name_that_the_hub_does_not_give_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def from_pretrained(*args: Any, **kwargs: Any) -> None:
            raise OSError("no/such is not a valid model identifier")

        monkeypatch.setattr(models.AutoConfig, "from_pretrained", from_pretrained)
        monkeypatch.setattr(models, "is_offline_mode", lambda: False)
        message = (
            "model.name_or_path: there is no folder 'no/such', and no model of that name could be loaded: the hub has "
            "no model of this name, keeps it private, or cannot be reached. Check the spelling, sign in with "
            "`hf auth login`, or give the folder of a saved model."
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            load("no/such")

    @pytest.mark.parametrize("name", ["/no/such/folder", "./no", "runs/a/b"])
    def test_a_folder_that_does_not_exist_is_an_error(self, name: str) -> None:
        message = (
            f"model.name_or_path: there is no folder {name!r}. "
            "Give the folder of a saved model, or the name of a model on the Hugging Face hub."
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            load(name)

    @pytest.mark.parametrize(
        ("files", "listed"),
        [
            ({}, "no files"),
            ({"b.txt": "", "a.txt": ""}, "a.txt, b.txt"),
            ({"config.json": "{"}, "config.json"),
            ({"config.json": "{}"}, "config.json"),
            ({"config.json": '{"model_type": "no-such-kind"}'}, "config.json"),
        ],
    )
    def test_a_folder_without_a_usable_config_is_an_error(
        self, tmp_path: Path, files: dict[str, str], listed: str
    ) -> None:
        for name, text in files.items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        message = (
            f"model.name_or_path: the folder {str(tmp_path)!r} has no config.json of a model that transformers knows; "
            f"it has {listed}. Give the folder that save_pretrained wrote."
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            load(tmp_path)

    def test_a_model_that_cannot_classify_text_is_an_error(self, tmp_path: Path) -> None:
        ViTConfig().save_pretrained(tmp_path)
        message = (
            f"model.name_or_path: {str(tmp_path)!r} is of a kind that transformers has no text classifier for. "
            "Name a language model such as BERT, ModernBERT, GPT-2 or Llama."
        )
        for attempt in (load, lambda path: build_empty_classifier(str(path), num_labels=2)):
            with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
                attempt(tmp_path)

    def test_code_that_comes_with_a_model_does_not_run_unless_it_is_trusted(self, tmp_path: Path) -> None:
        config = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        (tmp_path / "code.py").write_text("raise SystemExit('this code ran')", encoding="utf-8")
        message = (
            f"model.trust_remote_code: {str(tmp_path)!r} comes with code of its own, which would run here; got False. "
            "Read that code, then set model.trust_remote_code to true."
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            load(tmp_path)

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "adapter_model.bin"])
    def test_pickled_weights_are_refused(self, tmp_path: Path, name: str) -> None:
        model = tiny_bert()
        model.config.save_pretrained(tmp_path)
        torch.save(model.state_dict(), tmp_path / name)
        with pytest.raises(ConfigError, match=f"^{re.escape(pickled_message(tmp_path))}$"):
            load(tmp_path)

    def test_pickled_weights_beside_safetensors_are_not_read(self, tmp_path: Path) -> None:
        saved_base(tmp_path)
        expected = load(tmp_path)[0].state_dict()
        (tmp_path / "pytorch_model.bin").write_bytes(b"no pickle at all")
        loaded = load(tmp_path)[0].state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items() if "classifier" not in name)

    def test_pickled_weights_on_the_hub_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def from_pretrained(*args: Any, use_safetensors: bool, **kwargs: Any) -> None:
            assert use_safetensors
            raise OSError("some/model does not appear to have a file named model.safetensors")

        config = tiny_bert().config
        monkeypatch.setattr(models.AutoConfig, "from_pretrained", lambda *args, **kwargs: config)
        monkeypatch.setattr(models.AutoModelForSequenceClassification, "from_pretrained", from_pretrained)
        monkeypatch.setattr(models, "has_file", lambda name, filename, **rest: filename == "pytorch_model.bin")
        with pytest.raises(ConfigError, match=f"^{re.escape(pickled_message('some/model'))}$"):
            load("some/model")

    def test_a_folder_without_weights_is_an_error(self, tmp_path: Path) -> None:
        tiny_bert().config.save_pretrained(tmp_path)
        message = (
            f"model.name_or_path: {str(tmp_path)!r} has no weights in safetensors files. "
            "Name a checkpoint that has a model.safetensors."
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            load(tmp_path)

    def test_weights_that_are_cut_short_are_an_error(self, tmp_path: Path) -> None:
        saved_base(tmp_path)
        (tmp_path / "model.safetensors").write_bytes(b"12345")
        message = (
            f"model.name_or_path: the weights of {str(tmp_path)!r} could not be loaded (SafetensorError): Error while "
            "deserializing header: header too small. Download or save them again, and look at the other keys of model."
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            load(tmp_path)

    def test_weights_of_another_kind_of_model_are_an_error(self, tmp_path: Path) -> None:
        tiny_gpt2().save_pretrained(tmp_path)
        tiny_bert().config.save_pretrained(tmp_path)
        message = (
            f"model.name_or_path: none of the weights of {str(tmp_path)!r} belong to a BertForSequenceClassification. "
            "Name a checkpoint of this kind of model."
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            load(tmp_path)

    def test_a_config_that_changes_the_size_is_an_error(self, tmp_path: Path) -> None:
        saved_base(tmp_path)
        message = (
            "model: the config asks for other shapes than the checkpoint has; got "
            "bert.embeddings.word_embeddings.weight. Leave out the keys of model that change the model's size."
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            load(tmp_path, vocab_size=123)
        with pytest.raises(ConfigError, match=r"bert\.encoder\.layer\.0\.intermediate\.dense\.bias and 11 more\."):
            load(tmp_path, intermediate_size=128)

    def test_a_key_that_nobody_knows_is_an_error(self, tmp_path: Path) -> None:
        saved_base(tmp_path)
        message = (
            f"model.hiden_dropout: neither from_pretrained nor the config of {str(tmp_path)!r} has this key. "
            "Mend the key, or leave it out."
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            load(tmp_path, hiden_dropout=0.1, hidden_dropout_prob=0.1)

    def test_a_type_that_pytorch_does_not_have_is_an_error(self, tmp_path: Path) -> None:
        saved_base(tmp_path)
        message = (
            "model.dtype: PyTorch has no such type; got 'floot32'. Usual types are bfloat16, float16, float32 and "
            "auto, the type that the checkpoint is in. Did you mean 'float32'?"
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            load(tmp_path, dtype="floot32")


def pickled_message(name: Path | str) -> str:
    return (
        f"model.name_or_path: the weights of {str(name)!r} are pickled, and reading a pickle can run code. "
        "hf_freeze reads safetensors only. Load the model where you trust it and save it again with "
        "model.save_pretrained, which writes safetensors."
    )


class TestEmptyModels:
    def test_one_has_the_names_and_shapes_of_the_loaded_one_and_no_weights(self, tmp_path: Path) -> None:
        saved_base(tmp_path)
        loaded, _ = load(tmp_path, labels=("a", "b", "c"))
        (tmp_path / "model.safetensors").unlink()
        empty = build_empty_classifier(str(tmp_path), num_labels=3)
        assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}

        def described(model: Any) -> dict[str, Any]:
            return {name: (parameter.shape, parameter.dtype) for name, parameter in model.named_parameters()}

        assert described(empty) == described(loaded)

    @pytest.mark.parametrize(
        ("from_pretrained", "expected"),
        [({}, torch.float32), ({"dtype": "bfloat16"}, torch.bfloat16), ({"dtype": "auto"}, torch.float16)],
    )
    def test_one_has_the_type_that_the_loaded_one_would_have(
        self, tmp_path: Path, from_pretrained: dict[str, Any], expected: torch.dtype
    ) -> None:
        tiny_bert().to(torch.float16).save_pretrained(tmp_path)
        empty = build_empty_classifier(str(tmp_path), num_labels=2, from_pretrained=from_pretrained)
        assert empty.dtype == expected

    def test_values_of_the_config_count(self, tmp_path: Path) -> None:
        saved_base(tmp_path)
        empty = build_empty_classifier(str(tmp_path), num_labels=2, from_pretrained={"num_hidden_layers": 2})
        assert empty.config.num_hidden_layers == 2
