"""Freezing the real MiniLM: what activation checkpointing repeats, and a Trainer that knows nothing of plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
)

from hf_freeze.plan import freeze_model
from tests.integration.reached import Reached
from tests.unit.training.runs import arguments, assert_followed, logged, values

TEXTS = [
    "A warm and funny film.",
    "The plot is thin and the jokes are old.",
    "I would gladly see it again.",
    "Two hours that nobody gives me back.",
]
LABELS = [1, 0, 1, 0]
FREEZE = {"blocks": {"first": 4}}
LORA = {"peft_type": "LORA", "target_modules": ["query", "value"], "blocks": {"last": 2}}


@pytest.fixture
def model(minilm_path: Path) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loaded: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(minilm_path, num_labels=2)
    return loaded


@pytest.fixture(scope="module")
def encoded(minilm_path: Path) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(minilm_path)
    return {**tokenizer(TEXTS, padding=True), "labels": LABELS}


@pytest.mark.parametrize(
    ("freeze", "adapters"),
    [(FREEZE, ()), (None, (LORA,)), (FREEZE, (LORA,))],
    ids=["frozen", "adapted", "frozen and adapted"],
)
def test_checkpointed_backward_and_recompute_reach_the_top_two_blocks_only(
    model: PreTrainedModel, encoded: dict[str, Any], freeze: dict[str, Any] | None, adapters: tuple[object, ...]
) -> None:
    blocks = model.get_submodule("bert.encoder.layer")
    assert isinstance(blocks, nn.ModuleList)
    planned = freeze_model(model, freeze, adapters)
    assert isinstance(model, PreTrainedModel)
    model.activation_checkpointing_enable()
    reached = Reached(blocks)
    planned.train()
    planned(**{name: torch.tensor(column) for name, column in encoded.items()}).loss.backward()
    assert reached.forwards == [1, 1, 1, 1, 2, 2]
    assert reached.backwards == [0, 0, 0, 0, 1, 1]
    trained = {name for name, parameter in planned.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, parameter in planned.named_parameters() if parameter.requires_grad}


class TestPlainTrainer:
    """`freeze_model` is all that another loop needs: the Trainer calls `model.train()` on every step."""

    @staticmethod
    def trainer(model: nn.Module, encoded: dict[str, Any], folder: Path) -> Trainer:
        args = arguments(folder, max_steps=2, per_device_train_batch_size=2)
        return Trainer(model, args, train_dataset=Dataset.from_dict(dict(encoded)))

    @pytest.mark.parametrize(
        ("freeze", "adapters"),
        [(FREEZE, ()), (None, (LORA,)), (FREEZE, (LORA,))],
        ids=["frozen", "adapted", "frozen and adapted"],
    )
    def test_what_trains_moves_and_nothing_else(
        self,
        model: PreTrainedModel,
        encoded: dict[str, Any],
        tmp_path: Path,
        freeze: dict[str, Any] | None,
        adapters: tuple[object, ...],
    ) -> None:
        planned = freeze_model(model, freeze, adapters)
        before = values(planned)
        trainer = self.trainer(planned, encoded, tmp_path)
        trainer.train()
        assert len(logged(trainer, "loss")) == 2
        assert_followed(planned, before)

    def test_frozen_blocks_are_in_eval_mode_on_every_step(
        self, model: PreTrainedModel, encoded: dict[str, Any], tmp_path: Path
    ) -> None:
        modes = Modes(model.get_submodule("bert"))
        trainer = self.trainer(freeze_model(model, FREEZE), encoded, tmp_path)
        trainer.add_callback(modes)
        trainer.train()
        assert modes.seen == [{"embeddings": {False}, "frozen": {False}, "trained": {True}}] * 2

    def test_without_a_plan_all_blocks_are_in_training_mode(
        self, model: PreTrainedModel, encoded: dict[str, Any], tmp_path: Path
    ) -> None:
        """The Trainer would switch the dropout of frozen blocks on, if nothing kept it off."""
        modes = Modes(model.get_submodule("bert"))
        trainer = self.trainer(model, encoded, tmp_path)
        trainer.add_callback(modes)
        trainer.train()
        assert modes.seen == [{"embeddings": {True}, "frozen": {True}, "trained": {True}}] * 2


class Modes(TrainerCallback):
    """Notes, between the backward pass and the step, in which modes the modules of MiniLM's parts are.

    Args:
        bert: The base model.
    """

    def __init__(self, bert: nn.Module) -> None:
        blocks = bert.get_submodule("encoder.layer")
        assert isinstance(blocks, nn.ModuleList)
        self.parts = {"embeddings": [bert.get_submodule("embeddings")], "frozen": blocks[:4], "trained": blocks[4:]}
        self.seen: list[dict[str, set[bool]]] = []

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Notes the modes."""
        self.seen.append(
            {
                name: {module.training for part in modules for module in part.modules()}
                for name, modules in self.parts.items()
            }
        )
