"""The plans between full training and training the head alone that `benchmarks/balance.py` compares, on MiniLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import (
    DataCollatorWithPadding,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainingArguments,
)

from benchmarks.contenders import Reviews, accuracy, freeze_by_hand
from hf_freeze import FreezeTrainer

DEPTH, NUM_BLOCKS = 4, 6
# Rows to train on and epochs whose learning rates are those of others, which cost less to tune.
TUNED_AT: Mapping[tuple[int, int], tuple[int, int]] = {(7500, 3): (2000, 5)}
LORA = {"peft_type": "LORA", "target_modules": "all-linear", "r": 16, "lora_alpha": 32}
LORA_ON_TOP = {**LORA, "blocks": {"last": NUM_BLOCKS - DEPTH}}


@dataclass(frozen=True)
class Plan:
    """One way to train.

    Attributes:
        name: In the record and in the tables.
        about: What trains, for the reader of the tables.
        num_trainable: How many parameters that is, of 22.7 million.
        learning_rates: What is tried.
        depth: How many blocks are frozen behind the embeddings; None: nothing is frozen by hand.
        sections: Those of a `FreezeTrainer`; None: a plain `Trainer`, and what `depth` says is frozen by hand.
        caches: Whether the outputs of the frozen prefix are read from the activation cache.
        keeps_dropout_of: The plan that is the same with the frozen prefix in eval mode.
    """

    name: str
    about: str
    num_trainable: int
    learning_rates: tuple[float, ...]
    depth: int | None = None
    sections: Mapping[str, Any] | None = field(default=None, hash=False)
    caches: bool = False
    keeps_dropout_of: str | None = None


FULL = Plan("full", "everything, plain `Trainer`", 22_713_986, (5e-5, 1e-4, 2e-4, 5e-4))
CACHED = Plan(
    "cached",
    "blocks 4-5 and the head; the prefix in eval mode, from the activation cache",
    3_697_538,
    (5e-4, 1e-3, 2e-3, 5e-3),
    DEPTH,
    {"freeze": {"blocks": {"first": DEPTH}}},
    caches=True,
)
FROZEN_LOOP = Plan(
    "frozen loop",
    "blocks 4-5 and the head; plain `Trainer` after `requires_grad_(False)`, so the prefix keeps its dropout",
    CACHED.num_trainable,
    CACHED.learning_rates,
    DEPTH,
    keeps_dropout_of=CACHED.name,
)
LORA_EVERYWHERE = Plan(
    "LoRA everywhere",
    "LoRA in all blocks, and the classifier",
    664_322,
    (5e-4, 1e-3, 2e-3, 5e-3),
    None,
    {"adapters": [LORA]},
)
LORA_TOP = Plan(
    "LoRA on top",
    "LoRA in blocks 4-5, and the classifier; from the activation cache",
    221_954,
    LORA_EVERYWHERE.learning_rates,
    DEPTH,
    {"adapters": [LORA_ON_TOP]},
    caches=True,
)
LORA_TOP_WITH_DROPOUT = Plan(
    "LoRA on top, dropout kept",
    "LoRA in blocks 4-5, and the classifier; `freeze.keep_dropout: true`",
    LORA_TOP.num_trainable,
    LORA_TOP.learning_rates,
    DEPTH,
    {
        # What adapters alone leave frozen: the pooler as well.
        "freeze": {
            "blocks": {"first": DEPTH},
            "head": "frozen",
            "always_train": ["*classifier.*"],
            "keep_dropout": True,
        },
        "adapters": [LORA_ON_TOP],
    },
    keeps_dropout_of=LORA_TOP.name,
)
HEAD_ONLY = Plan(
    "head only",
    "pooler and classifier; from the activation cache",
    148_610,
    (1e-3, 2e-3, 5e-3, 1e-2),
    NUM_BLOCKS,
    {"freeze": {"blocks": "all"}},
    caches=True,
)
HEAD_ONLY_WITH_DROPOUT = Plan(
    "head only, dropout kept",
    "pooler and classifier; plain `Trainer` after `requires_grad_(False)`",
    HEAD_ONLY.num_trainable,
    HEAD_ONLY.learning_rates,
    NUM_BLOCKS,
    keeps_dropout_of=HEAD_ONLY.name,
)
MAIN = (FULL, FROZEN_LOOP, CACHED, LORA_EVERYWHERE, LORA_TOP, HEAD_ONLY)
PLANS = {plan.name: plan for plan in (*MAIN, LORA_TOP_WITH_DROPOUT, HEAD_ONLY_WITH_DROPOUT)}


def make_trainer(plan: Plan, reviews: Reviews, args: TrainingArguments, *, cache: Path) -> Trainer:
    """Makes the trainer of a plan.

    Args:
        plan: How to train.
        reviews: The model, which is trained itself, and its rows.
        args: Those of the Trainer.
        cache: The folder of the activation cache.
    """
    trainer_class: type[Trainer] = Trainer
    options: dict[str, Any] = {}
    if plan.sections is not None:
        trainer_class = FreezeTrainer
        # Under a schedule there may be nothing to cache for a while, or no longer anything that pays.
        enabled = "auto" if "schedule" in plan.sections else True
        section = {"enabled": enabled, "dir": str(cache)} if plan.caches else {"enabled": False}
        options = {**plan.sections, "activation_cache": section}
    elif plan.depth is not None:
        freeze_by_hand(reviews.model, plan.depth)
    trainer = trainer_class(
        reviews.model,
        args,
        train_dataset=reviews.train,
        eval_dataset=reviews.validation,
        data_collator=DataCollatorWithPadding(reviews.tokenizer),
        compute_metrics=accuracy,
        **options,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer
