"""The accelerate configs: small, explained, and read by accelerate as they are written."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from ruamel.yaml import YAML

from tests.conftest import REPOSITORY

CONFIGS = sorted((REPOSITORY / "accelerate_configs").iterdir())
# What `accelerate launch` knows by another name than its file does, or takes from the file alone.
NOT_LAUNCH_OPTIONS = {"compute_environment", "distributed_type", "use_cpu"}


def read(path: Path) -> dict[str, Any]:
    """Reads a config as YAML 1.1, which accelerate's reader speaks: there, a bare `no` is false."""
    yaml = YAML(typ="safe", pure=True)
    yaml.version = "1.1"
    return yaml.load(path.read_text(encoding="utf-8"))


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_the_configs_are_the_ones_that_are_promised() -> None:
    promised = "ddp deepspeed_zero2 deepspeed_zero3 fsdp2 multi_node single_cpu single_gpu_bf16 two_cpu"
    assert [path.name for path in CONFIGS] == [f"{name}.yaml" for name in promised.split()]


def test_accelerate_reads_the_values_as_written(path: Path) -> None:
    loaded = load_config_from_file(str(path))
    for key, written in read(path).items():
        value = getattr(loaded, key)
        assert (value.value if isinstance(value, Enum) else value) == written, key


def test_every_key_of_a_section_is_an_option_of_accelerate_launch(path: Path) -> None:
    options = {action.dest for action in launch_command_parser()._actions}
    config = read(path)
    keys = {key for key, value in config.items() if not isinstance(value, dict)} - NOT_LAUNCH_OPTIONS
    keys |= {key for value in config.values() if isinstance(value, dict) for key in value}
    assert keys <= options


def test_a_config_has_at_most_ten_keys(path: Path) -> None:
    assert len(read(path)) <= 10


def test_every_key_has_a_comment(path: Path) -> None:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r" *\w+:( +[^#\s][^#]*)? +# \S.*", line)] == []


def test_a_config_opens_with_the_command_that_uses_it(path: Path) -> None:
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert f"accelerate launch --config_file accelerate_configs/{path.name} " in header[1]
    assert " scripts/finetune.py configs/" in header[1]


def test_two_processes_on_the_cpu_are_not_asked_for_as_multi_cpu() -> None:
    """`distributed_type: MULTI_CPU` with accelerate 1.15 starts a single process and says nothing."""
    assert read(REPOSITORY / "accelerate_configs" / "two_cpu.yaml")["distributed_type"] == "MULTI_GPU"
