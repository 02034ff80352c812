"""FreezeTrainer trains what the plan says, and is `Trainer` to the bit where it says nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from transformers import (
    EarlyStoppingCallback,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)

from hf_freeze.errors import PlanError, PlanViolation
from hf_freeze.plan import freeze_model, plan_of
from hf_freeze.training import FreezeSeq2SeqTrainer, FreezeTrainer
from hf_freeze.training.callbacks import AuditCallback
from tests.tiny import tiny_bert, tiny_llama, tiny_t5
from tests.unit.training.runs import arguments, assert_followed, assert_same, logged, rows, state, values

DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
LORA = {"peft_type": "LORA", "target_modules": ["query", "value"], "r": 4}


class TestDropIn:
    """With an empty plan, losses and gradient norms are those of Trainer, to the bit."""

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"activation_checkpointing": True},
            {"bf16": True},
            {"optim": "adamw_torch"},
            {"optim": "adafactor"},
            {"lr_scheduler_type": "cosine", "warmup_steps": 2},
        ],
        ids=str,
    )
    def test_a_classifier(self, tmp_path: Path, options: dict[str, Any]) -> None:
        runs = []
        for trainer_class in (Trainer, FreezeTrainer):
            trainer = trainer_class(tiny_bert(**DROPOUT), arguments(tmp_path, **options), train_dataset=rows())
            trainer.train()
            runs.append((logged(trainer, "loss"), logged(trainer, "grad_norm"), state(trainer.model)))
        assert runs[0][:2] == runs[1][:2]
        assert len(runs[0][0]) == 4
        assert_same(runs[0][2], runs[1][2])

    def test_a_causal_language_model_under_accumulation(self, tmp_path: Path) -> None:
        options = {"gradient_accumulation_steps": 2}
        runs = []
        for trainer_class in (Trainer, FreezeTrainer):
            trainer = trainer_class(tiny_llama(), arguments(tmp_path, **options), train_dataset=rows(labels="words"))
            trainer.train()
            runs.append((logged(trainer, "loss"), logged(trainer, "grad_norm")))
        assert runs[0] == runs[1]

    def test_sequence_to_sequence(self, tmp_path: Path) -> None:
        options = arguments(tmp_path).to_dict()
        trainer = FreezeSeq2SeqTrainer(
            tiny_t5(),
            Seq2SeqTrainingArguments(**options),
            train_dataset=rows(labels="words"),
            freeze={"blocks": {"encoder": "all"}},
        )
        before = values(trainer.model)
        trainer.train()
        assert_followed(trainer.model, before)


class TestLossScale:
    """BERT ignores num_items_in_batch, so Trainer multiplies its loss by the number of micro-batches."""

    def run(
        self, trainer_class: type[Trainer], folder: Path, batch: int, steps: int
    ) -> tuple[list[float], list[float]]:
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "max_steps": 3}
        trainer = trainer_class(tiny_bert(), arguments(folder, **options), train_dataset=rows())
        trainer.train()
        return logged(trainer, "loss"), logged(trainer, "grad_norm")

    def test_accumulation_equals_one_large_batch(self, tmp_path: Path) -> None:
        whole = self.run(FreezeTrainer, tmp_path, 8, 1)
        accumulated = self.run(FreezeTrainer, tmp_path, 2, 4)
        np.testing.assert_allclose(accumulated, whole, rtol=0, atol=1e-5)

    def test_trainer_gives_four_times_as_much(self, tmp_path: Path) -> None:
        whole = self.run(Trainer, tmp_path, 8, 1)
        accumulated = self.run(Trainer, tmp_path, 2, 4)
        assert accumulated[0][0] == pytest.approx(4 * whole[0][0], rel=1e-3)

    def test_the_check_draws_no_random_numbers(self, tmp_path: Path) -> None:
        trainer = FreezeTrainer(tiny_bert(**DROPOUT), arguments(tmp_path), train_dataset=rows())
        batch = {key: torch.tensor(value) for key, value in rows(4)[:4].items()}
        before = torch.get_rng_state()
        trainer._share_of_items(trainer.model, batch, torch.tensor(4))
        assert torch.equal(torch.get_rng_state(), before)
        assert trainer._loss_responds is False

    def test_label_smoothing_keeps_the_scale_of_trainer(self, tmp_path: Path) -> None:
        runs = []
        for trainer_class in (Trainer, FreezeTrainer):
            options = {"label_smoothing_factor": 0.1, "gradient_accumulation_steps": 2}
            trainer = trainer_class(tiny_bert(), arguments(tmp_path, **options), train_dataset=rows())
            trainer.train()
            runs.append(logged(trainer, "loss"))
        assert runs[0] == runs[1]

    def test_evaluation_loss_is_the_mean_over_rows(self, tmp_path: Path) -> None:
        results = [
            trainer_class(tiny_bert(), arguments(tmp_path), eval_dataset=rows(20)).evaluate()["eval_loss"]
            for trainer_class in (Trainer, FreezeTrainer)
        ]
        assert results[0] == pytest.approx(results[1], abs=1e-6)


PLANS: dict[str, dict[str, Any]] = {
    "frozen": {"freeze": {"blocks": {"first": 2}}},
    "head only": {"freeze": {"blocks": "all"}},
    "bitfit": {"freeze": {"blocks": "all", "always_train": ["*.bias"]}},
    "lora": {"adapters": [LORA]},
    "lora on top": {"adapters": [{**LORA, "blocks": {"last": 1}}]},
    "mixed": {"freeze": {"blocks": {"first": 2}}, "adapters": [{**LORA, "blocks": {"indices": [2]}}]},
    "peft object": {"adapters": [peft.LoraConfig(r=4, target_modules=["query"])]},
    "keep dropout": {"freeze": {"blocks": {"first": 2}, "keep_dropout": True}},
}


@pytest.mark.parametrize("plan", PLANS)
def test_frozen_parameters_are_bit_equal_and_the_others_move(tmp_path: Path, plan: str) -> None:
    trainer = FreezeTrainer(tiny_bert(**DROPOUT), arguments(tmp_path), train_dataset=rows(), **PLANS[plan])
    before = values(trainer.model)
    trainer.train()
    assert_followed(trainer.model, before)


def test_model_init_makes_a_frozen_model_on_each_train(tmp_path: Path) -> None:
    trainer = FreezeTrainer(
        args=arguments(tmp_path), model_init=lambda: tiny_bert(), train_dataset=rows(), freeze={"blocks": {"first": 2}}
    )
    first = trainer.model
    for _ in range(2):
        trainer.train()
        assert trainer.model is not first
        assert trainer.plan.depth == 2
        assert [block.training for block in trainer.model.bert.encoder.layer] == [False, False, True, True]
        assert_followed(trainer.model, values(tiny_bert()))


def test_training_twice_goes_on(tmp_path: Path) -> None:
    trainer = FreezeTrainer(tiny_bert(), arguments(tmp_path), train_dataset=rows(), freeze={"blocks": {"first": 2}})
    trainer.train()
    before = values(trainer.model)
    trainer.train()
    assert_followed(trainer.model, before)


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def test_metrics_best_model_early_stopping_and_prediction(tmp_path: Path) -> None:
    trainer = FreezeTrainer(
        tiny_bert(),
        arguments(
            tmp_path,
            max_steps=12,
            learning_rate=5e-2,
            eval_strategy="steps",
            save_strategy="steps",
            eval_steps=2,
            save_steps=2,
            save_total_limit=1,
            load_best_model_at_end=True,
        ),
        train_dataset=rows(),
        eval_dataset=rows(20),
        compute_metrics=accuracy,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=1)],
        freeze={"blocks": {"first": 2}},
    )
    trainer.train()
    assert logged(trainer, "eval_accuracy")
    assert trainer.state.global_step < 12
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, abs=1e-6)
    prediction = trainer.predict(rows(20).remove_columns("labels"))
    assert prediction.predictions.shape == (20, 2)
    assert trainer.predict(rows(20)).metrics["test_accuracy"] == trainer.evaluate()["eval_accuracy"]


MULTIPLIERS = {"block_decay": 0.5, "embeddings": 0.1, "head": 2.0}


class TestLearningRates:
    def test_every_distinct_rate_is_logged(self, tmp_path: Path) -> None:
        trainer = FreezeTrainer(
            tiny_bert(),
            arguments(tmp_path, lr_scheduler_type="constant"),
            train_dataset=rows(),
            freeze={"blocks": {"first": 1}},
            lr_multipliers=MULTIPLIERS,
        )
        trainer.train()
        entry = trainer.state.log_history[0]
        rates = {key.removeprefix("learning_rate/"): rate for key, rate in entry.items() if "rate/" in key}
        assert entry["learning_rate"] == pytest.approx(1e-3)
        assert rates == pytest.approx({"blocks[1]": 0.125e-3, "blocks[2]": 0.25e-3, "blocks[3]": 0.5e-3, "head": 2e-3})

    def test_each_trained_parameter_is_in_one_group(self, tmp_path: Path) -> None:
        trainer = FreezeTrainer(tiny_bert(), arguments(tmp_path), lr_multipliers=MULTIPLIERS)
        groups = trainer.create_optimizer().param_groups
        held = [id(p) for group in groups for p in group["params"]]
        assert len(held) == len(set(held)) == len(list(trainer.model.parameters()))
        assert {group["weight_decay"] for group in groups} == {0.0, 0.1}
        decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
        names = trainer.get_decay_parameter_names(trainer.model)
        assert decayed == {id(p) for name, p in trainer.model.named_parameters() if name in names}

    def test_without_multipliers_the_groups_are_those_of_trainer(self, tmp_path: Path) -> None:
        trainer = FreezeTrainer(tiny_bert(), arguments(tmp_path), freeze={"blocks": {"first": 2}})
        groups = trainer.create_optimizer().param_groups
        assert len(groups) == 2
        assert sum(len(group["params"]) for group in groups) == len(trainer.plan.trainable_names)

    @pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "adafactor"])
    def test_multipliers_train(self, tmp_path: Path, optim: str) -> None:
        trainer = FreezeTrainer(
            tiny_bert(),
            arguments(tmp_path, optim=optim),
            train_dataset=rows(),
            freeze={"blocks": {"first": 1}},
            lr_multipliers=MULTIPLIERS,
        )
        before = values(trainer.model)
        trainer.train()
        assert_followed(trainer.model, before)


class TestOptimizersOfTheUser:
    def test_their_learning_rate_is_the_one_that_is_multiplied(self, tmp_path: Path) -> None:
        trainer = FreezeTrainer(
            tiny_bert(),
            arguments(tmp_path),
            lr_multipliers={"head": 2.0},
            optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.5}),
        )
        assert {group["name"]: group["lr"] for group in trainer.create_optimizer().param_groups}["head"] == 1.0

    def test_those_that_make_their_own_groups_take_no_multipliers(self, tmp_path: Path) -> None:
        model = tiny_bert()
        own = {"params": [{"params": list(model.parameters())}], "lr": 0.5}
        trainer = FreezeTrainer(
            model,
            arguments(tmp_path, optim="sgd"),
            lr_multipliers={"head": 2.0},
            optimizer_cls_and_kwargs=(torch.optim.SGD, own),
        )
        message = (
            "lr_multipliers: this optimizer makes its own parameter groups; got optim 'sgd'. AdamW, SGD and Adafactor "
            "take groups, for example. Choose one of them, or remove lr_multipliers."
        )
        with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
            trainer.create_optimizer()


class Thaws(TrainerCallback):
    """Sets requires_grad behind the plan's back."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["model"].bert.encoder.layer[0].requires_grad_(True)


