"""`kill -9` in the middle of the save of a final model leaves the new model, the earlier one, or none that loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.unit.training.killed_final import CASES


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[str]]]:
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "tests.unit.training.killed_final", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, list[str]]] = json.loads((folder / "told.json").read_text())
    return found


@pytest.mark.parametrize("kind", CASES)
def test_no_step_leaves_a_model_that_loads_wrongly(told: dict[str, dict[str, list[str]]], kind: str) -> None:
    for start, allowed in {"empty": {"none", "new"}, "over": {"earlier", "none", "new"}}.items():
        left = told[kind][start]
        assert set(left) <= allowed, (start, left)
        assert left[-1] == "new"
        assert left.count("none") >= 1, "the kills are in the middle of the save"
