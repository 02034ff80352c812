"""The monitor measures what really happened to each role, changes nothing, and speaks once."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from transformers import Trainer, TrainerCallback

from hf_freeze import FreezeTrainer, MonitorCallback, freeze_model
from hf_freeze.errors import ConfigError, PlanError
from hf_freeze.plan import plan_of
from hf_freeze.plan.wrappers import named_parameters
from tests.tiny import tiny_bert
from tests.unit.training.cached import DROPOUT, padding, sentences
from tests.unit.training.runs import arguments, assert_same, logged, monitored, rows, state

FREEZE = {"blocks": {"first": 2}}
LORA = {"peft_type": "LORA", "target_modules": ["query", "value"], "r": 4, "blocks": {"indices": [2]}}
ROLES = ["blocks[2]", "blocks[3]", "head"]
QUANTITIES = ["grad_norm", "update_ratio", "drift"]


def trained(folder: Path, every: int | None, **more: Any) -> FreezeTrainer:
    """A trainer after four steps with dropout, monitored unless `every` is None."""
    options = more.pop("options", {})
    callbacks = [] if every is None else [MonitorCallback(every)]
    model = more.pop("model", None) or tiny_bert(**DROPOUT)
    resume = more.pop("resume", None)
    data = more.pop("train_dataset", rows())
    more = {"freeze": FREEZE, **more}
    trainer = FreezeTrainer(model, arguments(folder, **options), train_dataset=data, callbacks=callbacks, **more)
    trainer.train(resume)
    return trainer


class WeightsCallback(TrainerCallback):
    """Copies the trainable weights at the start and after each step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def _keep(self, model: nn.Module) -> None:
        trainable = plan_of(model).is_trainable()
        parameters = named_parameters(model)
        self.weights.append({name: p.detach().double().clone() for name, p in parameters if trainable[name]})

    def on_train_begin(self, *_: Any, model: nn.Module, **kwargs: Any) -> None:
        self._keep(model)

    def on_step_end(self, *_: Any, model: nn.Module, **kwargs: Any) -> None:
        self._keep(model)


def norm_by_role(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, float]:
    roles = {decision.name: decision.role for decision in plan_of(model).decisions}
    squares: dict[str, float] = {}
    for name, tensor in tensors.items():
        squares[roles[name]] = squares.get(roles[name], 0.0) + float(tensor.double().square().sum())
    return {role: math.sqrt(square) for role, square in squares.items()}


class TestWhatIsMeasured:
    def test_drift_and_updates_are_those_of_the_weights(self, tmp_path: Path) -> None:
        copies = WeightsCallback()
        trainer = FreezeTrainer(
            tiny_bert(),
            arguments(tmp_path, learning_rate=1e-2),
            train_dataset=rows(),
            freeze=FREEZE,
            callbacks=[MonitorCallback(2), copies],
        )
        trainer.train()
        found = monitored(trainer)
        assert [entry["step"] for entry in found] == [2, 4]
        for entry in found:
            step = int(entry["step"])
            before, after, start = copies.weights[step - 1], copies.weights[step], copies.weights[0]
            sizes = norm_by_role(trainer.model, before)
            updates = norm_by_role(trainer.model, {name: after[name] - before[name] for name in after})
            lengths = norm_by_role(trainer.model, start)
            drifts = norm_by_role(trainer.model, {name: after[name] - start[name] for name in after})
            assert sorted(entry) == sorted(
                ["step", *(f"{quantity}/{role}" for quantity in QUANTITIES for role in ROLES)]
            )
            for role in ROLES:
                assert entry[f"update_ratio/{role}"] == pytest.approx(updates[role] / sizes[role], rel=1e-5)
                assert entry[f"drift/{role}"] == pytest.approx(drifts[role] / lengths[role], rel=1e-5)
                assert entry[f"drift/{role}"] > 0

    @pytest.mark.parametrize("accumulation", [1, 2])
    @pytest.mark.parametrize("clipping", [0.0, 0.05, 100.0])
    def test_gradient_norms_are_those_before_clipping(self, tmp_path: Path, clipping: float, accumulation: int) -> None:
        """The norms of all roles together give what the Trainer itself logs before it clips."""
        options = {"max_grad_norm": clipping, "gradient_accumulation_steps": accumulation}
        trainer = trained(tmp_path, 1, options=options, model=tiny_bert())
        found = monitored(trainer)
        assert [entry["step"] for entry in found] == [1, 2, 3, 4]
        whole = [math.hypot(*(entry[f"grad_norm/{role}"] for role in ROLES)) for entry in found]
        assert whole == pytest.approx(logged(trainer, "grad_norm"), rel=1e-5)
        assert min(whole) > 0.05

    def test_roles_with_adapters_stand_for_what_trains_in_them(self, tmp_path: Path) -> None:
        trainer = trained(tmp_path, 4, model=tiny_bert(), adapters=[LORA])
        (entry,) = monitored(trainer)
        whole = math.hypot(*(entry[f"grad_norm/{role}"] for role in ROLES))
        assert whole == pytest.approx(logged(trainer, "grad_norm")[3], rel=1e-5)
        trained_names = plan_of(trainer.model).trainable_by_role()["blocks[2]"]
        assert all("lora" in name for name in trained_names)

    def test_a_role_that_starts_at_zero_has_a_gradient_and_no_ratio(self, tmp_path: Path) -> None:
        model = tiny_bert()
        with torch.no_grad():
            model.classifier.bias.zero_()
        freeze = {"blocks": "all", "head": "frozen", "always_train": ["classifier.bias"]}
        (entry,) = monitored(trained(tmp_path, 3, model=model, freeze=freeze))
        assert set(entry) == {"grad_norm/head", "update_ratio/head", "step"}

    def test_nothing_is_measured_in_a_run_that_is_shorter(self, tmp_path: Path) -> None:
        assert monitored(trained(tmp_path, 5)) == []

    def test_the_loss_of_a_step_that_is_measured_is_logged_all_the_same(self, tmp_path: Path) -> None:
        trainer = trained(tmp_path, 2, options={"logging_steps": 2})
        assert len(logged(trainer, "loss")) == len(monitored(trainer)) == 2


