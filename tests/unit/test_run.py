from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_freeze import run
from hf_freeze.config import RunConfig, load_config
from hf_freeze.errors import ConfigError, PlanError
from hf_freeze.schedules.timeline import read_timeline
from tests import tiny_run
from tests.unit.training.runs import assert_followed, assert_same, monitored, state, values

LORA = {"peft_type": "LORA", "target_modules": "all-linear", "r": 2, "blocks": {"last": 1}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.write_rows(tmp_path_factory.mktemp("rows"), splits="train validation test")


@pytest.fixture
def make(model: Path, rows: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """Makes the config of a quick run that writes to `out` below `tmp_path`."""

    def make_config(*, training: dict[str, Any] | None = None, **more: Any) -> RunConfig:
        return tiny_run.config(model, rows, tmp_path / "out", training=training, **more)

    return make_config


def test_a_run_follows_its_plan_and_reports_what_it_did(make: Callable[..., RunConfig], tmp_path: Path) -> None:
    prepared = run.Run(make(freeze={"blocks": {"first": 2}}))
    before = values(prepared.trainer.model)
    result = prepared.train()
    assert_followed(prepared.trainer.model, before)
    assert result.plan.depth == 2
    assert result.output_dir == str(tmp_path / "out")
    measured = ["loss", "accuracy", "f1"]
    assert [*result.metrics] == ["train_loss", *(f"{split}_{name}" for split in ("eval", "test") for name in measured)]
    assert result.costs.seconds > 0
    assert result.costs.peak_memory_bytes > 1 << 26
    assert not result.costs.on_gpu


def test_without_further_splits_only_the_training_loss_is_reported(model: Path, tmp_path: Path) -> None:
    rows = tiny_run.write_rows(tmp_path / "rows")
    assert [*run.train(tiny_run.config(model, rows, tmp_path / "out")).metrics] == ["train_loss"]


def test_equal_configs_give_equal_weights(make: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = make(freeze={"blocks": {"first": 2}})
    weights = []
    for _ in range(2):
        run.train(config)
        weights.append(load_file(tmp_path / "out" / "model.safetensors"))
    assert_same(*weights)


def test_the_config_is_kept_beside_the_model(make: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = make(freeze={"blocks": {"first": 2}}, adapters=[LORA], data={"splits": {"validation": "test"}})
    run.train(config)
    assert load_config(tmp_path / "out" / run.CONFIG_FILE) == config


def test_credentials_are_not_written_beside_the_model(make: Callable[..., RunConfig], tmp_path: Path) -> None:
    secret = "not-to-be-shared"
    rows = make().data.load_dataset
    config = make(
        model={"token": secret, "proxies": {"https": secret}},
        data={"load_dataset": {**rows, "token": secret}},
        training={"hub_token": secret},
    )
    result = run.train(config)
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert [path.name for path in written if secret.encode() in path.read_bytes()] == []
    assert secret not in "\n".join(result.loading_lines)
    assert load_config(tmp_path / "out" / run.CONFIG_FILE) == make(data={"load_dataset": rows})


def test_a_run_that_is_resumed_equals_one_that_never_stopped(make: Callable[..., RunConfig], tmp_path: Path) -> None:
    training = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    freeze = {"blocks": {"first": 2}}
    whole = run.Run(make(training=training, freeze=freeze))
    assert run.newest_checkpoint(whole.config) is None
    whole.train()
    (tmp_path / "out" / "checkpoint-4" / "manifest.json").unlink()
    assert run.newest_checkpoint(whole.config) == str(tmp_path / "out" / "checkpoint-2")
    resumed = run.Run(make(training={**training, "resume_from_checkpoint": True}, freeze=freeze))
    resumed.train()
    assert_same(state(whole.trainer.model), state(resumed.trainer.model))


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"freeze": {"blocks": {"first": 2}}},
    "adapters": {"adapters": [LORA]},
    "mixed": {"freeze": {"blocks": {"first": 2}}, "adapters": [LORA]},
    "frozen head": {"freeze": {"blocks": {"first": 2}, "head": "frozen"}, "adapters": [LORA]},
    "three labels": {"adapters": [LORA]},
    "regression": {"adapters": [LORA], "data": {"problem_type": "regression"}},
    "prompts": {"adapters": [{"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}]},
    "half precision": {"adapters": [LORA], "model": {"dtype": "bfloat16"}},
}
LABELS = {"three labels": ("bad", "fine", "good"), "regression": (0.5, 1.5)}


def test_the_lines_load_exactly_what_was_trained(model: Path, tmp_path: Path) -> None:
    """They run where hf_freeze cannot be imported; a base model with a head of another size does not stop them."""
    probe = {"input_ids": torch.tensor([[2, 7, 9, 3], [2, 6, 3, 0]]), "attention_mask": torch.tensor([[1] * 4] * 2)}
    wide = tiny_run.write_model(tmp_path / "wide", num_labels=5)
    lines, expected = ["import json, sys", "sys.modules['hf_freeze'] = None", "import torch", "found = {}"], {}
    for name, more in VARIANTS.items():
        rows = tiny_run.write_rows(tmp_path / name / "rows", LABELS.get(name, ("negative", "positive")))
        base = wide if name == "mixed" else model
        prepared = run.Run(tiny_run.config(base, rows, tmp_path / name / "out", **more))
        lines += prepared.train().loading_lines
        with torch.no_grad():
            expected[name] = prepared.trainer.model.eval()(**probe).logits.tolist()
        inputs = ", ".join(f"{key}=torch.tensor({value.tolist()})" for key, value in probe.items())
        lines += [f"found[{name!r}] = model({inputs}).logits.tolist()", "assert tokenizer('a film')['input_ids']"]
    lines += ["print(json.dumps(found))"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


def test_the_lines_for_a_plain_folder_are_short(make: Callable[..., RunConfig], tmp_path: Path) -> None:
    folder = str(tmp_path / "out")
    assert run.train(make()).loading_lines == (
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "",
        f"model = AutoModelForSequenceClassification.from_pretrained({folder!r})",
        f"tokenizer = AutoTokenizer.from_pretrained({folder!r})",
    )


def test_an_unknown_task_is_refused(make: Callable[..., RunConfig]) -> None:
    with pytest.raises(ConfigError) as caught:
        run.train(make(model={"task": "text-classfication"}))
    assert str(caught.value) == (
        "model.task: no task is called 'text-classfication'; the tasks are text-classification. "
        "Did you mean 'text-classification'?"
    )


def test_what_the_trainer_refuses_is_said(make: Callable[..., RunConfig]) -> None:
    with pytest.raises(ConfigError) as caught:
        run.train(make(training={"batch_eval_metrics": True}))
    assert str(caught.value) == (
        "training: Trainer refuses these options; When using `batch_eval_metrics`, your `compute_metrics` function "
        "must take a `compute_result` boolean argument which will be triggered after the last batch of the eval set "
        "to signal that the summary statistics should be returned by the function. "
        "Change the options that it names."
    )


def test_evaluation_without_rows_for_it_is_refused(model: Path, tmp_path: Path) -> None:
    rows = tiny_run.write_rows(tmp_path / "rows")
    with pytest.raises(ConfigError) as caught:
        run.train(tiny_run.config(model, rows, tmp_path / "out", training={"eval_strategy": "epoch"}))
    assert str(caught.value) == (
        "training.eval_strategy: there are no rows to evaluate on; got 'epoch'. The data set has the splits train. "
        "Name a split in data.splits.validation, or set training.eval_strategy to 'no'."
    )


def test_a_plan_that_does_not_fit_is_refused_before_the_data_are_read(make: Callable[..., RunConfig]) -> None:
    config = make(freeze={"blocks": {"first": 9}}, data={"load_dataset": {"path": "/nowhere"}})
    with pytest.raises(PlanError) as caught:
        run.train(config)
    assert str(caught.value) == (
        "freeze.blocks: cannot select the first 9 blocks; bert.encoder.layer has 4. Select at most 4."
    )


def test_a_schedule_that_does_not_fit_is_refused_before_the_data_are_read(make: Callable[..., RunConfig]) -> None:
    config = make(schedule={"type": "plateau", "floor": 4}, data={"load_dataset": {"path": "/nowhere"}})
    with pytest.raises(PlanError) as caught:
        run.train(config)
    assert str(caught.value) == (
        "schedule: plateau has nothing to thaw; got a floor of 4. 4 blocks are frozen at the start and could train. "
        "Freeze more blocks, or lower schedule.floor."
    )


def test_a_run_follows_a_schedule(make: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = make(schedule={"type": "progressive"}, training={"max_steps": 10})
    result = run.train(config)
    assert [one.depth for one in read_timeline(tmp_path / "out")] == [1, 2]
    assert result.plan.depth == 2
    assert run.plan(str(tmp_path / "out" / "hf_freeze.yaml")).notes == (
        "This is the plan as training starts: the schedule progressive changes what is frozen.",
        "The head is counted with 2 labels: data.labels does not say how many there are.",
    )


def test_a_plan_needs_no_weights(model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    table = run.plan(str(tmp_path), ["freeze.blocks.first=2"])
    assert [(row.roles, row.treatment, row.num_trainable > 0) for row in table.rows] == [
        ("embeddings", "frozen", False),
        ("blocks[0-1]", "frozen", False),
        ("blocks[2-3]", "full", True),
        ("head", "full", True),
    ]
    assert table.notes == ("The head is counted with 2 labels: data.labels does not say how many there are.",)


@pytest.mark.parametrize(
    "freeze_and_adapters",
    [{}, {"freeze": {"blocks": {"first": 2}}}, {"adapters": [LORA]}, {"freeze": {"blocks": "all"}, "adapters": [LORA]}],
    ids=["nothing", "freeze", "adapters", "both"],
)
def test_the_plan_without_weights_is_that_of_the_run(
    make: Callable[..., RunConfig], tmp_path: Path, freeze_and_adapters: dict[str, Any]
) -> None:
    config = make(data={"labels": ["negative", "positive"]}, **freeze_and_adapters)
    (tmp_path / "config.yaml").write_text(json.dumps(config.model_dump(exclude_defaults=True)))
    assert run.plan(str(tmp_path / "config.yaml")) == run.Run(config).table


@pytest.mark.parametrize(
    ("data", "num_labels"), [({"labels": ["a", "b", "c"]}, 3), ({"problem_type": "regression"}, 1)]
)
def test_the_plan_counts_the_head_as_the_data_section_has_it(
    make: Callable[..., RunConfig], tmp_path: Path, data: dict[str, Any], num_labels: int
) -> None:
    config = make(data=data, freeze={"blocks": "all"})
    (tmp_path / "config.yaml").write_text(json.dumps(config.model_dump(exclude_defaults=True)))
    table = run.plan(str(tmp_path / "config.yaml"))
    pooler, classifier = 32 * 32 + 32, 32 * num_labels + num_labels
    assert (table.num_trainable, table.notes) == (pooler + classifier, ())


def test_a_plan_for_a_model_takes_only_the_sections_that_it_follows_from(model: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run.plan(str(model), ["freze.blocks.first=2"])
    assert str(caught.value) == (
        "freze: unknown key; got {'blocks': {'first': 2}}. Known keys: activation_cache, adapters, freeze, "
        "lr_multipliers, model, schedule. Did you mean 'freeze'?"
    )


def test_a_config_that_does_not_exist_is_not_taken_for_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape("config: no such file; got 'nowhere/x.yaml'. The folder nowhere")):
        run.plan("nowhere/x.yaml")


def test_a_layout_names_modules_and_tied_weights(model: Path) -> None:
    table = run.layout(str(model))
    assert [(row.roles, row.modules) for row in table.rows] == [
        ("embeddings", ("bert.embeddings",)),
        ("blocks[0-3]", ("bert.encoder.layer[0-3]",)),
        ("head", ("bert.pooler", "dropout", "classifier")),
    ]


def test_a_layout_takes_the_path_of_the_blocks(model: Path) -> None:
    assert run.layout(str(model), ["model.blocks_path=bert.encoder.layer"]) == run.layout(str(model))


def test_an_optimizer_whose_package_is_missing_is_refused(make: Callable[..., RunConfig]) -> None:
    with pytest.raises(ConfigError, match=r"^training: Trainer refuses these options; .*install.*that it names\.$"):
        run.train(make(training={"optim": "apollo_adamw", "optim_target_modules": ["query"]}))


def test_a_run_is_monitored_unless_the_config_says_null(make: Callable[..., RunConfig], tmp_path: Path) -> None:
    counts = {}
    for every in (100, 2, None):
        training = {"max_steps": 4, "output_dir": str(tmp_path / str(every))}
        prepared = run.Run(make(training=training, monitor={"every": every}))
        assert prepared.train().advice == ()
        counts[every] = len(monitored(prepared.trainer))
    assert counts == {100: 0, 2: 2, None: 0}


def test_advice_is_in_the_result(make: Callable[..., RunConfig]) -> None:
    training = {"max_steps": 60, "learning_rate": 1e-9, "logging_steps": 10}
    (advice,) = run.train(make(training=training)).advice
    assert advice.startswith("The training loss stays high: it was 0.")
    assert advice.endswith("(guessing gives 0.6931). Freeze fewer blocks, or raise training.learning_rate.")
