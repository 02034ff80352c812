"""What kind of problem the labels pose, what they are called, and which number each of them gets."""

from __future__ import annotations

import re

import pytest
from datasets import ClassLabel, List, Value
from hypothesis import given
from hypothesis import strategies as st

from hf_freeze.errors import ConfigError
from hf_freeze.tasks.labels import check_labels, decide_problem_type, infer_labels, is_missing, label_ids

STRING = Value("string")
INT = Value("int64")
FLOAT = Value("float64")
CLASSES = ClassLabel(names=["ham", "spam"])


class TestProblemType:
    @pytest.mark.parametrize(
        ("feature", "expected"),
        [
            (STRING, "single_label_classification"),
            (INT, "single_label_classification"),
            (Value("bool"), "single_label_classification"),
            (CLASSES, "single_label_classification"),
            (FLOAT, "regression"),
            (List(STRING), "multi_label_classification"),
            (List(CLASSES), "multi_label_classification"),
            (List(FLOAT), "multi_label_classification"),
        ],
    )
    def test_it_follows_from_what_the_column_holds(self, feature: object, expected: str) -> None:
        assert decide_problem_type({"label": feature}, label_columns=("label",), problem_type=None) == expected

    def test_several_columns_are_multi_label(self) -> None:
        columns = {"rude": INT, "spam": Value("bool"), "odd": FLOAT}
        found = decide_problem_type(columns, label_columns=tuple(columns), problem_type=None)
        assert found == "multi_label_classification"

    @pytest.mark.parametrize(
        ("feature", "wanted"),
        [(INT, "regression"), (FLOAT, "single_label_classification"), (FLOAT, "regression")],
    )
    def test_numbers_can_be_either(self, feature: object, wanted: str) -> None:
        assert decide_problem_type({"label": feature}, label_columns=("label",), problem_type=wanted) == wanted

    @pytest.mark.parametrize(
        ("columns", "wanted", "message"),
        [
            (
                {"label": STRING},
                "regresion",
                (
                    "data.problem_type: there is no such problem type; got 'regresion'. The problem types are "
                    "multi_label_classification, regression, single_label_classification. Did you mean 'regression'?"
                ),
            ),
            (
                {"label": STRING},
                "regression",
                (
                    "data.problem_type: 'regression' does not fit the column 'label'; got strings. "
                    "What fits: single_label_classification."
                ),
            ),
            (
                {"a": INT, "b": INT},
                "regression",
                (
                    "data.problem_type: 'regression' does not fit the columns a, b; got int64 values. "
                    "What fits: multi_label_classification."
                ),
            ),
            (
                {"a": INT, "b": STRING},
                None,
                (
                    "data.label_column: each of several label columns holds 0 or 1; the column 'b' holds strings. "
                    "Name one column, or columns of numbers."
                ),
            ),
            (
                {"label": {"nested": INT}},
                None,
                (
                    "data.label_column: the column 'label' holds nested values, which cannot be labels. "
                    "Name a column of strings, numbers, class labels, or lists of them."
                ),
            ),
        ],
    )
    def test_what_does_not_fit_is_an_error(self, columns: dict[str, object], wanted: str | None, message: str) -> None:
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            decide_problem_type(columns, label_columns=tuple(columns), problem_type=wanted)


class TestNames:
    @pytest.mark.parametrize(
        ("values", "feature", "expected"),
        [
            (["spam", "ham", None], STRING, ("ham", "spam")),
            ([10, 9, 1, -1], INT, ("1", "9", "10")),
            ([True, False], Value("bool"), ("False", "True")),
            ([1.0, 0.0, float("nan")], FLOAT, ("0", "1")),
            ([1], CLASSES, ("ham", "spam")),
            ([" ", "yes"], STRING, ("yes",)),
        ],
    )
    def test_they_are_sorted_as_numbers_or_letters(
        self, values: list[object], feature: object, expected: tuple[str, ...]
    ) -> None:
        assert infer_labels(values, feature) == expected

    @given(st.lists(st.text(alphabet="abcXYZ 0-", min_size=1, max_size=4), max_size=8))
    def test_they_do_not_depend_on_the_order_of_the_rows(self, values: list[str]) -> None:
        assert infer_labels(values, STRING) == infer_labels(values[::-1], STRING)

    def test_a_list_of_labels_keeps_its_order(self) -> None:
        assert check_labels(["low", "high", 3]) == ("low", "high", "3")

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ([], "data.labels: the list is empty. List the labels, or leave the key out to infer them."),
            (["a", "b", "a"], "data.labels: a label is listed twice; got 'a'. List each label once."),
        ],
    )
    def test_a_list_without_labels_or_with_one_twice_is_an_error(self, labels: list[str], message: str) -> None:
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            check_labels(labels)


class TestIds:
    @pytest.mark.parametrize(
        ("values", "feature", "labels", "expected"),
        [
            (["ham", "spam", "egg", None], STRING, ("spam", "ham"), {"ham": 1, "spam": 0}),
            ([1, 5, 3, 7], INT, ("1", "3", "5"), {1: 0, 5: 2, 3: 1}),
            ([0, 1, 2, -1, None], INT, ("negative", "positive"), {0: 0, 1: 1}),
            ([-1, 1], INT, ("-1", "1"), {-1: 0, 1: 1}),
            ([0, 1, -1], CLASSES, ("spam", "ham"), {0: 1, 1: 0}),
            ([1.0, 0.0], FLOAT, ("0", "1"), {1.0: 1, 0.0: 0}),
        ],
    )
    def test_every_value_gets_the_position_of_its_name(
        self, values: list[object], feature: object, labels: tuple[str, ...], expected: dict[object, int]
    ) -> None:
        assert label_ids(values, feature, labels) == expected

    @pytest.mark.parametrize(
        ("value", "feature", "missing"),
        [
            (None, STRING, True),
            ("  ", STRING, True),
            ("-1", STRING, False),
            (-1, INT, True),
            (-1, CLASSES, True),
            (7, INT, False),
            (float("nan"), FLOAT, True),
        ],
    )
    def test_what_is_missing_is_told_from_what_is_unknown(self, value: object, feature: object, missing: bool) -> None:
        assert is_missing(value, feature) is missing
