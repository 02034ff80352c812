"""A run that is killed in the middle of a schedule and resumed equals one that never was, to the bit."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_freeze.errors import PlanError
from hf_freeze.schedules.timeline import read_timeline
from hf_freeze.training import FreezeTrainer
from hf_freeze.training.manifest import newest_complete
from tests.conftest import REPOSITORY
from tests.unit.training.runs import assert_same, logged, state
from tests.unit.training.scheduled import SCHEDULES, trainer_of

SAVES = {"save_strategy": "steps", "save_steps": 2}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of runs that were killed at random steps, one for each schedule."""
    folder = tmp_path_factory.mktemp("killed")
    steps = [random.Random(name).randint(4, 22) for name in SCHEDULES]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "tests.unit.training.killed", str(folder)]
    finished = subprocess.run(
        [*command, ";".join(SCHEDULES), ";".join(map(str, steps))],
        env=environment,
        cwd=REPOSITORY,
        check=False,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    return folder


@pytest.mark.parametrize("name", SCHEDULES)
def test_resumed_equals_uninterrupted(killed: Path, tmp_path: Path, name: str) -> None:
    whole = trainer_of(tmp_path, SCHEDULES[name])
    whole.train()
    random_state = torch.get_rng_state()
    assert newest_complete(killed / name) is not None
    resumed = trainer_of(killed / name, SCHEDULES[name], **SAVES)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert len(whole.timeline) > 0
    assert resumed.timeline == whole.timeline
    assert read_timeline(killed / name) == read_timeline(tmp_path) == whole.timeline
    assert resumed.freeze_state == whole.freeze_state
    assert resumed._controller.record == whole._controller.record
    assert_same(resumed._controller.tensors(), whole._controller.tensors())
    for key in ("loss", "grad_norm", "eval_loss", "freeze/depth", "learning_rate"):
        assert logged(resumed, key) == logged(whole, key)
    assert_same(state(resumed.model), state(whole.model))
    ours, theirs = resumed.optimizer.state_dict(), whole.optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for index, entry in ours["state"].items():
        for key, value in entry.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs["state"][index][key]))


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"type": "progressive", "t0": 0.5}, "schedule progressive had other options"),
        ({"type": "static"}, "the schedule was progressive and is static now"),
    ],
)
def test_a_changed_schedule_is_refused(tmp_path: Path, changed: dict[str, object], difference: str) -> None:
    trainer_of(tmp_path, SCHEDULES["linear"], **SAVES).train()
    message = (
        f"{tmp_path}/checkpoint-24: this checkpoint was written under another plan; got one in which {difference}. "
        "Restore the freeze, adapters and schedule sections of that run, or set allow_changed_plan to true (the "
        "weights are kept, the optimizer starts anew)."
    )
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        trainer_of(tmp_path, changed, **SAVES).train(resume_from_checkpoint=True)


def test_a_changed_schedule_can_be_allowed(tmp_path: Path) -> None:
    trainer_of(tmp_path, SCHEDULES["linear"], max_steps=24, save_strategy="steps", save_steps=12).train()
    resumed = trainer_of(tmp_path, {"type": "progressive", "t0": 0.0}, keywords={"allow_changed_plan": True})
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    assert [transition.step for transition in resumed.timeline] == [12, 16]
    assert resumed.state.global_step == 24


def test_adapters_that_never_train_come_from_the_checkpoint(tmp_path: Path) -> None:
    """PEFT draws them at random, in another process otherwise."""
    adapters = [{"peft_type": "LORA", "target_modules": ["query", "value"], "r": 4}]
    schedule = {"type": "gradual_unfreeze", "floor": 1, "warmup": 2}

    def drawn_with(seed: int) -> FreezeTrainer:
        torch.manual_seed(seed)
        return trainer_of(tmp_path, schedule, keywords={"adapters": adapters}, save_strategy="steps", save_steps=8)

    whole = drawn_with(1)
    whole.train()
    resumed = drawn_with(2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert_same(state(resumed.model), state(whole.model))
