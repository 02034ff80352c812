"""The task as a run uses it: from files to a loss and metrics, with tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, EvalPrediction

from hf_freeze.tasks import PreparedData, get_task
from hf_freeze.tasks.registry import LoadedModel
from tests.tiny import build, tiny_bert, tiny_tokenizer
from tests.unit.tasks.rows import REVIEWS, Rows, prepare, write_json

TASK = get_task("text-classification")

PAIRS = [
    {"premise": "a fine film", "hypothesis": "fine", "label": "entails"},
    {"premise": "a dull film", "hypothesis": "a fine film", "label": "contradicts"},
]


def rows_with(*labels: Any) -> Rows:
    texts = ("a fine film", "film", "a dull dull film")
    return [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]


def save_encoder(folder: Path, model_type: str) -> str:
    """Saves a tiny encoder or decoder without a head, and a tokenizer; that of a decoder does not pad."""
    tokenizer = tiny_tokenizer(["a fine film", "a dull film"])
    if model_type == "bert":
        tiny_bert().base_model.save_pretrained(folder)
    else:
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 99}
        build(AutoModelForSequenceClassification, "gpt2", **sizes).base_model.save_pretrained(folder)
        tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    return str(folder)


def prepare_all(folder: Path, rows: Rows, model_type: str, **arguments: Any) -> tuple[PreparedData, LoadedModel]:
    data = prepare(write_json(folder / "data", train=rows), **arguments)
    torch.manual_seed(0)
    loaded = TASK.load_model(save_encoder(folder / "model", model_type), data)
    return TASK.tokenize(data, loaded), loaded


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
@pytest.mark.parametrize(
    ("rows", "num_labels", "expected_labels"),
    [
        (REVIEWS, 2, torch.tensor([1, 0, 1])),
        (PAIRS, 2, torch.tensor([1, 0])),
        (rows_with(["a"], ["b", "c"], []), 3, torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])),
        (rows_with(0.5, -1.0, 2.0), 1, torch.tensor([0.5, -1.0, 2.0])),
    ],
    ids=["single label", "pairs", "multi label", "regression"],
)
def test_rows_become_a_batch_that_the_model_has_a_loss_for(
    tmp_path: Path, model_type: str, rows: Rows, num_labels: int, expected_labels: torch.Tensor
) -> None:
    data, loaded = prepare_all(tmp_path, rows, model_type)
    batch = TASK.data_collator(loaded)([data.train[row] for row in range(len(rows))])
    assert torch.equal(batch["labels"], expected_labels)
    assert batch["labels"].dtype == expected_labels.dtype
    assert (batch["attention_mask"] == 0).any()
    output = loaded.model.eval()(**batch)
    assert output.logits.shape == (len(rows), num_labels)
    assert torch.isfinite(output.loss)
    output.loss.backward()


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_padding_does_not_change_the_logits(tmp_path: Path, model_type: str) -> None:
    data, loaded = prepare_all(tmp_path, REVIEWS, model_type)
    collate = TASK.data_collator(loaded)
    rows = [data.train[row] for row in range(3)]
    with torch.no_grad():
        together = loaded.model.eval()(**collate(rows)).logits
        alone = torch.cat([loaded.model(**collate([row])).logits for row in rows])
    torch.testing.assert_close(together, alone)


def test_all_splits_are_tokenised_and_texts_are_cut(tmp_path: Path) -> None:
    load_dataset = write_json(tmp_path / "data", train=REVIEWS, validation=REVIEWS, test=REVIEWS[:2])
    data = prepare(load_dataset)
    loaded = TASK.load_model(save_encoder(tmp_path / "model", "bert"), data)
    tokenized = TASK.tokenize(data, loaded, max_length=4)
    assert tokenized.validation is not None
    assert tokenized.test is not None
    for split, num_rows in ((tokenized.train, 3), (tokenized.validation, 3), (tokenized.test, 2)):
        assert len(split) == num_rows
        assert max(len(ids) for ids in split["input_ids"]) == 4
    assert (tokenized.labels, tokenized.splits) == (data.labels, data.splits)


def test_metrics_are_those_of_the_problem(tmp_path: Path) -> None:
    data = prepare(write_json(tmp_path, train=REVIEWS))
    prediction = EvalPrediction(predictions=np.eye(2)[[0, 1]], label_ids=np.array([0, 1]))
    assert TASK.compute_metrics(data)(prediction) == {"accuracy": 1.0, "f1": 1.0}
    assert TASK.compute_metrics(data, ["matthews"])(prediction) == {"matthews_correlation": 1.0}


def test_an_empty_model_has_the_shapes_of_the_loaded_one(tmp_path: Path) -> None:
    _, loaded = prepare_all(tmp_path, REVIEWS, "bert")
    empty = TASK.build_empty_model(str(tmp_path / "model"), num_labels=2)
    assert empty.device.type == "meta"
    assert [(name, parameter.shape) for name, parameter in empty.named_parameters()] == [
        (name, parameter.shape) for name, parameter in loaded.model.named_parameters()
    ]


def test_preparing_twice_gives_the_same_rows(tmp_path: Path) -> None:
    first, loaded = prepare_all(tmp_path, REVIEWS, "bert")
    second = TASK.tokenize(prepare(write_json(tmp_path / "data", train=REVIEWS)), loaded)
    assert first.train[:] == second.train[:]
