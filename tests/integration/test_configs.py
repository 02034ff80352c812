"""Every config in configs/ trains exactly what it says, on MiniLM and real reviews."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_freeze import run
from hf_freeze.config import load_config
from tests.conftest import REPOSITORY
from tests.integration import reviews
from tests.unit.training.runs import values

CONFIGS = sorted(path.name for path in (REPOSITORY / "configs").glob("*.yaml"))

# Of the 22.7 million parameters of MiniLM with a head for two classes, those that train.
NUM_TRAINABLE = {
    "bitfit.yaml": 174_338,
    "full.yaml": 22_713_986,
    "head_only.yaml": 148_610,
    "last_quarter.yaml": 3_697_538,
    "layernorm.yaml": 158_594,
    "lora_all.yaml": 664_322,
    "lora_top.yaml": 221_954,
    "mixed.yaml": 2_088_962,
    "phases.yaml": 10_795_394,
    "quickstart.yaml": 3_697_538,
}


@pytest.fixture(scope="module")
def few_reviews(reviews_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reviews.write_few(reviews_path, tmp_path_factory.mktemp("reviews"))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_opens_with_what_it_is_and_the_commands_that_run_it(name: str) -> None:
    comments = []
    for line in (REPOSITORY / "configs" / name).read_text().splitlines():
        if not line.startswith("#"):
            break
        comments.append(line)
    assert f"#   hf-freeze plan configs/{name}" in comments
    launch = "accelerate launch --config_file accelerate_configs/single_cpu.yaml scripts/finetune.py"
    assert f"#   {launch} configs/{name}" in comments


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_plans_without_weights(name: str, minilm_path: Path, tmp_path: Path) -> None:
    shutil.copy(minilm_path / "config.json", tmp_path)
    table = run.plan(str(REPOSITORY / "configs" / name), [f"model.name_or_path={tmp_path}"])
    assert table.num_trainable == NUM_TRAINABLE[name]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_moves_what_it_trains_and_nothing_else(
    name: str, minilm_path: Path, few_reviews: Path, tmp_path: Path
) -> None:
    overrides: dict[str, Any] = {
        "model.name_or_path": minilm_path,
        "data.load_dataset.path": few_reviews,
        "training.output_dir": tmp_path,
        "training.max_steps": 3,
        "training.per_device_train_batch_size": 8,
        "training.warmup_steps": 0,
        "training.eval_strategy": "no",
        "training.save_strategy": "no",
        "training.disable_tqdm": "true",
        "training.use_cpu": "true",
    }
    config = load_config(REPOSITORY / "configs" / name, [f"{key}={value}" for key, value in overrides.items()])
    prepared = run.Run(config)
    before = values(prepared.trainer.model)
    assert prepared.table.num_trainable == NUM_TRAINABLE[name]
    prepared.train()
    after = values(prepared.trainer.model)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == set(prepared.trainer.union_plan.trainable_names)
