"""The plans that a search chooses from."""

from __future__ import annotations

import math
from typing import Any

import pytest

from hf_freeze.config import RunConfig, Selection, parse_config
from hf_freeze.errors import ConfigError
from hf_freeze.insight.space import config_of, make_space
from tests.unit.config.smallest import changed

LORA = {"peft_type": "lora", "r": 4}


def config(**section: Any) -> RunConfig:
    return parse_config(changed({"search": section}))


def above(made: RunConfig) -> Any:
    """What carries adapters in a model of four blocks."""
    assert made.freeze is not None
    assert isinstance(made.freeze.blocks, Selection)
    left = 4 - int(made.freeze.blocks.value)  # type: ignore[arg-type]
    return {"last": left} if left else None


def space_of(made: RunConfig) -> Any:
    assert made.search is not None
    return make_space(made, made.search, above)


def test_axes_cross() -> None:
    space = space_of(config(depths=[1, 2], axes={"training.weight_decay": [0, 0.1]}))
    assert [axis.name for axis in space.axes] == ["depth", "training.weight_decay"]
    assert [tuple(point.values()) for point in space.points or ()] == [(1, 0), (1, 0.1), (2, 0), (2, 0.1)]


def test_adapters_are_one_plan_where_no_block_is_left_to_carry_them() -> None:
    space = space_of(config(depths=[3, 4], learning_rates=[1e-3, 1e-2], adapters=["none", LORA]))
    assert space.num_plans == 6
    full = {"depth": 4, "learning_rate": 1e-3, "adapter": "none"}
    assert space.same({**full, "adapter": "LORA r=4"}) == full


def test_an_adapter_that_nothing_carries_is_not_named() -> None:
    space = space_of(config(depths=[3, 4], adapters=[LORA]))
    plans = [{"depth": 3, "adapter": "LORA r=4"}, {"depth": 4, "adapter": "LORA r=4"}]
    assert list(space.points) == plans
    assert [space.named(plan) for plan in plans] == [plans[0], {"depth": 4, "adapter": "none"}]
    assert space.same(space.named(plans[1])) == plans[1]
    assert space.named({"depth": 4}) == {"depth": 4}


def test_a_plan_that_cannot_be_made_is_one_of_its_own() -> None:
    def broken(made: RunConfig) -> Any:
        raise ConfigError("model.name_or_path: does not exist")

    made = config(depths=[3], adapters=["none", LORA])
    assert made.search is not None
    assert make_space(made, made.search, broken).num_plans == 2


@pytest.mark.parametrize(
    ("point", "blocks", "adapters"),
    [
        ({"depth": 3, "adapter": "LORA r=4"}, Selection("first", 3), [Selection("last", 1)]),
        ({"depth": 4, "adapter": "LORA r=4"}, Selection("first", 4), []),
        ({"depth": 2, "adapter": "none"}, Selection("first", 2), []),
    ],
)
def test_a_point_is_a_config_without_the_section(point: Any, blocks: Selection, adapters: list[Selection]) -> None:
    made = config(depths=[2, 3, 4], adapters=["none", LORA])
    found = config_of(made, space_of(made).axes, point, carriers=above)
    assert found.search is None
    assert found.freeze is not None
    assert found.freeze.blocks == blocks
    assert [adapter.blocks for adapter in found.adapters] == adapters


def test_values_of_further_axes_may_be_of_any_kind() -> None:
    made = config(axes={"freeze.always_train": [["*.bias"], []]})
    space = make_space(made, made.search, lambda _: None)  # type: ignore[arg-type]
    assert [tuple(point.values()) for point in space.points or ()] == [('["*.bias"]',), ("[]",)]
    found = config_of(made, space.axes, space.corners[0], carriers=above)
    assert found.freeze is not None
    assert found.freeze.always_train == ("*.bias",)


def test_every_axis_that_names_no_key_and_every_value_that_does_not_fit_is_told() -> None:
    with pytest.raises(ConfigError) as caught:
        space_of(
            config(
                depths=[1],
                adapters=[{**LORA, "rr": 1}],
                axes={"trainin.seed": [1, 2], "training.max_steps": ["one", 2]},
            )
        )
    lines = str(caught.value).splitlines()
    assert [line.partition("; ")[0] for line in lines] == [
        "search.adapters: adapters.0.rr: unknown key",
        "search.axes: trainin: unknown key",
        "search.axes: training.max_steps: does not fit TrainingArguments",
    ]
    assert lines[1] == (
        "search.axes: trainin: unknown key; got {'seed': 1}. Known keys: activation_cache, adapters, "
        "allow_changed_plan, data, freeze, lr_multipliers, metrics, model, monitor, save, schedule, search, training. "
        "Did you mean 'training'?"
    )


