"""Rows, loaders, models and loops that the tests of the activation cache share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, set_seed

from hf_freeze import ActivationCache, freeze_model
from tests.tiny import tiny_bert

Batch = dict[str, Any]
Serve = Callable[[Batch], contextlib.AbstractContextManager[Batch]]


def rows_of(count: int = 12, *, seed: int = 0, longest: int = 12) -> list[Batch]:
    """Returns rows of 3 to `longest` tokens, lists as a tokenizer makes them; the second is the longest."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, longest, (count,), generator=generator).tolist()
    lengths[1:2] = [longest]
    return [
        {
            "input_ids": torch.randint(5, 99, (length,), generator=generator).tolist(),
            "attention_mask": [1] * length,
            "labels": number % 2,
        }
        for number, length in enumerate(lengths)
    ]


def collate(rows: Sequence[Batch], *, width: int = 0, left: bool = False) -> Batch:
    """Pads rows to the longest, or to `width` where that is more."""
    width = max(width, *(len(row["input_ids"]) for row in rows))
    batch: Batch = {}
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        if name in rows[0]:
            padded = [[[0] * (width - len(row[name])), list(row[name])] for row in rows]
            batch[name] = torch.tensor([[*parts[not left], *parts[left]] for parts in padded])
    batch["labels"] = torch.tensor([row["labels"] for row in rows])
    return batch


def loader_of(rows: Any, batch_size: int = 4, **options: Any) -> DataLoader[Any]:
    return DataLoader(rows, batch_size=batch_size, **{"collate_fn": collate, **options})


def frozen_bert(depth: int = 2, **config: Any) -> PreTrainedModel:
    return freeze_model(tiny_bert(**config), {"blocks": {"first": depth}})


def cache_of(model: nn.Module, root: Path, **section: Any) -> ActivationCache:
    return ActivationCache(model, section={"dir": str(root), **section})


def evaluate(model: nn.Module, batches: Any, serve: Serve = contextlib.nullcontext) -> list[torch.Tensor]:
    """Returns the logits of each batch."""
    model.eval()
    found = []
    for batch in batches:
        with torch.no_grad(), serve(batch) as inputs:
            found.append(model(**inputs).logits)
    return found


def train(
    model: nn.Module,
    batches: Any,
    serve: Serve = contextlib.nullcontext,
    *,
    passes: int = 2,
    optimizer_class: type[torch.optim.Optimizer] = torch.optim.AdamW,
    learning_rate: float = 1e-2,
) -> list[float]:
    """Trains for a step on each batch, as a raw loop does, and returns the losses."""
    set_seed(0)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = optimizer_class(parameters, lr=learning_rate)  # type: ignore[call-arg]
    losses = []
    for _ in range(passes):
        for batch in batches:
            model.train()
            with serve(batch) as inputs:
                loss = model(**inputs).loss
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


def hits_and_misses(cache: ActivationCache, batches: Any) -> tuple[int, int]:
    """Evaluates the batches, and returns how many rows were read and how many computed for it; closes the store."""
    hits, misses = cache.stats.hits, cache.stats.misses
    evaluate(cache.model, batches, cache.serve)
    cache.close()
    return cache.stats.hits - hits, cache.stats.misses - misses
