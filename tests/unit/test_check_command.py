"""`hf-freeze check` on real files: what it prints, and with what it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner, Result

from hf_freeze import run
from hf_freeze.cli import app
from hf_freeze.cli.check import print_short_report
from hf_freeze.config import parse_config
from hf_freeze.insight.check import DataReport
from tests import tiny_run
from tests.conftest import REPOSITORY
from tests.unit.tasks.rows import write_csv, write_json

SHARED = (
    "data.splits.validation: rows of the split 'validation' are trained on; got 1 of 2 rows (50.0%) that the split "
    "'train' has too. Evaluation on them measures memory. Remove them from one of the two splits."
)
BLANK = (
    "data.text_columns: texts are empty or blank in the split 'train'; got 1 (row 3) of 4 rows, counted from 0. "
    "Training refuses them. Remove these rows or fill them in."
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.write_model(tmp_path_factory.mktemp("model"))


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="hf-freeze")


def write_config(folder: Path, model: Path, load_dataset: dict[str, Any], **data: Any) -> Path:
    sections = tiny_run.sections(model, folder, folder / "out")
    sections["data"] = {"load_dataset": load_dataset, **data}
    path = folder / "config.yaml"
    YAML().dump(sections, path)
    return path


@pytest.fixture
def leaky(model: Path, tmp_path: Path) -> Path:
    """A config whose data have a row in two splits, and a blank one."""
    train = [
        {"text": "a good film", "label": "positive"},
        {"text": "a bad film", "label": "negative"},
        {"text": "a bad film", "label": "negative"},
        {"text": " ", "label": "positive"},
    ]
    validation = [{"text": "A good film ", "label": "positive"}, {"text": "what an end", "label": "negative"}]
    return write_config(tmp_path, model, write_json(tmp_path / "rows", train=train, validation=validation))


def test_the_report_shows_every_split_and_ends_with_what_is_wrong(leaky: Path) -> None:
    result = call("check", leaky)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        f"""\
rows and tokens

 split        rows   blank   repeated   in train   median   95 %   longest   cut at 64   padding
 ───────────────────────────────────────────────────────────────────────────────────────────────
 train           4       1          1                   5      5         5        0.0%     15.0%
 validation      2       0          0          1        5      5         5        0.0%      0.0%

labels

 label          train   validation
 ─────────────────────────────────
 negative   2 (50.0%)    1 (50.0%)
 positive   2 (50.0%)    1 (50.0%)

rows by tokens

 tokens        train   validation
 ────────────────────────────────
 1-8      4 (100.0%)   2 (100.0%)

