"""The ways to train the upper part of MiniLM that the benchmarks of the activation cache compare.

- `frozen loop`: a plain `Trainer` after `requires_grad_(False)` on the embeddings and the first k blocks, which is what
  one writes by hand.
- `full`: a plain `Trainer` that trains everything.
- `cached`: a `FreezeTrainer` that freezes the same blocks and reads their output from the activation cache.
- `oracle`: a hand-written loop over the blocks from k on, pooler and classifier, on the output of the blocks before,
  which is held in memory as one tensor per row, trimmed to the row's length. A step pads the rows of its batch to the
  longest (`pad_sequence`), makes the attention mask where any row is shorter, runs forward pass, loss and backward pass
  with dropout on, and updates with the same AdamW. There is no clipping, no scheduler, no logging, and the loss is
  never read: what PyTorch alone takes for this work.
- `oracle in Trainer`: the same modules and features in a plain `Trainer`, which shows what its loop adds to the oracle.
- `model in Trainer`: the same with the model's own forward pass around these modules, on padded features with their
  attention mask. What the activation cache takes beyond this is its own: fetching and padding rows, keys, reading.

Shapes: `B` batch, `L` sequence, `H` hidden, `l` length of a row.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.pacing import Gate
from hf_freeze import FreezeTrainer

FROZEN_LOOP, FULL, CACHED = "frozen loop", "full", "cached"
ORACLE, ORACLE_IN_TRAINER, MODEL_IN_TRAINER = "oracle", "oracle in Trainer", "model in Trainer"
LEARNING_RATE = 2e-4
WEIGHT_DECAY = 0.01
FEATURE_BATCH_SIZE = 64


@dataclass(frozen=True)
class Reviews:
    """MiniLM with a new head, and the reviews that it trains on.

    Attributes:
        model: Copied for every contender, so that all start alike.
        tokenizer: Of the model.
        train: Tokenized rows.
        validation: Tokenized rows; None where nothing is evaluated.
    """

    model: Any
    tokenizer: Any
    train: Dataset
    validation: Dataset | None = None


def training_arguments(folder: Path, *, batch_size: int, seed: int, **options: Any) -> TrainingArguments:
    """Returns the Trainer's defaults, without anything that writes or prints.

    Args:
        folder: Where a Trainer may write.
        batch_size: Rows per step, in evaluation as well.
        seed: Of the order of the rows and of dropout.
        options: What a benchmark sets besides; they override the rest.
    """
    given: dict[str, Any] = {
        "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": batch_size,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": seed,
    }
    return TrainingArguments(output_dir=str(folder), **(given | options))


def make_trainer(
    contender: str,
    reviews: Reviews,
    args: TrainingArguments,
    *,
    depth: int,
    cache: Path,
    callbacks: Sequence[TrainerCallback] = (),
) -> Trainer:
    """Makes the trainer of one contender, on a copy of the model.

    Args:
        contender: Any but the oracles.
        reviews: What it trains on.
        args: How it trains.
        depth: k, how many blocks are frozen.
        cache: The folder with the stores.
        callbacks: Given to the trainer.
    """
    model = copy.deepcopy(reviews.model)
    trainer_class: type[Trainer] = Trainer
    options: dict[str, Any] = {}
    if contender == FROZEN_LOOP:
        freeze_by_hand(model, depth)
    elif contender == CACHED:
        trainer_class = FreezeTrainer
        options["freeze"] = {"blocks": {"first": depth}}
        options["activation_cache"] = {"enabled": True, "dir": str(cache)}
    trainer = trainer_class(
        model,
        args,
        train_dataset=reviews.train,
        eval_dataset=reviews.validation,
        data_collator=DataCollatorWithPadding(reviews.tokenizer),
        compute_metrics=accuracy,
        callbacks=list(callbacks),
        **options,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def freeze_by_hand(model: Any, depth: int) -> None:
    """Does what users do without hf_freeze.

    Args:
        model: A BERT with a head.
        depth: k, how many blocks are frozen.
    """
    for module in (model.bert.embeddings, *model.bert.encoder.layer[:depth]):
        module.requires_grad_(False)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Returns the share of right answers.

    Args:
        prediction: Logits of shape (B, 2) and labels of shape (B).
    """
    logits, labels = prediction.predictions, prediction.label_ids
    return {"accuracy": float((torch.as_tensor(logits).argmax(-1) == torch.as_tensor(labels)).float().mean())}


def prefix_outputs(reviews: Reviews, *, depth: int) -> list[torch.Tensor]:
    """Computes what the first blocks make of every training row, in eval mode.

    Args:
        reviews: The model and the rows.
        depth: k, how many blocks.

    Returns:
        One tensor per row, of shape (l, H).
    """
    model, rows = reviews.model, reviews.train.remove_columns("labels")
    collate = DataCollatorWithPadding(reviews.tokenizer)
    was_training = model.training
    model.eval()
    outputs: list[torch.Tensor] = []
    with torch.no_grad():
        for start in range(0, len(rows), FEATURE_BATCH_SIZE):
            batch = collate([rows[index] for index in range(start, min(start + FEATURE_BATCH_SIZE, len(rows)))])
            hidden = model.bert(**batch, output_hidden_states=True).hidden_states[depth]
            lengths = batch["attention_mask"].sum(dim=1).tolist()
            outputs += [row[:length].clone() for row, length in zip(hidden, lengths, strict=True)]
    model.train(was_training)
    return outputs


