"""What a selection comes to in a stack of a known number of blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hf_freeze.config import Selection
from hf_freeze.errors import PlanError


def select_blocks(selection: Selection, num_blocks: int, *, key: str, where: str) -> tuple[int, ...]:
    """Returns the sorted indices of the selected blocks.

    A fraction counts from the input and is rounded to whole blocks, halves down: half of five blocks are two.

    >>> select_blocks(Selection("fraction", 0.5), 5, key="freeze.blocks", where="bert.encoder.layer")
    (0, 1)

    Args:
        selection: Which blocks.
        num_blocks: How many there are.
        key: The dotted key of the selection, for messages.
        where: The path of the stack, for messages.

    Raises:
        PlanError: If it selects a block that does not exist, the same block twice, or a fraction that comes to none.
    """
    blocks = range(num_blocks)
    value = selection.value
    if selection.kind == "all":
        return tuple(blocks)
    if isinstance(value, tuple):
        return _numbered(value, num_blocks, key=key, where=where)
    if selection.kind == "fraction" and value is not None:
        return tuple(blocks[: _share(value, num_blocks, key=key, where=where)])
    if selection.kind in ("first", "last") and isinstance(value, int):
        if value > num_blocks:
            raise PlanError(
                f"{key}: cannot select the {selection.kind} {value} blocks; {where} has {num_blocks}. "
                f"Select at most {num_blocks}."
            )
        return tuple(blocks[:value] if selection.kind == "first" else blocks[num_blocks - value :])
    return ()


def _share(fraction: float, num_blocks: int, *, key: str, where: str) -> int:
    # Nine digits take away what floating point adds: 0.29 * 100 is 28.999999999999996.
    count = math.ceil(round(fraction * num_blocks, 9) - 0.5)
    if count == 0 and fraction > 0:
        raise PlanError(
            f"{key}: a fraction of {fraction:g} comes to no block; {where} has {num_blocks}. "
            f"Select {{first: 1}} or a fraction of {1 / num_blocks:.2g} or more, or write none."
        )
    return count


def _numbered(indices: Sequence[int], num_blocks: int, *, key: str, where: str) -> tuple[int, ...]:
    absent = sorted(index for index in indices if not -num_blocks <= index < num_blocks)
    if absent:
        numbers = ", ".join(map(str, absent))
        raise PlanError(
            f"{key}: cannot select block{'s' if len(absent) > 1 else ''} {numbers}; {where} has {num_blocks}. "
            f"Blocks are numbered 0 to {num_blocks - 1} from the input, and -1 to -{num_blocks} from the output."
        )
    selected = sorted(index % num_blocks for index in indices)
    twice = sorted({index for index in selected if selected.count(index) > 1})
    if twice:
        raise PlanError(
            f"{key}: block{'s' if len(twice) > 1 else ''} {', '.join(map(str, twice))} selected twice; "
            f"got {list(indices)!r}. {where} has {num_blocks}, and negative numbers count from the output. "
            "Name each block once."
        )
    return tuple(selected)
