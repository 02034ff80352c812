"""What a config costs: from its file to numbers, without weights; and what is wrong said in whole messages."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner, Result

from hf_freeze import load_config, plan_cost, run
from hf_freeze.activation_cache.housekeeping import list_stores
from hf_freeze.cli import app
from hf_freeze.config.sizes import spell_size
from hf_freeze.errors import ConfigError
from hf_freeze.plan.cost import PlanCost, Processes
from hf_freeze.plan.timing import Rates, RunLength
from hf_freeze.run.processes import processes_of
from hf_freeze.run.settings import Lengths, Settings
from tests import tiny_run
from tests.conftest import REPOSITORY

LORA = "adapters=[{peft_type: LORA, target_modules: all-linear, r: 2, blocks: {last: 2}}]"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="hf-freeze")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def config(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config file of a quick run over 24 rows, half of its blocks frozen."""
    folder = tmp_path_factory.mktemp("config")
    rows = tiny_run.write_rows(folder / "rows", splits="train validation")
    sections = tiny_run.sections(model, rows, folder / "out", eval_strategy="epoch", max_steps=-1)
    path = folder / "config.yaml"
    YAML().dump({**sections, "freeze": {"blocks": {"first": 2}}}, path)
    return path


@pytest.fixture
def without_weights(model: Path, tmp_path: Path) -> Path:
    """The folder of a model that has a config and a tokenizer only."""
    for path in model.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_a_config_is_priced_without_weights(config: Path, without_weights: Path) -> None:
    cost = plan_cost(str(config), [f"model.name_or_path={without_weights}"])
    assert [role.role for role in cost.roles] == ["embeddings", *(f"blocks[{i}]" for i in range(4)), "head"]
    assert (cost.batch_size, cost.longest) == (8, 9)
    total = cost.total
    assert total.optimizer == 2 * total.gradients > 0
    assert total.checkpointed is not None
    assert total.activations is not None
    assert total.checkpointed < total.activations
    assert cost.peak is not None
    assert cost.peak > total.weights + total.optimizer + total.activations
    assert cost.cache is not None
    assert cost.cache.num_rows == 48  # There is no test split.
    assert cost.cache.build_flops > 0
    assert cost.notes == ()


def test_speed_ups_are_in_the_order_that_less_work_gives(config: Path) -> None:
    half = plan_cost(str(config))
    most = plan_cost(str(config), ["freeze.blocks.first=3"])
    for cost in (half, most):
        assert cost.over_full
        assert cost.over_loop
        assert cost.cached_over_full
        assert cost.cached_over_loop
        assert 1 <= cost.over_loop.step < cost.over_full.step < cost.cached_over_full.step
    assert most.cached_over_full.step > half.cached_over_full.step


@pytest.mark.parametrize(
    ("optimizer", "processes"),
    [
        *((name, None) for name in ("adamw_torch", "sgd", "adafactor", "adamw_8bit")),
        *(("adamw_torch", name) for name in ("two_cpu", "ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3")),
        ("sgd", "ddp"),
    ],
)
def test_full_training_is_as_fast_as_itself(config: Path, optimizer: str, processes: str | None) -> None:
    spread = None if processes is None else str(REPOSITORY / "accelerate_configs" / f"{processes}.yaml")
    overrides = ["freeze=null", f"training.optim={optimizer}"]
    cost = plan_cost(str(config), overrides, accelerate_config=spread)
    assert cost.over_full is not None
    assert (cost.over_full.step, cost.over_full.run) == (1, 1)
    assert cost.over_loop == cost.over_full
    assert (cost.cache, cost.cached_over_full, cost.peak_cached) == (None, None, None)


@pytest.mark.parametrize("optimizer", ["adamw_torch", "sgd"])
def test_a_schedule_that_freezes_nothing_is_as_fast_as_full_training(config: Path, optimizer: str) -> None:
    schedule = "schedule={type: phases, phases: [{freeze: {blocks: none}}]}"
    cost = plan_cost(str(config), ["freeze=null", schedule, f"training.optim={optimizer}"])
    assert cost.schedule is not None
    assert cost.schedule.over_full == (1, 1)


