"""Trained models of every kind in folders of their own, quick to make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from hf_freeze.training import FreezeTrainer
from tests.tiny import build, tiny_bert, tiny_gpt2, tiny_tokenizer
from tests.unit.training.runs import arguments, rows

FROZEN = {"blocks": {"first": 2}}
LORA = {"peft_type": "LORA", "target_modules": ["query", "value"], "r": 4}
MIXED = {"freeze": FROZEN, "adapters": ({**LORA, "blocks": {"indices": [2]}},)}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"freeze": FROZEN},
    "delta": {"freeze": FROZEN, "save": {"format": "delta"}},
    "adapters": {"adapters": (LORA,)},
    "mixed": MIXED,
}
IDS = torch.randint(5, 99, (3, 10), generator=torch.Generator().manual_seed(0))
WORDS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


@dataclass(frozen=True)
class Trained:
    """A model that was trained and saved.

    Attributes:
        base: The folder of its base model.
        folder: The folder that it was saved in.
        model: The model as it was in memory.
    """

    base: Path
    folder: Path
    model: nn.Module


def tiny_mixtral() -> PreTrainedModel:
    """A mixture of experts, whose weights are renamed and stacked when they are loaded."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    experts = {"num_key_value_heads": 2, "num_local_experts": 4, "vocab_size": 99, "pad_token_id": 0}
    return build(AutoModelForCausalLM, "mixtral", **sizes, **experts)


def encoder_of_bert(seed: int = 0) -> PreTrainedModel:
    """A BERT without a head: whoever classifies with it starts one anew."""
    encoder: PreTrainedModel = tiny_bert(seed=seed).base_model
    return encoder


def train(
    folder: Path,
    kind: str,
    *,
    make: Callable[[], PreTrainedModel] = encoder_of_bert,
    auto_class: Any = AutoModelForSequenceClassification,
    labels: str = "classes",
    load: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    **options: Any,
) -> Trained:
    """Trains a model from a base in a folder for two steps, and saves it.

    Args:
        folder: Where base and model go.
        kind: One of `KINDS`.
        make: What makes the base model.
        auto_class: What loads it.
        labels: As for `rows`.
        load: Further arguments of `from_pretrained`.
        training: Further training arguments.
        **options: Further arguments of `FreezeTrainer`.
    """
    base, output = folder / "base", folder / "out"
    make().save_pretrained(base)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = auto_class.from_pretrained(base, **(load or {}))
    args = arguments(output, **{"max_steps": 2, "learning_rate": 1e-2, **(training or {})})
    fixed = {"train_dataset": rows(labels=labels), "processing_class": tiny_tokenizer(["one two"])}
    trainer = FreezeTrainer(model, args, **{**fixed, **KINDS[kind], **options})
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    return Trained(base, output, trainer.model.eval())


def train_gpt2(folder: Path, kind: str, **options: Any) -> Trained:
    """Trains a language model whose head is tied."""
    return train(folder, kind, make=tiny_gpt2, auto_class=AutoModelForCausalLM, labels="words", **options)


def logits(model: nn.Module, batch: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    """The outputs of a model for a few words."""
    with torch.no_grad():
        output: torch.Tensor = model(**(batch or WORDS)).logits
    return output
