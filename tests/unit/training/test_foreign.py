"""Checkpoints of the plain Trainer are resumed from where they are sound and of the same plan, or refused in words."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel, Trainer

from hf_freeze.errors import PlanError
from hf_freeze.training import FreezeTrainer
from tests.tiny import tiny_bert
from tests.unit.training.runs import arguments, assert_same, logged, rows, state

SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
LORA = {"target_modules": ["query"], "task_type": "SEQ_CLS"}
FILES = ("optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """One of a model that trained in full, and one of its adapters."""
    folder = tmp_path_factory.mktemp("plain")
    found = {}
    for is_adapted in (False, True):
        model: Any = get_peft_model(tiny_bert(), LoraConfig(**LORA)) if is_adapted else tiny_bert()
        Trainer(model, arguments(folder / str(is_adapted), **SAVING), train_dataset=rows()).train()
        found[is_adapted] = folder / str(is_adapted) / "checkpoint-2"
    return found


def trainer_of(folder: Path, model: PreTrainedModel | None = None, **options: Any) -> FreezeTrainer:
    return FreezeTrainer(model or tiny_bert(), arguments(folder, **SAVING), train_dataset=rows(), **options)


def message_of(trainer: FreezeTrainer, folder: Path) -> str:
    before = state(trainer.model)
    with pytest.raises(PlanError) as caught:
        trainer.train(resume_from_checkpoint=str(folder))
    assert_same(state(trainer.model), before)
    return str(caught.value)


@pytest.mark.parametrize("part", [0, 0.5, 0.99])
@pytest.mark.parametrize(
    ("is_adapted", "name"),
    [
        *((False, name) for name in ("config.json", "model.safetensors", *FILES)),
        *((True, name) for name in ("adapter_config.json", "adapter_model.safetensors", *FILES)),
    ],
)
def test_a_file_that_was_cut_short_is_named(
    checkpoints: dict[bool, Path], tmp_path: Path, is_adapted: bool, name: str, part: float
) -> None:
    folder = Path(shutil.copytree(checkpoints[is_adapted], tmp_path / "checkpoint-2"))
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(part * len(content))])
    trainer = trainer_of(tmp_path / "out", adapters=[LoraConfig(**LORA)] if is_adapted else [])
    assert message_of(trainer, folder) == (
        f"resume_from_checkpoint: this checkpoint is not complete; got '{folder}', in which these files are missing or "
        f"damaged: {name}. There is no complete one beside it. Train without resume_from_checkpoint."
    )


def test_adapters_are_resumed(checkpoints: dict[bool, Path], tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, adapters=[LoraConfig(**LORA)])
    trainer.train(resume_from_checkpoint=str(checkpoints[True]))
    assert trainer.state.global_step == 4


@pytest.mark.parametrize(("is_adapted", "lacked"), [(False, "adapter_config.json, adapter_model.safetensors")])
def test_a_whole_model_is_not_taken_for_adapters(
    checkpoints: dict[bool, Path], tmp_path: Path, is_adapted: bool, lacked: str
) -> None:
    trainer = trainer_of(tmp_path, adapters=[LoraConfig(**LORA)])
    assert f"missing or damaged: {lacked}." in message_of(trainer, checkpoints[is_adapted])


class TestAnotherPlan:
    def test_it_is_refused_before_anything_is_loaded(self, checkpoints: dict[bool, Path], tmp_path: Path) -> None:
        trainer = trainer_of(tmp_path, tiny_bert(seed=1), freeze={"blocks": {"first": 2}})
        assert message_of(trainer, checkpoints[False]) == (
            f"{checkpoints[False]}: this checkpoint was written under another plan; got an optimizer with groups of 29 "
            "and 44 parameters. Under this plan it has groups of 14 and 22 parameters. Restore the plan of that run, "
            "or set allow_changed_plan to true (the weights are kept, the optimizer starts anew)."
        )
        assert trainer.optimizer is None

    def test_one_with_groups_for_each_role_is_refused(self, checkpoints: dict[bool, Path], tmp_path: Path) -> None:
        trainer = trainer_of(tmp_path, tiny_bert(seed=1), lr_multipliers={"block_decay": 0.5})
        assert "got an optimizer with groups of 29 and 44 parameters." in message_of(trainer, checkpoints[False])

    def test_an_optimizer_without_groups_is_refused(self, checkpoints: dict[bool, Path], tmp_path: Path) -> None:
        folder = Path(shutil.copytree(checkpoints[False], tmp_path / "checkpoint-2"))
        torch.save({"state": {}}, folder / "optimizer.pt")
        message = message_of(trainer_of(tmp_path / "out", tiny_bert(seed=1)), folder)
        assert "got an optimizer with no groups of parameters. Under this plan it has groups of 29 and 44" in message

    def test_an_optimizer_that_would_run_code_is_refused(self, checkpoints: dict[bool, Path], tmp_path: Path) -> None:
        folder = Path(shutil.copytree(checkpoints[False], tmp_path / "checkpoint-2"))
        torch.save({"param_groups": [tmp_path]}, folder / "optimizer.pt")
        assert message_of(trainer_of(tmp_path / "out", tiny_bert(seed=1)), folder) == (
            f"{folder}/optimizer.pt: the state of the optimizer cannot be read without running code from it; got "
            "UnpicklingError reading it. hf_freeze reads tensors and plain data only. Resume from another checkpoint."
        )

    def test_a_flag_allows_it(self, checkpoints: dict[bool, Path], tmp_path: Path) -> None:
        whole = Trainer(tiny_bert(), arguments(tmp_path / "whole", **SAVING), train_dataset=rows())
        whole.train()
        trainer = trainer_of(tmp_path, freeze={"blocks": {"first": 2}}, allow_changed_plan=True)
        trainer.train(resume_from_checkpoint=str(checkpoints[False]))
        assert trainer.state.global_step == 4
        assert logged(trainer, "learning_rate") == logged(whole, "learning_rate")
        assert {len(group["params"]) for group in trainer.optimizer.param_groups} == {14, 22}