def test_adapters_are_counted(config: Path) -> None:
    without, cost = (plan_cost(str(config), each) for each in ((), (LORA,)))
    assert cost.total.weights > without.total.weights
    assert cost.total.gradients < without.total.gradients
    assert cost.roles[3].forward_flops > without.roles[3].forward_flops


def assert_side_by_side(printed: str, figures: Mapping[str, Sequence[str]]) -> None:
    """Asserts that a comparison shows the figures of two plans, each in the row of its name."""
    for name, (first, second) in figures.items():
        assert re.search(rf"^ *{name} +{first} +{second}$", printed, re.MULTILINE)


class TestActivationCheckpointing:
    """FLOPs of a block of the tiny BERT, and the speed-ups that follow where nothing else takes time.

    Batches have 8 rows of 9 tokens, blocks a hidden size of 32 and 64 inside. A trained block computes its forward
    pass twice and has gradients of weights and inputs; attention has five products in its backward pass to two before.
    """

    LINEAR = 2 * 8 * 9 * (4 * 32 * 32 + 2 * 32 * 64)
    ATTENTION = 2 * (2 * 8 * 9 * 9 * 32)
    FORWARD = LINEAR + ATTENTION
    INPUTS = LINEAR + ATTENTION * 5 // 2  # the backward pass through a block that is frozen
    BACKWARD = LINEAR + INPUTS
    SPARED = 3 * 2 * 8 * 9 * 32 * 32  # the first block that trains needs no gradient of what query, key and value read
    HEAD = 3 * 2 * 8 * (32 * 32 + 2 * 32)

    FLOPS_ALONE = Rates(flops=1.0, num_bytes=math.inf, num_random=math.inf, operation=0.0, step=0.0)

    def cost(self, config: Path, *overrides: str) -> PlanCost:
        options = ["training.activation_checkpointing=true", *overrides]
        return plan_cost(str(config), options, rates=self.FLOPS_ALONE)

    def test_blocks_that_the_backward_pass_reaches_are_computed_twice(self, config: Path) -> None:
        roles = {cost.role: (cost.forward_flops, cost.backward_flops) for cost in self.cost(config).roles}
        again = self.FORWARD
        assert roles == {
            "embeddings": (0, 0),
            "blocks[0]": (self.FORWARD, 0),
            "blocks[1]": (self.FORWARD, 0),
            "blocks[2]": (self.FORWARD, again + self.BACKWARD - self.SPARED),
            "blocks[3]": (self.FORWARD, again + self.BACKWARD),
            "head": (self.HEAD // 3, 2 * self.HEAD // 3),
        }

    def test_full_training_and_the_frozen_loop_compute_all_blocks_twice(self, config: Path) -> None:
        cost = self.cost(config)
        assert cost.over_full
        assert cost.over_loop
        assert cost.cached_over_full
        assert cost.cached_over_loop
        own = 2 * self.FORWARD + 2 * (2 * self.FORWARD + self.BACKWARD) - self.SPARED + self.HEAD
        full = 4 * (2 * self.FORWARD + self.BACKWARD) + self.HEAD
        loop = full - 2 * self.LINEAR  # The two frozen blocks have no gradients of weights.
        assert (cost.over_full.step, cost.over_loop.step) == (full / own, loop / own)
        cached = own - 2 * self.FORWARD
        assert (cost.cached_over_full.step, cost.cached_over_loop.step) == (full / cached, loop / cached)

    def test_a_schedule_that_stays_costs_what_its_plan_costs(self, config: Path) -> None:
        schedule = "schedule={type: phases, phases: [{freeze: {blocks: {first: 2}}}]}"
        scheduled, static = self.cost(config, "freeze=null", schedule), self.cost(config)
        assert scheduled.schedule is not None
        assert static.over_full is not None
        assert scheduled.schedule.over_full == pytest.approx((static.over_full.run, static.over_full.run))

    def test_it_shows_side_by_side_and_in_json(self, config: Path) -> None:
        saving = config.with_name("saving.yaml")
        saving.write_text(f"extends: {config.name}\ntraining: {{activation_checkpointing: true}}\n")
        costs = [plan_cost(str(path)) for path in (config, saving)]
        printed = call("plan", config, "--compare", saving).stdout
        assert_side_by_side(
            printed,
            {
                "forward": [f"{cost.total.forward_flops / 1e6:.1f} MFLOP" for cost in costs],
                "backward": [f"{cost.total.backward_flops / 1e6:.1f} MFLOP" for cost in costs],
                "step, over full": [f"{cost.over_full.step:.1f}" for cost in costs],
                "step, over the frozen loop": [f"{cost.over_loop.step:.1f}" for cost in costs],
            },
        )
        objects = json.loads(call("plan", config, "--compare", saving, "--json").stdout)
        for cost, found in zip(costs, (each["cost"] for each in objects), strict=True):
            assert found["total"]["backward_flops"] == cost.total.backward_flops
            assert found["over_loop"]["step"] == cost.over_loop.step
        plain, checkpointed = costs
        twice = sum(role.forward_flops for role in plain.roles[3:5])
        assert checkpointed.total.backward_flops == plain.total.backward_flops + twice


def test_a_model_alone_is_priced_for_assumed_batches(model: Path) -> None:
    cost = plan_cost(str(model), ["freeze.blocks.first=2"])
    assert cost.notes == ("Costs are for batches of 8 rows of 64 tokens, as no data is named.",)
    assert cost.over_full is not None
    assert cost.over_full.run is None


def test_a_model_that_cannot_be_traced_is_priced_as_far_as_it_goes(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BertForSequenceClassification

    forward = BertForSequenceClassification.forward

    def curious(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs["input_ids"].sum().item():
            return forward(self, *args, **kwargs)
        return None

    monkeypatch.setattr(BertForSequenceClassification, "forward", curious)
    cost = plan_cost(str(config))
    assert cost.notes[0].startswith(
        "Activations, FLOPs and speed-ups are not known: the model does not run without data "
        "(DataDependentOutputException: "
    )
    assert cost.total.gradients > 0
    assert (cost.total.activations, cost.total.forward_flops, cost.peak, cost.over_full) == (None, None, None, None)
    assert call("plan", config).exit_code == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("single_cpu", Processes()),
        ("two_cpu", Processes(2, copies_gradients=True)),
        ("fsdp2", Processes(2, "cpu", "bf16", True, True, True)),
        ("deepspeed_zero2", Processes(2, "cpu", "bf16", False, True, True)),
        ("deepspeed_zero3", Processes(2, "cpu", "bf16", True, True, True)),
        ("multi_node", Processes(16, "cpu", "bf16", copies_gradients=True)),
    ],
)
def test_an_accelerate_config_says_what_each_process_holds(
    name: str, expected: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: None)
    assert processes_of(str(REPOSITORY / "accelerate_configs" / f"{name}.yaml")) == expected


def test_sharding_divides_what_a_plan_costs(config: Path) -> None:
    fsdp = str(REPOSITORY / "accelerate_configs" / "fsdp2.yaml")
    whole, part = plan_cost(str(config)), plan_cost(str(config), accelerate_config=fsdp)
    assert part.total.optimizer == pytest.approx(whole.total.optimizer / 2, abs=8)


def test_an_accelerate_config_that_is_none_is_said(tmp_path: Path) -> None:
    exist = "accelerate_configs/ holds one for each common case."
    with pytest.raises(ConfigError) as missing:
        processes_of("nowhere.yaml")
    assert str(missing.value) == (
        f"--accelerate-config: no such file; got 'nowhere.yaml'. {exist} Name one, or leave the option out."
    )
    path = tmp_path / "wrong.yaml"
    path.write_text("num_processes: 2\n")
    with pytest.raises(ConfigError) as wrong:
        processes_of(str(path))
    assert str(wrong.value) == (
        f"--accelerate-config: accelerate cannot read this file; got {str(path)!r}. It says: A `distributed_type` must "
        f"be specified in the config file. {exist} Name one of them, or mend the file."
    )


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "distributed_type: MAGIC"])
def test_whatever_an_accelerate_config_holds_no_traceback_is_shown(text: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape("--accelerate-config: accelerate cannot read this file; got ")):
        processes_of(str(path))


