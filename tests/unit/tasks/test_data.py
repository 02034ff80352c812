"""Checking texts, and turning them into model inputs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from datasets import Dataset

from hf_freeze.errors import ConfigError
from hf_freeze.tasks.data import check_texts, tokenize_rows
from tests.tiny import tiny_tokenizer
from tests.unit.tasks.rows import REVIEWS, prepare, write_csv

EMPTY = (
    "data.text_columns: texts are empty or blank in the column {!r} of the split {!r}; got {}, counted from 0. Remove "
    "these rows or fill them in; in csv files, words such as null and NA read as empty unless "
    "data.load_dataset.keep_default_na is false."
)


class TestEmptyTexts:
    @pytest.mark.parametrize(
        ("texts", "shown"),
        [
            (["a", " \n"], "1: row 1"),
            (["", "a", None], "2: rows 0, 2"),
            ([""] * 7, "7: rows 0, 1, 2, 3, 4 and 2 more"),
        ],
    )
    def test_they_are_an_error_with_their_rows(self, texts: list[str | None], shown: str) -> None:
        message = EMPTY.format("text", "dev", shown)
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            check_texts(Dataset.from_dict({"text": texts}), text_columns=["text"], split="dev")

    def test_each_text_of_a_pair_counts(self) -> None:
        rows = Dataset.from_dict({"sentence1": ["a"], "sentence2": [" "]})
        message = EMPTY.format("sentence2", "train", "1: row 0")
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            check_texts(rows, text_columns=["sentence1", "sentence2"], split="train")

    def test_the_word_null_in_a_csv_file_can_be_kept(self, tmp_path: Path) -> None:
        load_dataset = write_csv(tmp_path, train=[*REVIEWS, {"text": "null", "label": "negative"}])
        message = EMPTY.format("text", "train", "1: row 3")
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            prepare(load_dataset)
        assert prepare({**load_dataset, "keep_default_na": False}).train["text"][3] == "null"


class TestTokenizing:
    ROWS = Dataset.from_dict({"text": ["a fine film", "fine"], "other": ["film", "a a"], "labels": [1, 0]})

    def tokenize(self, *columns: str, max_length: int | None = None) -> Dataset:
        return tokenize_rows(
            self.ROWS.select_columns([*columns, "labels"]),
            tokenizer=tiny_tokenizer(["a fine film"]),
            text_columns=columns,
            max_length=max_length,
            split="train",
        )

    def test_model_inputs_and_labels_are_left_and_nothing_is_padded(self) -> None:
        rows = self.tokenize("text")
        assert sorted(rows.column_names) == ["attention_mask", "input_ids", "labels"]
        assert rows["input_ids"][:] == [[2, 5, 6, 7, 3], [2, 6, 3]]
        assert rows["labels"][:] == [1, 0]

    def test_pairs_are_joined(self) -> None:
        rows = self.tokenize("text", "other")
        assert rows["input_ids"][0] == [2, 5, 6, 7, 3, 7, 3]

    def test_texts_are_cut(self) -> None:
        assert self.tokenize("text", max_length=4)["input_ids"][:] == [[2, 5, 6, 3], [2, 6, 3]]