def test_schedules_are_an_axis_and_keep_no_option_of_the_one_in_the_config() -> None:
    section = {"schedules": ["static", {"type": "progressive", "ceiling": 2}], "depths": [0, 1]}
    made = parse_config(changed({"search": section, "schedule": {"type": "rotating", "every": 5}}))
    space = space_of(made)
    assert [tuple(point.values()) for point in space.points or ()] == [
        (0, "static"), (0, "progressive ceiling=2"), (1, "static"), (1, "progressive ceiling=2")
    ]  # fmt: skip
    found = [config_of(made, space.axes, point, carriers=above).schedule for point in space.corners[:2]]
    assert [(schedule.type, schedule.options) for schedule in found] == [
        ("static", {}),
        ("progressive", {"ceiling": 2}),
    ]


def test_schedules_that_do_not_exist_or_have_other_options_are_told() -> None:
    with pytest.raises(ConfigError) as caught:
        space_of(config(schedules=["progresive", {"type": "static", "every": 5}]))
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("search.schedules: schedule.type: unknown schedule; got 'progresive'. Schedules: ")
    assert lines[0].endswith("Did you mean 'progressive'?")
    assert lines[1].startswith(
        "search.schedules: schedule.every: unknown key; got 5. Known keys: type. It is an option "
    )


def test_a_range_crosses_by_its_values_where_they_can_be_counted() -> None:
    ranges = {
        "training.weight_decay": {"low": 0, "high": 0.3, "step": 0.1},
        "training.warmup_steps": {"low": 0, "high": 1},
    }
    space = space_of(config(axes=ranges))
    assert space.num_plans == 8
    assert [tuple(point.values()) for point in space.points or ()] == [
        (0.0, 0), (0.0, 1), (0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1), (0.3, 0), (0.3, 1)
    ]  # fmt: skip


def test_a_range_without_a_step_has_no_end_of_plans() -> None:
    space = space_of(config(depths=[1, 2], learning_rates={"low": 1e-5, "high": 1e-3, "log": True}))
    assert (space.points, space.num_plans) == (None, math.inf)
    assert space.corners == ({"depth": 1, "learning_rate": 1e-5}, {"depth": 2, "learning_rate": 1e-5})


def test_a_value_of_a_range_is_what_its_key_gets() -> None:
    made = config(learning_rates={"low": 1e-5, "high": 1e-3}, axes={"training.warmup_steps": {"low": 0, "high": 9}})
    point = {"learning_rate": 3.13e-4, "training.warmup_steps": 7}
    found = config_of(made, space_of(made).axes, point, carriers=above)
    assert (found.training["learning_rate"], found.training["warmup_steps"]) == (3.13e-4, 7)


def test_adapters_are_one_plan_at_any_value_of_a_range() -> None:
    space = space_of(config(depths=[3, 4], learning_rates={"low": 1e-5, "high": 1e-3}, adapters=["none", LORA]))
    lora = {"depth": 4, "learning_rate": 3.13e-4, "adapter": "LORA r=4"}
    assert space.same(lora) == {**lora, "adapter": "none"}
    assert space.same({**lora, "depth": 3}) == {**lora, "depth": 3}


def test_ends_of_a_range_that_do_not_fit_their_key_are_told() -> None:
    with pytest.raises(ConfigError) as caught:
        space_of(config(axes={"training.max_steps": {"low": 0.5, "high": 3}, "trainin.seed": {"low": 0, "high": 3}}))
    lines = str(caught.value).splitlines()
    assert [line.partition(".")[0].partition("; ")[0] for line in lines] == ["search"] * len(lines)
    assert [line.partition("; ")[0] for line in lines] == [
        "search.axes: training.max_steps: does not fit TrainingArguments",
        "search.axes: training.max_steps: does not fit TrainingArguments",
        "search.axes: trainin: unknown key",
    ]