def test_the_run_is_as_long_as_its_epochs_and_evaluations() -> None:
    settings = Settings(
        {
            "per_device_train_batch_size": 2,
            "per_device_eval_batch_size": 1,
            "gradient_accumulation_steps": 2,
            "num_train_epochs": 3,
            "eval_strategy": "epoch",
        }
    )
    lengths = Lengths(train=[4] * 10, validation=[8, 8], test=[8])
    # The validation rows once more at the end, and there the test rows, too.
    assert settings.run_length(lengths, num_processes=1) == RunLength(
        num_steps=9, accumulation=2, evaluation_batches=(4 * 16 + 8) / 8, build_batches=(40 + 16 + 8) / 8
    )
    assert settings.passes(lengths, num_processes=1) == (3, 3)
    assert Settings({"max_steps": 7}).run_length(lengths, num_processes=2).num_steps == 7
    assert Settings({"max_steps": 7}).passes(lengths, num_processes=2) == (7, 0)
    every = {"per_device_train_batch_size": 2, "max_steps": 10, "eval_on_start": True}
    every |= {"eval_strategy": "steps", "eval_steps": 0.25}
    assert Settings(every).run_length(lengths, num_processes=1).evaluation_batches == (5 * 16 + 8) / 8
    without = Settings({"per_device_train_batch_size": 2}).run_length(Lengths([4] * 10, [], []), num_processes=1)
    assert (without.evaluation_batches, without.build_batches) == (0, 40 / 8)


