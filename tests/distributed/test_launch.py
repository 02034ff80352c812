"""The accelerate configs for the CPU start the processes that they promise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.distributed.launching import free_port

pytestmark = pytest.mark.distributed


def launch(config: str, folder: Path, **environment: str) -> list[dict[str, Any]]:
    """Returns what each process saw, by the files that it wrote."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", str(REPOSITORY / "accelerate_configs" / config)]
    command += ["--main_process_port", str(free_port())]
    command += [str(Path(__file__).with_name("world_size.py")), str(folder)]
    subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True, text=True, timeout=240)
    return [json.loads(path.read_text()) for path in sorted(folder.iterdir())]


def test_single_cpu_starts_one_process(tmp_path: Path) -> None:
    assert launch("single_cpu.yaml", tmp_path) == [
        {"device": "cpu", "mixed_precision": "no", "rank": 0, "sum": 1.0, "world_size": 1}
    ]


def test_two_cpu_starts_two_processes_that_add_up(tmp_path: Path) -> None:
    assert launch("two_cpu.yaml", tmp_path, ACCELERATE_USE_CPU="true") == [
        {"device": "cpu", "mixed_precision": "no", "rank": rank, "sum": 3.0, "world_size": 2} for rank in (0, 1)
    ]


def test_without_the_variable_accelerate_starts_two_processes_that_never_meet(tmp_path: Path) -> None:
    """This is why two_cpu.yaml asks for ACCELERATE_USE_CPU: once it fails, the variable is no longer needed."""
    seen = launch("two_cpu.yaml", tmp_path, ACCELERATE_USE_CPU="false")
    assert [process["world_size"] for process in seen] == [1]
