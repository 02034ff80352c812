"""The real MiniLM on real reviews: cached and uncached runs agree, in every dtype that rows may be stored in."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, PreTrainedModel

from hf_freeze.training import FreezeTrainer
from tests.unit.training.runs import arguments, logged


@pytest.fixture(scope="module")
def tokenizer(minilm_path: Path) -> Any:
    return AutoTokenizer.from_pretrained(minilm_path)


@pytest.fixture(scope="module")
def reviews(tokenizer: Any, reviews_path: Path) -> dict[str, Dataset]:
    """Rows of training and validation, tokenized and not padded."""
    found = {}
    for split, number in (("train", 240), ("validation", 400)):
        with (reviews_path / f"{split}.csv").open(newline="") as file:
            rows = list(itertools.islice(csv.DictReader(file), number))
        encoded = tokenizer([row["text"] for row in rows], truncation=True, max_length=64)
        names = sorted({row["label"] for row in rows})
        found[split] = Dataset.from_dict({**encoded, "labels": [names.index(row["label"]) for row in rows]})
    return found


def model_of(folder: Path) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    assert model.config.hidden_dropout_prob == 0.1
    return model


@pytest.fixture
def train(tmp_path: Path, minilm_path: Path, tokenizer: Any, reviews: dict[str, Dataset]) -> Any:
    def run(depth: int, cache: dict[str, object], **options: Any) -> FreezeTrainer:
        trainer = FreezeTrainer(
            model_of(minilm_path),
            arguments(
                tmp_path,
                **{"max_steps": 10, "per_device_train_batch_size": 16, "per_device_eval_batch_size": 32, **options},
            ),
            train_dataset=reviews["train"],
            eval_dataset=reviews["validation"].select(range(64)),
            data_collator=DataCollatorWithPadding(tokenizer),
            freeze={"blocks": {"first": depth}},
            activation_cache=cache,
        )
        trainer.train()
        return trainer

    return run


@pytest.mark.parametrize("depth", [4, 6])
def test_losses_agree_for_ten_steps_and_at_the_end(tmp_path: Path, train: Any, depth: int) -> None:
    section = {"enabled": True, "dir": str(tmp_path / "cache")}
    plain, cold, warm = (train(depth, cache) for cache in ({"enabled": False}, section, section))
    losses = logged(plain, "loss")
    assert len(losses) == 10
    for cached in (cold, warm):
        assert cached.activation_cache.is_on
        np.testing.assert_allclose(logged(cached, "loss"), losses, rtol=0, atol=1e-5)
    assert warm.activation_cache.stats.misses == warm.activation_cache.stats.built == 0
    expected = plain.evaluate()["eval_loss"]
    assert [run.evaluate()["eval_loss"] for run in (cold, warm)] == pytest.approx([expected] * 2, abs=1e-3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_predictions_agree_when_rows_take_half_the_bytes(
    tmp_path: Path, train: Any, reviews: dict[str, Dataset], dtype: str
) -> None:
    """On 99.5 % of the rows: on all but two of four hundred."""
    found, sizes = [], []
    for name in ("float32", dtype):
        options = {"max_steps": 15, "learning_rate": 5e-4}
        section = {"enabled": name != "float32", "dir": str(tmp_path / "cache"), "dtype": name}
        trainer = train(4, section, **options)
        found.append(trainer.predict(reviews["validation"]).predictions)
        sizes.append(trainer.activation_cache.is_on)
    assert sizes == [False, True]
    same = (found[0].argmax(axis=1) == found[1].argmax(axis=1)).mean()
    assert len(np.unique(found[0].argmax(axis=1))) == 2
    assert same >= 0.995
    assert not np.array_equal(found[0], found[1])