def test_the_cache_is_as_large_wherever_its_size_is_told_and_holds_as_many_rows(model: Path, tmp_path: Path) -> None:
    """Train, validation and test rows, whatever is evaluated while training: `train` ends with an evaluation."""
    words = ("a", "good", "bad", "film", "end")
    texts = itertools.product(words, repeat=3)
    for split, num_rows in (("train", 24), ("validation", 9), ("test", 7)):
        lines = [f"{' '.join(next(texts))},{('positive', 'negative')[row % 2]}" for row in range(num_rows)]
        (tmp_path / "rows").mkdir(exist_ok=True)
        (tmp_path / "rows" / f"{split}.csv").write_text("\n".join(["text,label", *lines, ""]))
    sections = tiny_run.sections(model, tmp_path / "rows", tmp_path / "out")
    path = tmp_path / "config.yaml"
    cache = {"enabled": True, "dir": str(tmp_path / "cache")}
    YAML().dump({**sections, "freeze": {"blocks": {"first": 2}}, "activation_cache": cache}, path)
    cost = plan_cost(str(path)).cache
    assert cost is not None
    assert cost.num_rows == 24 + 9 + 7
    said = f"For 40 rows of 200 tokens it takes about {spell_size(cost.num_bytes)} of the disk, as float32"
    assert said in call("plan", path).stdout
    run.train(load_config(path))
    (store,) = list_stores(tmp_path / "cache")
    assert store.rows == cost.num_rows


def test_padding_follows_how_rows_are_sampled() -> None:
    lengths = [2, 4, 6, 8]
    assert Settings({"per_device_train_batch_size": 64}).padded_length(lengths) == 8
    assert Settings({"train_sampling_strategy": "group_by_length"}).padded_length(lengths) == 5


