"""The rows that an exported model is compared on."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_freeze.config import to_yaml
from hf_freeze.errors import ConfigError
from hf_freeze.run.example_rows import rows_of_file, rows_of_run
from tests import tiny_run

ASK = "Name a file with a text on each line: `--rows FILE`."


def test_lines_are_texts_and_tabs_part_pairs(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("a good film\n\na bad film\tno good film\n")
    assert rows_of_file(str(tmp_path / "rows.txt")) == ("a good film", ("a bad film", "no good film"))


def test_a_run_is_compared_on_what_it_evaluated_on(tmp_path: Path) -> None:
    rows = tiny_run.write_rows(tmp_path / "rows", splits="train validation")
    config = tiny_run.config(tmp_path / "model", rows, tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "hf_freeze.yaml").write_text(to_yaml(config))
    found = rows_of_run(str(tmp_path / "run"))
    assert found[: len(tiny_run.TEXTS)] == tiny_run.TEXTS
    assert len(found) == 24


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        rows_of_file(str(tmp_path / "none.txt"))
    assert str(caught.value) == (
        f"--rows: this file cannot be read; got '{tmp_path / 'none.txt'}'. The system says: No such file or directory. "
        f"{ASK}"
    )
    (tmp_path / "latin.txt").write_bytes(b"\xe9")
    with pytest.raises(ConfigError) as caught:
        rows_of_file(str(tmp_path / "latin.txt"))
    assert str(caught.value) == (
        f"--rows: this file cannot be read; got '{tmp_path / 'latin.txt'}'. The system says: it is no text in UTF-8. "
        f"{ASK}"
    )
    with pytest.raises(ConfigError) as caught:
        rows_of_run(str(tmp_path))
    assert str(caught.value) == (
        f"--rows: there are no rows to compare on; got no hf_freeze.yaml in '{tmp_path}'. {ASK}"
    )


def test_data_that_are_gone_are_said(tmp_path: Path) -> None:
    config = tiny_run.config(tmp_path / "model", tmp_path / "nowhere", tmp_path / "run")
    (tmp_path / "hf_freeze.yaml").write_text(to_yaml(config))
    with pytest.raises(ConfigError) as caught:
        rows_of_run(str(tmp_path))
    message = str(caught.value)
    assert message.startswith(
        f"--rows: the data of the run cannot be read; got '{tmp_path / 'hf_freeze.yaml'}'. It says: data.load_dataset"
    )
    assert message.endswith(ASK)
