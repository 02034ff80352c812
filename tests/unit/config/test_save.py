"""The save section takes what it describes, and refuses the rest in words."""

from __future__ import annotations

from typing import Any

import pytest

from hf_freeze.config import SaveConfig, parse_config, parse_section
from hf_freeze.errors import ConfigError
from tests.unit.config.smallest import changed


def test_by_default_checkpoints_are_small_and_nothing_is_overwritten() -> None:
    assert parse_config(changed({})).save == SaveConfig(checkpoints="small", format="auto", overwrite=False)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"checkpoints": "ful"},
            "save.checkpoints: is none of its values; got 'ful'. It takes 'small' or 'full'. Did you mean 'full'?",
        ),
        ({"format": "peft"}, "save.format: is none of its values; got 'peft'. It takes 'auto' or 'delta'."),
        (
            {"overwrite": 1},
            "save.overwrite: is neither true nor false; got 1. Whether another run in training.output_dir is removed.",
        ),
        (
            {"formt": "delta"},
            "save.formt: unknown key; got 'delta'. Known keys: checkpoints, format, overwrite. Did you mean 'format'?",
        ),
    ],
)
def test_what_it_refuses(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_section(SaveConfig, section, key="save")
    assert str(caught.value) == message
