"""Computes and stores the rows of a dataset before training, in batches of rows of equal length, which need no padding.

Shapes: `B` batch, `L` sequence length of the batch, padding included.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from tqdm.auto import tqdm

from hf_freeze.activation_cache.keys import KEYS
from hf_freeze.activation_cache.outputs import PrefixOutputs
from hf_freeze.activation_cache.processes import rank_and_world
from hf_freeze.activation_cache.rows import Amount, Rows, Survey, expected_maximum, kept_random_state

# Rows in one batch at least: smaller ones leave the processor idle.
_MIN_BATCH_SIZE = 32
# Bytes that are put at once: a transaction has to reach the disk before the next one begins.
_BYTES_AT_ONCE = 16 << 20
# What storing a row costs, as a share of computing it: before training, or in the small batch that needs it.
_STORING_BEFORE, _STORING_AS_MET = 0.1, 0.5
# What the progress bar says.
_TITLE = "Building the activation cache"


def survey(outputs: PrefixOutputs, rows: Rows) -> Survey:
    """Looks at a sample of the rows, and returns what it says about all.

    Args:
        outputs: The outputs of the prefix.
        rows: The rows.
    """
    num_stored = 0
    positions: list[int] = []
    widths: list[int] = []
    with kept_random_state():
        batches, fetch_seconds = rows.sample()
    for batch in batches:
        keyed = rows.keyed(batch)
        num_stored += sum(outputs.store.has(outputs.names(keyed, batch.get(KEYS))))
        positions += outputs.num_positions(keyed)
        mask = keyed.get("attention_mask")
        widths.append(mask.shape[1] if mask is not None and mask.ndim == 2 else positions[-1])
    padded = float(max(widths)) if len(set(widths)) == 1 else expected_maximum(widths, rows.batch_size)
    mean = sum(positions) / len(positions)
    return Survey(
        rows=rows,
        num_rows=len(rows),
        stored_share=num_stored / len(batches),
        row_bytes=sum(outputs.stored_bytes(count) for count in positions) / len(positions),
        positions=mean,
        padded_positions=padded if outputs.trims else mean,
        fetch_seconds=fetch_seconds,
    )


def reason_of_cost(amounts: Sequence[tuple[Amount, float]], position_seconds: float) -> str | None:
    """Returns why it takes longer to compute the rows once and store them than to compute them in every pass, or None.

    Args:
        amounts: What is known about the rows of each dataset, and how often training passes over them.
        position_seconds: How long the prefix takes for a position.
    """
    without = sum(passes * found.num_rows * found.padded_positions * position_seconds for found, passes in amounts)
    if without > sum(_storing_seconds(found, passes, position_seconds) for found, passes in amounts):
        return None
    quick = [(replace(found, fetch_seconds=0.0), passes) for found, passes in amounts]
    if without > sum(_storing_seconds(found, passes, position_seconds) for found, passes in quick):
        return "each row is needed once, and fetching it once more would take longer than it saves"
    return "each row is needed once, and there is no padding to save: storing would take longer than it saves"


def is_quicker_before(found: Amount, position_seconds: float) -> bool:
    """Returns whether rows are computed and stored more quickly before training than when training meets them.

    Args:
        found: What is known about the rows.
        position_seconds: How long the prefix takes for a position.
    """
    before, as_met = _seconds_a_row(found, position_seconds)
    return before < as_met


def _storing_seconds(found: Amount, passes: float, position_seconds: float) -> float:
    """Returns how long it takes to compute and store what is missing of the rows and met in some passes."""
    before, as_met = _seconds_a_row(found, position_seconds)
    # Rows that training does not get through are not built: those that it meets are computed as they come.
    return found.num_missing * (min(before, as_met) if passes >= 1 else passes * as_met)


def _seconds_a_row(found: Amount, position_seconds: float) -> tuple[float, float]:
    """Returns how long a row takes to be computed and stored: before training, fetched for it, or when it is met."""
    before = (1 + _STORING_BEFORE) * found.positions * position_seconds + found.fetch_seconds
    return before, (1 + _STORING_AS_MET) * found.padded_positions * position_seconds


def build(outputs: PrefixOutputs, rows: Rows, *, show_progress: bool) -> None:
    """Computes and stores what is missing of the rows; each process takes its share.

    Args:
        outputs: The outputs of the prefix.
        rows: The rows.
        show_progress: Whether there is a progress bar.
    """
    rank, world = rank_and_world()
    with kept_random_state():
        order = rows.by_length()
    # All processes get equally many batches, since they may have to run the prefix together; a last row may come twice.
    share = [order[min(rank + world * step, len(order) - 1)] for step in range(-(-len(order) // world))]
    start = time.perf_counter()
    with (
        kept_random_state(),
        tqdm(total=len(share), desc=_TITLE, unit=" rows", disable=not show_progress or rank > 0) as bar,
    ):
        _build(outputs, rows, share, bar)
    outputs.store.close()  # Opened anew, the store looks at how large it is by now.
    outputs.stats.build_seconds += time.perf_counter() - start


def _build(outputs: PrefixOutputs, rows: Rows, order: Sequence[int], bar: tqdm[None]) -> None:
    start = time.perf_counter()
    device = next(outputs.replay.model.parameters()).device
    pending: list[tuple[bytes, torch.Tensor]] = []
    pending_bytes = num_positions = 0
    for batch in rows.batches(order, max(_MIN_BATCH_SIZE, rows.batch_size)):
        keyed = rows.keyed(batch)
        names = outputs.names(keyed, batch.pop(KEYS, None))
        batch = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
        fresh = outputs.missing(batch, keyed, names)
        pending += fresh
        pending_bytes += sum(value.nbytes for _, value in fresh)
        if pending_bytes >= _BYTES_AT_ONCE:
            outputs.stats.built += outputs.put(pending)
            pending, pending_bytes = [], 0
        num_positions += sum(outputs.num_positions(keyed))
        rate = num_positions / (time.perf_counter() - start)
        bar.set_postfix_str(f"{rate:,.0f} tokens/s, {outputs.store.num_bytes / 1e6:,.0f} MB", refresh=False)
        bar.update(len(names))
        if not outputs.store.writable and not outputs.runs_on_all:
            break
    outputs.stats.built += outputs.put(pending)
