"""`kill -9` in the middle of saves: the newest complete checkpoint resumes, every time, as if nothing had happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.parametrize(
    ("kills", "checkpoints"),
    [
        (5, "small"),
        pytest.param(20, "small", marks=pytest.mark.slow),
        pytest.param(20, "full", marks=pytest.mark.slow),
    ],
)
def test_the_newest_complete_checkpoint_resumes_every_time(tmp_path: Path, kills: int, checkpoints: str) -> None:
    command = [sys.executable, "-m", "tests.integration.killed_saves", str(tmp_path), str(kills), checkpoints]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((tmp_path / "told.json").read_text())
    assert len(told["trials"]) == kills
    for trial in told["trials"]:
        assert trial["resumed"] == trial["newest"]
    for before, after in zip(told["trials"], told["trials"][1:], strict=False):
        assert before["left"] == after["newest"]
    assert told["resumed"] == told["left"] is not None
    assert sum(trial["cut"] for trial in told["trials"]) >= kills // 5  # The kills do hit saves.
    assert told["killed"] == told["whole"]
