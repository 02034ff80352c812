"""The collator that adds the keys of its rows to a batch; it runs in dataloader workers and touches no store."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sized
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers.utils.generic import ModelOutput

from hf_freeze.activation_cache.keys import KEYS, batch_size, row_keys
from hf_freeze.activation_cache.padding import quick_padding


class KeyCollator:
    """Calls another collator and adds `KEYS`, of shape (B, 2 * KEY_SIZE), last to its batch.

    The batch's first tensor stays first, since accelerate reads the batch size off it. A batch that does not have one
    row for each row of the dataset gets no keys.

    Attributes:
        collate: The other collator.
        adds_keys: Whether keys are added.

    Args:
        collate: The collator that makes the batch: a mapping of tensors.
        unkeyed: Entries of the batch that do not count: labels, and inputs of a decoder.
    """

    def __init__(self, collate: Callable[[Any], Any], unkeyed: Collection[str] = ("labels",)) -> None:
        self.collate: Callable[[Any], Any] = collate.collate if isinstance(collate, KeyCollator) else collate
        self.unkeyed = frozenset(unkeyed)
        self.adds_keys = True
        self._quick = quick_padding(self.collate)

    def __call__(self, rows: Any) -> Any:
        """Returns the other collator's batch with the keys of its rows.

        Args:
            rows: What the dataset gave.
        """
        if not self.adds_keys:
            return self.collate(rows)
        batch = self._quick(rows)
        if not isinstance(batch, Mapping) or isinstance(batch, ModelOutput) or KEYS in batch:
            return batch  # Nothing can be taken out of a ModelOutput again.
        inputs = keyed_inputs(batch, self.unkeyed)
        if _is_tensorial(inputs) and isinstance(rows, Sized) and batch_size(inputs) == len(rows):
            batch[KEYS] = row_keys(inputs)  # type: ignore[index]
        return batch

    def __getattr__(self, name: str) -> Any:
        """Reads every other attribute off the collator inside: trainers look for its tokenizer."""
        if name.startswith("__") or name == "collate":
            raise AttributeError(name)
        return getattr(self.collate, name)


def with_keys(loader: DataLoader[Any], unkeyed: Collection[str]) -> DataLoader[Any]:
    """Returns a copy of a loader whose workers add the keys of their rows; the loader itself stays as it is.

    Args:
        loader: A loader, prepared by accelerate or not.
        unkeyed: Entries of a batch that do not count.
    """
    copied = copy.copy(loader)
    base = vars(copied).get("base_dataloader")
    if base is None:
        copied.collate_fn = KeyCollator(loader.collate_fn, unkeyed)
    else:  # Accelerate's loaders ask this one for their batches.
        vars(copied)["base_dataloader"] = with_keys(base, unkeyed)
    return copied


def keyed_inputs(batch: Mapping[str, Any], unkeyed: Collection[str]) -> dict[str, Any]:
    """Returns what of a batch the prefix reads.

    Args:
        batch: A collated batch.
        unkeyed: Names of labels, and of inputs of a decoder.
    """
    return {name: value for name, value in batch.items() if name != KEYS and name not in unkeyed}


def _is_tensorial(inputs: Mapping[str, Any]) -> bool:
    return any(isinstance(value, torch.Tensor) and value.ndim > 0 for value in inputs.values())
