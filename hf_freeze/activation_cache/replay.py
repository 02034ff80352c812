"""Runs the frozen prefix alone, and the rest of the model on stored outputs of the prefix.

For one forward call, the frozen entries of the stack's `ModuleList` are swapped for stand-ins that pass their input
through; the last one returns the stored hidden states. The model's own forward runs unchanged around them (masks,
rotary positions, embeddings), so no architecture needs code of its own. Swapping, unlike overriding `forward`, also
skips the hooks of the blocks. Shapes: `B` batch, `L` sequence, `H` hidden; hidden states have B first, whatever the
model does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from hf_freeze.activation_cache.keys import batch_size
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.plan.wrappers import canonical_tree, unwrap_model

# What stand-ins return beside the hidden states, where blocks return a tuple.
Extras = Literal["none", "first"]


class _PrefixDone(Exception):
    """Ends a forward pass once the prefix has run: not an error, so it is never seen outside."""


class _StandIn(nn.Module):
    """Stands in for a frozen block: passes its input, or stored hidden states, through.

    Args:
        block: The real block; attributes that the model reads (`layer.attention_type`) are read off it.
        extras: How many values the block returns behind the hidden states; None where it returns a tensor.
        hidden: The stored hidden states, in the model's own order of dimensions.
        carried: Where to keep the extras of the first block for those behind it.
        runs: Whether the real block runs for its extras.
    """

    def __init__(
        self,
        block: nn.Module,
        extras: int | None,
        hidden: torch.Tensor | None,
        carried: dict[str, tuple[Any, ...]],
        *,
        runs: bool,
    ) -> None:
        super().__init__()
        # Straight into the instance: a registered block would be found by `parameters()` and moved by `to()`.
        self.__dict__.update(block=block, extras=extras, hidden=hidden, carried=carried, runs=runs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the block would, with the stored or the given hidden states in front."""
        given = self.__dict__
        hidden = given["hidden"] if given["hidden"] is not None else _hidden_of(args, kwargs)
        if given["extras"] is None:
            return hidden
        if given["runs"]:
            with torch.no_grad():
                given["carried"]["extras"] = tuple(given["block"](*args, **kwargs)[1:])
        return (hidden, *given["carried"].get("extras", (None,) * given["extras"]))


def _hidden_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    hidden: torch.Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