def test_plans_are_shown_side_by_side(config: Path) -> None:
    deeper = config.with_name("deeper.yaml")
    deeper.write_text(f"extends: {config.name}\nfreeze: {{blocks: {{first: 3}}}}\n")
    result = call("plan", config, "--compare", deeper)
    assert result.exit_code == 0, result.stderr
    assert re.search(r"^ *parameters that train +18,210 +9,666$", result.stdout, re.MULTILINE)
    found = re.search(r"^ *cached step, over full +(\S+) +(\S+)$", result.stdout, re.MULTILINE)
    assert found is not None
    assert float(found[1]) <= float(found[2])
    costs = [plan_cost(str(path)) for path in (config, deeper)]
    assert_side_by_side(
        result.stdout,
        {
            "run, over the frozen loop": [f"{cost.over_loop.run:.1f}" for cost in costs],
            "cached run, over the frozen loop": [f"{cost.cached_over_loop.run:.1f}" for cost in costs],
            "cache build": [f"{cost.cache.build_flops / 1e6:.1f} MFLOP" for cost in costs],
            "cache build, in steps": [f"{cost.cache.build_steps:,.0f}" for cost in costs],
        },
    )


def test_what_cannot_be_compared_is_said(config: Path, tmp_path: Path) -> None:
    result = call("plan", config, "--compare", "nowhere.yaml")
    assert (result.exit_code, result.stderr) == (
        2,
        "--compare: no such file; got 'nowhere.yaml'. It is the config of another plan for the same model. Name one.\n",
    )
    name = load_config(config).model.name_or_path
    other = config.with_name("other.yaml")
    other.write_text(f"extends: {config.name}\nmodel: {{name_or_path: another/model}}\n")
    result = call("plan", config, "--compare", other)
    assert (result.exit_code, result.stderr) == (
        2,
        (
            "--compare: plans of one model and one task can be compared; got model.name_or_path 'another/model' in "
            f"{other}. In {config} it is {name!r}. Name another config, or override model.name_or_path.\n"
        ),
    )


def test_json_says_the_same_to_programs(config: Path) -> None:
    cost = plan_cost(str(config))
    printed = json.loads(call("plan", config, "--json").stdout)
    assert printed["plan"]["model_class"] == "BertForSequenceClassification"
    assert printed["cost"]["peak"] == cost.peak
    assert printed["cost"]["total"]["weights"] == cost.total.weights
    assert [role["role"] for role in printed["cost"]["roles"]] == [role.role for role in cost.roles]


def test_a_profile_predicts_seconds_and_writes_nothing(config: Path) -> None:
    before = sorted(config.parent.rglob("*"))
    result = call("plan", config, LORA, "--profile", "--json")
    assert result.exit_code == 0, result.stderr
    seconds = json.loads(result.stdout)["cost"]["seconds"]
    assert 0 < seconds["cached_step"] < seconds["step"]
    assert seconds["run"] > 3 * seconds["step"]
    assert sorted(config.parent.rglob("*")) == before


def test_a_profile_needs_rows_and_weights(config: Path, model: Path, without_weights: Path) -> None:
    result = call("plan", model, "--freeze", "first=2", "--profile")
    assert (result.exit_code, result.stderr) == (
        2,
        (
            f"--profile: steps are measured on the rows that a config names; got {str(model)!r}. There are none: it is "
            "a model, not a config. Give a config whose data can be read, or leave --profile out.\n"
        ),
    )
    result = call("plan", config, f"model.name_or_path={without_weights}", "--profile")
    assert result.exit_code == 2
    assert "model.name_or_path" in result.stderr
    assert "Traceback" not in result.output


def test_an_optimizer_that_is_not_known_is_said(config: Path) -> None:
    cost = plan_cost(str(config), ["training.optim=schedule_free_adamw"])
    assert cost.notes == ("What schedule_free_adamw keeps is not known; its state is counted as that of AdamW.",)