{BLANK}
{SHARED}
"""
    )


def test_strict_makes_it_an_error(leaky: Path) -> None:
    result = call("check", leaky, "--strict")
    assert (result.exit_code, result.stderr) == (2, f"{BLANK}\n{SHARED}\n")
    assert SHARED not in result.stdout


def test_strict_lets_sound_data_pass(model: Path, tmp_path: Path) -> None:
    train = [{"text": "a good film", "label": 1}, {"text": "a bad film", "label": 0}]
    result = call("check", write_config(tmp_path, model, write_csv(tmp_path / "rows", train=train)), "--strict")
    assert result.exit_code == 0
    assert result.stdout.endswith("\nNothing in the data deserves attention.\n")


def test_json_holds_the_report(leaky: Path) -> None:
    report = json.loads(call("check", leaky, "--json", "data.max_length=4").stdout)
    assert report["warnings"] == [BLANK, SHARED]
    assert report["notes"] == [
        "75.0% of the rows of the split 'train' are cut at 4 tokens (data.max_length); the longest has 5."
    ]
    assert report["splits"][0]["counts"] == {"negative": 2, "positive": 2}
    assert report["splits"][1]["lengths"]["histogram"] == {"8": 2}
    assert report["shared"] == [{"first": "train", "second": "validation", "num_rows": 1}]


def test_what_data_loading_refuses_ends_the_check(model: Path, tmp_path: Path) -> None:
    train = [{"text": "a good film", "label": "good"}, {"text": "a bad film", "label": None}]
    result = call("check", write_config(tmp_path, model, write_json(tmp_path / "rows", train=train)))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == (
        "data.label_column: labels are missing in the column 'label' of the split 'train'; got None in row 1, counted "
        "from 0. Remove these rows, or give them a label.\n"
    )


def test_training_opens_with_the_short_form(leaky: Path, tmp_path: Path, model: Path) -> None:
    """Blank rows are still refused; else rows are counted, and what is wrong is said before the plan."""
    refused = call("train", leaky)
    assert refused.exit_code == 2
    assert refused.stderr.startswith("data.text_columns: texts are empty or blank in the column 'text'")
    train = [{"text": "a good film", "label": "positive"}, {"text": "what a film", "label": "positive"}]
    validation = [{"text": "A good film ", "label": "positive"}, {"text": "what an end", "label": "positive"}]
    loading = write_json(tmp_path / "sound", train=train, validation=validation, test=train)
    config = write_config(tmp_path, model, loading)
    found = json.loads(call("check", config, "data.labels=[negative, positive]", "--json").stdout)
    assert (found["warnings"][0], len(found["warnings"]), len(found["notes"])) == (SHARED, 5, 1)
    trained = call("train", config, "training.max_steps=1", "data.labels=[negative, positive]")
    assert trained.exit_code == 0
    assert trained.stdout.startswith(
        "Data: 2 rows to train on, 2 rows to validate on, 2 rows to test on.\n"
        + "".join(f"{warning}\n" for warning in found["warnings"])
        + "".join(f"{note}\n" for note in found["notes"])
        + "\nBertForSequenceClassification\n"
    )


def test_the_short_form_hides_no_warning_and_counts_further_notes(capsys: pytest.CaptureFixture[str]) -> None:
    report = DataReport("single_label_classification", None, (), (), warnings=tuple("abcd"), notes=tuple("efg"))
    print_short_report(report)
    assert capsys.readouterr().out == (
        "Data: .\na\nb\nc\nd\ne\nThere is more to say of the data, 2 times: run hf-freeze check.\n\n"
    )


def test_sentence_pairs_and_a_regression_are_reported(model: Path, tmp_path: Path) -> None:
    rows = [
        {"sentence1": "a film", "sentence2": "a good film", "score": 0.5},
        {"sentence1": "a film", "sentence2": "a bad film", "score": 1.5},
        {"sentence1": "a film", "sentence2": "A BAD film", "score": 4.0},
    ]
    config = write_config(tmp_path, model, write_json(tmp_path / "rows", train=rows))
    result = call("check", config)
    assert result.exit_code == 0
    assert (
        """\
labels

 quantile   train
 ────────────────
 least        0.5
 25 %           1
 50 %         1.5
 75 %        2.75
 greatest       4
"""
        in result.stdout
    )
    report = json.loads(call("check", config, "--json").stdout)
    assert report["splits"][0]["num_repeated"] == 1
    assert report["splits"][0]["lengths"]["longest"] == 8


def test_many_labels_are_shown_from_both_ends(model: Path, tmp_path: Path) -> None:
    rows = [{"text": f"film {i}", "label": f"label {i:02}"} for i in range(24)]
    shown = call("check", write_config(tmp_path, model, write_json(tmp_path / "rows", train=rows))).stdout
    assert shown.count("1 (4.2%)") == 20
    assert " (4 more)" in shown


def test_lists_of_labels_and_a_test_split_without_labels_are_reported(model: Path, tmp_path: Path) -> None:
    train = [{"text": "a good film", "label": ["fun", "new"]}, {"text": "a bad film", "label": ["new"]}]
    validation = [{"text": "what an end", "label": ["fun"]}]
    test = [{"text": "what a film", "label": None}]
    report = run.check(
        parse_config(
            {
                **tiny_run.sections(model, tmp_path, tmp_path / "out"),
                "data": {"load_dataset": write_json(tmp_path / "rows", train=train, validation=validation, test=test)},
            }
        )
    )
    assert [split.role for split in report.splits] == ["train", "validation"]
    assert report.splits[0].counts == {"fun": 1, "new": 2}


def test_the_guide_shows_the_real_report_of_the_quickstart(minilm_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    result = call("check", "configs/quickstart.yaml", f"model.name_or_path={minilm_path}")
    assert result.exit_code == 0
    assert result.stdout.strip() in (REPOSITORY / "docs" / "data_check.md").read_text(encoding="utf-8")
