"""The data check counts what is there, and says what would make a result wrong."""

from __future__ import annotations

import numpy as np
import pytest

from hf_freeze.insight.check import DataReport, SharedRows, Split, check_data, row_digests
from hf_freeze.insight.lengths import Batching, length_report, padding_share

PLAIN = Batching("sequential", 2, 2)


def split(role: str, texts: list[str | None], labels: object = None, *, name: str = "", length: int = 3) -> Split:
    """A split of rows of one text each, whose labels take turns unless they are given."""
    given = np.arange(len(texts)) % 2 if labels is None else np.asarray(labels)
    lengths = np.full(len(texts), length)
    return Split(role, name or role, [(text,) for text in texts], given, lengths, PLAIN)


def report(*splits: Split, max_length: int | None = None, labels: tuple[str, ...] = ("bad", "good")) -> DataReport:
    problem = "single_label_classification" if labels else "regression"
    return check_data(splits, labels=labels, problem_type=problem, max_length=max_length, lengths_are_cut=False)


TRAIN = split("train", ["one", "two", "three", "four"])


def test_sound_data_give_no_message() -> None:
    found = report(TRAIN, split("validation", ["five", "six"]))
    assert (found.warnings, found.notes, found.shared) == ((), (), ())
    assert [(part.num_rows, part.num_repeated, part.blank_rows) for part in found.splits] == [(4, 0, ()), (2, 0, ())]
    assert found.splits[0].counts == {"bad": 2, "good": 2}


@pytest.mark.parametrize("text", ["One  film", " one film", "ONE FILM\n", "one\tfilm"])
def test_case_and_spaces_do_not_tell_rows_apart(text: str) -> None:
    digests, is_blank = row_digests([("one film",), (text,)])
    assert digests[0] == digests[1]
    assert not is_blank.any()


@pytest.mark.parametrize("row", [("onefilm", "b"), ("one", "film b"), ("b", "one film"), ("one film", "b.")])
def test_other_words_and_other_pairs_are_other_rows(row: tuple[str, str]) -> None:
    digests, _ = row_digests([("one film", "b"), row])
    assert digests[0] != digests[1]


def test_rows_that_are_blank_are_not_repeated_and_not_shared() -> None:
    found = report(
        split("train", ["one", None, "", " \n", "one", "one"]), split("validation", ["", "two"]), max_length=8
    )
    assert found.splits[0].blank_rows == (1, 2, 3)
    assert found.splits[0].num_repeated == 2
    assert found.shared == ()
    assert found.warnings == (
        (
            "data.text_columns: texts are empty or blank in the split 'train'; got 3 (rows 1, 2, 3) of 6 rows, counted "
            "from 0. Training refuses them. Remove these rows or fill them in."
        ),
        (
            "data.text_columns: texts are empty or blank in the split 'validation'; got 1 (row 0) of 2 rows, counted "
            "from 0. Training refuses them. Remove these rows or fill them in."
        ),
    )
    many = report(split("train", [None] * 7 + ["one"])).warnings[0]
    assert "got 7 (rows 0, 1, 2, 3, 4 and 2 more) of 8 rows" in many


def test_rows_that_are_trained_on_and_evaluated_on_are_a_warning() -> None:
    """Rows of the evaluation split are counted, those that occur twice there twice."""
    found = report(
        TRAIN, split("validation", ["Two", "two", "nine"], name="dev"), split("test", ["nine", "ten", "two", "three"])
    )
    assert found.shared == (
        SharedRows("train", "validation", 2),
        SharedRows("train", "test", 2),
        SharedRows("validation", "test", 2),
    )
    assert found.warnings == (
        (
            "data.splits.validation: rows of the split 'dev' are trained on; got 2 of 3 rows (66.7%) that the split "
            "'train' has too. Evaluation on them measures memory. Remove them from one of the two splits."
        ),
        (
            "data.splits.test: rows of the split 'test' are trained on; got 2 of 4 rows (50.0%) that the split 'train' "
            "has too. Evaluation on them measures memory. Remove them from one of the two splits."
        ),
    )
    assert found.notes == (
        "The split 'test' has 2 rows that the split 'dev' has too: what is chosen by the one does well on the other.",
    )


def test_one_class_is_a_warning() -> None:
    found = report(split("train", ["one", "two"], [1, 1]), split("validation", ["five", "six"], [0, 0]))
    assert found.warnings == (
        (
            "data.label_column: all 2 rows of the split 'train' have the same label; got 'good'. A model learns from "
            "them to answer always the same. Shuffle the rows before they are split, or name another column or split."
        ),
        (
            "data.label_column: all 2 rows of the split 'validation' have the same label; got 'bad'. Any model can "
            "guess it. Shuffle the rows before they are split, or name another column or split."
        ),
    )