class TestNothingChanges:
    @pytest.mark.parametrize(
        "more",
        [
            pytest.param({}, id="plain"),
            pytest.param({"adapters": [LORA]}, id="adapters"),
            pytest.param({"options": {"bf16": True, "gradient_accumulation_steps": 2}}, id="autocast"),
            pytest.param(
                {"activation_cache": {"enabled": True}, "train_dataset": sentences(), "data_collator": padding()},
                id="activation cache",
            ),
        ],
    )
    def test_losses_and_weights_are_the_same_to_the_bit(self, tmp_path: Path, more: dict[str, Any]) -> None:
        runs = [trained(tmp_path / str(every), every, **more) for every in (None, 1)]
        assert monitored(runs[0]) == []
        assert len(monitored(runs[1])) == 4
        for key in ("loss", "grad_norm"):
            assert logged(runs[0], key) == logged(runs[1], key)
        assert len(logged(runs[0], "loss")) == 4
        assert_same(state(runs[0].model), state(runs[1].model))
        assert runs[0].activation_cache.is_on == runs[1].activation_cache.is_on == ("activation_cache" in more)

    @pytest.mark.parametrize("makes_model", [False, True])
    def test_a_resumed_run_measures_what_an_uninterrupted_one_does(self, tmp_path: Path, makes_model: bool) -> None:
        options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}

        def trainer() -> FreezeTrainer:
            keywords: dict[str, Any] = {"model_init": lambda: tiny_bert()} if makes_model else {"model": tiny_bert()}
            return FreezeTrainer(
                args=arguments(tmp_path, **options),
                train_dataset=rows(),
                freeze=FREEZE,
                callbacks=[MonitorCallback(1)],
                **keywords,
            )

        whole = trainer()
        whole.train()
        resumed = trainer()
        resumed.train(str(tmp_path / "checkpoint-2"))
        assert [entry["step"] for entry in monitored(resumed)] == [1, 2, 3, 4, 5, 6]
        assert monitored(resumed) == monitored(whole)
        assert logged(resumed, "loss") == logged(whole, "loss")

    def test_training_again_starts_from_the_weights_of_then(self, tmp_path: Path) -> None:
        trainer = trained(tmp_path, 1)
        trainer.train()
        drifts = [entry["drift/head"] for entry in monitored(trainer)]
        assert len(drifts) == 4
        assert drifts[0] == pytest.approx(monitored(trainer)[0]["update_ratio/head"])


def test_tensorboard_gets_every_value_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = trained(tmp_path, 2, options={"report_to": ["tensorboard"]})
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    tags = {f"train/monitor/{quantity}/{role}" for quantity in QUANTITIES for role in ROLES}
    assert {tag for tag in events.Tags()["scalars"] if "monitor" in tag} == tags
    for tag in sorted(tags):
        name = tag.removeprefix("train/monitor/")
        read = [(event.step, event.value) for event in events.Scalars(tag)]
        assert read == [(entry["step"], pytest.approx(entry[name])) for entry in monitored(trainer)]
        assert len(read) == 2


