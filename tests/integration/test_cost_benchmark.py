"""The benchmark of the cost model runs, and tensors take in real steps what was predicted; no timing is asserted."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

import pytest
import torch

from benchmarks.cost import MEMORY_PLANS, PLANS, main, measured_peaks, predicted

SMALL = ["--threads", "1", "--batch-size", "2", "--max-length", "16", "--evaluation-rows", "2"]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Puts back the number of threads, which the benchmark sets for the whole process."""
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


@pytest.mark.parametrize("name", ["k = 5", "k = 5, cached"])
def test_tensors_take_what_is_predicted_in_steps_of_the_trainer(name: str) -> None:
    options = argparse.Namespace(threads=1, seed=0, max_length=64, batch_size=8, rows=800, evaluation_rows=2, epochs=1)
    (plan,) = [plan for plan in MEMORY_PLANS if plan.name == name]
    cost = predicted(plan, options)
    allocated, _ = measured_peaks(plan, options)
    # Batch, keys and loss are not predicted: about 1 MB.
    assert (cost.peak_cached if plan.cached else cost.peak) == pytest.approx(allocated, rel=0.02)


def test_whole_runs_are_measured_and_reported(capsys: pytest.CaptureFixture[str]) -> None:
    main(["runs", *SMALL, "--rows", "4", "--epochs", "1"])
    report = capsys.readouterr().out
    number, error = r"[\d.]+", r"[+-]\d+%"
    for plan in PLANS:
        assert re.search(rf"^\| {plan.name} \| {number} \| {number} \| {number} \| {error} \|$", report, re.M)
