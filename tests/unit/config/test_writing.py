"""A config that is written reads back as the same config, and the JSON schema describes what can be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import EvaConfig

from hf_freeze.config import AdapterConfig, RunConfig, json_schema, load_config, parse_config, to_yaml
from hf_freeze.config.schedule import SCHEDULE_OPTIONS
from hf_freeze.config.writing import without_secrets
from hf_freeze.errors import ConfigError
from tests.unit.config.smallest import CONFIG

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12) | st.sampled_from(
    ["no", "null", "2e-5", "1:8", "true", "=", "<<", "2024-01-01", "~", "- a", "#x", "*a", "&a", "!a", "a: b", " a "]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words
plain = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | st.integers(), inner, max_size=3),
    max_leaves=6,
)
selections = st.one_of(
    st.sampled_from(["all", "none"]),
    st.fixed_dictionaries({"first": st.integers(0, 99)}),
    st.fixed_dictionaries({"last": st.integers(0, 99)}),
    st.fixed_dictionaries({"fraction": st.floats(0, 1)}),
    st.fixed_dictionaries({"indices": st.lists(st.integers(-9, 99), min_size=1, max_size=4, unique=True)}),
)
blocks = selections | st.dictionaries(st.sampled_from(["encoder", "decoder", "vision"]), selections, min_size=1)
parts = st.sampled_from(["auto", "frozen", "full"])
factors = st.floats(0, 1, exclude_min=True)
configs = st.fixed_dictionaries(
    {
        "model": st.fixed_dictionaries(
            {"name_or_path": words},
            optional={
                "task": words,
                "trust_remote_code": st.booleans(),
                "quantization_config": plain,
                "revision": words,
            },
        ),
        "data": st.fixed_dictionaries(
            {"load_dataset": st.fixed_dictionaries({"path": words}, optional={"name": words, "data_files": plain})},
            optional={
                "max_length": st.integers(1, 512),
                "text_columns": st.lists(words, min_size=1, max_size=2),
                "labels": st.lists(words, min_size=1, max_size=3, unique=True),
                "splits": st.fixed_dictionaries({}, optional={"train": words, "validation": words, "test": words}),
            },
        ),
        "training": st.fixed_dictionaries(
            {"output_dir": words},
            optional={
                "learning_rate": st.floats(0, 1),
                "seed": st.integers(0, 99),
                "lr_scheduler_kwargs": st.dictionaries(words, plain, max_size=2),
            },
        ),
    },
    optional={
        "freeze": st.none()
        | st.fixed_dictionaries(
            {},
            optional={
                "blocks": blocks,
                "embeddings": parts,
                "head": parts,
                "always_train": st.lists(words, max_size=2),
                "keep_dropout": st.booleans(),
            },
        ),
        "adapters": st.lists(
            st.fixed_dictionaries(
                {"peft_type": st.sampled_from(["LORA", "lora"])},
                optional={"blocks": blocks, "r": st.integers(1, 9), "target_modules": st.lists(words, max_size=2)},
            ),
            max_size=2,
        ),
        "schedule": st.sampled_from(
            [
                {"type": "static"},
                {"type": "progressive", "curve": "cubic", "t0": 0.5},
                {
                    "type": "phases",
                    "phases": [{"until": {"step": 5}, "freeze": {"blocks": {"first": 2}}}, {"freeze": {}}],
                },
                {"type": "my.module:Schedule", "anything": [1, "two", None]},
            ]
        ),
        "lr_multipliers": st.fixed_dictionaries({}, optional={"block_decay": factors, "head": factors}),
        "activation_cache": st.fixed_dictionaries(
            {},
            optional={
                "enabled": st.sampled_from(["auto", True, False]),
                "dir": st.none() | words,
                "dtype": st.sampled_from(["auto", "float32", "bfloat16", "float16"]),
                "max_size": st.none() | st.integers(min_value=1) | st.sampled_from(["50GB", "1.5 TiB", "7 kb"]),
                "expire_after": st.none() | st.integers(1, 99) | factors,
                "build": st.sampled_from(["auto", "eager", "lazy"]),
            },
        ),
        "metrics": st.none() | st.lists(st.sampled_from(["accuracy", "f1", "owner/name"]), max_size=2),
        "allow_changed_plan": st.booleans(),
        "save": st.fixed_dictionaries(
            {},
            optional={
                "checkpoints": st.sampled_from(["small", "full"]),
                "format": st.sampled_from(["auto", "delta"]),
                "overwrite": st.booleans(),
            },
        ),
    },
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(configs)
def test_a_config_reads_back_from_its_yaml(tmp_path: Path, data: dict[str, Any]) -> None:
    config = parse_config(data)
    path = tmp_path / "x.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(path) == config


def test_defaults_are_not_written() -> None:
    assert to_yaml(parse_config(CONFIG)) == (
        "model:\n  name_or_path: bert\ndata:\n  load_dataset:\n    path: imdb\ntraining:\n  output_dir: runs/x\n"
    )


def test_what_differs_from_the_defaults_is_written() -> None:
    config = parse_config(
        {
            **CONFIG,
            "freeze": {},
            "adapters": [{"peft_type": "lora", "blocks": {"indices": [4, 5]}, "r": 8}],
            "metrics": [],
        }
    )
    assert to_yaml(config) == (
        "model:\n  name_or_path: bert\ndata:\n  load_dataset:\n    path: imdb\nfreeze: {}\n"
        "adapters:\n- peft_type: LORA\n  blocks:\n    indices:\n    - 4\n    - 5\n  r: 8\n"
        "training:\n  output_dir: runs/x\nmetrics: []\n"
    )


def test_objects_are_not_written() -> None:
    adapter = AdapterConfig.model_validate({"peft_type": "LORA", "eva_config": EvaConfig()})
    with pytest.raises(ConfigError) as caught:
        to_yaml(parse_config({**CONFIG, "adapters": [adapter]}))
    assert str(caught.value).startswith("adapters.0.eva_config: is not plain data; got EvaConfig(")
    assert str(caught.value).endswith("A config holds text, numbers, true, false, null, lists and mappings from names.")


def test_credentials_can_be_taken_out() -> None:
    rows = {"path": "imdb", "name": "plain"}
    options = {"revision": "main"}
    public = {
        **CONFIG,
        "model": {"name_or_path": "bert", **options},
        "data": {"load_dataset": rows, "max_length": 9},
        "freeze": {"blocks": {"first": 2}},
        "activation_cache": {"max_size": "1 GB"},
    }
    secret = "not-to-be-shared"
    private = {
        **public,
        "model": {**public["model"], "token": secret, "proxies": {"https": secret}},
        "data": {**public["data"], "load_dataset": {**rows, "token": secret, "storage_options": {"key": secret}}},
        "training": {**CONFIG["training"], "hub_token": secret},
    }
    assert without_secrets(parse_config(private)) == parse_config(public)


class TestSchema:
    def test_it_is_json(self) -> None:
        assert json.loads(json.dumps(json_schema())) == json_schema()

    def test_it_says_which_schema_it_is(self) -> None:
        schema = json_schema()
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        assert schema["title"] == "hf_freeze config"

    def test_it_has_every_section_and_extends(self) -> None:
        assert set(json_schema()["properties"]) == {"extends", *RunConfig.model_fields}

    def test_every_key_is_described(self) -> None:
        schema = json_schema()
        for section in (schema, *schema["$defs"].values()):
            for spelling in section.get("anyOf", [section]):
                named = spelling["properties"].keys() - ({"type"} if "anyOf" in section else set())
                assert all("description" in spelling["properties"][name] for name in named)

    def test_only_entries_of_lists_require_keys_since_others_may_be_extended(self) -> None:
        schema = json_schema()
        assert {name: section["required"] for name, section in schema["$defs"].items() if "required" in section} == {
            "AdapterConfig": ["peft_type"]
        }
        assert "required" not in schema

    def test_sections_whose_keys_pass_through_take_others(self) -> None:
        sections = json_schema()["$defs"]
        schedules = sections.pop("ScheduleConfig")["anyOf"]
        closed = {name for name, section in sections.items() if section["additionalProperties"] is False}
        assert sections.keys() - closed == {"AdapterConfig", "ModelConfig"}
        *known, own = schedules
        assert {spelling["properties"]["type"]["const"] for spelling in known} == SCHEDULE_OPTIONS.keys()
        assert not any(spelling["additionalProperties"] for spelling in known)
        assert "additionalProperties" not in own

    def test_a_selection_is_one_of_six_or_one_for_each_stack(self) -> None:
        spellings = json_schema()["$defs"]["FreezeConfig"]["properties"]["blocks"]["oneOf"]
        assert spellings[0] == {"enum": ["all", "none"]}
        assert [list(spelling["properties"]) for spelling in spellings[1:5]] == [
            ["first"],
            ["last"],
            ["fraction"],
            ["indices"],
        ]
        assert spellings[5]["additionalProperties"] == {"oneOf": spellings[:5]}
