"""The benchmark of how much to freeze runs, continues, and reports what its record holds; no accuracy is asserted."""

from __future__ import annotations

import argparse
import copy
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import balance_report
from benchmarks.balance import arguments_of, main, missing_runs, train_rows, trainer_of
from benchmarks.balance_plans import CACHED, FROZEN_LOOP, FULL, HEAD_ONLY, LORA_TOP, PLANS, Plan, make_trainer
from benchmarks.balance_record import TEST, TUNING, Record, Run
from benchmarks.contenders import Reviews
from benchmarks.reviews import load_minilm
from tests.conftest import REPOSITORY

SMALL = ["--threads", "1", "--rows", "8", "--evaluation-rows", "6"]
RECORD = REPOSITORY / "benchmarks" / "records" / "balance.jsonl"


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Puts back the number of threads, which the benchmark sets for the whole process."""
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


def run(tmp_path: Path, *arguments: str) -> Record:
    path = tmp_path / "record.jsonl"
    cache = ["--cache", str(tmp_path / "cache")]
    main(["run", "--record", str(path), *cache, *SMALL, "--plans", HEAD_ONLY.name, "--epochs", "1", *arguments])
    return Record(path)


def made_up(path: Path, plans: dict[Plan, list[float]], *, rows: int = 500) -> Record:
    """A record of tuned plans, each with these accuracies on the test split; the second rate tried is the best."""
    record = Record(path)
    for plan, accuracies in plans.items():
        for index, rate in enumerate(plan.learning_rates):
            record.add_run(Run(plan.name, rows, 3, 0, rate, TUNING), 0.7 + 0.1 * (index == 1), "torch 1")
        for seed, accuracy in enumerate(accuracies, start=1):
            record.add_run(Run(plan.name, rows, 3, seed, plan.learning_rates[1], TEST), accuracy, "torch 1")
    return record


def test_a_record_is_continued_and_nothing_in_it_is_run_again(tmp_path: Path) -> None:
    record = run(tmp_path, "--seeds", "1")
    first = record.path.read_text()
    tuned = [each for each in record.accuracies if each.split == TUNING]
    assert [each.learning_rate for each in tuned] == list(HEAD_ONLY.learning_rates)
    assert {each.seed for each in tuned} == {0}

    record.path.write_text(first + '{"kind": "run", "pl')  # what a kill may leave
    run(tmp_path, "--seeds", "1", "2")
    second = record.path.read_text()
    assert second.startswith(first)
    (added,) = [json.loads(line) for line in second.removeprefix(first).splitlines()]
    assert (added["seed"], added["split"]) == (2, TEST)
    assert added["learning_rate"] == record.best_rate(HEAD_ONLY.name, 8, 1, HEAD_ONLY.learning_rates, 0)


def test_learning_rates_for_the_most_rows_are_those_of_fewer(tmp_path: Path) -> None:
    record = Record(tmp_path / "record.jsonl")
    options = argparse.Namespace(rows=[7500], epochs=3, plans=[CACHED.name], seeds=[1, 2], beside=[2e-2])
    tuned = list(missing_runs(record, options))
    assert tuned == [Run(CACHED.name, 2000, 5, 0, rate, TUNING) for rate in (*CACHED.learning_rates, 2e-2)]
    for run in tuned:
        record.add_run(run, {2e-3: 0.8, 2e-2: 0.9}.get(run.learning_rate, 0.7), "torch 1")
    left = list(missing_runs(record, options))
    assert left == [Run(CACHED.name, 7500, 3, seed, 2e-3, TEST) for seed in (1, 2)]
    for seed in range(1, 6):
        record.add_run(Run(CACHED.name, 7500, 3, seed, 2e-3, TEST), 0.8, "torch 1")
    text = balance_report.report(record, tuning_seed=0)
    note = "The learning rates are those that were tuned with 2,000 training rows, 5 epochs."
    head = "| plan | learning rate | accuracy, % |\n|---|---|---|\n"
    assert f"### 7,500 training rows, 3 epochs\n\n{note}\n\n{head}| cached | 2e-3 | 80.0 ± 0.0 |\n" in text


def test_every_plan_has_as_many_trials() -> None:
    assert {len(set(plan.learning_rates)) for plan in PLANS.values()} == {4}


def test_a_seed_draws_the_same_rows_for_all_plans() -> None:
    _, tokenizer = load_minilm(seed=0)
    first, again, other = (train_rows(tokenizer, rows=9, seed=seed)["input_ids"] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_keeping_the_dropout_of_the_prefix_equals_the_frozen_loop(tmp_path: Path) -> None:
    model, tokenizer = load_minilm(seed=0)
    rows = train_rows(tokenizer, rows=12, seed=0)
    kept = Plan("kept", "", 0, (), 4, {"freeze": {"blocks": {"first": 4}, "keep_dropout": True}})
    weights = []
    for plan in (FROZEN_LOOP, kept, CACHED):
        args = arguments_of(tmp_path, epochs=1, seed=0, learning_rate=1e-3, max_steps=2)
        args.per_device_train_batch_size = 4
        trainer = make_trainer(plan, Reviews(copy.deepcopy(model), tokenizer, rows), args, cache=tmp_path / "cache")
        trainer.train()
        weights.append(trainer.model.classifier.weight.detach())
    by_hand, with_dropout, without = weights
    assert torch.equal(with_dropout, by_hand)
    assert not torch.equal(without, by_hand)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_plan_trains_what_it_says(plan: Plan, tmp_path: Path) -> None:
    args = arguments_of(tmp_path, epochs=1, seed=0, learning_rate=1e-3)
    model = trainer_of(plan, args, rows=4, evaluated=None, cache=tmp_path).model
    trained = {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert sum(trained.values()) == plan.num_trainable
    blocks = {int(found[1]) for name in trained if (found := re.search(r"\blayer\.(\d)\.", name))}
    expected = range(6) if plan.depth is None else range(plan.depth, 6)
    assert blocks == set(expected)
    assert any("embeddings" in name for name in trained) == (plan == FULL)
    in_blocks = [name for name in trained if re.search(r"\blayer\.\d\.", name)]
    assert all("lora" in name for name in in_blocks) == ("LoRA" in plan.name or plan.depth == 6)


def test_differences_are_paired_and_have_students_interval(tmp_path: Path) -> None:
    record = made_up(
        tmp_path / "record.jsonl",
        {FULL: [0.80, 0.82, 0.78, 0.81, 0.79], CACHED: [0.81, 0.84, 0.79, 0.82, 0.79], LORA_TOP: [0.9, 0.9]},
    )
    text = balance_report.report(record, tuning_seed=0)
    error = 100 * math.sqrt(sum((each - 0.80) ** 2 for each in (0.80, 0.82, 0.78, 0.81, 0.79)) / 4 / 5)
    assert f"| full | 1e-4 | 80.0 ± {error:.1f} |  |" in text
    # The differences are 1, 2, 1, 1 and 0 points; the standard error of their mean is 1 / sqrt(10), and t is 2.776.
    assert "| cached | 1e-3 | 81.0 ± 0.9 | +1.0 [+0.1, +1.9] |" in text
    assert "| LoRA on top |" not in text.partition("## Accuracy")[2]
    assert "LoRA on top (2)" in text
    assert "### 2,000 training rows" not in text


def test_what_eval_mode_costs_is_reported(tmp_path: Path) -> None:
    accuracies = [0.80, 0.82, 0.78, 0.81, 0.79]
    lower = [each - 0.01 * (seed % 2) for seed, each in enumerate(accuracies)]
    text = balance_report.report(made_up(tmp_path / "r", {FROZEN_LOOP: accuracies, CACHED: lower}), tuning_seed=0)
    assert re.search(
        r"^\| 500 training rows, 3 epochs \| cached \| 80\.0 ± 0\.7 \| 79\.6 ± 0\.\d \| -0\.4 \[-1\.1, \+0\.3\] \|$",
        text,
        re.M,
    )


def test_a_rate_at_the_edge_of_what_was_tried_is_marked() -> None:
    assert balance_report.spell_rate(FULL, 5e-4) == "5e-4 (largest tried)"
    assert balance_report.spell_rate(FULL, 5e-5) == "5e-5 (smallest tried)"
    assert balance_report.spell_rate(FULL, 2e-4) == "2e-4"


def test_times_are_noted_once(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    arguments = ["time", "--record", str(path), *SMALL, "--plans", HEAD_ONLY.name, "--folder", str(tmp_path)]
    main(arguments)
    (cost,) = Record(path).costs
    assert (cost.rows, cost.evaluated) == (8, 6)
    assert cost.cache_bytes > 0
    main(arguments)
    assert Record(path).costs == [cost]
    assert list(tmp_path.iterdir()) == [path]
    first, second = (balance_report.run_seconds(cost, 8, is_first=is_first) for is_first in (True, False))
    assert first - second == pytest.approx(cost.build)


@pytest.mark.slow
def test_memory_is_noted_in_a_process_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    main(["memory", "--record", str(path), *SMALL, "--plans", LORA_TOP.name, "--folder", str(tmp_path)])
    (footprint,) = Record(path).footprints
    assert footprint.during >= footprint.before > 0
    assert footprint.checkpoint_bytes > 0
    assert "| LoRA on top |" in balance_report.report(Record(path), tuning_seed=0).partition("## Memory")[2]


def test_the_document_is_what_the_record_says() -> None:
    assert balance_report.report(Record(RECORD), tuning_seed=0) == (REPOSITORY / "docs/results.md").read_text()
