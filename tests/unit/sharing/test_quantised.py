"""A model with quantised weights loads as it was saved; what would round or compare them wrongly is refused or said."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification

from hf_freeze import load_model
from hf_freeze.errors import ConfigError, PlanError
from hf_freeze.sharing import classes, merged_model
from hf_freeze.sharing.export import export_model
from hf_freeze.sharing.verify import verify_model
from hf_freeze.training import FreezeTrainer
from tests.tiny import tiny_bert
from tests.unit.sharing.trained import KINDS, Trained, logits
from tests.unit.training.runs import arguments, rows

QUERY = "bert.encoder.layer.0.attention.self.query"


class Int8Linear(nn.Linear):
    """A linear layer of whole numbers and one scale."""

    def __init__(self, size: int) -> None:
        super().__init__(size, size)
        self.weight = nn.Parameter(torch.zeros(size, size, dtype=torch.int8), requires_grad=False)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns what the layer makes of hidden states of shape (B, L, H)."""
        return functional.linear(hidden, self.weight.to(hidden.dtype) * self.scale, self.bias)


class Int8Bert(BertForSequenceClassification):
    """A BERT whose first block asks with quantised queries."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert.encoder.layer[0].attention.self.query = Int8Linear(config.hidden_size)


def quantised_bert() -> Int8Bert:
    whole = tiny_bert()
    model = Int8Bert(whole.config)
    state = whole.state_dict()
    weight = state.pop(f"{QUERY}.weight")
    scale = weight.abs().max() / 127
    state |= {f"{QUERY}.weight": (weight / scale).round().to(torch.int8), f"{QUERY}.scale": scale}
    model.load_state_dict(state)
    return model


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classes.transformers, "Int8Bert", Int8Bert, raising=False)


def train(folder: Path, kind: str) -> Trained:
    quantised_bert().save_pretrained(folder / "base")
    model = Int8Bert.from_pretrained(folder / "base")
    assert model.get_parameter(f"{QUERY}.weight").dtype == torch.int8
    options: dict[str, Any] = {"train_dataset": rows(), **KINDS[kind]}
    trainer = FreezeTrainer(model, arguments(folder / "out", max_steps=2), **options)
    trainer.train()
    trainer.save_model()
    return Trained(folder / "base", folder / "out", trainer.model.eval())


@pytest.mark.parametrize("kind", ["plain", "delta"])
def test_frozen_quantised_weights_come_back_to_the_bit(tmp_path: Path, kind: str) -> None:
    trained = train(tmp_path, kind)
    loaded = load_model(trained.folder)
    assert loaded.get_parameter(f"{QUERY}.weight").dtype == torch.int8
    assert torch.equal(logits(loaded), logits(trained.model))
    assert verify_model(trained.folder).holds
    export_model(trained.folder, tmp_path / "exported", export_format="transformers")
    assert torch.equal(logits(load_model(tmp_path / "exported")), logits(trained.model))
    with pytest.raises(ConfigError) as caught:
        export_model(trained.folder, tmp_path / "half", export_format="transformers", dtype="bfloat16")
    assert str(caught.value) == (
        "dtype: quantised weights stay in the type that they are in; got 'bfloat16' for a Int8Bert whose "
        f"'{QUERY}.weight' is quantised. Leave dtype out."
    )
    assert not (tmp_path / "half").exists()


def test_adapters_load_on_a_quantised_base_and_are_not_merged_into_it(tmp_path: Path) -> None:
    trained = train(tmp_path, "adapters")
    assert torch.equal(logits(load_model(trained.folder)), logits(trained.model))
    with pytest.raises(PlanError) as caught:
        merged_model(trained.folder)
    assert str(caught.value) == (
        "PeftModel: adapters cannot be merged into quantised weights, which would round them "
        f"away; got '{QUERY}.weight' in int8. Keep the PEFT folder and load it with peft, or put the adapters on the "
        "unquantised base model and merge there."
    )
    other = quantised_bert()
    nn.init.normal_(other.bert.embeddings.word_embeddings.weight)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(PlanError, match="these adapters were trained on another base model"):
        load_model(trained.folder, base=tmp_path / "other")


def test_a_base_that_is_quantised_after_training_is_not_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_bert().save_pretrained(tmp_path / "base")
    model = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    folder = tmp_path / "out"
    FreezeTrainer(model, arguments(folder), activation_cache={"enabled": False}, **KINDS["adapters"]).save_model()
    record = json.loads((folder / "hf_freeze_plan.json").read_text())
    (folder / "hf_freeze_plan.json").write_text(json.dumps({**record, "model_class": "Int8Bert"}))
    quantised_bert().save_pretrained(tmp_path / "quantised")
    with caplog.at_level(logging.WARNING, logger="hf_freeze"):
        loaded = load_model(folder, base=tmp_path / "quantised")
    (message,) = caplog.messages
    assert message == (
        f"{folder}: the base model is loaded quantised, so it is not compared with the one that the adapters were "
        "trained on."
    )
    torch.testing.assert_close(logits(loaded), logits(model.eval()), rtol=0, atol=1e-3)
