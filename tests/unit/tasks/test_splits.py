"""Loading a dataset, and which of its splits is used for what."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset

from hf_freeze.errors import ConfigError
from hf_freeze.tasks.splits import load_splits
from tests.unit.tasks.rows import REVIEWS, write_csv, write_json


class TestChoice:
    @pytest.mark.parametrize(
        ("existing", "wanted", "expected"),
        [
            (["train"], {}, {"train": "train"}),
            (["train", "validation", "test"], {}, {"train": "train", "validation": "validation", "test": "test"}),
            (["train", "dev", "test"], {}, {"train": "train", "validation": "dev", "test": "test"}),
            (["train", "test"], {}, {"train": "train", "validation": "test"}),
            (["train", "test"], {"test": "test"}, {"train": "train", "test": "test"}),
            (["train", "test"], {"train": "test", "validation": "train"}, {"train": "test", "validation": "train"}),
            (["train", "a", "b"], {"validation": "a", "test": "b"}, {"train": "train", "validation": "a", "test": "b"}),
            (["train", "validation"], {"train": None, "test": None}, {"train": "train", "validation": "validation"}),
        ],
    )
    def test_roles_that_are_not_given_are_inferred(
        self, tmp_path: Path, existing: list[str], wanted: dict[str, str | None], expected: dict[str, str]
    ) -> None:
        load_dataset = write_csv(tmp_path, **dict.fromkeys(existing, REVIEWS))
        rows, chosen = load_splits(load_dataset, splits=wanted)
        assert chosen == expected
        assert rows.keys() == expected.keys()

    def test_a_split_may_be_an_expression(self, tmp_path: Path) -> None:
        load_dataset = write_csv(tmp_path, train=REVIEWS, extra=REVIEWS[:1])
        rows, chosen = load_splits(
            load_dataset, splits={"train": "train[1:]+extra", "validation": "train[:1]", "test": "extra"}
        )
        assert chosen == {"train": "train[1:]+extra", "validation": "train[:1]", "test": "extra"}
        assert rows["train"]["text"][:] == ["a dull film", "fine", "a fine film"]
        assert rows["validation"]["text"][:] == ["a fine film"]

    @pytest.mark.parametrize(
        ("existing", "wanted", "message"),
        [
            (
                ["dev", "test"],
                {},
                (
                    "data.splits.train: the dataset has no split 'train'; it has dev, test. "
                    "Set data.splits.train to the split to learn from."
                ),
            ),
            (
                ["train", "validation"],
                {"validation": "validaton[:50%]"},
                (
                    "data.splits.validation: the dataset has no split 'validaton'; it has train, validation. "
                    "Did you mean 'validation'?"
                ),
            ),
            (
                ["train"],
                {"dev": "train"},
                "data.splits: there is no role 'dev'; the roles are test, train, validation.",
            ),
        ],
    )
    def test_a_split_or_role_that_does_not_exist_is_an_error(
        self, tmp_path: Path, existing: list[str], wanted: dict[str, str], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            load_splits(write_csv(tmp_path, **dict.fromkeys(existing, REVIEWS)), splits=wanted)


class TestEmptySplits:
    MESSAGE = (
        "data.splits: the split {!r} has no rows. Fill it, leave its file out, or name another one in data.splits."
    )

    def test_a_file_with_nothing_but_a_header_is_an_error(self, tmp_path: Path) -> None:
        load_dataset = write_csv(tmp_path, train=REVIEWS, validation=REVIEWS)
        (tmp_path / "validation.csv").write_text("text,label\n", encoding="utf-8")
        with pytest.raises(ConfigError, match=f"^{re.escape(self.MESSAGE.format('validation'))}$"):
            load_splits(load_dataset)

    def test_an_expression_that_leaves_no_rows_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=f"^{re.escape(self.MESSAGE.format('train[:1%]'))}$"):
            load_splits(write_csv(tmp_path, train=REVIEWS), splits={"train": "train[:1%]"})

    def test_a_split_that_is_loaded_without_rows_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        splits = {"train": Dataset.from_list(REVIEWS), "test": Dataset.from_list(REVIEWS).select([])}
        monkeypatch.setattr(datasets, "load_dataset", lambda path, **arguments: splits)
        with pytest.raises(ConfigError, match=f"^{re.escape(self.MESSAGE.format('test'))}$"):
            load_splits({"path": "x"})

    def test_a_json_file_without_a_line_is_an_error(self, tmp_path: Path) -> None:
        load_dataset = write_json(tmp_path, train=[])
        message = "data.load_dataset: a data file has no rows; got path 'json'. Fill the file, or leave it out."
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            load_splits(load_dataset)


class TestLoading:
    def test_a_folder_with_a_readme_is_read_and_left_as_it_is(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        write_csv(tmp_path, train=REVIEWS)
        (tmp_path / "README.md").write_text("# Reviews\n", encoding="utf-8")
        with caplog.at_level(logging.WARNING):
            rows, _ = load_splits({"path": str(tmp_path)})
        assert len(rows["train"]) == 3
        assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "train.csv"]
        assert caplog.messages == []

    def test_other_messages_of_the_hub_are_still_heard(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def load(path: str, **arguments: Any) -> dict[str, Any]:
            logging.getLogger("huggingface_hub.repocard").warning("something else")
            return {"train": [1]}

        monkeypatch.setattr(datasets, "load_dataset", load)
        load_splits({"path": "x"})
        assert caplog.messages == ["something else"]

    def test_a_dataset_of_one_split_is_what_is_learned_from(self, tmp_path: Path) -> None:
        rows, chosen = load_splits({**write_csv(tmp_path, test=REVIEWS), "split": "test"})
        assert chosen == {"train": "train"}
        assert len(rows["train"]) == 3

    def test_streaming_is_refused(self) -> None:
        message = (
            "data.load_dataset.streaming: rows are shuffled and counted, so they cannot be streamed; got True. "
            "Leave the key out."
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            load_splits({"path": "x", "streaming": True})

    def test_a_folder_that_does_not_exist_is_an_error(self, tmp_path: Path) -> None:
        path = str(tmp_path / "nothing")
        message = (
            f"data.load_dataset: no data was found; got path {path!r}. Couldn't find any data file at {path}. "
            "Give a folder with data files, or name the files in data_files."
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            load_splits({"path": path})

    def test_a_file_that_does_not_exist_is_an_error(self, tmp_path: Path) -> None:
        message = (
            f"data.load_dataset: no data was found; got path 'csv'. Unable to find '{tmp_path}/x.csv'. "
            "Give a folder with data files, or name the files in data_files."
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            load_splits({"path": "csv", "data_files": str(tmp_path / "x.csv")})

    @pytest.mark.parametrize(
        ("offline", "why"),
        [
            (True, "the hub is switched off (HF_HUB_OFFLINE)"),
            (False, "the hub has no dataset of this name, keeps it private, or cannot be reached"),
        ],
    )
    def test_a_name_that_the_hub_does_not_give_is_an_error(
        self, monkeypatch: pytest.MonkeyPatch, offline: bool, why: str
    ) -> None:
        def load(path: str, **arguments: Any) -> None:
            raise ConnectionError("no way")

        monkeypatch.setattr(datasets, "load_dataset", load)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
        message = (
            f"data.load_dataset: there is no folder 'no/such', and no dataset of that name could be loaded: {why}. "
            "Give a folder, the name of a dataset on the Hugging Face hub, or csv, json or parquet with data_files."
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            load_splits({"path": "no/such", "token": "hf_abcdefghijk"})

    def test_the_hub_is_switched_off_in_these_tests(self) -> None:
        with pytest.raises(ConfigError, match="the hub is switched off"):
            load_splits({"path": "stanfordnlp/imdb"})

    def test_an_argument_that_datasets_does_not_know_is_an_error(self, tmp_path: Path) -> None:
        message = (
            "data.load_dataset: the dataset 'csv' could not be loaded. "
            "CsvConfig.__init__() got an unexpected keyword argument 'data_file'. "
            "The keys of data.load_dataset are the arguments of datasets.load_dataset."
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            load_splits({**write_csv(tmp_path, train=REVIEWS), "data_file": "x"})

    def test_a_file_that_cannot_be_parsed_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "train.csv").write_text("", encoding="utf-8")
        message = (
            "data.load_dataset: the dataset 'csv' could not be loaded. No columns to parse from file. "
            "The keys of data.load_dataset are the arguments of datasets.load_dataset."
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            load_splits({"path": "csv", "data_files": str(tmp_path / "train.csv")})

    def test_no_message_repeats_a_token(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def load(path: str, **arguments: Any) -> None:
            raise ValueError(f"Cannot use {arguments['token']}")

        monkeypatch.setattr(datasets, "load_dataset", load)
        message = (
            "data.load_dataset: the dataset 'x' could not be loaded. Cannot use (hidden). "
            "The keys of data.load_dataset are the arguments of datasets.load_dataset."
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            load_splits({"path": "x", "token": "hf_abcdefghijk"})