class Replay:
    """The first stack of a model, with its frozen blocks swapped in and out.

    Args:
        model: The model that carries the plan, wrapped or not.
        plan: What is frozen; its depth is at least 1.
    """

    def __init__(self, model: nn.Module, plan: FreezePlan) -> None:
        self.model = unwrap_model(model)
        self.depth = plan.depth
        self.batch_axis = 0
        self.extras: Extras = "none"
        path = plan.layout.stacks[0].path
        self._list = next(node.inner for node in canonical_tree(model).walk() if node.path == path)
        # How many values each block of the prefix returns behind the hidden states; None where it returns a tensor.
        self._returns: list[int | None] = [None] * self.depth
        # An exception out of the forward pass leaves the root of an FSDP2 model in a state that it does not expect.
        self._may_stop = not isinstance(self.model, FSDPModule)

    def prefix(self, inputs: Mapping[str, Any], *, start: int = 0, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """Runs the frozen prefix alone, without gradients, and returns its output of shape (B, L, H).

        Args:
            inputs: The model's inputs, without labels.
            start: The number of blocks whose output is given.
            hidden: This output, of shape (B, L, H).
        """
        found: list[torch.Tensor] = []

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            found.append(output[0] if isinstance(output, tuple) else output)
            if self._may_stop:
                raise _PrefixDone

        handle = self._blocks()[self.depth - 1].register_forward_hook(keep)
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(torch.no_grad())
                if hidden is not None:
                    stack.enter_context(self.serve(hidden, depth=start))
                if not self._may_stop:
                    stack.enter_context(self._without_suffix())
                stack.enter_context(contextlib.suppress(_PrefixDone))
                self.model(**inputs)
        finally:
            handle.remove()
        return found[0].detach().movedim(self.batch_axis, 0)

    @contextlib.contextmanager
    def serve(self, hidden: torch.Tensor, *, depth: int | None = None) -> Iterator[None]:
        """Swaps frozen blocks for stand-ins, so that forward calls inside continue from `hidden`.

        Args:
            hidden: The output of the prefix, of shape (B, L, H).
            depth: The number of blocks that stand-ins replace; the whole prefix where left out.
        """
        depth = self.depth if depth is None else depth
        ordered = hidden.movedim(0, self.batch_axis)
        carried: dict[str, tuple[Any, ...]] = {}
        stand_ins = {
            index: _StandIn(
                block,
                self._returns[index],
                ordered if index == depth - 1 else None,
                carried,
                runs=self.extras == "first" and index == 0,
            )
            for index, block in enumerate(self._blocks()[:depth])
        }
        with self._swapped(stand_ins):
            yield

    def probe(self, inputs: Mapping[str, Any]) -> str | None:
        """Finds out how the blocks return and whether replay is exact; returns the reason where it is not.

        Runs the model a few times in eval mode; the mode is as before afterwards.

        Args:
            inputs: A batch of at least two rows, labels included.
        """
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                return self._probe(inputs)
        finally:
            self.model.train(training)

    def _probe(self, inputs: Mapping[str, Any]) -> str | None:
        expected = self._plain(inputs)
        axis = self._find_batch_axis(inputs)
        if axis is None:
            return "the hidden states of the model have no batch dimension"
        self.batch_axis = axis
        hidden = self.prefix(inputs)
        choices: tuple[Extras, ...] = ("none", "first") if any(self._returns) else ("none",)
        for extras in choices:
            self.extras = extras
            if self._is_exact(inputs, hidden, expected):
                return None
        return "the blocks of the model hand on more than hidden states, which would have to be computed anyway"

    def _plain(self, inputs: Mapping[str, Any]) -> list[torch.Tensor]:
        """Runs the model as it is, notes what each block of the prefix returns, and returns the outputs."""

        def note(index: int) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                self._returns[index] = len(output) - 1 if isinstance(output, tuple) else None

            return hook

        blocks = self._blocks()[: self.depth]
        handles = [block.register_forward_hook(note(index)) for index, block in enumerate(blocks)]
        try:
            return tensors_of(self.model(**inputs))
        finally:
            for handle in handles:
                handle.remove()

    def _is_exact(self, inputs: Mapping[str, Any], hidden: torch.Tensor, expected: Sequence[torch.Tensor]) -> bool:
        try:
            with self.serve(hidden):
                replayed = tensors_of(self.model(**inputs))
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            return False  # The model needs an extra that the stand-ins do not have.
        return len(replayed) == len(expected) and all(map(torch.equal, replayed, expected))

    def _find_batch_axis(self, inputs: Mapping[str, Any]) -> int | None:
        """Returns the dimension that shrinks when a row is left out."""
        size = batch_size(inputs)
        shapes = [self.prefix(select_rows(inputs, range(rows), size)).shape for rows in (size, size - 1)]
        shrunk = [axis for axis, (all_rows, fewer) in enumerate(zip(*shapes, strict=True)) if all_rows != fewer]
        return shrunk[0] if len(shrunk) == 1 and shapes[0][shrunk[0]] == size else None

    def _blocks(self) -> list[nn.Module]:
        return [module for module in self._list._modules.values() if module is not None]

    @contextlib.contextmanager
    def _swapped(self, stand_ins: Mapping[int, _StandIn]) -> Iterator[None]:
        names, blocks = list(self._list._modules), self._blocks()
        for index, stand_in in stand_ins.items():
            self._list._modules[names[index]] = stand_in
        try:
            yield
        finally:
            for index in stand_ins:
                self._list._modules[names[index]] = blocks[index]

    def _without_suffix(self) -> contextlib.AbstractContextManager[None]:
        """Lets hidden states pass through the blocks behind the prefix."""
        returns = self._returns[-1]
        behind = enumerate(self._blocks()[self.depth :], start=self.depth)
        return self._swapped({index: _StandIn(block, returns, None, {}, runs=False) for index, block in behind})


def select_rows(inputs: Mapping[str, Any], rows: Sequence[int], size: int) -> dict[str, Any]:
    """Returns the given rows of a batch; what is not per row stays as it is.

    Args:
        inputs: A batch.
        rows: Which rows.
        size: B, the number of rows of the batch.
    """
    chosen = list(rows)
    return {
        name: value[chosen] if isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == size else value
        for name, value in inputs.items()
    }


def tensors_of(outputs: Any) -> list[torch.Tensor]:
    """Returns the tensors of a model's output in order; key-value caches are left out.

    Args:
        outputs: A `ModelOutput`, a tuple or a tensor.
    """
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return [value for value in values if isinstance(value, torch.Tensor)]
