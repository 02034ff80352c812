"""The collator that adds the keys of its rows to a batch; it runs in dataloader workers and touches no store."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from hf_freeze.activation_cache.keys import KEYS, row_keys


class KeyCollator:
    """Calls another collator and adds `KEYS`, of shape (B, 2 * KEY_SIZE), last to its batch.

    The batch's first tensor stays first, since accelerate reads the batch size off it.

    Args:
        collate: The collator that makes the batch: a mapping of tensors.
        label_names: Entries of the batch that are labels and do not count.
    """

    def __init__(self, collate: Callable[[Any], Any], label_names: Collection[str] = ("labels",)) -> None:
        self.collate = collate
        self.label_names = frozenset(label_names)

    def __call__(self, rows: Any) -> Any:
        """Returns the other collator's batch with the keys of its rows.

        Args:
            rows: What the dataset gave.
        """
        batch = self.collate(rows)
        batch[KEYS] = row_keys({name: value for name, value in batch.items() if name not in self.label_names})
        return batch

    def __getattr__(self, name: str) -> Any:
        """Reads every other attribute off the collator inside: trainers look for its tokenizer."""
        if name.startswith("__") or name == "collate":
            raise AttributeError(name)
        return getattr(self.collate, name)