class Freezes(TrainerCallback):
    """Freezes a block behind the plan's back."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["model"].bert.encoder.layer[3].requires_grad_(False)


class Writes(TrainerCallback):
    """Changes a frozen weight at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            kwargs["model"].bert.encoder.layer[0].output.dense.bias.data.add_(1)


class TrainsCopies:
    """A trainer on DeepSpeed, whose optimizer has flat copies of the parameters that train."""

    gradients_are_local = False
    is_deepspeed_enabled = True

    def __init__(self) -> None:
        self.model = freeze_model(tiny_bert(), {"blocks": {"first": 2}})
        self.plan = plan_of(self.model)
        trained = [parameter.detach().flatten() for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW([torch.cat(trained)])


class TestAudit:
    def violation(self, folder: Path, callback: TrainerCallback, message: str, **options: Any) -> None:
        trainer = FreezeTrainer(
            tiny_bert(), arguments(folder), train_dataset=rows(), freeze={"blocks": {"first": 2}}, **options
        )
        trainer.add_callback(callback)
        with pytest.raises(PlanViolation, match=f"^{re.escape(message)}$"):
            trainer.train()

    def test_a_frozen_parameter_with_a_gradient(self, tmp_path: Path) -> None:
        message = (
            "bert.encoder.layer.0.attention.self.query.weight: this parameter is frozen but has a gradient. blocks[0] "
            "is frozen in the plan. Look for code that sets requires_grad, and change the plan instead: "
            "apply_plan(model, plan)."
        )
        self.violation(tmp_path, Thaws(), message)

    def test_a_role_without_a_gradient(self, tmp_path: Path) -> None:
        message = (
            "blocks[3]: the plan trains this role but no gradient reached it. Gradients reached blocks[2], head. Look "
            "for torch.no_grad(), detach(), or code that sets requires_grad."
        )
        self.violation(tmp_path, Freezes(), message)

    @pytest.mark.parametrize("step", [0, 2])
    def test_a_frozen_parameter_that_moved(self, tmp_path: Path, step: int) -> None:
        message = (
            "bert.encoder.layer.0.output.dense.bias: a frozen parameter moved, and 0 others did. The plan freezes 37 "
            "parameters. Look for code that writes weights: a callback, an optimizer made by hand, weights loaded "
            "while training."
        )
        self.violation(tmp_path, Writes(step), message)

    def test_an_optimizer_that_lacks_a_parameter(self, tmp_path: Path) -> None:
        model = tiny_bert()
        optimizer = torch.optim.AdamW([model.classifier.weight])
        trainer = FreezeTrainer(
            model, arguments(tmp_path), train_dataset=rows(), freeze={"blocks": "all"}, optimizers=(optimizer, None)
        )
        message = (
            "bert.pooler.dense.weight: this parameter trains and must be in one group of the optimizer; got 0. The "
            "optimizer has 1 groups with 1 parameters. Make the optimizer after freeze_model, from the parameters "
            "that require a gradient."
        )
        with pytest.raises(PlanViolation, match=f"^{re.escape(message)}$"):
            trainer.train()

    def test_where_deepspeed_trains_copies_the_frozen_weights_are_compared_all_the_same(self, tmp_path: Path) -> None:
        trainer = TrainsCopies()
        audit, moments = AuditCallback(trainer), (arguments(tmp_path), TrainerState(), TrainerControl())
        audit.on_train_begin(*moments)
        audit.on_pre_optimizer_step(*moments)
        audit.on_optimizer_step(*moments)
        with torch.no_grad():
            trainer.model.bert.encoder.layer[0].output.dense.bias.add_(1)
        message = (
            "bert.encoder.layer.0.output.dense.bias: a frozen parameter moved, and 0 others did. The plan freezes 37 "
            "parameters. Look for code that writes weights: a callback, an optimizer made by hand, weights loaded "
            "while training."
        )
        with pytest.raises(PlanViolation, match=f"^{re.escape(message)}$"):
            audit.on_train_end(*moments)


@pytest.mark.parametrize(
    ("options", "keywords", "message"),
    [
        (
            {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
            {"freeze": {"blocks": {"first": 2}}},
            (
                "training.activation_checkpointing_kwargs.use_reentrant: reentrant checkpointing gives no gradient "
                "where its input needs none, as behind frozen embeddings; got True. Set it to false, which is the "
                "default."
            ),
        ),
        (
            {"neftune_noise_alpha": 5.0},
            {"freeze": {"blocks": {"first": 2}}},
            (
                "training.neftune_noise_alpha: frozen embeddings stay in eval mode, where NEFTune adds no noise; got "
                "5.0. Remove it, or set freeze.embeddings to 'full'."
            ),
        ),
        (
            {},
            {"peft_config": peft.LoraConfig(), "adapters": [LORA]},
            (
                "peft_config: adapters are given twice; got peft_config= beside adapters=. adapters= takes PEFT config "
                "objects. Move the object there."
            ),
        ),
        (
            {},
            {"optimizers": (object(), None), "lr_multipliers": {"head": 2.0}},
            (
                "lr_multipliers: an optimizer that is passed in has its own learning rates; got optimizers= beside "
                "lr_multipliers=. Leave one of them out."
            ),
        ),
    ],
)
def test_what_cannot_be_kept_is_refused(
    tmp_path: Path, options: dict[str, Any], keywords: dict[str, Any], message: str
) -> None:
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        FreezeTrainer(tiny_bert(), arguments(tmp_path, **options), **keywords)


def test_a_model_by_name_is_refused(tmp_path: Path) -> None:
    message = (
        "model: a plan needs the model itself; got 'google-bert/bert-base-uncased'. FreezeTrainer freezes the model "
        "before training. Load it with from_pretrained and pass it."
    )
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        FreezeTrainer("google-bert/bert-base-uncased", arguments(tmp_path))


def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = arguments(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = (
        "training.use_cpu: 2 processes were launched, but they do not synchronise; got a group of 1. There is no "
        "accelerator on this machine that they could use. Set use_cpu to true, or launch with ACCELERATE_USE_CPU=true."
    )
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        FreezeTrainer(tiny_bert(), settings)
