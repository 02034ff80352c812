"""Which columns hold the texts, and which the label."""

from __future__ import annotations

import re

import pytest
from datasets import ClassLabel, List, Value

from hf_freeze.errors import ConfigError
from hf_freeze.tasks.columns import describe, find_label_columns, find_text_columns

STRING = Value("string")
LARGE = Value("large_string")
INT = Value("int64")
FLOAT = Value("float64")


def label(columns: dict[str, object], **named: object) -> tuple[str, ...]:
    return find_label_columns(columns, **{"label_column": None, "text_columns": None, **named})  # type: ignore[arg-type]


def texts(columns: dict[str, object], label_columns: tuple[str, ...], text_columns: object = None) -> tuple[str, ...]:
    return find_text_columns(columns, text_columns=text_columns, label_columns=label_columns)  # type: ignore[arg-type]


class TestLabelColumn:
    @pytest.mark.parametrize(
        ("columns", "expected"),
        [
            ({"text": STRING, "label": INT}, "label"),
            ({"text": STRING, "label": STRING, "rating": FLOAT}, "label"),
            ({"text": STRING, "labels": List(STRING)}, "labels"),
            ({"review": LARGE, "sentiment": LARGE}, "sentiment"),
            ({"text": STRING, "target": FLOAT, "id": INT}, "target"),
            ({"text": STRING, "author": STRING, "stars": INT}, "stars"),
            ({"text": STRING, "author": STRING, "is_spam": Value("bool")}, "is_spam"),
            ({"idx": INT, "text": STRING, "mood": ClassLabel(names=["good", "bad"])}, "mood"),
        ],
    )
    def test_it_is_found_by_its_name_or_as_the_only_column_that_is_no_text(
        self, columns: dict[str, object], expected: str
    ) -> None:
        assert label(columns) == (expected,)

    def test_it_is_the_only_column_left_when_the_texts_are_named(self) -> None:
        assert label({"one": STRING, "two": STRING, "id": INT}, text_columns="one") == ("two",)
        assert label({"one": STRING, "two": STRING, "three": STRING}, text_columns=["one", "two"]) == ("three",)

    def test_a_named_one_wins(self) -> None:
        assert label({"text": STRING, "label": INT, "rating": FLOAT}, label_column="rating") == ("rating",)
        assert label({"text": STRING, "a": INT, "b": INT}, label_column=["a", "b"]) == ("a", "b")

    def test_a_named_one_that_does_not_exist_is_an_error(self) -> None:
        message = "data.label_column: the dataset has no column 'lable'; it has label, text. Did you mean 'label'?"
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            label({"text": STRING, "label": INT}, label_column="lable")

    def test_it_is_an_error_when_none_stands_out(self) -> None:
        message = (
            "data.label_column: no column stands out as the label; the dataset has a, b, c. "
            "Set data.label_column to one of them."
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            label({"a": STRING, "b": INT, "c": INT})


class TestTextColumns:
    @pytest.mark.parametrize(
        ("columns", "expected"),
        [
            ({"text": STRING, "label": INT}, ("text",)),
            ({"review": LARGE, "label": STRING}, ("review",)),
            ({"id": STRING, "snippet": STRING, "label": INT}, ("snippet",)),
            ({"hypothesis": STRING, "premise": STRING, "label": INT}, ("premise", "hypothesis")),
            ({"sentence1": STRING, "sentence2": STRING, "genre": STRING, "label": INT}, ("sentence1", "sentence2")),
            ({"question": STRING, "sentence": STRING, "label": INT}, ("question", "sentence")),
            ({"question1": STRING, "question2": STRING, "label": INT}, ("question1", "question2")),
            ({"text_a": STRING, "text_b": STRING, "label": INT}, ("text_a", "text_b")),
        ],
    )
    def test_they_are_a_known_pair_or_the_only_column_of_texts(
        self, columns: dict[str, object], expected: tuple[str, ...]
    ) -> None:
        assert texts(columns, ("label",)) == expected

    def test_another_column_that_may_be_a_label_is_no_text(self) -> None:
        assert texts({"text": STRING, "label": STRING, "rating": FLOAT}, ("rating",)) == ("text",)

    def test_named_ones_win_and_keep_their_order(self) -> None:
        columns = {"text": STRING, "title": STRING, "label": INT}
        assert texts(columns, ("label",), "title") == ("title",)
        assert texts(columns, ("label",), ["title", "text"]) == ("title", "text")

    @pytest.mark.parametrize(
        ("columns", "named", "message"),
        [
            (
                {"title": STRING, "body": STRING, "label": INT},
                None,
                (
                    "data.text_columns: several columns hold texts; the dataset has body, label, title. "
                    "Set data.text_columns to one of them, or to two for sentence pairs."
                ),
            ),
            (
                {"age": INT, "label": INT},
                None,
                (
                    "data.text_columns: no column holds texts; the dataset has age, label. "
                    "Set data.text_columns to one of them, or to two for sentence pairs."
                ),
            ),
            (
                {"text": STRING, "label": INT},
                "txt",
                "data.text_columns: the dataset has no column 'txt'; it has label, text. Did you mean 'text'?",
            ),
            (
                {"a": STRING, "b": STRING, "c": STRING, "label": INT},
                ["a", "b", "c"],
                "data.text_columns: a row is one text or a pair of texts; got 3 columns. Name one or two.",
            ),
            (
                {"text": STRING, "label": STRING},
                ["label"],
                (
                    "data.text_columns: 'label' is the label column; the dataset has label, text. "
                    "Set data.label_column too, or name another column."
                ),
            ),
            (
                {"text": STRING, "age": INT, "label": STRING},
                ["age"],
                (
                    "data.text_columns: the column 'age' does not hold strings; got int64 values. "
                    "The columns that hold strings: label, text."
                ),
            ),
            (
                {"age": INT, "label": INT},
                ["age"],
                (
                    "data.text_columns: the column 'age' does not hold strings; got int64 values. "
                    "The columns that hold strings: none."
                ),
            ),
        ],
    )
    def test_what_cannot_be_texts_is_an_error(self, columns: dict[str, object], named: object, message: str) -> None:
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            texts(columns, ("label",), named)


@pytest.mark.parametrize(
    ("feature", "words"),
    [
        (STRING, "strings"),
        (FLOAT, "float64 values"),
        (ClassLabel(names=["a"]), "class labels"),
        (List(STRING), "lists"),
        ({"a": STRING}, "nested values"),
    ],
)
def test_a_column_is_described_in_words(feature: object, words: str) -> None:
    assert describe(feature) == words
