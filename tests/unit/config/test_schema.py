"""The sections of a config take what they describe, and tell every problem with its dotted key."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from peft import LoraConfig
from pydantic import BaseModel, ValidationError

from hf_freeze.config import (
    ActivationCacheConfig,
    AdapterConfig,
    DataConfig,
    FreezeConfig,
    LearningRateMultipliers,
    ModelConfig,
    RunConfig,
    ScheduleConfig,
    SearchConfig,
    Selection,
    SplitsConfig,
    parse_adapters,
    parse_config,
    parse_section,
)
from hf_freeze.config.schedule import SCHEDULE_OPTIONS
from hf_freeze.config.writing import json_schema
from tests.unit.config.smallest import CONFIG, changed

SECTIONS = [
    ActivationCacheConfig,
    AdapterConfig,
    DataConfig,
    FreezeConfig,
    LearningRateMultipliers,
    ModelConfig,
    RunConfig,
    ScheduleConfig,
    SearchConfig,
    SplitsConfig,
]


class TestDefaults:
    def test_the_smallest_config(self) -> None:
        config = parse_config(CONFIG)
        assert config.model == ModelConfig(name_or_path="bert")
        assert config.model.task == "text-classification"
        assert config.model.trust_remote_code is False
        assert config.model.from_pretrained_options == {}
        assert config.data.load_dataset == {"path": "imdb"}
        assert config.data.splits == SplitsConfig(train=None, validation=None, test=None)
        assert config.freeze is None
        assert config.adapters == ()
        assert config.schedule.type == "static"
        assert config.lr_multipliers == LearningRateMultipliers(block_decay=1.0, embeddings=1.0, head=1.0)
        assert config.activation_cache == ActivationCacheConfig(
            enabled="auto", dir=None, dtype="auto", max_size=None, expire_after=30, build="auto"
        )
        assert config.training == {"output_dir": "runs/x"}
        assert config.metrics is None
        assert config.allow_changed_plan is False

    def test_a_freeze_section_without_blocks_selects_none(self) -> None:
        section = parse_section(FreezeConfig, {"head": "frozen"}, key="freeze")
        assert section.blocks == Selection("none")
        assert section.embeddings == "auto"
        assert section.always_train == ()
        assert section.keep_dropout is False

    def test_an_adapter_without_blocks_leaves_them_open(self) -> None:
        assert parse_section(AdapterConfig, {"peft_type": "LORA"}, key="adapters.0").blocks is None


class TestPassingThrough:
    def test_other_keys_of_the_model_go_to_from_pretrained(self) -> None:
        options = {"revision": "main", "dtype": "bfloat16", "quantization_config": {"load_in_4bit": True}}
        assert parse_config(changed({"model": options})).model.from_pretrained_options == options

    def test_other_keys_of_an_adapter_go_to_the_peft_config(self) -> None:
        [adapter] = parse_adapters([{"peft_type": "lora", "blocks": {"last": 4}, "r": 8, "target_modules": ["query"]}])
        assert adapter.peft_type == "LORA"
        assert adapter.blocks == Selection("last", 4)
        assert adapter.peft_options == {"r": 8, "target_modules": ["query"]}

    def test_what_passes_through_is_a_copy(self) -> None:
        data = changed({"training": {"lr_scheduler_kwargs": {"num_cycles": 2}}, "model": {"proxies": {"a": "b"}}})
        config = parse_config(data)
        data["training"]["lr_scheduler_kwargs"]["num_cycles"] = 3
        data["model"]["proxies"]["a"] = "c"
        assert config.training["lr_scheduler_kwargs"] == {"num_cycles": 2}
        assert config.model.from_pretrained_options == {"proxies": {"a": "b"}}

    def test_peft_config_objects_are_entries_of_adapters(self) -> None:
        entries = [
            LoraConfig(r=4, target_modules=["value", "query"], layers_to_transform=[2, 3]),
            {"peft_type": "LORA"},
        ]
        assert parse_adapters(entries) == (
            AdapterConfig(peft_type="LORA", blocks={"indices": [2, 3]}, r=4, target_modules=["query", "value"]),
            AdapterConfig(peft_type="LORA"),
        )

    def test_a_peft_config_object_on_one_layer_is_an_adapter_on_one_block(self) -> None:
        [adapter] = parse_adapters([LoraConfig(layers_to_transform=3, task_type="SEQ_CLS")])
        assert adapter == AdapterConfig(peft_type="LORA", blocks={"indices": [3]})


class TestFrozen:
    def test_sections_cannot_be_changed(self) -> None:
        config = parse_config(CONFIG)
        with pytest.raises(ValidationError, match="Instance is frozen"):
            config.allow_changed_plan = True  # type: ignore[misc]

    def test_a_section_that_is_checked_already_is_taken_as_it_is(self) -> None:
        section = FreezeConfig(head="frozen")
        assert parse_section(FreezeConfig, section, key="freeze") is section

    def test_made_in_python_a_section_tells_its_problems_too(self) -> None:
        with pytest.raises(ValidationError, match=r"head: is none of its values; got 'trained'\."):
            FreezeConfig(head="trained")


@pytest.mark.parametrize("name", ["accuracy", "f1", "lvwerra/test", "my-metric_2.0", "a.b/c.d"])
def test_names_of_metrics(name: str) -> None:
    assert parse_config(changed({"metrics": [name]})).metrics == (name,)


FIELDS = [(section, name) for section in SECTIONS for name in section.model_fields]


@pytest.mark.parametrize(("section", "name"), FIELDS)
def test_every_field_is_described_in_one_sentence(section: type[BaseModel], name: str) -> None:
    description = section.model_fields[name].description
    assert description is not None
    assert description[0].isupper()
    assert description.endswith(".")


def test_importing_the_config_is_light_and_silent() -> None:
    heavy = ("torch", "transformers", "datasets", "peft", "accelerate", "numpy")
    code = f"import sys, json, hf_freeze.config; print(json.dumps([n for n in {heavy} if n in sys.modules]))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (json.loads(done.stdout), done.stderr) == ([], "")


def test_editors_know_the_options_of_every_schedule() -> None:
    entries = json_schema()["$defs"]["ScheduleConfig"]["anyOf"]
    known = {entry["title"]: set(entry["properties"]) for entry in entries}
    assert known.pop("own") == {"type"}
    assert known == {name: {"type", *options.model_fields} for name, options in SCHEDULE_OPTIONS.items()}
    assert all(entry["additionalProperties"] is False for entry in entries if entry["title"] != "own")
