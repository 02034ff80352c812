"""Counts how often the forward and the backward pass come through each block."""

from __future__ import annotations

from torch import nn


class Reached:
    """Watches the blocks of a stack; a forward pass that activation checkpointing repeats counts twice.

    Args:
        blocks: The stack.

    Attributes:
        forwards: By block, how often its first linear layer ran.
        backwards: By block, how often a gradient of its output was computed.
    """

    def __init__(self, blocks: nn.ModuleList) -> None:
        self.forwards = [0] * len(blocks)
        self.backwards = [0] * len(blocks)
        for index, block in enumerate(blocks):
            self._watch(index, block)

    def _watch(self, index: int, block: nn.Module) -> None:
        def count_forward(*_: object) -> None:
            self.forwards[index] += 1

        def count_backward(_: object) -> None:
            self.backwards[index] += 1

        def watch_output(module: nn.Module, args: object, output: object) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad:
                hidden.register_hook(count_backward)

        # Inside the block, because a checkpoint repeats what a block does, and not the call of the block itself.
        next(module for module in block.modules() if isinstance(module, nn.Linear)).register_forward_hook(count_forward)
        block.register_forward_hook(watch_output)
