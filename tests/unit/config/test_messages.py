"""What a config cannot say is told whole: every problem, with its dotted key, what exists and what to do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import IA3Config, LoraConfig, PeftConfig

from hf_freeze.config import (
    ActivationCacheConfig,
    AdapterConfig,
    DataConfig,
    FreezeConfig,
    ModelConfig,
    RunConfig,
    parse_adapters,
    parse_config,
)
from hf_freeze.config.options import REFUSED_FOR_ADAPTERS
from hf_freeze.errors import ConfigError
from tests.unit.config.smallest import changed

TOP = (
    "activation_cache, adapters, allow_changed_plan, data, freeze, lr_multipliers, metrics, model, monitor, save, "
    "schedule, search, training"
)
PART = "It takes 'auto', 'frozen' or 'full'."
METRIC = "A metric is bundled, such as accuracy, or the name of one on the Hub, such as organisation/metric."
NUM_LORA = len(LoraConfig.__dataclass_fields__.keys() - REFUSED_FOR_ADAPTERS.keys() - {"peft_type"})
KEYS = sorted(
    {
        name
        for section in (ActivationCacheConfig, AdapterConfig, DataConfig, FreezeConfig, ModelConfig, RunConfig)
        for name in section.model_fields
    }
)


def message_of(changes: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(changed(changes))
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # unknown keys at every depth
        ({"modell": {}}, f"modell: unknown key; got {{}}. Known keys: {TOP}. Did you mean 'model'?"),
        ({"sharing": {}}, f"sharing: unknown key; got {{}}. Known keys: {TOP}."),
        ({7: 3}, f"7: unknown key; got 7. Known keys: {TOP}."),
        (
            {"freeze": {"block": "all"}},
            (
                "freeze.block: unknown key; got 'all'. "
                "Known keys: always_train, blocks, embeddings, head, keep_dropout. Did you mean 'blocks'?"
            ),
        ),
        (
            {"data": {"splits": {"valid": "dev"}}},
            (
                "data.splits.valid: unknown key; got 'dev'. Known keys: test, train, validation. "
                "Did you mean 'validation'?"
            ),
        ),
        (
            {"lr_multipliers": {"heads": 2.0}},
            (
                "lr_multipliers.heads: unknown key; got 2.0. "
                "Known keys: block_decay, embeddings, head. Did you mean 'head'?"
            ),
        ),
        # missing keys
        (
            {"model": None},
            "model: is not a mapping; got None. Known keys: blocks_path, name_or_path, task, trust_remote_code.",
        ),
        (
            {"adapters": [{"r": 8}]},
            "adapters.0.peft_type: required key is missing; got r. PEFT method, such as LORA, in any case. Add it.",
        ),
        # wrong types
        (
            {"model": {"name_or_path": 3}},
            "model.name_or_path: is not text; got 3. Pretrained model: its name on the Hub, or a folder.",
        ),
        (
            {"model": {"name_or_path": ""}},
            "model.name_or_path: is empty; got ''. Pretrained model: its name on the Hub, or a folder.",
        ),
        (
            {"model": {"trust_remote_code": "yes"}},
            (
                "model.trust_remote_code: is neither true nor false; got 'yes'. "
                "Whether code that comes with the model may run."
            ),
        ),
        (
            {"model": {"dtype": object}},
            (
                "model.dtype: is not plain data; got <class 'object'>. "
                "A config holds text, numbers, true, false, null, lists and mappings from names."
            ),
        ),
        (
            {"data": {"load_dataset": "imdb"}},
            (
                "data.load_dataset: is not a mapping; got 'imdb'. "
                "Keyword arguments for datasets.load_dataset; path is required."
            ),
        ),
        (
            {"data": {"max_length": "256"}},
            (
                "data.max_length: is not a whole number; got '256'. "
                "Number of tokens above 0 at which rows are cut; null: what the model can take. "
                "Write it without quotes."
            ),
        ),
        (
            {"data": {"max_length": 0}},
            (
                "data.max_length: is not above 0; got 0. "
                "Number of tokens above 0 at which rows are cut; null: what the model can take."
            ),
        ),
        (
            {"data": {"text_columns": "text"}},
            (
                "data.text_columns: is not a list; got 'text'. "
                "List of one text column, or of two for sentence pairs; null: inferred."
            ),
        ),
        (
            {"data": {"text_columns": []}},
            (
                "data.text_columns: has fewer than 1 entries; got []. "
                "List of one text column, or of two for sentence pairs; null: inferred."
            ),
        ),
        (
            {"data": {"text_columns": ["a", "b", "c"]}},
            (
                "data.text_columns: has more than 2 entries; got ['a', 'b', 'c']. "
                "List of one text column, or of two for sentence pairs; null: inferred."
            ),
        ),
        (
            {"data": {"labels": [0, "pos"]}},
            (
                "data.labels.0: is not text; got 0. "
                "List of the names of the labels in the order of their numbers; null: inferred."
            ),
        ),
        (
            {"data": {"labels": ["neg", "neg"]}},
            (
                "data.labels: names a label twice; got ['neg', 'neg']. "
                "The place of a name is the number of its label. Name each label once."
            ),
        ),
        (
            {"data": {"problem_type": "single_label"}},
            (
                "data.problem_type: is none of its values; got 'single_label'. It takes 'single_label_classification', "
                "'multi_label_classification' or 'regression'. Did you mean 'single_label_classification'?"
            ),
        ),
        (
            {"data": {"problem_type": "regression", "labels": ["neg", "pos"]}},
            (
                "data.labels: names classes for a regression; got ['neg', 'pos']. A regression predicts numbers. "
                "Remove labels, or change data.problem_type."
            ),
        ),
        (
            {"freeze": "all"},
            "freeze: is not a mapping; got 'all'. Known keys: always_train, blocks, embeddings, head, keep_dropout.",
        ),
        (
            {"freeze": {"embeddings": "forzen"}},
            f"freeze.embeddings: is none of its values; got 'forzen'. {PART} Did you mean 'frozen'?",
        ),
        ({"freeze": {"head": True}}, f"freeze.head: is none of its values; got True. {PART}"),
        (
            {"freeze": {"always_train": "*.bias"}},
            (
                "freeze.always_train: is not a list; got '*.bias'. "
                "List of globs of parameter names that train whatever else is frozen, such as *.bias."
            ),
        ),
        (
            {"schedule": {"type": "gradual"}},
            (
                "schedule.type: unknown schedule; got 'gradual'. Schedules: autofreeze, gradual_unfreeze, phases, "
                "plasticity, plateau, progressive, rotating, static; one of your own is written "
                "my_package.my_module:MySchedule. Did you mean 'gradual_unfreeze'?"
            ),
        ),
        (
            {"lr_multipliers": {"block_decay": 1.5}},
            (
                "lr_multipliers.block_decay: is above 1.0; got 1.5. "
                "Factor from each block to the one before it, above 0 and at most 1."
            ),
        ),
        (
            {"lr_multipliers": {"head": "1e1"}},
            "lr_multipliers.head: is not a number; got '1e1'. Factor for the head, above 0. Write it without quotes.",
        ),
        (
            {"lr_multipliers": {"head": float("inf")}},
            "lr_multipliers.head: is not a finite number; got inf. Factor for the head, above 0.",
        ),
        (
            {"adapters": {"peft_type": "LORA"}},
            (
                "adapters: is not a list; got {'peft_type': 'LORA'}. "
                "List of adapters of one PEFT method, each on its own blocks."
            ),
        ),
        (
            {"adapters": [{"peft_type": "LORA"}, {"peft_type": "ia3"}]},
            (
                "adapters.1.peft_type: is another method than that of the first entry; got 'IA3'. "
                "PEFT cannot save a mixed model; the first entry is 'LORA'. Use one method in all entries."
            ),
        ),
        (
            {"training": ["output_dir"]},
            (
                "training: is not a mapping; got ['output_dir']. "
                "Keyword arguments for transformers.TrainingArguments; output_dir is required."
            ),
        ),
        (
            {"metrics": "accuracy"},
            "metrics: is not a list; got 'accuracy'. List of the metrics that are computed; null: those of the task.",
        ),
        *(
            ({"metrics": [name]}, f"metrics.0: is not the name of a metric; got {name!r}. {METRIC}")
            for name in ("../evil", "/etc/metric", "a/b/c", "a..b", ".", ".hidden", "a/", "", "a b", "a/..", "f1\n")
        ),
        (
            {"training": {1: 2}},
            "training: has a key that is no name; got 1. Keys are text there.",
        ),
        (
            {"data": {"load_dataset": {"path": "x", 1: 2}}},
            "data.load_dataset: has a key that is no name; got 1. Keys are text there.",
        ),
        # several at once
        (
            {"model": {"tusk": "x"}, "freeze": {"keep_dropout": 1, "haed": "full"}, "metrics": [1]},
            (
                "model.tusk: unknown key; got 'x'. "
                "Known keys: blocks_path, name_or_path, task, trust_remote_code. Did you mean 'task'?\n"
                "freeze.keep_dropout: is neither true nor false; got 1. "
                "Whether frozen blocks keep their dropout while training.\n"
                "freeze.haed: unknown key; got 'full'. "
                "Known keys: always_train, blocks, embeddings, head, keep_dropout. Did you mean 'head'?\n"
                "metrics.0: is not text; got 1. List of the metrics that are computed; null: those of the task."
            ),
        ),
        (
            {"adapters": [{"peft_type": "LORA", "blocks": "top", "rr": 8}]},
            (
                "adapters.0.blocks: unknown selection; got 'top'. "
                "Selections: all, none, {first: n}, {last: n}, {fraction: f}, {indices: [i, ...]}.\n"
                f"adapters.0.rr: unknown key; got 8. Known keys: the {NUM_LORA} keys of LoraConfig. Did you mean 'r'?"
            ),
        ),
    ],
)
def test_what_a_config_cannot_say(changes: dict[str, Any], message: str) -> None:
    assert message_of(changes) == message


def test_the_three_sections_that_every_config_needs() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({}, source="made in Python")
    assert str(caught.value) == (
        "made in Python: model: required key is missing; got nothing. Pretrained model and task. Add it.\n"
        "made in Python: data: required key is missing; got nothing. Dataset and its columns. Add it.\n"
        "made in Python: training: required key is missing; got nothing. "
        "Keyword arguments for transformers.TrainingArguments; output_dir is required. Add it."
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "adapters: is not a list; got None."),
        (LoraConfig(), None),
        (
            [PeftConfig()],
            "adapters.0.peft_type: is not text; got None. PEFT method, such as LORA, in any case.",
        ),
        (
            [LoraConfig(), IA3Config()],
            (
                "adapters.1.peft_type: is another method than that of the first entry; got 'IA3'. "
                "PEFT cannot save a mixed model; the first entry is 'LORA'. Use one method in all entries."
            ),
        ),
        (
            [LoraConfig(modules_to_save=["classifier"])],
            (
                "adapters.0.modules_to_save: is not set here; got ['classifier']. "
                "What trains in full beside the adapters is chosen by freeze.blocks, freeze.head, freeze.embeddings "
                "and freeze.always_train."
            ),
        ),
    ],
)
def test_adapters_given_in_python(values: Any, message: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_adapters(values)
    assert str(caught.value) == message if message else str(caught.value).startswith("adapters: is not a list; got L")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["all", "LORA"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["first", "path", "encoder", "peft_type", "r"]) | st.integers(), inner, max_size=2
        )
    ),
    max_leaves=5,
)
keys = st.sampled_from(["output_dir", "learning_rate", "r", "unknown", "first", *KEYS])


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(keys, st.dictionaries(keys, values, max_size=3) | values, max_size=4))
def test_whatever_is_wrong_is_told_in_words(data: dict[str, Any]) -> None:
    try:
        parse_config(data)
    except ConfigError as error:
        problems = str(error).splitlines()
    else:
        problems = []
    for problem in problems:
        assert ": " in problem
        assert "; got " in problem
        assert problem.endswith((".", "?"))
