"""The recipes of docs/how_much_to_freeze.md train as they stand, on MiniLM and a few real reviews."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from hf_freeze import plan_cost, run
from hf_freeze.config import load_config
from hf_freeze.config.sizes import spell_size
from tests.conftest import REPOSITORY
from tests.integration import reviews
from tests.unit.training.runs import assert_followed, values

GUIDE = (REPOSITORY / "docs/how_much_to_freeze.md").read_text()
REVIEWS = REPOSITORY / "examples/data/movie_reviews"
RECIPES = [
    pytest.param(block, id=str(YAML(typ="safe", pure=True).load(block)["training"]["output_dir"]))
    for block in re.findall(r"^```yaml\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_what_it_says(recipe: str, minilm_path: Path, reviews_path: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe)
    overrides = {
        "model.name_or_path": minilm_path,
        "data.load_dataset.path": reviews.write_few(reviews_path, tmp_path / "reviews"),
        "training.output_dir": tmp_path / "run",
        "training.num_train_epochs": 2,
        "training.per_device_train_batch_size": 4,
        "training.warmup_steps": 0,
        "training.disable_tqdm": "true",
        "training.use_cpu": "true",
    }
    config = load_config(tmp_path / "recipe.yaml", [f"{key}={value}" for key, value in overrides.items()])
    prepared = run.Run(config)
    before = values(prepared.trainer.model)
    prepared.train()
    assert_followed(prepared.trainer.model, before)
    assert prepared.trainer.plan.depth == 4
    last = prepared.trainer.model.bert.encoder.layer[-1]
    assert last.gradient_checkpointing == bool(prepared.args.activation_checkpointing)


def test_what_saves_memory_is_worth_what_the_guide_says(minilm_path: Path) -> None:
    rows = re.findall(r"^\| `?(.+?)`? \| ([\d.]+ MB) \|$", GUIDE, re.MULTILINE)
    batches, checkpoints = rows[2][0].split(), [rows[1][0]]
    overrides = [[], checkpoints, batches, [*batches, *checkpoints]]
    model = f"model.name_or_path={minilm_path}"
    quickstart = str(REPOSITORY / "configs/quickstart.yaml")
    costs = [plan_cost(quickstart, [model, f"data.load_dataset.path={REVIEWS}", *each]) for each in overrides]
    assert [spell_size(cost.peak or 0) for cost in costs] == [size for _, size in rows]
