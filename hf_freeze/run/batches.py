"""Batches that stand for those of a run: a typical one and the longest one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from hf_freeze.run.planning import Prepared
from hf_freeze.run.settings import Lengths, Settings
from hf_freeze.tasks import LoadedModel, get_task

# Tokens of a row where no data says it.
_DEFAULT_LENGTH: Final = 128

Batch = Mapping[str, torch.Tensor]


def batches_of(made: Prepared, settings: Settings, lengths: Lengths | None) -> tuple[Batch, Batch]:
    """Returns a typical batch and the longest one.

    Args:
        made: The plan, and the rows.
        settings: The training section.
        lengths: How long the rows are; None where there are none, and ones of an assumed length stand for them.
    """
    if lengths is None or made.data is None or made.tokenizer is None:
        longest = getattr(made.base.config.get_text_config(), "max_position_embeddings", None) or _DEFAULT_LENGTH
        ids = torch.ones(settings.batch_size, min(_DEFAULT_LENGTH, longest), dtype=torch.long)
        batch = {"input_ids": ids, "attention_mask": ids, "labels": torch.zeros(len(ids), dtype=torch.long)}
        return batch, batch
    collate = get_task(made.request.model.task).data_collator(LoadedModel(made.base, made.tokenizer, ()))
    order = sorted(range(len(lengths.train)), key=lengths.train.__getitem__)
    typical = settings.padded_length(lengths.train)
    place = max(i for i, row in enumerate(order) if i == 0 or lengths.train[row] <= typical)
    columns = made.data.train

    def batch_up_to(place: int) -> Batch:
        rows = [columns[order[max(0, place - back)]] for back in range(settings.batch_size)]
        return {name: value for name, value in collate(rows).items() if isinstance(value, torch.Tensor)}

    return batch_up_to(place), batch_up_to(len(order) - 1)


def width(batch: Batch) -> int:
    """Returns the number of tokens of a row, padding included."""
    return next((value.shape[1] for value in batch.values() if value.ndim > 1), 1)