class Suffix(nn.Module):
    """The blocks behind the prefix, pooler and classifier.

    Args:
        model: A BERT with a head; the suffix takes its modules.
        depth: k, how many blocks are left out.
    """

    def __init__(self, model: Any, depth: int) -> None:
        super().__init__()
        self.blocks = model.bert.encoder.layer[depth:]
        self.head = nn.Sequential(model.bert.pooler, model.dropout, model.classifier)

    def forward(
        self, hidden: torch.Tensor, mask: torch.Tensor | None = None, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Returns the logits of shape (B, 2), and the loss where there are labels.

        Args:
            hidden: The output of the prefix, of shape (B, L, H).
            mask: What a row may look at, of shape (B, 1, 1, L).
            labels: Of shape (B).
        """
        for block in self.blocks:
            hidden = block(hidden, mask)
        logits = self.head(hidden)
        return {"logits": logits} if labels is None else {"loss": cross_entropy(logits, labels), "logits": logits}


class PassOn(nn.Module):
    """Stands in for the embeddings and the blocks of the prefix: returns what they made."""

    def forward(self, inputs_embeds: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Returns its input.

        Args:
            inputs_embeds: The output of the prefix, of shape (B, L, H).
            kwargs: What embeddings are called with besides.
        """
        return inputs_embeds


def behind_prefix(model: Any, depth: int) -> Any:
    """Takes the prefix out of a model, which is called with `inputs_embeds` from then on.

    Args:
        model: A BERT with a head.
        depth: k, how many blocks are left out.
    """
    model.bert.embeddings = PassOn()
    model.bert.encoder.layer = model.bert.encoder.layer[depth:]
    return model


class Features:
    """The output of the prefix for every training row, held in memory: a dataset of row numbers, and its collator.

    Args:
        reviews: The model and the rows, whose order is kept.
        depth: k, how many blocks are in the prefix.
    """

    def __init__(self, reviews: Reviews, depth: int) -> None:
        self.outputs = prefix_outputs(reviews, depth=depth)
        self._labels = torch.tensor(reviews.train["labels"])
        self._needs_mask = depth < len(reviews.model.bert.encoder.layer)

    def __len__(self) -> int:
        return len(self.outputs)

    def __getitem__(self, row: int) -> int:
        return row

    def collate(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """Returns the batch of some rows, padded to the longest; the mask only where it changes something.

        Args:
            rows: Their numbers.
        """
        outputs = [self.outputs[row] for row in rows]
        batch = {"hidden": pad_sequence(outputs, batch_first=True), "labels": self._labels[rows]}
        lengths, width = [len(row) for row in outputs], batch["hidden"].shape[1]
        if self._needs_mask and min(lengths) < width:
            batch["mask"] = (torch.arange(width) < torch.tensor(lengths)[:, None])[:, None, None, :]
        return batch

    def collate_for_model(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """Returns the batch of some rows as a model is called with it: with the attention mask of shape (B, L).

        Args:
            rows: Their numbers.
        """
        outputs = [self.outputs[row] for row in rows]
        hidden = pad_sequence(outputs, batch_first=True)
        lengths = torch.tensor([len(row) for row in outputs])
        mask = (torch.arange(hidden.shape[1]) < lengths[:, None]).long()
        return {"inputs_embeds": hidden, "attention_mask": mask, "labels": self._labels[rows]}


class Oracle:
    """The hand-written loop.

    Args:
        reviews: The model.
        features: Of its rows.
        depth: k, how many blocks are left out.
        batch_size: Rows per step.
        num_steps: How many steps `run` takes.
        gate: What `run` pauses at before every step.
    """

    def __init__(
        self, reviews: Reviews, features: Features, *, depth: int, batch_size: int, num_steps: int, gate: Gate
    ) -> None:
        self._suffix = Suffix(copy.deepcopy(reviews.model), depth).train()
        self._features = features
        self._batch_size = batch_size
        self._num_steps = num_steps
        self._gate = gate
        self._optimizer = torch.optim.AdamW(
            self._suffix.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
        )

    def run(self) -> None:
        """Trains on one batch after the other."""
        for index in range(self._num_steps):
            self._gate.pause()
            self.step(index)

    def step(self, index: int) -> None:
        """Trains on one batch.

        Args:
            index: Which batch, in the order of the rows.
        """
        batch = self._features.collate(range(index * self._batch_size, (index + 1) * self._batch_size))
        torch.autograd.backward(self._suffix(**batch)["loss"])
        self._optimizer.step()
        self._optimizer.zero_grad()


def make_feature_trainer(
    contender: str,
    reviews: Reviews,
    features: Features,
    args: TrainingArguments,
    *,
    depth: int,
    callbacks: Sequence[TrainerCallback],
) -> Trainer:
    """Makes a plain Trainer of what lies behind the prefix, on features held in memory.

    Args:
        contender: `ORACLE_IN_TRAINER` or `MODEL_IN_TRAINER`.
        reviews: The model and the rows.
        features: Of its rows.
        args: How it trains.
        depth: k, how many blocks are left out.
        callbacks: Given to the trainer.
    """
    args.remove_unused_columns = False
    model = copy.deepcopy(reviews.model)
    is_bare = contender == ORACLE_IN_TRAINER
    trainer = Trainer(
        Suffix(model, depth) if is_bare else behind_prefix(model, depth),
        args,
        train_dataset=features,
        data_collator=features.collate if is_bare else features.collate_for_model,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def require_cache(trainer: Any) -> None:
    """Ends the program where a trainer that was timed as cached did not use its cache.

    Args:
        trainer: A FreezeTrainer after its training.
    """
    cache = trainer.activation_cache
    if not cache.is_on or not cache.stats.hits:
        sys.exit(f"The activation cache was not used: {cache.reason or 'no row was read from it'}.")
