"""The smallest config, for tests that lay something over it."""

from __future__ import annotations

import copy
from typing import Any

CONFIG: dict[str, Any] = {
    "model": {"name_or_path": "bert"},
    "data": {"load_dataset": {"path": "imdb"}},
    "training": {"output_dir": "runs/x"},
}


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """Returns the smallest config with some sections laid over it."""
    config = copy.deepcopy(CONFIG)
    for section, value in changes.items():
        both_are_mappings = isinstance(value, dict) and isinstance(config.get(section), dict)
        config[section] = {**config[section], **value} if both_are_mappings else value
    return config
