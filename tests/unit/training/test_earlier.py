"""What a run is resumed from in a folder that was used before: its own checkpoints, unless another one is named."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hf_freeze.errors import PlanError
from hf_freeze.training import manifest
from hf_freeze.training.earlier import EARLIER_FILE, earlier_names, forget, set_apart
from tests.conftest import REPOSITORY
from tests.unit.training.killed_again import trainer_of
from tests.unit.training.runs import assert_same, state

STEPS = range(1, 5)


def killed_at(step: int, folder: Path) -> Path:
    command = [sys.executable, "-m", "tests.unit.training.killed_again", str(folder), str(step)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    return folder / str(step)


def checkpoints_in(folder: Path, *steps: int) -> None:
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir(parents=True, exist_ok=True)
        (folder / f"checkpoint-{step}" / "weights").write_bytes(b"1")
        manifest.write_manifest(folder / f"checkpoint-{step}")


def newest(folder: Path) -> str | None:
    found = manifest.newest_complete(folder)
    return None if found is None else found.name


class TestKilledRuns:
    def test_one_in_a_used_folder_is_resumed_from_its_own_checkpoint(self, tmp_path: Path) -> None:
        killed = killed_at(2, tmp_path).rename(tmp_path / "moved")
        assert [manifest.is_complete(killed / f"checkpoint-{step}") for step in STEPS] == [True] * 4
        resumed = trainer_of(killed, later=True)
        resumed.train(resume_from_checkpoint=True)
        whole = trainer_of(tmp_path / "whole", later=True)
        whole.train()
        assert_same(state(resumed.model), state(whole.model))
        assert newest(killed) == "checkpoint-4"
        assert not (killed / EARLIER_FILE).exists()

    def test_one_without_a_checkpoint_is_not_resumed_from_those_of_an_earlier_run(self, tmp_path: Path) -> None:
        killed = killed_at(0, tmp_path)
        with pytest.raises(PlanError) as caught:
            trainer_of(killed, later=True).train(resume_from_checkpoint=True)
        assert str(caught.value) == (
            "resume_from_checkpoint: the run that was started last has no complete checkpoint; got the folder "
            f"'{killed}', in which these are of an earlier run: checkpoint-4, checkpoint-3, checkpoint-2. Name one of "
            "them to resume from it, or train without resume_from_checkpoint."
        )
        named = trainer_of(killed, later=False, max_steps=3)
        named.train(resume_from_checkpoint=str(killed / "checkpoint-2"))
        assert named.state.global_step == 3
        assert newest(killed) == "checkpoint-3"
        assert earlier_names(killed) == {"checkpoint-1", "checkpoint-4"}


class TestRuns:
    def test_rotation_takes_the_checkpoints_of_an_earlier_run_first(self, tmp_path: Path) -> None:
        trainer_of(tmp_path, later=False).train()
        trainer_of(tmp_path, later=True, max_steps=2, save_total_limit=3).train()
        left = {folder.name for folder in tmp_path.glob("checkpoint-*")}
        assert left == {"checkpoint-1", "checkpoint-2", "checkpoint-4"}
        assert newest(tmp_path) == "checkpoint-2"

    def test_training_that_is_refused_sets_nothing_apart(self, tmp_path: Path) -> None:
        trainer_of(tmp_path, later=False).train()
        other = trainer_of(tmp_path, later=False, freeze={"blocks": {"first": 3}})
        with pytest.raises(PlanError, match=re.escape("checkpoint-2: this checkpoint was written under another plan")):
            other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert newest(tmp_path) == "checkpoint-4"


class TestSettingApart:
    def test_a_start_from_the_beginning_sets_all_apart(self, tmp_path: Path) -> None:
        checkpoints_in(tmp_path, 1, 2)
        set_apart(tmp_path, None)
        assert newest(tmp_path) is None
        assert [folder.name for folder in manifest.complete_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-1"]

    def test_a_folder_that_does_not_exist_has_none(self, tmp_path: Path) -> None:
        set_apart(tmp_path / "out", None)
        assert not (tmp_path / "out").exists()

    def test_a_checkpoint_that_is_gone_back_to_is_the_newest(self, tmp_path: Path) -> None:
        checkpoints_in(tmp_path, 1, 2, 10)
        set_apart(tmp_path, tmp_path / "checkpoint-2")
        assert newest(tmp_path) == "checkpoint-2"
        assert earlier_names(tmp_path) == {"checkpoint-10"}

    def test_resuming_from_the_newest_leaves_no_trace(self, tmp_path: Path) -> None:
        checkpoints_in(tmp_path, 1, 2)
        set_apart(tmp_path, tmp_path / "checkpoint-2")
        assert not (tmp_path / EARLIER_FILE).exists()

    def test_one_of_an_earlier_run_that_is_named_sets_those_of_the_last_apart(self, tmp_path: Path) -> None:
        checkpoints_in(tmp_path, 2, 3)
        set_apart(tmp_path, None)
        checkpoints_in(tmp_path, 1)
        set_apart(tmp_path, tmp_path / "checkpoint-3")
        assert earlier_names(tmp_path) == {"checkpoint-1", "checkpoint-2"}

    def test_a_start_from_elsewhere_sets_all_apart(self, tmp_path: Path) -> None:
        checkpoints_in(tmp_path / "one", 1)
        checkpoints_in(tmp_path / "other", 1)
        set_apart(tmp_path / "one", tmp_path / "other" / "checkpoint-1")
        assert newest(tmp_path / "one") is None

    def test_one_that_is_removed_is_forgotten(self, tmp_path: Path) -> None:
        checkpoints_in(tmp_path, 1, 2)
        set_apart(tmp_path, None)
        forget(tmp_path / "checkpoint-1")
        assert earlier_names(tmp_path) == {"checkpoint-2"}
        assert newest(tmp_path) == "checkpoint-1"
        forget(tmp_path / "checkpoint-2")
        assert not (tmp_path / EARLIER_FILE).exists()
