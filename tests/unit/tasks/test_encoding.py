"""From the labels of a file to the numbers that a loss wants."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hf_freeze.errors import ConfigError
from tests.unit.tasks.rows import REVIEWS, Rows, prepare, write_csv, write_json


def labelled(*labels: Any) -> Rows:
    return [{"text": f"text {row}", "label": label} for row, label in enumerate(labels)]


def save_rows(path: str, *, labels: list[int], feature: object) -> None:
    """Saves a dataset with typed columns as parquet files."""
    Path(path).mkdir()
    rows = {"text": [f"text {row}" for row in range(len(labels))], "label": labels}
    Dataset.from_dict(rows, Features({"text": Value("string"), "label": feature})).to_parquet(f"{path}/train.parquet")


class TestSingleLabel:
    def test_strings_become_their_place_in_the_alphabet(self, tmp_path: Path) -> None:
        data = prepare(write_csv(tmp_path, train=REVIEWS))
        assert data.labels == ("negative", "positive")
        assert data.problem_type == "single_label_classification"
        assert data.num_labels == 2
        assert data.train.features == {"text": Value("large_string"), "labels": Value("int64")}
        assert data.train["labels"][:] == [1, 0, 1]
        assert data.train["text"][:] == ["a fine film", "a dull film", "fine"]

    def test_a_list_of_labels_decides_their_order(self, tmp_path: Path) -> None:
        data = prepare(write_csv(tmp_path, train=REVIEWS), labels=["positive", "negative"])
        assert (data.labels, data.train["labels"][:]) == (("positive", "negative"), [0, 1, 0])

    def test_numbers_are_ordered_as_numbers(self, tmp_path: Path) -> None:
        data = prepare(write_csv(tmp_path, train=labelled(10, 9, 1)))
        assert (data.labels, data.train["labels"][:]) == (("1", "9", "10"), [2, 1, 0])

    def test_numbers_can_be_given_names(self, tmp_path: Path) -> None:
        data = prepare(write_csv(tmp_path, train=labelled(0, 1, 0)), labels=["bad", "good"])
        assert (data.labels, data.train["labels"][:]) == (("bad", "good"), [0, 1, 0])

    def test_class_labels_keep_their_names(self, tmp_path: Path) -> None:
        path = str(tmp_path / "rows")
        save_rows(path, labels=[1, 0], feature=ClassLabel(names=["ham", "spam"]))
        data = prepare({"path": path})
        assert (data.labels, data.train["labels"][:]) == (("ham", "spam"), [1, 0])

    def test_floats_can_be_classes(self, tmp_path: Path) -> None:
        data = prepare(write_csv(tmp_path, train=labelled(1.0, 0.0)), problem_type="single_label_classification")
        assert (data.labels, data.train["labels"][:]) == (("0", "1"), [1, 0])

    def test_minus_one_is_a_label_when_it_is_listed(self, tmp_path: Path) -> None:
        data = prepare(write_csv(tmp_path, train=labelled(-1, 1)), labels=["-1", "1"])
        assert data.train["labels"][:] == [0, 1]

    def test_validation_and_test_rows_use_the_ids_of_the_training_split(self, tmp_path: Path) -> None:
        load_dataset = write_csv(tmp_path, train=labelled("b", "a", "c"), validation=labelled("c"), test=labelled("b"))
        data = prepare(load_dataset)
        assert data.validation is not None
        assert data.test is not None
        assert (data.validation["labels"][:], data.test["labels"][:]) == ([2], [1])


class TestMultiLabel:
    def test_lists_of_names_become_rows_of_zeros_and_ones(self, tmp_path: Path) -> None:
        data = prepare(write_json(tmp_path, train=labelled(["b", "a"], [], ["b", "b"])))
        assert data.problem_type == "multi_label_classification"
        assert data.labels == ("a", "b")
        assert data.train["labels"][:] == [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]

    def test_lists_of_numbers_are_numbers_of_labels(self, tmp_path: Path) -> None:
        data = prepare(write_json(tmp_path, train=labelled([2, 0], [1])))
        assert (data.labels, data.train["labels"][:]) == (("0", "1", "2"), [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])

    def test_lists_of_floats_are_one_number_per_label(self, tmp_path: Path) -> None:
        load_dataset = write_json(tmp_path, train=labelled([1.0, 0.0], [0.5, 1.0]))
        assert prepare(load_dataset).labels == ("0", "1")
        data = prepare(load_dataset, labels=["odd", "rude"])
        assert (data.labels, data.train["labels"][:]) == (("odd", "rude"), [[1.0, 0.0], [0.5, 1.0]])

    def test_several_columns_are_one_label_each(self, tmp_path: Path) -> None:
        rows = [{"text": "x", "rude": 1, "spam": 0.5}, {"text": "y", "rude": 0, "spam": 1.0}]
        data = prepare(write_csv(tmp_path, train=rows), label_column=["spam", "rude"])
        assert (data.labels, data.label_columns) == (("spam", "rude"), ("spam", "rude"))
        assert data.train["labels"][:] == [[0.5, 1.0], [1.0, 0.0]]

    @pytest.mark.parametrize(
        ("rows", "arguments", "message"),
        [
            (
                labelled([1.0, 0.0], [1.0]),
                {},
                (
                    "data.label_column: a list of floats holds one number between 0 and 1 for each of the 2 labels; "
                    "got [1.0] in row 1 of the split 'train', counted from 0, in the column 'label'. "
                    "Mend the row, or list the labels in data.labels."
                ),
            ),
            (
                labelled([1.0, 0.5], [7.0, 1.0]),
                {},
                (
                    "data.label_column: a list of floats holds one number between 0 and 1 for each of the 2 labels; "
                    "got [7.0, 1.0] in row 1 of the split 'train', counted from 0, in the column 'label'. "
                    "Mend the row, or list the labels in data.labels."
                ),
            ),
            (
                [{"text": "x", "a": 0, "b": 1}, {"text": "y", "a": 3, "b": 1}],
                {"label_column": ["b", "a"]},
                (
                    "data.label_column: with several label columns each value lies between 0 and 1; got 3 in row 1 of "
                    "the split 'train', counted from 0, in the column 'a'. Mend the row, or name one column."
                ),
            ),
            (
                [{"text": "x", "a": 0, "b": 1}],
                {"label_column": ["b", "a"], "labels": ["c", "d"]},
                "data.labels: labels cannot be listed here, as the label columns name them. Leave the key out.",
            ),
            (
                labelled(["a"], None),
                {},
                (
                    "data.label_column: labels are missing in the column 'label' of the split 'train'; got None in "
                    "row 1, counted from 0. Remove these rows, or give them a label."
                ),
            ),
            (
                labelled(["a"], ["a", "c"]),
                {"labels": ["a", "b"]},
                (
                    "data.labels: a label is not among the labels; got 'c' in row 1 of the split 'train', counted "
                    "from 0. The labels are a, b."
                ),
            ),
        ],
    )
    def test_rows_that_cannot_be_read_are_an_error(
        self, tmp_path: Path, rows: Rows, arguments: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            prepare(write_json(tmp_path, train=rows), **arguments)


class TestRegression:
    def test_floats_stay_what_they_are(self, tmp_path: Path) -> None:
        data = prepare(write_csv(tmp_path, train=labelled(0.5, -2.0)))
        assert (data.problem_type, data.labels, data.num_labels) == ("regression", (), 1)
        assert data.train["labels"][:] == [0.5, -2.0]
        assert data.train.features["labels"] == Value("float32")

    def test_whole_numbers_can_be_a_regression(self, tmp_path: Path) -> None:
        data = prepare(write_csv(tmp_path, train=labelled(1, 5)), problem_type="regression")
        assert data.train["labels"][:] == [1.0, 5.0]

    def test_labels_cannot_be_listed(self, tmp_path: Path) -> None:
        message = "data.labels: labels cannot be listed here, as a regression has none. Leave the key out."
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            prepare(write_csv(tmp_path, train=labelled(0.5)), labels=["a"])

    @pytest.mark.parametrize(("bad", "shown"), [("nan", "None"), ("", "None"), ("inf", "inf")])
    def test_what_is_not_a_number_is_an_error(self, tmp_path: Path, bad: str, shown: str) -> None:
        message = (
            f"data.label_column: labels are missing in the column 'label' of the split 'train'; got {shown} in row 1 "
            "and 1 more, counted from 0. Remove these rows, or give them a label."
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            prepare(write_csv(tmp_path, train=labelled(0.5, bad, 1.5, bad)))


class TestBadLabels:
    @pytest.mark.parametrize(
        ("train", "validation", "arguments", "message"),
        [
            (
                labelled("positive", "negative"),
                labelled("negative", "positve"),
                {},
                (
                    "data.labels: a label is not among the labels; got 'positve' in row 1 of the split 'validation', "
                    "counted from 0. The labels are negative, positive. Did you mean 'positive'?"
                ),
            ),
            (
                labelled(0, 1),
                labelled(1, 2),
                {"labels": ["bad", "good"]},
                (
                    "data.labels: a label is not among the labels; got '2' in row 1 of the split 'validation', "
                    "counted from 0. The labels are bad, good."
                ),
            ),
            (
                labelled(*range(22)),
                labelled(22),
                {},
                (
                    "data.labels: a label is not among the labels; got '22' in row 0 of the split 'validation', "
                    "counted from 0. The labels are 0, 1, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 2, 20, 21, 3, 4, 5, "
                    "6, 7 and 2 more. Did you mean '2'?"
                ),
            ),
            (
                labelled("a", "b"),
                labelled("a", "", "b", ""),
                {},
                (
                    "data.label_column: labels are missing in the column 'label' of the split 'validation'; got None "
                    "in row 1 and 1 more, counted from 0. Remove these rows, or give them a label."
                ),
            ),
            (
                labelled(0, 1),
                labelled(1, -1),
                {},
                (
                    "data.label_column: labels are missing in the column 'label' of the split 'validation'; got -1 in "
                    "row 1, counted from 0. Remove these rows, or give them a label. Where -1 is a label, list it in "
                    "data.labels."
                ),
            ),
        ],
    )
    def test_a_label_that_is_unknown_or_missing_is_an_error(
        self, tmp_path: Path, train: Rows, validation: Rows, arguments: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            prepare(write_csv(tmp_path, train=train, validation=validation), **arguments)

    def test_one_class_only_is_a_warning(self, tmp_path: Path) -> None:
        message = (
            "data.label_column: all rows of the split 'train' have the same label, 'good'; the model learns from them "
            "to give this label always."
        )
        with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
            data = prepare(write_csv(tmp_path, train=labelled("good", "good")), labels=["bad", "good"])
        assert data.train["labels"][:] == [1, 1]

    def test_two_classes_are_no_warning(self, tmp_path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            prepare(write_csv(tmp_path, train=REVIEWS))


class TestTestSplitWithoutLabels:
    @pytest.mark.parametrize("kept_back", [-1, None])
    def test_it_is_left_out(self, tmp_path: Path, kept_back: int | None) -> None:
        test = labelled(kept_back, kept_back)
        data = prepare(write_json(tmp_path, train=labelled(0, 1), validation=labelled(1), test=test))
        assert data.test is None
        assert dict(data.splits) == {"train": "train", "validation": "validation"}

    def test_it_is_an_error_when_the_config_names_it(self, tmp_path: Path) -> None:
        load_dataset = write_json(tmp_path, train=labelled(0, 1), test=labelled(-1, -1))
        with pytest.raises(ConfigError, match=r"labels are missing in the column 'label' of the split 'test'"):
            prepare(load_dataset, splits={"test": "test"})
