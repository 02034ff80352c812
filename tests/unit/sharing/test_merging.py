"""Any trained model becomes one plain model: merged, frozen, in eval mode, or is refused in words."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import AdaptionPromptConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_freeze.errors import ConfigError, PlanError
from hf_freeze.plan import freeze_model, merge_adapters
from hf_freeze.sharing import merged_model
from hf_freeze.sharing.export import export_model
from hf_freeze.sharing.merging import copy_processor, write_merged
from hf_freeze.sharing.sources import Source
from hf_freeze.training.uploading import pushed_files
from tests.tiny import tiny_bert, tiny_llama
from tests.unit.sharing.trained import KINDS, Trained, logits, train


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("plain"), "plain")


def test_any_kind_becomes_a_plain_frozen_model_in_eval_mode(trained: Trained) -> None:
    model = merged_model(trained.folder)
    assert type(model).__name__ == "BertForSequenceClassification"
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert set(model.state_dict()) == set(tiny_bert().state_dict())
    torch.testing.assert_close(logits(model), logits(trained.model), rtol=0, atol=1e-6)


def test_what_is_written_loads_plainly_with_equal_logits(trained: Trained, tmp_path: Path) -> None:
    model = write_merged(trained.folder, tmp_path / "merged")
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(reloaded), logits(model))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer("one two")["input_ids"] == AutoTokenizer.from_pretrained(trained.folder)("one two")["input_ids"]
    written = {path.name for path in (tmp_path / "merged").iterdir()}
    assert written == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_no_model_of_another_kind_stays_where_one_is_written_over_it(trained: Trained, tmp_path: Path) -> None:
    target = tmp_path / "merged"
    shutil.copytree(trained.folder, target, ignore=shutil.ignore_patterns("checkpoint-*"))
    (target / "notes.txt").write_text("kept")
    model = write_merged(trained.folder, target, overwrite=True)
    reloaded = AutoModelForSequenceClassification.from_pretrained(target)  # applies adapters that it finds beside it
    assert torch.equal(logits(reloaded), logits(model))
    assert not list(target.glob("adapter_*")) + list(target.glob("hf_freeze_*"))
    assert (target / "notes.txt").read_text() == "kept"


def test_an_export_is_in_the_type_that_is_asked_for(trained: Trained, tmp_path: Path) -> None:
    model = export_model(trained.folder, tmp_path / "half", export_format="transformers", dtype="float16")
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "half")
    whole = merged_model(trained.folder)
    assert reloaded.dtype == model.dtype == torch.float16
    assert not any(parameter.requires_grad for parameter in model.parameters())
    theirs = dict(reloaded.named_parameters())
    assert all(torch.equal(p.half(), theirs[name]) for name, p in whole.named_parameters())


def test_unknown_formats_and_types_are_refused(plain: Trained, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        export_model(plain.folder, tmp_path / "out", export_format="transformer")
    assert str(caught.value).startswith("format: there is no such format; got 'transformer'. It takes ")
    assert str(caught.value).endswith("Did you mean 'transformers'?")
    for dtype in ("float17", "int8"):
        with pytest.raises(ConfigError) as caught:
            merged_model(plain.folder, dtype=dtype)
        assert str(caught.value).startswith(
            f"dtype: weights cannot be in this type; got {dtype!r}. Usual types are bfloat16, float16, float32 and "
            f"auto, "
            "the type that they were saved in."
        )
        assert f"Did you mean {dtype!r}" not in str(caught.value)


def test_what_was_said_of_another_run_goes_with_its_model(plain: Trained, tmp_path: Path) -> None:
    ours = "---\nlibrary_name: transformers\ntags:\n- hf_freeze\n- frozen-blocks\n---\n\n# another\n"
    said = {
        "README.md": ours,
        "hf_freeze.yaml": "",
        "freeze_timeline.svg": "",
        "timeline.jsonl": "",
        "notes.txt": "kept",
    }
    for export_format in ("merged", "transformers", "onnx"):
        target = tmp_path / export_format
        target.mkdir()
        for name, content in said.items():
            (target / name).write_text(content)
        if export_format == "merged":
            write_merged(plain.folder, target, overwrite=True)
        else:
            rows = ["one", "two", "one two"] if export_format == "onnx" else []
            export_model(plain.folder, target, export_format=export_format, rows=rows, overwrite=True)
        assert said.keys() & {path.name for path in target.iterdir()} == {"notes.txt"}


def test_a_card_of_somebody_else_stays(plain: Trained, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\ntags:\n- mine\n---\n\n- hf_freeze\n")
    write_merged(plain.folder, tmp_path, overwrite=True)
    assert (tmp_path / "README.md").is_file()


@pytest.mark.parametrize(
    "name", ["FSMTTokenizer", "LukeTokenizer", "PhobertTokenizer", "ProphetNetTokenizer", "RoCBertTokenizer"]
)
def test_files_of_unusual_tokenizers_are_copied_and_pushed(name: str, tmp_path: Path) -> None:
    files = set(getattr(transformers, name).vocab_files_names.values())
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    for file in files:
        (source / file).write_text("{}")
    copy_processor(Source(str(source), "plain", {}, None), target)
    assert {file.name for file in target.iterdir()} == files
    assert pushed_files(source, "reader/model").keys() == files


class TestFolders:
    def test_one_that_holds_something_is_refused(self, plain: Trained, tmp_path: Path) -> None:
        for name in "abcd":
            (tmp_path / name).touch()
        with pytest.raises(ConfigError) as caught:
            write_merged(plain.folder, tmp_path)
        assert str(caught.value) == (
            f"{tmp_path}: this folder is not empty; got a, b, c and 1 more in it. "
            "Name another folder, or allow it to be overwritten."
        )
        write_merged(plain.folder, tmp_path, overwrite=True)
        assert (tmp_path / "model.safetensors").exists()

    def test_that_of_the_model_itself_is_refused(self, plain: Trained) -> None:
        with pytest.raises(ConfigError) as caught:
            write_merged(plain.folder, plain.folder, overwrite=True)
        assert str(caught.value) == (
            f"{plain.folder}: this is the folder of the model itself; got it as the folder to write to. "
            "Name another folder."
        )

    def test_a_file_is_refused(self, plain: Trained, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError) as caught:
            write_merged(plain.folder, tmp_path / "file")
        assert str(caught.value) == (
            f"{tmp_path / 'file'}: this is a file; got it as the folder to write to. Name a folder."
        )


class TestAdaptersThatCannotMerge:
    def test_prompts_are_refused(self, tmp_path: Path) -> None:
        prompts = ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3},)
        trained = train(tmp_path, "adapters", adapters=prompts)
        with pytest.raises(PlanError) as caught:
            merged_model(trained.folder)
        assert str(caught.value) == (
            "PeftModelForSequenceClassification: adapters of this method cannot be merged; got PROMPT_TUNING. Its "
            "parameters are inputs, not weights. Keep the PEFT folder and load it with peft."
        )

    def test_methods_that_add_modules_are_refused(self) -> None:
        config = AdaptionPromptConfig(adapter_len=4, adapter_layers=2, task_type="CAUSAL_LM")
        model = get_peft_model(tiny_llama(), config)
        with pytest.raises(PlanError) as caught:
            merge_adapters(model)
        assert re.fullmatch(
            r"PeftModel(ForCausalLM)?: adapters of this method cannot be merged; got ADAPTION_PROMPT\. It adds "
            r"modules that "
            r"a plain model has no place for\. Keep the PEFT folder and load it with peft\.",
            str(caught.value),
        )

    @pytest.mark.parametrize("options", [{"peft_type": "POLY", "r": 2, "n_tasks": 2, "n_skills": 2}])
    def test_methods_that_peft_cannot_merge_are_refused(self, options: dict[str, Any]) -> None:
        model = freeze_model(tiny_bert(), None, ({**options, "target_modules": ["query"]},))
        with pytest.raises(PlanError) as caught:
            merge_adapters(model)
        assert re.fullmatch(
            r"PeftModel\w*: adapters of this method cannot be merged; got POLY\. PEFT says: \w.*"
            r" Keep the PEFT folder and load it with peft\.",
            str(caught.value),
        )
