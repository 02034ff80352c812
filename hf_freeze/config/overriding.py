"""A config that is already read, with some of its keys set to other values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_freeze.config.loading import parse_config
from hf_freeze.config.merging import merge, overlay
from hf_freeze.config.problems import shown
from hf_freeze.config.schema import RunConfig
from hf_freeze.config.writing import plain_sections
from hf_freeze.config.yaml_source import DEEPEST, Located
from hf_freeze.errors import ConfigError


def override(config: RunConfig, values: Mapping[str, Any], *, source: str) -> RunConfig:
    """Returns the config with other values under some dotted keys, as overrides of the command line give it.

    Args:
        config: The config.
        values: Dotted key to value, such as `training.learning_rate` to 1e-4.
        source: What messages say the values come from.

    Raises:
        ConfigError: The config cannot be carried out with them; the message lists every problem.
    """
    # The only section that is a list is one when it is empty, too: `adapters.0` would be taken for a key else.
    tree = _located({"adapters": [], **plain_sections(config)}, source)
    for key, value in values.items():
        parts = tuple(int(part) if part.isdecimal() else part for part in key.split("."))
        if "" in parts or len(parts) > DEEPEST:
            what = "Keys are joined by dots, as in training.weight_decay."
            raise ConfigError(f"{source}: is no key; got {shown(key)}. {what}")
        tree = merge(tree, overlay(tree, parts, _located(value, source)))
    return parse_config(tree.plain(), source=source)


def _located(value: Any, where: str) -> Located:
    if isinstance(value, Mapping):
        return Located({key: _located(child, where) for key, child in value.items()}, where)
    if isinstance(value, list | tuple):
        return Located([_located(child, where) for child in value], where)
    return Located(value, where)
