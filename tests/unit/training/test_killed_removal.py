"""`kill -9` in the middle of the removal of a checkpoint leaves nothing that could be resumed from by mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_freeze.training import manifest
from tests.conftest import REPOSITORY
from tests.unit.training.killed_removal import CASES, train


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "tests.unit.training.killed_removal", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("case", CASES)
def test_every_checkpoint_that_is_left_is_complete_and_the_rest_goes(killed: Path, case: str) -> None:
    run = killed / case
    cut = [path for path in run.iterdir() if path.is_dir() and not manifest.is_complete(path)]
    assert len(cut) == 1
    assert not cut[0].name.startswith("checkpoint-")
    assert list(cut[0].iterdir()), "the kill was in the middle of the removal"
    newest = next(manifest.complete_checkpoints(run))
    again = case == "written over"  # The folder held a finished run before: a checkpoint of that has to be named.
    assert manifest.newest_complete(run) == (None if again else newest)
    train(run, checkpoints=CASES[case]["checkpoints"], resume=str(newest) if again else True)
    assert not cut[0].exists()
    assert all(manifest.is_complete(path) for path in run.iterdir())
