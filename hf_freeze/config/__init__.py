"""What the user writes: the sections of a config, and how they are read."""

from hf_freeze.config.loading import load_config, parse_adapters, parse_config, parse_overrides, parse_section
from hf_freeze.config.monitor import MonitorConfig
from hf_freeze.config.overriding import override
from hf_freeze.config.schema import (
    ActivationCacheConfig,
    AdapterConfig,
    DataConfig,
    FreezeConfig,
    LearningRateMultipliers,
    ModelConfig,
    RunConfig,
    SaveConfig,
    ScheduleConfig,
    SearchConfig,
    SplitsConfig,
)
from hf_freeze.config.selection import Selection
from hf_freeze.config.writing import json_schema, to_yaml

__all__ = [
    "ActivationCacheConfig",
    "AdapterConfig",
    "DataConfig",
    "FreezeConfig",
    "LearningRateMultipliers",
    "ModelConfig",
    "MonitorConfig",
    "RunConfig",
    "SaveConfig",
    "ScheduleConfig",
    "SearchConfig",
    "Selection",
    "SplitsConfig",
    "json_schema",
    "load_config",
    "override",
    "parse_adapters",
    "parse_config",
    "parse_overrides",
    "parse_section",
    "to_yaml",
]
