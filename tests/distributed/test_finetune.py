"""scripts/finetune.py in two processes: one run, one report."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from hf_freeze import run
from hf_freeze.config import load_config
from tests import tiny_run
from tests.conftest import REPOSITORY
from tests.distributed.launching import free_port

pytestmark = pytest.mark.distributed


def launch(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Starts the script in two processes and returns what they printed."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", "accelerate_configs/two_cpu.yaml", "--main_process_port", str(free_port())]
    command += ["scripts/finetune.py", *map(str, arguments)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=240
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config file of a quick run that writes to `out` beside it."""
    rows = tiny_run.write_rows(tmp_path / "rows", splits="train validation test")
    sections = tiny_run.sections(tiny_run.write_model(tmp_path / "model"), rows, tmp_path / "out")
    path = tmp_path / "config.yaml"
    YAML().dump({**sections, "freeze": {"blocks": {"first": 2}}}, path)
    return path


def test_two_processes_train_one_model_and_the_first_reports(config: Path, tmp_path: Path) -> None:
    done = launch(config)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("The backward pass stops in blocks[2]") == 1
    assert done.stdout.count("Training took") == 1
    assert done.stdout.count(f"The model is saved in {tmp_path / 'out'}.") == 1
    # 24 rows, 8 a step and process: with both at work, an epoch has two steps, and the third begins the second epoch.
    assert "'epoch': '1.5'" in done.stdout
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert load_config(tmp_path / "out" / run.CONFIG_FILE) == load_config(config)


def test_every_process_says_what_is_wrong(config: Path) -> None:
    done = launch(config, "freeze.blocks.first=9")
    message = "freeze.blocks: cannot select the first 9 blocks; bert.encoder.layer has 4. Select at most 4.\n"
    assert done.returncode != 0
    assert message in done.stderr