def test_one_value_and_one_set_of_labels_are_a_warning_too() -> None:
    (value,) = report(split("train", ["one", "two"], [0.5, 0.5]), labels=()).warnings
    assert value.startswith("data.label_column: all 2 rows of the split 'train' have the same label; got 0.5. ")
    (labels,) = report(split("train", ["one", "two"], [[0.0, 1.0], [0.0, 1.0]])).warnings
    assert labels.startswith("data.label_column: all 2 rows of the split 'train' have the same label; got ['good']. ")


def test_labels_that_one_split_has_alone_are_noted() -> None:
    names = tuple("abcdefgh")
    train = split("train", [str(i) for i in range(8)], [0, 0, 1, 2, 3, 4, 5, 6])
    found = report(train, split("validation", ["x", "y"], [0, 7]), labels=names)
    assert found.notes == (
        "Only the split 'train' has the labels 'b', 'c', 'd', 'e', 'f' and 1 more.",
        "Only the split 'validation' has the label 'h'.",
    )
    assert found.warnings == ()


def test_a_lopsided_split_is_noted() -> None:
    found = report(split("train", [str(i) for i in range(10)], [0] * 9 + [1]))
    assert found.notes == ("90.0% of the rows of the split 'train' have the label 'bad': accuracy says little.",)


def test_labels_of_several_kinds_are_counted() -> None:
    shares = report(split("train", ["one", "two", "three"], [[0.9, 1.0], [0.0, 0.6], [0.5, 0.0]]))
    assert shares.splits[0].counts == {"bad": 1, "good": 2}
    values = report(split("train", ["one", "two", "three"], [0.0, 1.0, 4.0]), labels=())
    assert values.splits[0].counts == {}
    expected = {"least": 0.0, "25 %": 0.5, "50 %": 1.0, "75 %": 2.5, "greatest": 4.0}
    assert values.splits[0].quantiles == expected


def test_rows_that_are_cut_are_noted() -> None:
    assert report(split("train", ["one", "two"], length=9), max_length=9).notes == ()
    assert report(split("train", ["one", "two"], length=1234), max_length=9).notes == (
        "100.0% of the rows of the split 'train' are cut at 9 tokens (data.max_length); the longest has 1,234.",
    )
    cut = check_data(
        [split("train", ["one", "two"], length=9)],
        labels=("bad", "good"),
        problem_type="single_label_classification",
        max_length=9,
        lengths_are_cut=True,
    )
    assert cut.notes == ("100.0% of the rows of the split 'train' are cut at 9 tokens (data.max_length).",)


def test_padding_that_grouping_would_save_is_noted() -> None:
    lengths = np.tile([4, 40], 40)
    texts = [(str(i),) for i in range(80)]
    train = Split("train", "train", texts, np.arange(80) % 2, lengths, Batching("random", 4, 4))
    assert report(train).notes == (
        (
            "42% of what the model reads while training is padding; training.train_sampling_strategy: group_by_length "
            "leaves 8%."
        ),
    )


def test_padding_is_what_batches_hold() -> None:
    lengths = np.array([1, 3, 2, 2, 5])
    assert padding_share(lengths, Batching("sequential", 2, 2)) == pytest.approx(1 - 13 / (6 + 4 + 5))
    assert padding_share(lengths, Batching("sequential", 5, 5)) == pytest.approx(1 - 13 / 25)
    assert padding_share(lengths, Batching("random", 1, 1)) == pytest.approx(0)
    # Two of 1 and 3, drawn with replacement: the longer one has 3 in three cases of four.
    assert padding_share(np.array([1, 3]), Batching("random", 2, 2)) == pytest.approx(1 - 2 / 2.5)
    assert padding_share(np.arange(1, 101), Batching("group_by_length", 1, 100)) == 0
    assert padding_share(np.arange(1, 101), Batching("group_by_length", 100, 100)) == pytest.approx(1 - 50.5 / 100)


def test_lengths_are_summed_up() -> None:
    found = length_report(np.array([3, 8, 9, 16, 40]), PLAIN, max_length=16, lengths_are_cut=False)
    assert (found.median, found.percentile_95, found.longest, found.num_cut) == (9, 16, 40, 1)
    assert found.histogram == {8: 2, 16: 2, 32: 0, 64: 1}
    assert length_report(np.array([3, 16]), PLAIN, max_length=16, lengths_are_cut=True).num_cut == 1
    assert length_report(np.array([3, 16]), PLAIN, max_length=None, lengths_are_cut=False).num_cut == 0
    other = length_report(np.array([3, 16]), Batching("batch_rebalance", 2, 2), max_length=None, lengths_are_cut=False)
    assert other.padding is None
