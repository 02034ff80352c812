"""The benchmark of the step's added cost runs, and its figures are what they are said to be; no timing is asserted."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.overhead import estimate, geometric_mean, main


@pytest.fixture(autouse=True)
def threads() -> object:
    """Puts back the number of threads, which the benchmark sets for the whole process."""
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


@pytest.mark.parametrize("control", [False, True])
def test_three_pairs_are_measured_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], control: bool
) -> None:
    output = tmp_path / "report.md"
    options = ["--models", "tiny", "--pairs", "3", "--batch-size", "4", "--threads", "1", "--output", str(output)]
    main([*options, *(["--control"] if control else [])])
    report = capsys.readouterr().out
    assert output.read_text() == report
    assert re.search(r"^\| tiny BERT \| 4 \| 3 \| [\d.]+ \| [\d.]+ \| [\d.]+ \[[\d.]+, [\d.]+\] \| ", report, re.M)
    assert ("`training/trainer.py" in report) is not control
    assert ("second Trainer" in report) is control


def test_equal_ratios_have_an_interval_of_no_width() -> None:
    for statistic in (np.median, geometric_mean):
        found = estimate(np.full(30, 1.25), statistic)
        assert (found.value, found.lower, found.upper) == pytest.approx((1.25, 1.25, 1.25))


def test_the_interval_holds_the_value() -> None:
    ratios = np.random.default_rng(0).lognormal(mean=0.02, sigma=0.1, size=300)
    for statistic in (np.median, geometric_mean):
        found = estimate(ratios, statistic)
        assert found.lower < found.value < found.upper
        assert found.lower < np.exp(0.02) < found.upper


def test_swapping_the_trainers_inverts_the_geometric_mean() -> None:
    ratios = np.array([0.5, 1.5, 4.0])
    assert geometric_mean(1 / ratios, axis=0) == pytest.approx(1 / geometric_mean(ratios, axis=0))
