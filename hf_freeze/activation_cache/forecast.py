"""What the cache would hold for a plan and its data, told before any weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hf_freeze.activation_cache.checks import prefix_end, reason_of_plan
from hf_freeze.activation_cache.records import STORED_DTYPES, dtype_name
from hf_freeze.activation_cache.store import size_in_file
from hf_freeze.config import ActivationCacheConfig
from hf_freeze.config.sizes import spell_size
from hf_freeze.plan.resolve import FreezePlan


def forecast_depth(plan: FreezePlan, section: ActivationCacheConfig) -> str | None:
    """Returns a sentence about the depth of the cache and what ends the frozen prefix, or None where there is none.

    Args:
        plan: What is frozen.
        section: The `activation_cache` section.
    """
    if section.enabled is False or not plan.frozen_names:
        return None
    if (reason := reason_of_plan(plan)) is not None:
        return f"The activation cache has nothing to hold: {reason}."
    blocks = "block" if plan.depth == 1 else "blocks"
    return (
        f"The activation cache holds the output of the embeddings and {plan.depth} {blocks}; "
        f"the frozen prefix ends at {prefix_end(plan)}."
    )


@dataclass(frozen=True)
class CacheSize:
    """What the cache would hold.

    Attributes:
        num_rows: Rows.
        num_tokens: Their tokens, padding left out.
        num_bytes: Bytes on the disk.
        dtype: What is stored.
        is_padded: Whether rows differ in length, so that batches pad them.
    """

    num_rows: int
    num_tokens: int
    num_bytes: int
    dtype: torch.dtype
    is_padded: bool

    @property
    def sentence(self) -> str:
        """The size for a reader."""
        rows_and_tokens = f"{self.num_rows:,} rows of {self.num_tokens:,} tokens"
        size = f"{spell_size(self.num_bytes)} of the disk, as {dtype_name(self.dtype)}"
        # What padding does to real tokens takes weights to tell.
        unless = ", unless padding changes real tokens" if self.is_padded else ""
        return f"For {rows_and_tokens} it takes about {size}{unless}."


def forecast_size(
    lengths: Sequence[int], section: ActivationCacheConfig, *, hidden_size: int, dtype: torch.dtype
) -> CacheSize:
    """Returns how much of the disk the cache takes for rows, each of which is stored without padding.

    Args:
        lengths: How long the rows are, in tokens.
        section: The `activation_cache` section.
        hidden_size: H.
        dtype: What the model computes in; it is stored where the section names no other.
    """
    stored = STORED_DTYPES.get(section.dtype, dtype)
    size = sum(size_in_file(length * hidden_size * stored.itemsize) for length in lengths)
    return CacheSize(len(lengths), sum(lengths), size, stored, is_padded=min(lengths) < max(lengths))
