"""The benchmark of schedules runs, continues, and reports what its record holds; no accuracy or time is asserted."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import schedule_report
from benchmarks.balance_plans import FULL, Plan
from benchmarks.balance_record import TEST, TUNING, Record, Run, Time
from benchmarks.schedule_plans import FIXED, PLANS
from benchmarks.schedules import cost_row, main

SMALL = ["--threads", "1", "--rows", "33", "--evaluation-rows", "6", "--epochs", "2"]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Puts back the number of threads, which the benchmark sets for the whole process."""
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


def made_up(path: Path, plans: dict[Plan, list[float]], depth: float) -> Record:
    """A record of tuned plans, each with these accuracies on the test split; the second rate tried is the best."""
    record = Record(path)
    for plan, accuracies in plans.items():
        for index, rate in enumerate(plan.learning_rates):
            record.add_run(Run(plan.name, 500, 3, 0, rate, TUNING), 0.7 + 0.1 * (index == 1), "torch 1", depth=depth)
        for seed, accuracy in enumerate(accuracies, start=1):
            run = Run(plan.name, 500, 3, seed, plan.learning_rates[1], TEST)
            record.add_run(run, accuracy, "torch 1", depth=depth)
    return record


def test_a_run_is_noted_with_its_depth_and_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PLANS, "phases 5", dataclasses.replace(PLANS["phases 5"], learning_rates=(1e-3,)))
    path = tmp_path / "record.jsonl"
    run = ["run", "--record", str(path), "--cache", str(tmp_path / "cache"), *SMALL, "--plans", "phases 5"]
    main([*run, "--seeds", "1"])
    record = Record(path)
    assert [run.split for run in record.accuracies] == [TUNING, TEST]
    # Four steps of two epochs: nothing is frozen in the first.
    assert set(record.depths.values()) == {2.5}
    first = path.read_text()
    main([*run, "--seeds", "1"])
    assert path.read_text() == first
    assert not (tmp_path / "cache").exists()


def test_every_plan_has_as_many_trials() -> None:
    assert {len(set(plan.learning_rates)) for plan in PLANS.values()} == {4}


def test_times_are_noted_once(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    # Two evaluations before the last step: the second is compared with the first.
    small = [*SMALL[:-1], "3"]
    arguments = ["time", "--record", str(path), *small, "--plans", "full", "plateau", "--folder", str(tmp_path)]
    main(arguments)
    found = {each.plan: each for each in Record(path).times}
    assert found.keys() == {"full", "plateau"}
    assert found["full"].depth == 0
    assert 4 < found["plateau"].depth <= 6
    main(arguments)
    assert Record(path).times == list(found.values())
    assert list(tmp_path.iterdir()) == [path]
    assert "| everything, plain `Trainer` | 0.00 |" in schedule_report.report(Record(path), tuning_seed=0)


def test_a_schedule_stands_beside_its_controls(tmp_path: Path) -> None:
    accuracies = [0.80, 0.82, 0.78, 0.81, 0.79]
    better = [each + 0.01 for each in accuracies]
    plans = {FULL: accuracies, PLANS["autofreeze"]: better, PLANS["autofreeze shuffled"]: accuracies, FIXED[2]: better}
    text = schedule_report.report(made_up(tmp_path / "record.jsonl", plans, 2.9), tuning_seed=0)
    assert "### 500 training rows, 3 epochs" in text
    equal, more = "+0.0 [+0.0, +0.0]", "+1.0 [+1.0, +1.0]"
    found = re.search(r"^\| `autofreeze` \|.*$", text, re.M)
    assert found is not None
    assert found[0] == f"| `autofreeze` | 1e-4 | 5 | 81.0 ± 0.7 | 2.90 | {more} | {equal} (depth 3) | {more} |"
    assert "plasticity (0)" in text


def test_ratios_are_taken_within_a_round(tmp_path: Path) -> None:
    record = Record(tmp_path / "record.jsonl")
    for repeat, (whole, own) in enumerate([(10.0, 5.0), (30.0, 10.0), (20.0, 5.0)]):
        record.add_time(Time("full", 500, 3, repeat, whole, 0.0), "machine")
        record.add_time(Time("linear", 500, 3, repeat, own, 2.5), "machine")
    text = schedule_report.report(record, tuning_seed=0)
    assert "| `progressive`, linear | 2.50 | 5.0 | 3.00 | 2.00 | 4.00 | 3 |" in text


def test_what_a_reading_costs_is_spread_over_the_steps_between() -> None:
    seconds = np.full((40, 2), 0.1)
    seconds[:, 1] += np.where(np.arange(40) % 2 == 0, 0.021, 0.001)
    assert cost_row("some", seconds, 20).endswith("| 20 | 2.00 |")


@pytest.mark.slow
def test_the_cost_of_gathering_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    main(["cost", "--rounds", "20", "--threads", "1", "--batch-size", "2"])
    printed = capsys.readouterr().out
    for name in ("autofreeze", "plasticity"):
        assert re.search(rf"^\| {name} \|( -?[\d.]+ ?(\[.*?\] )?\|)+$", printed, re.M)
