"""A config, out: as the YAML that reads back as the same config, and as the JSON schema that editors use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.representer import SafeRepresenter

from hf_freeze.config.freeze import FreezeConfig
from hf_freeze.config.loading import parse_config
from hf_freeze.config.options import as_plain
from hf_freeze.config.problems import SECRETS, ProblemsFound
from hf_freeze.config.schedule import ScheduleConfig
from hf_freeze.config.schema import AdapterConfig, LearningRateMultipliers, RunConfig
from hf_freeze.errors import ConfigError


class _Representer(SafeRepresenter):
    """Writes every value out where it stands and keeps the order of keys."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.sort_base_mapping_type_on_output = False

    def represent_str(self, data: str) -> Any:
        # The emitter breaks lines at these, as YAML 1.1 does, and a reader of YAML 1.2 does not join them again.
        style = '"' if any(mark in data for mark in "\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Representer.add_representer(str, _Representer.represent_str)


def to_yaml(config: RunConfig) -> str:
    """Returns the YAML of a config, without the keys that have their default.

    Args:
        config: What to write.

    Raises:
        ConfigError: If the config holds objects, as one made in Python can.
    """
    return _dump(plain_sections(config))


def plan_to_yaml(
    *,
    freeze: FreezeConfig | None,
    adapters: Iterable[AdapterConfig],
    schedule: ScheduleConfig,
    lr_multipliers: LearningRateMultipliers,
) -> str:
    """Returns the YAML of the sections that a plan follows from, without the keys that have their default.

    Options of adapters that are objects have no place in YAML, and are left out.

    Args:
        freeze: The `freeze` section.
        adapters: The `adapters` section.
        schedule: The `schedule` section.
        lr_multipliers: The `lr_multipliers` section.
    """
    sections: dict[str, Any] = {}
    if freeze is not None:
        sections["freeze"] = as_plain(freeze.model_dump(exclude_defaults=True))
    entries = [_plain_entry(adapter) for adapter in adapters]
    if entries:
        sections["adapters"] = entries
    if schedule.type != "static":
        sections["schedule"] = as_plain(schedule.model_dump(exclude_defaults=True))
    if lr_multipliers != LearningRateMultipliers():
        sections["lr_multipliers"] = as_plain(lr_multipliers.model_dump(exclude_defaults=True))
    return _dump(sections or {"freeze": {"blocks": "none"}})


def _plain_entry(adapter: AdapterConfig) -> dict[str, Any]:
    entry: dict[str, Any] = as_plain(adapter.model_dump(exclude_defaults=True, exclude=set(adapter.peft_options)))
    for key, value in adapter.peft_options.items():
        with contextlib.suppress(ProblemsFound):
            entry[key] = as_plain(value)
    return entry


def _dump(plain: dict[str, Any]) -> str:
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.width = 120
    text = StringIO()
    yaml.dump(plain, text)
    return text.getvalue()


def plain_sections(config: RunConfig) -> dict[str, Any]:
    """Returns the sections of a config as YAML can hold them, without the keys that have their default.

    Args:
        config: The config.

    Raises:
        ConfigError: If the config holds objects, as one made in Python can.
    """
    sections = config.model_dump(exclude_defaults=True)
    for entry, adapter in zip(sections.get("adapters", ()), config.adapters, strict=True):
        entry.update(adapter.peft_options)  # as they are: pydantic would write objects out as mappings
    try:
        plain: dict[str, Any] = as_plain(sections)
    except ProblemsFound as error:
        raise ConfigError(str(error)) from None
    return plain


def without_secrets(config: RunConfig) -> RunConfig:
    """Returns the config without the keys that may hold credentials.

    Args:
        config: Any config.
    """
    sections = config.model_dump(exclude_defaults=True)
    public = {
        name: {key: value for key, value in section.items() if key not in SECRETS}
        for name, section in (("model", sections["model"]), ("training", sections["training"]))
    }
    rows = sections["data"]["load_dataset"]
    public["data"] = {
        **sections["data"],
        "load_dataset": {key: value for key, value in rows.items() if key not in SECRETS},
    }
    return parse_config({**sections, **public})


def json_schema() -> dict[str, Any]:
    """Returns the JSON schema of config files.

    It requires keys only in the entries of lists: any other key may stand in the file that a config extends.
    """
    schema = RunConfig.model_json_schema()
    extends = {
        "type": "string",
        "minLength": 1,
        "title": "Extends",
        "description": "Config that this one is laid over: a path relative to this file.",
    }
    sections = {name: section for name, section in schema["$defs"].items() if name != "AdapterConfig"}
    for section in (schema, *sections.values()):
        section.pop("required", None)
    schema["properties"] = {"extends": extends, **schema["properties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "hf_freeze config"}
