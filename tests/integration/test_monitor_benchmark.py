"""The benchmark of the monitor runs and reports every plan; no timing is asserted."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.monitor import figure_row, main


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
    cells = rf"{number} \| {interval} \| {interval} \| {interval} \| {interval}"
    assert re.search(rf"^\| head alone \| {cells} \|$", report, re.M)


def test_an_idle_step_and_a_hundredth_of_what_measuring_adds_are_summed() -> None:
    """Steps of 100 ms; 2 ms more where the callback is idle, and 12 ms more where it measures."""
    row = figure_row("made up", np.tile([0.100, 0.102, 0.112], (4, 1)), seed=0)
    assert row == (
        "| made up | 100.0 | 2.00 [2.00, 2.00] | 12.0 [12.0, 12.0] | 0.12 [0.12, 0.12] | 2.10 [2.10, 2.10] |"
    )