class TestAdvice:
    def test_a_role_that_hardly_moves_is_named_once(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        monitor = MonitorCallback(10)
        trainer = FreezeTrainer(
            tiny_bert(),
            arguments(tmp_path, max_steps=70, learning_rate=1e-3, weight_decay=0.0),
            train_dataset=rows(),
            freeze=FREEZE,
            lr_multipliers={"block_decay": 1e-2},
            callbacks=[monitor],
        )
        with caplog.at_level(logging.WARNING, logger="hf_freeze"):
            trainer.train()
        pattern = (
            r"blocks\[2\] hardly moves: its weights are 0\.0\d% from where they started, and those of head \d+\.\d\d%. "
            r"Freeze it, or raise its learning rate\."
        )
        moving = [text for text in monitor.advice if "hardly moves" in text and "blocks[2]" in text]
        assert len(moving) == 1
        assert re.fullmatch(pattern, moving[0])
        assert [record.getMessage() for record in caplog.records] == [f"Advice: {text}" for text in monitor.advice]

    @pytest.mark.parametrize("accumulation", [1, 2])
    def test_the_loss_that_advice_rests_on_is_that_of_the_trainer(self, tmp_path: Path, accumulation: int) -> None:
        options = {"logging_steps": 3, "max_steps": 300, "gradient_accumulation_steps": accumulation}
        trainer = trained(tmp_path, 100, options=options)
        (monitor,) = [each for each in trainer.callback_handler.callbacks if isinstance(each, MonitorCallback)]
        steps, losses = zip(*monitor._record.losses, strict=True)
        assert steps == (*range(3, 303, 3),)
        assert losses == pytest.approx(logged(trainer, "loss"), rel=1e-4)

    @pytest.mark.parametrize("logging_steps", [1, 500])
    def test_a_loss_that_stays_is_compared_with_guessing(self, tmp_path: Path, logging_steps: int) -> None:
        monitor = MonitorCallback(None)
        trainer = FreezeTrainer(
            tiny_bert(),
            arguments(tmp_path, max_steps=60, learning_rate=1e-9, weight_decay=0.0, logging_steps=logging_steps),
            train_dataset=rows(),
            callbacks=[monitor],
        )
        trainer.train()
        (text,) = monitor.advice
        assert text.startswith("The training loss stays high: it was 0.")
        assert text.endswith("(guessing gives 0.6931). Freeze fewer blocks, or raise training.learning_rate.")

    @pytest.mark.parametrize("logging_steps", [1, 500])
    def test_evaluation_that_rises_is_seen_and_what_comes_after_training_is_not(
        self, tmp_path: Path, logging_steps: int
    ) -> None:
        """Random labels: what is learned by heart is wrong for other rows."""
        monitor = MonitorCallback(None)
        trainer = FreezeTrainer(
            tiny_bert(),
            arguments(
                tmp_path,
                max_steps=60,
                learning_rate=3e-3,
                weight_decay=0.0,
                per_device_train_batch_size=32,
                per_device_eval_batch_size=64,
                eval_strategy="steps",
                eval_steps=10,
                logging_steps=logging_steps,
            ),
            train_dataset=rows(32),
            eval_dataset=rows(96).select(range(32, 96)),
            callbacks=[monitor],
        )
        trainer.train()
        (text,) = [text for text in monitor.advice if "eval_loss" in text]
        assert re.fullmatch(
            r"eval_loss rises while the training loss falls: [\d.]+ at step \d+ was the lowest, and it is [\d.]+ at "
            r"step \d+; the training loss went from [\d.]+ before to [\d.]+ after\. Freeze more blocks, or train for "
            r"fewer steps\.",
            text,
        )
        known = list(monitor.advice)
        trainer.evaluate()
        assert monitor.advice == known


def test_another_trainer_is_refused(tmp_path: Path) -> None:
    model = freeze_model(tiny_bert(), FREEZE)
    trainer = Trainer(model, arguments(tmp_path), train_dataset=rows(), callbacks=[MonitorCallback()])
    expected = (
        "callbacks: MonitorCallback learns of gradients from the trainers of hf_freeze; got another Trainer. "
        "FreezeTrainer, FreezeSeq2SeqTrainer and every class with FreezeMixin are such. Use one of them, or leave the "
        "callback out."
    )
    with pytest.raises(PlanError, match=f"^{re.escape(expected)}$"):
        trainer.train()


def test_no_number_of_steps_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        MonitorCallback(0)
    assert str(caught.value) == (
        "monitor.every: is not above 0; got 0. Number of steps above 0 from one measurement to the next; null: none is "
        "made."
    )


def test_where_gradients_are_elsewhere_this_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(FreezeTrainer, "gradients_are_local", False)
    with caplog.at_level(logging.WARNING, logger="hf_freeze.insight"):
        trainer = trained(tmp_path, 1)
    assert monitored(trainer) == []
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("hf_freeze.insight")]
    (message,) = messages
    assert message == (
        "Gradients, drift and updates are not measured: DeepSpeed and FSDP version 1 keep weights and gradients where "
        "a callback cannot read them. Advice rests on the losses alone."
    )
