"""The recipes of docs/how_much_to_freeze.md train as they stand, on MiniLM and a few real reviews."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from hf_freeze import run
from hf_freeze.config import load_config
from tests.conftest import REPOSITORY
from tests.integration import reviews
from tests.unit.training.runs import assert_followed, values

RECIPES = [
    pytest.param(block, id=str(YAML(typ="safe", pure=True).load(block)["training"]["output_dir"]))
    for block in re.findall(
        r"^```yaml\n(.*?)^```$", (REPOSITORY / "docs/how_much_to_freeze.md").read_text(), re.MULTILINE | re.DOTALL
    )
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
