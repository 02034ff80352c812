"""The `search` section, and configs with other values under some of their keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from hf_freeze.config import Selection, json_schema, load_config, override, parse_config, to_yaml
from hf_freeze.config.ranges import Range
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


def test_ranges_read_back_from_their_yaml(tmp_path: Path) -> None:
    ranges = {
        "learning_rates": {"low": 1e-5, "high": 1e-3, "log": True},
        "axes": {"training.weight_decay": {"low": 0, "high": 0.1, "step": 0.02}, "training.max_steps": [1, 2]},
    }
    config = parse_config(changed({"search": ranges}))
    (tmp_path / "x.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "x.yaml") == config
    assert YAML(typ="safe").load(to_yaml(config))["search"] == ranges


class TestRange:
    @pytest.mark.parametrize(
        ("given", "values"),
        [
            ({"low": 2, "high": 5}, [2, 3, 4, 5]),
            ({"low": 1, "high": 9, "step": 4}, [1, 5, 9]),
            ({"low": 0, "high": 0.3, "step": 0.1}, [0.0, 0.1, 0.2, 0.3]),
            ({"low": 1, "high": 3, "log": True}, [1, 2, 3]),
        ],
    )
    def test_values_that_can_be_counted_are_exact(self, given: Any, values: list[float]) -> None:
        found = Range(**given)
        assert found.values == values
        assert found.num_values == len(values)
        assert [type(value) for value in found.values] == [type(value) for value in values]

    @pytest.mark.parametrize(
        ("given", "value", "expected"),
        [
            ({"low": 1e-5, "high": 1e-3, "log": True}, 0.000312723, 0.000313),
            ({"low": 1e-5, "high": 1e-3, "log": True}, 1.0000001e-5, 1e-5),
            ({"low": 0.12345, "high": 1.0, "log": True}, 0.1234501, 0.12345),
            ({"low": 0.9, "high": 0.999}, 0.98765432, 0.98765),
            ({"low": -1000.0, "high": 2000.0}, 0.4, 0.0),
            ({"low": 0.0, "high": 0.3, "step": 0.1}, 0.30000000000000004, 0.3),
        ],
    )
    def test_values_are_rounded_to_what_tells_them_apart(self, given: Any, value: float, expected: float) -> None:
        assert Range(**given).nearest(value) == expected

    def test_all_that_is_wrong_is_told_together_with_its_line(self, tmp_path: Path) -> None:
        path = tmp_path / "x.yaml"
        lines = [
            "model: {name_or_path: bert}",
            "data: {load_dataset: {path: imdb}}",
            "training: {output_dir: runs/x}",
            "search:",
            "  learning_rates:",
            "    low: 0",
            "    high: -1",
            "    steps: 2",
            "  axes:",
            "    training.weight_decay: {low: '1e-3', log: 1}",
        ]
        path.write_text("\n".join(lines))
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        rate, decay = "search.learning_rates", "search.axes.'training.weight_decay'"
        assert str(caught.value).splitlines() == [
            f"{path}:8: {rate}.steps: unknown key; got 2. Known keys: high, log, low, step. Did you mean 'step'?",
            f"{path}:6: {rate}.low: is not above 0; got 0. A learning rate is. Raise it.",
            f"{path}:6: {rate}.low: is not below high; got 0 and -1. Exchange them, or write a list.",
            (
                f"{path}:10: {decay}.low: is not a finite number; got '1e-3'. A range has numbers at its ends. "
                "Write it without quotes."
            ),
            f"{path}:10: {decay}.high: required key is missing; got log, low. Greatest value of the range. Add it.",
            f"{path}:10: {decay}.log: is neither true nor false; got 1. Whether values are drawn by their logarithm.",
        ]

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({"low": 0.1, "high": 0.1}, "low: is not below high; got 0.1 and 0.1. Exchange them, or write a list."),
            (
                {"low": 0, "high": 0.1, "log": True},
                "low: is not above 0; got 0. It has no logarithm. Raise it, or leave log out.",
            ),
            (
                {"low": 0.1, "high": 0.2, "log": True, "step": 0.1},
                "step: does not go with log; got 0.1. Leave one of them out.",
            ),
            (
                {"low": 0.1, "high": 0.2, "step": 0},
                "step: is not above 0; got 0. Distance from one value to the next; null: any, or 1.",
            ),
            (
                {"low": 0, "high": 0.25, "step": 0.1},
                (
                    "step: does not lead from low to high; got 0.1 from 0 to 0.25. The last value is 0.2. Make it "
                    "high, or change the step."
                ),
            ),
            ({"low": True, "high": 2}, "low: is not a finite number; got True. A range has numbers at its ends."),
            (
                {"low": 0, "high": float("inf")},
                "high: is not a finite number; got inf. A range has numbers at its ends.",
            ),
            ({"low": 0}, "high: required key is missing; got low. Greatest value of the range. Add it."),
        ],
    )
    def test_what_is_no_range_is_told(self, given: Any, expected: str) -> None:
        assert message({"axes": {"training.weight_decay": given}}) == f"search.axes.'training.weight_decay'.{expected}"

    def test_a_learning_rate_is_above_0(self) -> None:
        expected = "search.learning_rates.low: is not above 0; got 0. A learning rate is. Raise it."
        assert message({"learning_rates": {"low": 0, "high": 1e-3}}) == expected

    def test_a_grid_needs_a_step(self) -> None:
        section = {
            "sampler": "grid",
            "learning_rates": {"low": 1e-5, "high": 1e-3, "log": True},
            "axes": {
                "training.weight_decay": {"low": 0, "high": 3},
                "training.max_steps": {"low": 0, "high": 4, "step": 2},
            },
        }
        what = "A grid has a value after another. Give it a step, write a list, or set search.sampler to 'tpe'."
        rates = "{'low': 1e-05, 'high': 0.001, 'log': True}"
        assert message(section).splitlines() == [
            f"search.axes.'training.weight_decay': is a range without a step; got {{'low': 0, 'high': 3}}. {what}",
            f"search.learning_rates: is a range without a step; got {rates}. {what}",
        ]

    def test_the_schema_knows_lists_and_ranges(self) -> None:
        sections = json_schema()["$defs"]
        found = sections["SearchConfig"]["properties"]
        for axis in (found["learning_rates"]["anyOf"][0], found["axes"]["additionalProperties"]):
            span, values = axis["oneOf"]
            assert list(sections[span["$ref"].rpartition("/")[2]]["properties"]) == ["low", "high", "log", "step"]
            assert values["type"] == "array"


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
        (
            {"learning_rates": [1e-3], "axes": {"training.learning_rate": [1e-4, 2e-4]}},
            (
                "search.axes.'training.learning_rate': sets what search.learning_rates sets; got [0.0001, 0.0002]. "
                "Each axis sets keys of its own. Remove one of the two."
            ),
        ),
        (
            {"depths": [2], "axes": {"freeze": [{"head": "full"}, {"blocks": {"first": 1}}]}},
            (
                "search.axes.freeze: sets what search.depths sets; got [{'head': 'full'}, {'blocks': {'first': 1}}]. "
                "Each axis sets keys of its own. Remove one of the two."
            ),
        ),
        (
            {"adapters": ["none"], "axes": {"adapters.0.r": [2, 4]}},
            (
                "search.axes.'adapters.0.r': sets what search.adapters sets; got [2, 4]. Each axis sets keys of its "
                "own. Remove one of the two."
            ),
        ),
        (
            {"schedules": ["static"], "axes": {"schedule.type": ["static", "progressive"]}},
            (
                "search.axes.'schedule.type': sets what search.schedules sets; got ['static', 'progressive']. Each "
                "axis sets keys of its own. Remove one of the two."
            ),
        ),
        (
            {"axes": {"freeze.blocks": ["all", "none"], "freeze.blocks.first": {"low": 1, "high": 2}}},
            (
                "search.axes.'freeze.blocks.first': sets what search.axes.'freeze.blocks' sets; got {'low': 1, "
                "'high': 2}. Each axis sets keys of its own. Remove one of the two."
            ),
        ),
        (
            {"axes": {"training.output_dir": ["a", "b"]}},
            (
                "search.axes.'training.output_dir': is set by the search itself; got ['a', 'b']. Trials save nothing, "
                "and all are seeded and evaluated alike. Remove the axis."
            ),
        ),
        (
            {"axes": {"search.trials": [3, 4]}},
            (
                "search.axes.'search.trials': is set by the search itself; got [3, 4]. Trials save nothing, and all "
                "are seeded and evaluated alike. Remove the axis."
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


@pytest.mark.parametrize(
    "section",
    [
        {"depths": [1], "axes": {"freeze": [{"head": "full"}], "freeze.embeddings": [True]}},
        {"learning_rates": [1e-3], "axes": {"training": [{"weight_decay": 0.1}, {"warmup_steps": 2}]}},
        {"axes": {"training.weight_decay": [0.1], "training.weight_decay_rate": [0.1]}},
    ],
)
def test_axes_may_lie_side_by_side(section: Any) -> None:
    assert parse_config(changed({"search": section})).search is not None


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

    def test_an_adapter_that_the_config_has_not_is_told(self) -> None:
        with pytest.raises(ConfigError) as caught:
            override(parse_config(changed({})), {"adapters.0.r": 2}, source="search.axes")
        assert str(caught.value) == (
            "search.axes: adapters.0: no such entry; got 0. adapters has 0 entries, counted from 0."
        )

    def test_what_is_no_key_is_told(self) -> None:
        with pytest.raises(ConfigError) as caught:
            override(parse_config(changed({})), {"training..seed": 3}, source="search.axes")
        assert str(caught.value) == (
            "search.axes: is no key; got 'training..seed'. Keys are joined by dots, as in training.weight_decay."
        )
