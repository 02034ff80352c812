"""Export to ONNX: the real MiniLM on real reviews, batches and lengths that were not traced, and what is refused."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_freeze.errors import ConfigError, ShareError
from hf_freeze.sharing import onnx_export
from hf_freeze.sharing.onnx_export import ONNX_FILE, TOLERANCE, check_onnx, write_onnx
from tests import tiny_run
from tests.integration.reviews import review_texts
from tests.tiny import tiny_bert

TEXTS = [*tiny_run.TEXTS, "a"]


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
    before, _, after = str(caught.value).partition(" in logits")
    assert before.startswith("format: the ONNX model gives other results than the model; got a difference of ")
    assert float(before.rpartition(" ")[2]) > TOLERANCE
    assert after == ", over 7 rows. At most 1e-04 is accepted. Use the format 'transformers'."
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
    message = str(caught.value)
    opening = "format: this model cannot be exported to ONNX; got a BertForSequenceClassification. The exporter says: "
    assert message.startswith(opening)
    assert message.endswith(". Use the format 'transformers'.")
    assert list(folder.glob("*.onnx*")) == []


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
