"""What runs before the blocks is read from source; here it is compared with what is seen to run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from hf_freeze.plan.layout import ROLE_EMBEDDINGS, ROLE_HEAD, Layout, find_layout
from tests.unit.plan.architectures import ARCHITECTURES


def first_entries(model: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, int]:
    """Returns, for every module that a forward pass enters, when it first does."""
    turns: dict[str, int] = {}

    def note(name: str) -> None:
        turns.setdefault(name, len(turns))

    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: note(name))
    with torch.no_grad():
        model(**inputs)
    return turns


def outside_the_blocks(layout: Layout, turns: dict[str, int]) -> Iterator[tuple[str, str, bool]]:
    """Yields path and role of each module that was entered outside the blocks, and whether it was before them.

    "Before" is meant within the module's nearest straddler: a decoder's embeddings run after the encoder's blocks.
    """
    for role in (ROLE_EMBEDDINGS, ROLE_HEAD):
        for path in (path for path in layout.modules[role] if path in turns):
            parent = max((outer for outer in ("", *layout.straddlers) if is_inside(path, outer)), key=len)
            blocks = [block for stack in layout.stacks for block in stack.blocks if is_inside(block, parent)]
            yield path, role, turns[path] < min(turns[block] for block in blocks if block in turns)


def is_inside(path: str, outer: str) -> bool:
    return not outer or path.startswith(f"{outer}.")


def entered_blocks(layout: Layout, turns: dict[str, int]) -> list[list[int]]:
    # A stage of Funnel is a list, which is gone through and never entered itself.
    inner = {
        path: min((turn for name, turn in turns.items() if is_inside(name, path)), default=-1)
        for stack in layout.stacks
        for path in stack.blocks
    }
    return [[turns.get(path, inner[path]) for path in stack.blocks] for stack in layout.stacks]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_embeddings_are_entered_before_the_blocks_and_the_head_is_not(name: str) -> None:
    architecture = ARCHITECTURES[name]
    model = architecture.build()
    layout = find_layout(model)
    turns = first_entries(model, architecture.inputs())
    for stack, entered in zip(layout.stacks, entered_blocks(layout, turns), strict=True):
        turns.update(zip(stack.blocks, entered, strict=True))
        assert entered == sorted(entered), f"{stack.path} runs in the order of its blocks"
        assert -1 not in entered
    assert {path: role == ROLE_EMBEDDINGS for path, role, _ in outside_the_blocks(layout, turns)} == {
        path: before for path, _, before in outside_the_blocks(layout, turns)
    }
    starts = [turns[stack.blocks[0]] for stack in layout.stacks]
    assert starts == sorted(starts), "stacks are listed in the order in which they run"


def test_at_least_forty_architectures_are_observed() -> None:
    assert len(ARCHITECTURES) >= 40
