"""The `search` section, and configs with other values under some of their keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_freeze.config import Selection, load_config, override, parse_config, to_yaml
from hf_freeze.errors import ConfigError
from tests.unit.config.smallest import changed

LORA = {"peft_type": "LORA", "r": 4}
KEYS = (
    "adapters, axes, confirm, depths, direction, learning_rates, metric, min_complete, pruner, sampler, schedules, "
    "seconds, study, tolerance, trials"
)


def message(section: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(changed({"search": section}))
    return str(caught.value)


def test_defaults_are_those_of_the_documents() -> None:
    section = parse_config(changed({"search": {"depths": [1]}})).search
    assert section is not None
    assert section.model_dump() == {
        "depths": (1,),
        "learning_rates": None,
        "adapters": None,
        "schedules": None,
        "axes": {},
        "trials": 20,
        "seconds": None,
        "metric": "eval_loss",
        "direction": "minimize",
        "sampler": "tpe",
        "pruner": "halving",
        "min_complete": 0.6,
        "tolerance": 0.005,
        "study": None,
        "confirm": {"seeds": 5, "full": {}},
    }


def test_a_section_reads_back_from_its_yaml(tmp_path: Path) -> None:
    section = {"depths": [3, 4], "adapters": ["none", LORA], "axes": {"training.weight_decay": [0, 0.1]}}
    config = parse_config(changed({"search": section}))
    (tmp_path / "x.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "x.yaml") == config


@pytest.mark.parametrize("name", ["accuracy", "eval_accuracy"])
def test_a_metric_is_named_with_or_without_its_prefix(name: str) -> None:
    section = parse_config(changed({"search": {"depths": [1], "metric": name}})).search
    assert section is not None
    assert section.metric == "eval_accuracy"


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (
            {},
            (
                "search: has nothing to vary; got no depths, learning_rates, adapters, schedules or axes. Give one of "
                "them."
            ),
        ),
        (3, f"search: is not a mapping; got 3. Known keys: {KEYS}."),
        (
            {"schedules": [{"curve": "linear"}]},
            (
                "search.schedules.0: is no schedule; got {'curve': 'linear'}. It takes the name of one, or a mapping "
                "with type, as in schedule."
            ),
        ),
        (
            {"schedules": ["static", {"type": "static"}]},
            (
                "search.schedules: has a value twice; got [{'type': 'static'}, {'type': 'static'}]. A plan is tried "
                "once. Write {'type': 'static'} once."
            ),
        ),
        (
            {"depths": []},
            "search.depths: is empty; got []. An axis has one value or more. Add one, or leave it out.",
        ),
        (
            {"axes": {"training.seed": []}},
            "search.axes.'training.seed': is empty; got []. An axis has one value or more. Add one, or leave it out.",
        ),
        (
            {"learning_rates": [1e-3, 1e-4, 1e-3]},
            (
                "search.learning_rates: has a value twice; got [0.001, 0.0001, 0.001]. A plan is tried once. "
                "Write 0.001 once."
            ),
        ),
        (
            {"depths": [-1]},
            (
                "search.depths.0: is below 0; got -1. List of numbers of blocks that are frozen behind the embeddings; "
                "null: as freeze says."
            ),
        ),
        ({"depths": [1], "trials": 0}, "search.trials: is not above 0; got 0. Number of trials above 0."),
        (
            {"depths": [1], "seconds": 0},
            (
                "search.seconds: is not above 0.0; got 0. Number of seconds above 0 after which a process begins no "
                "trial; null: no limit."
            ),
        ),
        (
            {"adapters": ["lora"]},
            "search.adapters.0: is no adapter; got 'lora'. It takes none, or a mapping with peft_type, as in adapters.",
        ),
        (
            {"adapters": [{**LORA, "blocks": "all"}]},
            (
                "search.adapters.0.blocks: is not set here; got 'all'. The adapter is put on the blocks that train. "
                "Remove the key."
            ),
        ),
    ],
)
def test_what_is_wrong_is_told(section: Any, expected: str) -> None:
    assert message(section) == expected


class TestOverride:
    def test_keys_are_set_and_others_stay(self) -> None:
        config = parse_config(changed({"adapters": [LORA], "training": {"output_dir": "x", "seed": 3}}))
        made = override(config, {"training.learning_rate": 1e-3, "adapters.0.r": 8}, source="here")
        assert made.training == {"output_dir": "x", "seed": 3, "learning_rate": 1e-3}
        assert made.adapters[0].peft_options == {"r": 8}

    def test_a_selection_is_replaced_as_a_whole(self) -> None:
        config = parse_config(changed({"freeze": {"blocks": {"last": 2}, "head": "full"}}))
        made = override(config, {"freeze.blocks": {"first": 1}}, source="here")
        assert made.freeze is not None
        assert (made.freeze.blocks, made.freeze.head) == (Selection("first", 1), "full")

    def test_a_key_that_does_not_exist_is_told_with_the_nearest(self) -> None:
        with pytest.raises(ConfigError) as caught:
            override(parse_config(changed({})), {"freeze.block": "all"}, source="search.axes")
        assert str(caught.value) == (
            "search.axes: freeze.block: unknown key; got 'all'. Known keys: always_train, blocks, embeddings, head, "
            "keep_dropout. Did you mean 'blocks'?"
        )

    def test_what_is_no_key_is_told(self) -> None:
        with pytest.raises(ConfigError) as caught:
            override(parse_config(changed({})), {"training..seed": 3}, source="search.axes")
        assert str(caught.value) == (
            "search.axes: is no key; got 'training..seed'. Keys are joined by dots, as in training.weight_decay."
        )
