"""The benchmark of the monitor runs and reports every plan; no timing is asserted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from benchmarks.monitor import main


def test_two_rounds_are_measured_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    output = tmp_path / "report.md"
    options = ["--plans", "head alone", "--rounds", "2", "--batch-size", "2", "--max-length", "8", "--threads", "1"]
    try:
        main([*options, "--output", str(output)])
    finally:
        torch.set_num_threads(threads)
    report = capsys.readouterr().out
    assert output.read_text() == report
    number = r"-?[\d.]+"
    interval = rf"{number} \[{number}, {number}\]"
    assert re.search(rf"^\| head alone \| {number} \| {interval} \| {interval} \| {interval} \|$", report, re.M)
