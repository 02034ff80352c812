"""Keys that pass through are checked against what PEFT, Transformers and Datasets declare, before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
from peft import AdaLoraConfig, LoftQConfig, LoraConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import SchedulerType, TrainingArguments

from hf_freeze.config import AdapterConfig, parse_adapters, parse_section
from hf_freeze.config.options import (
    REFUSED_FOR_ADAPTERS,
    REFUSED_FOR_DATASETS,
    REFUSED_FOR_MODELS,
    REFUSED_FOR_TRAINING,
    adapter_entry,
    adapter_problems,
    as_plain,
    dataset_problems,
    model_problems,
    peft_method,
    training_problems,
)
from hf_freeze.config.problems import Problem, ProblemsFound, dotted
from hf_freeze.errors import ConfigError

METHODS = sorted(str(method.value) for method in PEFT_TYPE_TO_CONFIG_MAPPING)
MODEL_FIELDS = ["blocks_path", "name_or_path", "task", "trust_remote_code"]
OUTPUT_DIR = "It is the folder that training writes."
PATH = "It is a dataset on the Hub, a folder, or a format such as csv or json."
SCHEDULERS = ", ".join(repr(kind.value) for kind in sorted(SchedulerType))


def lines(problems: list[Problem]) -> list[str]:
    return [f"{dotted(problem.path)}: {problem.text}" for problem in problems]


class TestTrainingArguments:
    @pytest.mark.parametrize(
        "options",
        [
            {"learning_rate": 2e-5, "num_train_epochs": 3, "warmup_steps": 0.1, "seed": 1},
            {"activation_checkpointing": True, "lr_scheduler_type": "cosine", "optim": "adafactor"},
            {"eval_strategy": "epoch", "save_strategy": "best", "report_to": "none"},
            {"report_to": ["tensorboard"], "lr_scheduler_kwargs": {"num_cycles": 2}, "max_grad_norm": 0},
            {"logging_steps": 10, "eval_steps": None, "use_cpu": True, "label_names": ["labels"]},
        ],
    )
    def test_options_that_fit(self, options: dict[str, Any], tmp_path: Any) -> None:
        options = {"output_dir": str(tmp_path), **options}
        assert training_problems(options) == []
        TrainingArguments(**options)

    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            (
                {"learning_rate": "2e-5"},
                (
                    "learning_rate: does not fit TrainingArguments; got '2e-5'. There it is a number. "
                    "Write it without quotes."
                ),
            ),
            (
                {"learning_rate": "high"},
                "learning_rate: does not fit TrainingArguments; got 'high'. There it is a number.",
            ),
            (
                {"per_device_train_batch_size": 8.0},
                "per_device_train_batch_size: does not fit TrainingArguments; got 8.0. There it is a whole number.",
            ),
            (
                {"per_device_train_batch_size": 0},
                "per_device_train_batch_size: is below 1; got 0. A batch has at least one row. Raise it.",
            ),
            (
                {"per_device_eval_batch_size": -8},
                "per_device_eval_batch_size: is below 1; got -8. A batch has at least one row. Raise it.",
            ),
            (
                {"gradient_accumulation_steps": 0},
                "gradient_accumulation_steps: is below 1; got 0. With 1 each batch is a step. Raise it.",
            ),
            (
                {"num_train_epochs": -0.5},
                "num_train_epochs: is below 0; got -0.5. With 0 nothing is trained. Raise it.",
            ),
            (
                {"dataloader_num_workers": -1},
                "dataloader_num_workers: is below 0; got -1. With 0 the main process reads the rows. Raise it.",
            ),
            ({"seed": True}, "seed: does not fit TrainingArguments; got True. There it is a whole number."),
            (
                {"activation_checkpointing": "no"},
                (
                    "activation_checkpointing: does not fit TrainingArguments; got 'no'. "
                    "There it is true or false or null."
                ),
            ),
            (
                {"report_to": 3},
                "report_to: does not fit TrainingArguments; got 3. There it is a list or text or null.",
            ),
            (
                {"lr_scheduler_type": "coseine"},
                (
                    "lr_scheduler_type: does not fit TrainingArguments; got 'coseine'. "
                    f"There it is one of {SCHEDULERS}. Did you mean 'cosine'?"
                ),
            ),
            (
                {"bf16": True},
                (
                    "bf16: is not set here; got True. "
                    "How many processes, which precision and which sharding are chosen "
                    "by the file in accelerate_configs."
                ),
            ),
            (
                {"do_train": True},
                (
                    "do_train: is not set here; got True. Transformers ignores it. "
                    "A run trains, and evaluates the validation and test splits that there are."
                ),
            ),
            (
                {"resume_from_checkpoint": 3},
                (
                    "resume_from_checkpoint: does not fit TrainingArguments; got 3. "
                    "There it is text or true or false or null."
                ),
            ),
            (
                {"gradient_checkpointing": True},
                "gradient_checkpointing: is not set here; got True. Its name is activation_checkpointing now.",
            ),
            (
                {"warmup_ratio": 0.1},
                (
                    "warmup_ratio: is not set here; got 0.1. "
                    "It is gone from Transformers: warmup_steps below 1 is a fraction of all steps now."
                ),
            ),
        ],
    )
    def test_options_that_do_not(self, options: dict[str, Any], problem: str) -> None:
        assert lines(training_problems({"output_dir": "runs/x", **options})) == [problem]

    def test_unknown_options_name_the_nearest(self) -> None:
        [problem] = lines(training_problems({"output_dir": "runs/x", "learning_rat": 1.0}))
        assert problem.startswith("learning_rat: unknown key; got 1.0. Known keys: the 1")
        assert problem.endswith(" keys of TrainingArguments. Did you mean 'learning_rate'?")

    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            ({}, f"output_dir: required key is missing; got nothing. {OUTPUT_DIR} Add it."),
            ({"seed": 1}, f"output_dir: required key is missing; got seed. {OUTPUT_DIR} Add it."),
            ({"output_dir": ""}, f"output_dir: names no folder; got ''. {OUTPUT_DIR}"),
            ({"output_dir": None}, f"output_dir: names no folder; got None. {OUTPUT_DIR}"),
            ({"output_dir": 3}, "output_dir: does not fit TrainingArguments; got 3. There it is text or null."),
        ],
    )
    def test_an_output_folder_is_required(self, options: dict[str, Any], problem: str) -> None:
        assert lines(training_problems(options)) == [problem]

    @pytest.mark.parametrize("value", [None, True, 1, 0.5, "x", ["x", 1], {"x": 1}])
    def test_every_annotation_can_be_compared_with_every_value(self, value: object) -> None:
        for option in TrainingArguments.__dataclass_fields__:
            for problem in training_problems({"output_dir": "runs/x", option: value}):
                assert problem.path == (option,)


class TestPeft:
    @pytest.mark.parametrize("method", METHODS)
    def test_methods_in_any_case(self, method: str) -> None:
        assert peft_method(method) == peft_method(method.lower()) == method

    @pytest.mark.parametrize(("name", "meant"), [("lor", " Did you mean 'LORA'?"), ("zzzzz", ""), (3, "")])
    def test_methods_that_do_not_exist(self, name: object, meant: str) -> None:
        with pytest.raises(ProblemsFound) as caught:
            peft_method(name)
        assert str(caught.value) == f"config: unknown PEFT method; got {name!r}. Methods: {', '.join(METHODS)}.{meant}"

    @pytest.mark.parametrize("method", METHODS)
    def test_every_method_declares_options_that_can_be_checked(self, method: str) -> None:
        [problem] = adapter_problems(method, {"no_such_option": 1})
        assert problem.text.startswith("unknown key; got 1. Known keys: ")

    @pytest.mark.parametrize("value", [None, True, 1, 0.5, "x", ["x", 1], {"x": 1}])
    def test_every_annotation_can_be_compared_with_every_value(self, value: object) -> None:
        for method, config_class in PEFT_TYPE_TO_CONFIG_MAPPING.items():
            for option in config_class.__dataclass_fields__:
                assert len(adapter_problems(str(method.value), {option: value})) <= 1

    @pytest.mark.parametrize(
        ("method", "options"),
        [
            ("LORA", {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "use_dora": True, "bias": "none"}),
            ("LORA", {"target_modules": ["query", "value"], "init_lora_weights": "pissa_niter_4"}),
            (
                "LORA",
                {"loftq_config": {"loftq_bits": 4}, "init_lora_weights": "loftq", "trainable_token_indices": [1, 2]},
            ),
            ("LOHA", {"r": 4, "alpha": 8}),
            ("OFT", {"oft_block_size": 32, "r": 0}),
            ("IA3", {"target_modules": ["key"], "feedforward_modules": ["key"]}),
            ("PROMPT_TUNING", {"num_virtual_tokens": 8}),
            ("LN_TUNING", {}),
        ],
    )
    def test_options_that_fit(self, method: str, options: dict[str, Any]) -> None:
        assert adapter_problems(method, options) == []
        PEFT_TYPE_TO_CONFIG_MAPPING[method](**options)

    @pytest.mark.parametrize(
        ("method", "options", "problem"),
        [
            (
                "LORA",
                {"r": "8"},
                "r: does not fit LoraConfig; got '8'. There it is a whole number. Write it without quotes.",
            ),
            (
                "LORA",
                {"bias": "lora"},
                (
                    "bias: does not fit LoraConfig; got 'lora'. There it is one of 'all', 'lora_only', 'none'. "
                    "Did you mean 'lora_only'?"
                ),
            ),
            (
                "LORA",
                {"target_modules": 3},
                "target_modules: does not fit LoraConfig; got 3. There it is a list or text or null.",
            ),
            (
                "LN_TUNING",
                {"r": 8},
                "r: unknown key; got 8. Known keys: exclude_modules, target_modules.",
            ),
            *(
                ("LORA", {key: 1}, f"{key}: is not set here; got 1. {reason}")
                for key, reason in REFUSED_FOR_ADAPTERS.items()
            ),
        ],
    )
    def test_options_that_do_not(self, method: str, options: dict[str, Any], problem: str) -> None:
        assert lines(adapter_problems(method, options)) == [problem]

    @pytest.mark.parametrize("method", [method for method in METHODS if method not in {"ADALORA", "CPT", "XLORA"}])
    def test_a_config_object_with_nothing_set_is_an_entry_with_nothing_set(self, method: str) -> None:
        assert adapter_entry(PEFT_TYPE_TO_CONFIG_MAPPING[method]()) == {"peft_type": method}

    @pytest.mark.parametrize(
        "config",
        [
            LoraConfig(r=4, lora_alpha=8, target_modules={"query", "value"}, use_dora=True),
            LoraConfig(init_lora_weights="loftq", loftq_config=LoftQConfig(loftq_bits=4)),
            AdaLoraConfig(total_step=10, target_r=2),
        ],
        ids=["lora", "loftq", "adalora"],
    )
    def test_a_config_object_is_made_again_from_its_entry(self, config: LoraConfig) -> None:
        [adapter] = parse_adapters([config])
        assert PEFT_TYPE_TO_CONFIG_MAPPING[adapter.peft_type](**adapter.peft_options).to_dict() == config.to_dict()

    @pytest.mark.parametrize("value", [{"peft_type": "LORA"}, None, 3])
    def test_what_is_no_config_object_stays_as_it_is(self, value: object) -> None:
        assert adapter_entry(value) is value

    def test_options_that_are_objects_are_made_in_python_only(self) -> None:
        with pytest.raises(ConfigError) as caught:
            parse_section(AdapterConfig, {"peft_type": "LORA", "eva_config": {"rho": 2.0}}, key="adapter")
        assert str(caught.value) == (
            "adapter.eva_config: does not fit LoraConfig; got {'rho': 2.0}. There it is an object of EvaConfig or null."
        )


class TestFromPretrained:
    @pytest.mark.parametrize(
        "key",
        [
            *(
                "attn_implementation",
                "cache_dir",
                "code_revision",
                "device_map",
                "dtype",
                "force_download",
                "gguf_file",
            ),
            *("ignore_mismatched_sizes", "local_files_only", "low_cpu_mem_usage", "max_memory", "proxies"),
            *("quantization_config", "revision", "subfolder", "token", "tp_plan", "use_safetensors", "variant"),
            *("hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps", "weights_only"),
        ],
    )
    def test_its_arguments_pass(self, key: str) -> None:
        assert model_problems({key: True}, MODEL_FIELDS) == []

    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            (
                {"use_safetensors": False},
                (
                    "use_safetensors: lets a pickle run code; got False. "
                    "Weights are read from safetensors only. Remove the key."
                ),
            ),
            (
                {"weights_only": False},
                (
                    "weights_only: lets a pickle run code; got False. "
                    "Weights are read from safetensors only. Remove the key."
                ),
            ),
            (
                {"use_safetensors": None},
                (
                    "use_safetensors: lets a pickle run code; got None. "
                    "Weights are read from safetensors only. Remove the key."
                ),
            ),
            (
                {"name_or_paht": "bert"},
                (
                    f"name_or_paht: unknown key; got 'bert'. Known keys: {', '.join(MODEL_FIELDS)}. "
                    "Did you mean 'name_or_path'?"
                ),
            ),
            *(({key: 1}, f"{key}: is not set here; got 1. {reason}") for key, reason in REFUSED_FOR_MODELS.items()),
        ],
    )
    def test_these_do_not(self, options: dict[str, Any], problem: str) -> None:
        assert lines(model_problems(options, MODEL_FIELDS)) == [problem]


class TestLoadDataset:
    def test_its_arguments_pass(self) -> None:
        assert dataset_problems({"path": "csv", "data_files": {"train": "a.csv"}, "delimiter": ";"}) == []

    @pytest.mark.parametrize(
        ("options", "problems"),
        [
            ({}, [f"path: required key is missing; got nothing. {PATH} Add it."]),
            ({"name": "x"}, [f"path: required key is missing; got name. {PATH} Add it."]),
            ({"path": 3}, [f"path: is not a name; got 3. {PATH}"]),
            ({"path": ""}, [f"path: is not a name; got ''. {PATH}"]),
            *(
                ({"path": "x", key: True}, [f"{key}: is not set here; got True. {reason}"])
                for key, reason in REFUSED_FOR_DATASETS.items()
            ),
        ],
    )
    def test_these_do_not(self, options: dict[str, Any], problems: list[str]) -> None:
        assert lines(dataset_problems(options)) == problems


def test_every_refused_key_says_what_decides_instead() -> None:
    tables = (REFUSED_FOR_ADAPTERS, REFUSED_FOR_DATASETS, REFUSED_FOR_MODELS, REFUSED_FOR_TRAINING)
    assert all(reason.endswith(".") for table in tables for reason in table.values())


@pytest.mark.parametrize("value", ["x", 1, 1.5, True, None, [1, [2]], {"a": {1: ["b"]}}])
def test_plain_data_is_copied(value: object) -> None:
    assert as_plain(value) == value


def test_tuples_become_lists() -> None:
    assert as_plain({"a": (1, (2,))}) == {"a": [1, [2]]}


def test_every_object_in_plain_data_is_told() -> None:
    holds = "A config holds text, numbers, true, false, null, lists and mappings from names."
    with pytest.raises(ProblemsFound) as caught:
        as_plain({"a": [1, {2}], "b": {None: 1}, "c": 1j})
    assert str(caught.value).splitlines() == [
        f"a.1: is not plain data; got {{2}}. {holds}",
        f"b: is not plain data; got {{None: 1}}. {holds}",
        f"c: is not plain data; got 1j. {holds}",
    ]
