"""What the cache would hold for a plan and its data, told before any weights are read."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from datasets import Dataset

from hf_freeze.activation_cache.checks import prefix_end, reason_of_plan
from hf_freeze.activation_cache.records import STORED_DTYPES, dtype_name
from hf_freeze.activation_cache.rows import token_lengths
from hf_freeze.activation_cache.store import size_in_file
from hf_freeze.config import ActivationCacheConfig
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


def forecast_size(
    splits: Iterable[Dataset | None], section: ActivationCacheConfig, *, hidden_size: int, dtype: torch.dtype
) -> str | None:
    """Returns a sentence about the size of the cache on disk, or None where rows have no tokens.

    Args:
        splits: Tokenised rows that training and evaluation will use; each is stored without padding.
        section: The `activation_cache` section.
        hidden_size: H.
        dtype: What the model computes in; it is stored where the section names no other.
    """
    stored = STORED_DTYPES.get(section.dtype, dtype)
    lengths = [length for rows in splits if rows is not None for length in token_lengths(rows) or ()]
    if not lengths:
        return None
    size = sum(size_in_file(length * hidden_size * stored.itemsize) for length in lengths)
    rows_and_tokens = f"{len(lengths):,} rows of {sum(lengths):,} tokens"
    return f"For {rows_and_tokens} it takes about {size / 1e6:,.0f} MB of the disk, as {dtype_name(stored)}."
