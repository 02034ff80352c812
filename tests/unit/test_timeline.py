"""`hf-freeze plan` shows what a schedule freezes when, and what the run costs with it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner, Result

from hf_freeze import plan_cost
from hf_freeze.cli import app
from tests import tiny_run


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="hf-freeze")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of 24 rows in batches of 4, for 4 epochs: 24 steps."""
    folder = tmp_path_factory.mktemp("timeline")
    model = tiny_run.write_model(folder / "model")
    rows = tiny_run.write_rows(folder / "rows", splits="train validation")
    path = folder / "config.yaml"
    sections = tiny_run.sections(
        model, rows, folder / "out", max_steps=-1, num_train_epochs=4, per_device_train_batch_size=4
    )
    YAML().dump(sections, path)
    return path


def shown(config: Path, *overrides: str) -> dict[str, Any]:
    result = call("plan", config, *overrides, "--json")
    assert result.exit_code == 0, result.output
    plan: dict[str, Any] = json.loads(result.stdout)
    return plan


def test_nothing_is_told_where_nothing_moves(config: Path) -> None:
    found = shown(config)
    assert found["plan"]["schedule"] is None
    assert found["cost"]["schedule"] is None


def test_which_role_is_frozen_when(config: Path) -> None:
    table = shown(config, "schedule.type=gradual_unfreeze")["plan"]["schedule"]
    assert (table["type"], table["num_steps"], table["is_adaptive"], table["note"]) == (
        "gradual_unfreeze",
        24,
        False,
        None,
    )
    assert [(row["first_step"], row["frozen"], row["depth"]) for row in table["rows"]] == [
        (0, ["embeddings", "blocks[0-3]"], 4),
        (6, ["embeddings", "blocks[0-2]"], 3),
        (12, ["embeddings", "blocks[0-1]"], 2),
        (18, ["embeddings", "blocks[0]"], 1),
    ]


def test_the_timeline_is_that_of_the_run(config: Path, tmp_path: Path) -> None:
    overrides = ["schedule.type=progressive", f"training.output_dir={tmp_path / 'run'}"]
    rows = shown(config, *overrides)["plan"]["schedule"]["rows"]
    assert call("train", config, *overrides).exit_code == 0
    lines = (tmp_path / "run" / "timeline.jsonl").read_text().splitlines()
    moved = [(entry["step"], entry["depth"]) for entry in map(json.loads, lines)]
    assert [(row["first_step"], row["depth"]) for row in rows[1:]] == moved


def test_the_price_of_a_run_lies_between_those_of_its_states(config: Path) -> None:
    cost = plan_cost(str(config), ["schedule.type=progressive"]).schedule
    deepest = plan_cost(str(config), ["freeze.blocks.first=3"])
    assert cost is not None
    assert deepest.over_full is not None
    assert deepest.over_full.run is not None
    assert cost.over_full[0] == cost.over_full[1]
    assert 1.0 < cost.over_full[0] < deepest.over_full.run
    assert 0.0 < cost.mean_depth[0] < 3.0
    assert cost.cached_over_full is not None
    assert cost.cached_over_full[0] >= cost.over_full[0]


def test_a_schedule_that_never_moves_costs_what_its_plan_does(config: Path) -> None:
    phases = "schedule={type: phases, phases: [{freeze: {blocks: {first: 2}}}]}"
    cost, static = plan_cost(str(config), [phases]).schedule, plan_cost(str(config), ["freeze.blocks.first=2"])
    assert cost is not None
    assert static.over_full is not None
    assert static.cached_over_full is not None
    assert cost.mean_depth == (2.0, 2.0)
    assert cost.over_full == pytest.approx((static.over_full.run, static.over_full.run))
    assert cost.cached_over_full is not None
    assert cost.cached_over_full[0] == pytest.approx(max(static.cached_over_full.run or 0, static.over_full.run or 0))


def test_what_is_decided_while_training_has_bounds(config: Path) -> None:
    overrides = ("schedule={type: autofreeze, intervals: 6}",)
    found = shown(config, *overrides)
    assert found["plan"]["schedule"]["is_adaptive"]
    assert [(row["frozen"], row["depth"]) for row in found["plan"]["schedule"]["rows"]] == [
        ([], 0),
        (["embeddings", "blocks[0-2]"], 3),
    ]
    least, most = found["cost"]["schedule"]["over_full"]
    assert least == pytest.approx(1.0)
    assert most > least
    printed = call("plan", config, *overrides).stdout
    assert "What is frozen is decided while training, within these bounds." in printed
    assert re.search(r"Under the schedule, the mean depth is 0\.0 to 3\.0 and the whole run 1\.0 to \d", printed)


def test_many_changes_are_cut_short(config: Path) -> None:
    printed = call("plan", config, "schedule={type: rotating, every: 1, order: ascending}").stdout
    assert "schedule rotating, 24 steps" in printed
    assert "4 more changes follow." in printed


def test_a_length_is_assumed_where_no_rows_are_known(config: Path) -> None:
    printed = call("plan", config.parent / "model", "schedule.type=progressive").stdout
    assert "Shown for 1,000 steps and 3 epochs: how many there are is not known." in printed


def test_a_schedule_that_does_not_fit_the_run_is_refused(config: Path) -> None:
    result = call("plan", config, "schedule={type: rotating, every: 30}")
    assert result.exit_code == 2
    assert result.stderr == (
        "schedule.every: the run ends before blocks are drawn a second time; got 30. Training takes 24 steps. Draw "
        "more often, or train longer.\n"
    )


def test_what_the_weights_choose_is_shown(config: Path) -> None:
    printed = call("plan", config, "freeze.blocks.auto.by=snr").stdout
    assert "freeze.blocks.auto: 12 of 24 linear weights train" in printed
    assert "Mean score of the weights of a block: blocks[0]" in printed


def test_what_takes_rows_is_said_to_be_chosen_when_training_starts(config: Path) -> None:
    printed = call("plan", config, "freeze.blocks={auto: {by: budget, speedup: 2}}").stdout
    assert (
        "freeze.blocks.auto: which blocks are frozen is chosen by budget when training starts, from training rows. "
        "What is shown here freezes no block yet."
    ) in printed


@pytest.mark.parametrize("kind", ["gradual_unfreeze", "plateau"])
def test_a_schedule_is_not_checked_before_it_is_chosen_what_it_starts_from(config: Path, kind: str) -> None:
    shown_plan = shown(config, "freeze.blocks={auto: {by: gradient}}", f"schedule.type={kind}")["plan"]
    assert shown_plan["schedule"] is None
    assert any("is chosen by gradient when training starts" in note for note in shown_plan["notes"])


def test_a_metric_that_is_evaluated_too_seldom_is_said(config: Path) -> None:
    overrides = ("schedule.type=plateau", "training.eval_strategy=epoch", "training.num_train_epochs=1")
    result = call("plan", config, *overrides)
    assert result.exit_code == 2
    assert result.stderr.startswith("schedule.patience: plateau would thaw nothing in this run; got 1. 0 evaluations")
