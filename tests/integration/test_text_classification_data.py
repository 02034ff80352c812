"""Real reviews and the real MiniLM: from the folder in examples/data to a loss."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hf_freeze.tasks import PreparedData, get_task

TASK = get_task("text-classification")

SIZES = {"train": 7500, "validation": 1500, "test": 1566}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def reviews(reviews_path: Path) -> PreparedData:
    return TASK.prepare_data({"path": str(reviews_path)})


class TestReviews:
    def test_columns_labels_and_splits_are_inferred(self, reviews: PreparedData) -> None:
        assert (reviews.text_columns, reviews.label_columns) == (("text",), ("label",))
        assert (reviews.labels, reviews.problem_type) == (("negative", "positive"), "single_label_classification")
        assert dict(reviews.splits) == {name: name for name in SIZES}
        assert reviews.validation is not None
        assert reviews.test is not None
        splits = (reviews.train, reviews.validation, reviews.test)
        assert [len(rows) for rows in splits] == list(SIZES.values())
        assert set(Counter(reviews.train["labels"][:])) == {0, 1}

    def test_the_rating_can_be_learned_instead(self, reviews_path: Path) -> None:
        data = TASK.prepare_data({"path": str(reviews_path)}, label_column="rating")
        assert (data.text_columns, data.problem_type) == (("text",), "regression")
        assert data.train["labels"][:3] == pytest.approx([-2.62, -1.27, 2.14])

    def test_ratings_and_labels_agree(self, reviews: PreparedData, reviews_path: Path) -> None:
        ratings = TASK.prepare_data({"path": str(reviews_path)}, label_column="rating")
        signs = [int(rating > 0) for rating in ratings.train["labels"][:]]
        assert signs == reviews.train["labels"][:]

    def test_a_part_of_the_training_rows_can_be_held_out(self, reviews_path: Path) -> None:
        splits = {"train": "train[:90%]", "validation": "train[90%:]"}
        data = TASK.prepare_data({"path": str(reviews_path)}, splits=splits)
        assert data.validation is not None
        assert (len(data.train), len(data.validation)) == (6750, 750)

    def test_nothing_is_written_to_the_folder(self, reviews_path: Path) -> None:
        before = contents(reviews_path)
        TASK.prepare_data({"path": str(reviews_path)})
        assert contents(reviews_path) == before


class TestMiniLM:
    def test_two_hundred_reviews_become_batches_with_a_loss_near_chance(
        self, reviews: PreparedData, minilm_path: Path
    ) -> None:
        torch.manual_seed(0)
        loaded = TASK.load_model(str(minilm_path), reviews)
        assert loaded.fresh_parameters == ("classifier.bias", "classifier.weight")
        assert loaded.model.config.id2label == {0: "negative", 1: "positive"}
        some = replace(reviews, train=reviews.train.select(range(200)), validation=None, test=None)
        tokenized = TASK.tokenize(some, loaded).train
        assert sorted(tokenized.column_names) == ["attention_mask", "input_ids", "labels", "token_type_ids"]
        assert tokenized["labels"][:] == some.train["labels"][:]
        batch = TASK.data_collator(loaded)([tokenized[row] for row in range(32)])
        with torch.no_grad():
            output = loaded.model.eval()(**batch)
        assert output.logits.shape == (32, 2)
        assert output.loss.item() == pytest.approx(0.693, abs=0.1)

    def test_its_shapes_are_known_without_its_weights(self, minilm_path: Path) -> None:
        empty = TASK.build_empty_model(str(minilm_path))
        assert sum(parameter.numel() for parameter in empty.parameters()) == 22_713_986
