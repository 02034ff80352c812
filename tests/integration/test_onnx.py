"""Export to ONNX: the real MiniLM on real reviews, batches and lengths that were not traced, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import onnxruntime
import pytest
import torch
from peft import PromptTuningConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from hf_freeze import run
from hf_freeze.cli import app
from hf_freeze.errors import ConfigError, PlanError, ShareError
from hf_freeze.sharing import merged_model, onnx_export
from hf_freeze.sharing.export import export_model
from hf_freeze.sharing.onnx_export import ONNX_FILE, TOLERANCE, check_onnx, write_onnx
from tests import tiny_run
from tests.integration.reviews import review_texts
from tests.tiny import tiny_bert, tiny_gpt2, tiny_t5, tiny_tokenizer

LORA = {"peft_type": "LORA", "target_modules": "all-linear", "r": 2, "blocks": {"last": 1}}
TEXTS = [*tiny_run.TEXTS, "a"]


@pytest.mark.slow
def test_minilm_gives_the_same_on_real_reviews(minilm_path: Path, reviews_path: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(minilm_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(minilm_path)
    tokenizer.save_pretrained(tmp_path)
    texts = review_texts(reviews_path, 8)
    assert write_onnx(model, tmp_path, texts[:4]) <= TOLERANCE
    session = onnxruntime.InferenceSession(str(tmp_path / ONNX_FILE), providers=["CPUExecutionProvider"])
    for batch in (texts[4:5], texts[4:8]):
        inputs = dict(tokenizer(batch, padding=True, return_tensors="pt"))
        with torch.no_grad():
            expected = model(**inputs).logits
        (found,) = session.run(["logits"], {name: value.numpy() for name, value in inputs.items()})
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=TOLERANCE)


def test_an_export_that_differs_is_removed_and_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_run.write_model(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    real = onnx_export._export

    def export_another_model(given: torch.nn.Module, *arguments: object) -> None:
        other = tiny_bert(seed=1).eval()
        real(other, *arguments)

    monkeypatch.setattr(onnx_export, "_export", export_another_model)
    with pytest.raises(ShareError) as caught:
        write_onnx(model, folder, TEXTS)
    found = re.fullmatch(
        r"format: the ONNX model gives other results than the model; got a difference of (\d\.\de[+-]\d\d) in logits, "
        r"over 7 rows\. At most 1e-04 is accepted\. Use the format 'transformers'\.",
        str(caught.value),
    )
    assert found is not None
    assert float(found[1]) > TOLERANCE
    assert list(folder.glob("*.onnx*")) == []


def test_a_model_that_cannot_be_traced_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_run.write_model(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    forward = model.forward

    def depend_on_values(**inputs: torch.Tensor) -> object:
        if torch.compiler.is_exporting() and inputs["input_ids"].sum().item() > 100:
            inputs["input_ids"] = inputs["input_ids"] + 1
        return forward(**inputs)

    monkeypatch.setattr(model, "forward", depend_on_values)
    with pytest.raises(ShareError) as caught:
        write_onnx(model, folder, TEXTS)
    assert re.fullmatch(
        r"format: this model cannot be exported to ONNX; got a BertForSequenceClassification\. The exporter says: "
        r"[^\n]{10,200}\. Use the format 'transformers'\.",
        str(caught.value),
    )
    assert list(folder.glob("*.onnx*")) == []


def test_what_the_runtime_does_not_take_is_refused_in_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_run.write_model(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    real = onnx_export._export

    def export_and_cut_short(given: object, example: object, names: object, target: Path) -> None:
        real(given, example, names, target)
        target.write_bytes(target.read_bytes()[:-100])

    monkeypatch.setattr(onnx_export, "_export", export_and_cut_short)
    with pytest.raises(ShareError) as caught:
        write_onnx(model, folder, TEXTS)
    assert re.fullmatch(
        r"format: ONNX Runtime cannot run what was exported; got a BertForSequenceClassification\. It says: "
        r"\[ONNXRuntimeError\][^\n]{10,200}\. Use the format 'transformers'\.",
        str(caught.value),
    )
    assert list(folder.glob("*.onnx*")) == []


def test_a_model_that_takes_more_than_texts_is_refused(tmp_path: Path) -> None:
    """A decoder with inputs of its own cannot be called with what a tokenizer makes of a text."""
    tiny_t5().save_pretrained(tmp_path)
    tiny_tokenizer(TEXTS).save_pretrained(tmp_path)
    with pytest.raises(ShareError) as caught:
        write_onnx(tiny_t5().eval(), tmp_path, TEXTS)
    assert re.fullmatch(
        r"format: this model cannot be called with texts alone; got a T5ForConditionalGeneration\. It says: "
        r"[^\n]{10,200}\. Use the format 'transformers'\.",
        str(caught.value),
    )


def test_a_tokenizer_that_is_missing_is_not_made_up(tmp_path: Path) -> None:
    """Transformers makes one that knows five words: every row would be the same."""
    folder = tiny_run.write_model(tmp_path / "model")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ConfigError) as caught:
        export_model(folder, tmp_path / "out", export_format="onnx", rows=TEXTS)
    assert str(caught.value) == (
        "RUN: there is no tokenizer to compare the ONNX model with; got a folder without its files. Save it into the "
        "folder of the model with tokenizer.save_pretrained."
    )
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_cannot_pad_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(TEXTS)
    tokenizer.pad_token = None
    tiny_gpt2().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError) as caught:
        write_onnx(tiny_gpt2().eval(), tmp_path, TEXTS)
    assert re.fullmatch(
        r"RUN: an ONNX model is compared on batches, and its tokenizer cannot pad; got a \w+ without a pad_token\. Set "
        r"one and save it with tokenizer\.save_pretrained\.",
        str(caught.value),
    )


def test_rows_are_cut_at_what_the_model_reads(tmp_path: Path) -> None:
    folder = tiny_run.write_model(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    long = "a good film " * model.config.max_position_embeddings
    assert write_onnx(model, folder, [*TEXTS[:2], long]) <= TOLERANCE


def test_too_few_rows_and_other_types_are_refused_before_anything_is_written() -> None:
    with pytest.raises(ConfigError) as caught:
        check_onnx(torch.float32, ["a", "b"])
    assert str(caught.value) == (
        "rows: an ONNX model is compared on at least 3 rows; got 2. Name a file with a text on each line: "
        "`--rows FILE`."
    )
    with pytest.raises(ConfigError) as caught:
        check_onnx(torch.bfloat16, TEXTS)
    assert str(caught.value) == (
        "dtype: ONNX is written in float32 only, so that it can be compared; got 'bfloat16'. Add `--dtype float32`."
    )


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "_PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(ConfigError) as caught:
        check_onnx(torch.float32, TEXTS)
    assert str(caught.value) == (
        "format: ONNX needs packages that are not installed; got no no_such_package. They come with the extra 'onnx'. "
        "Run `pip install 'hf-freeze[onnx]'`."
    )


def test_a_run_is_exported_and_compared_on_its_own_rows(tmp_path: Path) -> None:
    model = tiny_run.write_model(tmp_path / "tiny")
    rows = tiny_run.write_rows(tmp_path / "rows", splits="train validation")
    run.train(tiny_run.config(model, rows, tmp_path / "run", adapters=[LORA]))
    result = CliRunner().invoke(app, ["export", str(tmp_path / "run"), str(tmp_path / "out"), "--format", "onnx"])
    assert result.exit_code == 0, result.stderr
    assert result.stdout.endswith(
        f"A BertForSequenceClassification in float32 is in {tmp_path / 'out'}, in the format onnx.\n"
    )
    held = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", ONNX_FILE, "tokenizer.json", "tokenizer_config.json"} <= held
    assert not any(name.endswith(".safetensors") for name in held)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    inputs = dict(tokenizer(["a good end"], return_tensors="pt"))
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / ONNX_FILE), providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {name: value.numpy() for name, value in inputs.items()})
    with torch.no_grad():
        expected = merged_model(tmp_path / "run")(**inputs).logits
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=TOLERANCE)


def test_adapters_that_cannot_be_merged_are_refused(tmp_path: Path) -> None:
    folder = tiny_run.write_model(tmp_path / "tiny")
    base = AutoModelForSequenceClassification.from_pretrained(folder)
    prompts = PromptTuningConfig(task_type=TaskType.SEQ_CLS, num_virtual_tokens=2)
    get_peft_model(base, prompts).save_pretrained(tmp_path / "prompts")
    with pytest.raises(PlanError) as caught:
        export_model(tmp_path / "prompts", tmp_path / "out", export_format="onnx", rows=TEXTS)
    assert str(caught.value) == (
        "PeftModelForSequenceClassification: adapters of this method cannot be merged; got PROMPT_TUNING. Its "
        "parameters are inputs, not weights. Keep the PEFT folder and load it with peft."
    )
    assert not (tmp_path / "out").exists()


def test_rows_for_a_format_that_compares_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        export_model(tmp_path, tmp_path / "out", export_format="transformers", rows=TEXTS)
    assert str(caught.value) == (
        "rows: this format is compared with nothing; got 7 rows for 'transformers'. The format 'onnx' takes rows. "
        "Leave rows out."
    )
