"""Runs the frozen prefix alone, and the rest of the model on stored outputs of the prefix.

For one forward call, the frozen entries of the stack's `ModuleList` are swapped for stand-ins that pass their input
through; the last one returns the stored hidden states. The model's own forward runs unchanged around them (masks,
rotary positions, embeddings), so no architecture needs code of its own. Swapping, unlike overriding `forward`, also
skips the hooks of the blocks. The embeddings are swapped too where nothing but the blocks reads them. Shapes: `B`
batch, `L` sequence, `H` hidden; hidden states have B first, whatever the model does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from hf_freeze.activation_cache.keys import attention_implementations, batch_size, product_precision
from hf_freeze.activation_cache.stand_ins import EmbeddingStandIn, Guard, Place, StandIn, Swap, autocast_of
from hf_freeze.errors import CacheError
from hf_freeze.plan.places import ROLE_EMBEDDINGS
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.plan.wrappers import canonical_tree, unwrap_model

# What stand-ins return beside the hidden states, where blocks return a tuple.
Extras = Literal["none", "first"]
# A library may round otherwise while it is set up, in the first call of a process: random numbers differ each time.
_ATTEMPTS = 3
_RANDOM = "the model draws random numbers each time it is called, in eval mode too"
# What a model raises where it misses an extra that the stand-ins do not have.
MISSES_EXTRAS = (AttributeError, CacheError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


class _PrefixDone(Exception):
    """Ends a forward pass once the prefix has run: not an error, so it is never seen outside."""


class _NotReplayable(Exception):
    """The model uses its blocks in a way that cannot be replayed; the message is the reason."""


class ModulesReplaced(CacheError):
    """A call of the model replaced modules in it; it has those back that it had, and the message is the reason."""


class Replay:
    """The first stack of a model, with its frozen blocks swapped in and out.

    Attributes:
        depth: The number of blocks in the prefix.
        batch_axis: Which dimension of the hidden states is `B`, in the model's own order.
        extras: What stand-ins return beside the hidden states.
        precision: The autocast dtype that the prefix runs under, or "none".

    Args:
        model: The model that carries the plan, wrapped or not.
        plan: What is frozen; its depth is at least 1.
        unkeyed: Names of inputs that the prefix does not read: labels, and inputs of a decoder.
    """

    def __init__(self, model: nn.Module, plan: FreezePlan, unkeyed: Collection[str] = ("labels",)) -> None:
        self.model = unwrap_model(model)
        self.depth = plan.depth
        self._unkeyed = frozenset(unkeyed)
        self.batch_axis = 0
        self.extras: Extras = "none"
        self.precision = "none"
        tree = canonical_tree(model)
        nodes = {node.path: node for node in tree.walk()}
        inside = (module for module in tree.inner.modules() if isinstance(module, PreTrainedModel))
        self._models = [tree.inner, *(module for module in inside if module is not tree.inner)]
        self._list = nodes[plan.layout.stacks[0].path].inner
        self._embeddings = _places(self.model, [nodes[p].outer for p in plan.layout.modules.get(ROLE_EMBEDDINGS, ())])
        # How many values each block of the prefix returns behind the hidden states; None where it returns a tensor.
        self._returns: list[int | None] = [None] * self.depth
        # An exception out of the forward pass leaves the root of an FSDP2 model in a state that it does not expect.
        self._may_stop = not isinstance(self.model, FSDPModule)

    @property
    def mode(self) -> tuple[str, ...]:
        """Autocast around the model, attention implementations, and the precision of products, as they are now."""
        device = next(self.model.parameters()).device
        return autocast_of(device.type), *attention_implementations(self._models), product_precision()

    def prefix(
        self,
        inputs: Mapping[str, Any],
        *,
        start: int = 0,
        hidden: torch.Tensor | None = None,
        end: int | None = None,
        as_it_trains: bool = False,
    ) -> torch.Tensor:
        """Runs the frozen prefix alone, in eval mode and without gradients, and returns its output of shape (B, L, H).

        Args:
            inputs: The model's inputs.
            start: The number of blocks whose output is given.
            hidden: This output, of shape (B, L, H).
            end: The number of blocks whose output is returned; all those of the prefix where it is left out.
            as_it_trains: Whether to leave modes and gradients as they are instead.

        Raises:
            ModulesReplaced: The model is no longer what it was before the call.
        """
        found: list[torch.Tensor] = []

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            found.append(_first(output))
            if self._may_stop:
                raise _PrefixDone

        handle = self._blocks()[(self.depth if end is None else end) - 1].register_forward_hook(keep)
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(_kept_modules(self.model))
                if not as_it_trains:
                    stack.enter_context(torch.no_grad())
                    stack.enter_context(in_mode(self.model, training=False))
                if hidden is not None:
                    stack.enter_context(self._swap(hidden, start)[0])
                if not self._may_stop:
                    stack.enter_context(self._without_suffix())
                stack.enter_context(contextlib.suppress(_PrefixDone))
                self.model(**inputs)
        finally:
            handle.remove()
        return found[0].movedim(self.batch_axis, 0)

    @contextlib.contextmanager
    def serve(self, hidden: torch.Tensor, inputs: Mapping[str, Any]) -> Iterator[Guard]:
        """Swaps frozen blocks for stand-ins, so that forward calls inside continue from `hidden`; yields their guard.

        Calls that it does not answer run in full: with other inputs, from a key-value cache, or asking for hidden
        states, attentions or router logits.

        Args:
            hidden: The output of the prefix, of shape (B, L, H).
            inputs: What it belongs to, labels excluded.

        Raises:
            CacheError: A call went past the frozen blocks.
        """
        swap, last = self._swap(hidden, self.depth)
        guard = Guard(self._models, inputs, self._unkeyed)
        with swap, guard.watching(swap, last):
            yield guard

    def probe(self, inputs: Mapping[str, Any], *, label_names: Collection[str] = ("labels",)) -> str | None:
        """Finds out how the blocks return and whether replay is exact; returns the reason where it is not.

        Runs the model a few times in eval mode; the modes are as before afterwards.

        Args:
            inputs: A batch of at least two rows, labels included.
            label_names: The names of its labels.

        Raises:
            ModulesReplaced: The model is no longer what it was before the calls.
        """
        embeddings = self._embeddings
        with _kept_modules(self.model):
            for _ in range(_ATTEMPTS):
                self._embeddings = embeddings
                if (reason := self._probe(inputs, label_names)) != _RANDOM:
                    break
        return reason

    def _probe(self, inputs: Mapping[str, Any], label_names: Collection[str]) -> str | None:
        keyed = {name: value for name, value in inputs.items() if name not in label_names}
        with torch.no_grad(), in_mode(self.model, training=False):
            try:
                expected, whole = self._plain(inputs)
            except _NotReplayable as error:
                return str(error)
            axis = self._find_batch_axis(inputs)
            if axis is None:
                return "the hidden states of the model have no batch dimension"
            self.batch_axis = axis
            hidden = self.prefix(inputs)
            embeddings = [place for place in self._embeddings if whole.get(place) == (hidden.shape, hidden.dtype)]
            choices: tuple[tuple[list[Place], Extras], ...] = ((embeddings, "none"), ([], "none"), ([], "first"))
            if self.depth == 1:
                choices = choices[:2]  # The first block would be all that there is to save.
            for self._embeddings, self.extras in choices:
                if self._is_exact(inputs, keyed, hidden.clone(), expected):
                    return None
            if not all(map(torch.equal, self._plain(inputs)[0], expected)):
                return _RANDOM
        return "the model reads more of its frozen blocks than their hidden states"

    def _plain(
        self, inputs: Mapping[str, Any]
    ) -> tuple[list[torch.Tensor], dict[Place, tuple[torch.Size, torch.dtype] | None]]:
        """Runs the model as it is, and notes what the blocks of the prefix and the embeddings return.

        Args:
            inputs: A batch.

        Returns:
            The outputs, and shape and dtype of what those embeddings return that run once and return a tensor.
        """
        embedded: dict[Place, tuple[torch.Size, torch.dtype] | None] = {}
        called: set[int] = set()

        def note(index: int) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                self._returns[index] = len(output) - 1 if isinstance(output, tuple | list) else None
                self.precision = autocast_of(_first(output).device.type)
                called.add(index)

            return hook

        def note_embeddings(place: Place) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                is_first = place not in embedded and isinstance(output, torch.Tensor)
                embedded[place] = (output.movedim(self.batch_axis, 0).shape, output.dtype) if is_first else None

            return hook

        blocks = self._blocks()[: self.depth]
        handles = [block.register_forward_hook(note(index)) for index, block in enumerate(blocks)]
        handles += [place.module.register_forward_hook(note_embeddings(place)) for place in self._embeddings]
        try:
            outputs = tensors_of(self.model(**inputs))
        finally:
            for handle in handles:
                handle.remove()
        if len(called) < self.depth:
            raise _NotReplayable("the model does not call its blocks as modules, one after the other")
        return outputs, embedded

    def _is_exact(
        self,
        inputs: Mapping[str, Any],
        keyed: Mapping[str, Any],
        hidden: torch.Tensor,
        expected: Sequence[torch.Tensor],
    ) -> bool:
        # What reads the embeddings besides the blocks computes with not-a-number, and is found out.
        swap, last = self._swap(hidden, self.depth, embedded=torch.full_like(hidden, torch.nan))
        try:
            with swap, Guard(self._models, keyed, self._unkeyed).watching(swap, last):
                replayed = tensors_of(self.model(**inputs))
        except MISSES_EXTRAS:
            return False
        is_served = bool(last.__dict__["was_called"])
        return is_served and len(replayed) == len(expected) and all(map(torch.equal, replayed, expected))

    def _find_batch_axis(self, inputs: Mapping[str, Any]) -> int | None:
        """Returns the dimension that shrinks when a row is left out."""
        size = batch_size(inputs)
        shapes = [self.prefix(select_rows(inputs, range(rows), size)).shape for rows in (size, size - 1)]
        if len(shapes[0]) != len(shapes[1]):
            return None
        shrunk = [axis for axis, (all_rows, fewer) in enumerate(zip(*shapes, strict=True)) if all_rows != fewer]
        return shrunk[0] if len(shrunk) == 1 and shapes[0][shrunk[0]] == size else None

    def _blocks(self) -> list[nn.Module]:
        return [module for module in self._list._modules.values() if module is not None]

    def _block_places(self) -> list[Place]:
        return [Place(self._list, name, module) for name, module in self._list._modules.items() if module is not None]

    def _swap(self, hidden: torch.Tensor, depth: int, *, embedded: torch.Tensor | None = None) -> tuple[Swap, StandIn]:
        """Returns stand-ins for the embeddings and the first blocks, and the one that returns the hidden states.

        Args:
            hidden: The hidden states, of shape (B, L, H).
            depth: How many blocks they went through.
            embedded: What the embeddings return, of shape (B, L, H); any values where it is left out.
        """
        ordered = hidden.movedim(0, self.batch_axis)
        carried: dict[str, tuple[Any, ...]] = {}
        stand_ins = [
            StandIn(
                place.module,
                self._returns[index],
                ordered if index == depth - 1 else None,
                carried,
                runs=self.extras == "first" and index == 0,
                precision=self.precision,
            )
            for index, place in enumerate(self._block_places()[:depth])
        ]
        changes: list[tuple[Place, nn.Module]] = list(zip(self._block_places(), stand_ins, strict=False))
        if self.extras == "none":  # the first block may need what the embeddings really are
            output = (torch.empty_like(hidden) if embedded is None else embedded).movedim(0, self.batch_axis)
            changes += [(place, EmbeddingStandIn(place.module, output)) for place in self._embeddings]
        return Swap(changes), stand_ins[-1]

    def _without_suffix(self) -> Swap:
        """Lets hidden states pass through the blocks behind the prefix."""
        returns = self._returns[-1]
        behind = self._block_places()[self.depth :]
        return Swap(
            [(place, StandIn(place.module, returns, None, {}, runs=False, precision="none")) for place in behind]
        )


def _places(model: nn.Module, modules: Sequence[nn.Module]) -> list[Place]:
    """Returns where some modules of a model are registered."""
    wanted = {id(module) for module in modules}
    return [
        Place(holder, name, child)
        for holder in model.modules()
        for name, child in holder._modules.items()
        if child is not None and id(child) in wanted
    ]


def _first(output: Any) -> torch.Tensor:
    """Returns the hidden states that a block returns, alone or in front of other values."""
    hidden = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(hidden, torch.Tensor):
        raise _NotReplayable(f"the blocks of the model return {type(hidden).__name__} in place of hidden states")
    return hidden


@contextlib.contextmanager
def _kept_modules(model: nn.Module) -> Iterator[None]:
    """Gives a model its modules back, and what they noted in attributes, where calls inside replace any.

    BigBird gives up sparse attention for good in the first batch that is too short for it. The Trainer's own first
    batch may not be, so what the model computes must not follow from rows that the cache looks at.
    """
    kept = [(name, module, dict(vars(module)), dict(module._modules)) for name, module in model.named_modules()]
    try:
        yield
    finally:
        changed = [name for name, module, _, children in kept if module._modules != children]
        for _, module, attributes, children in kept if changed else ():
            vars(module).update(attributes)
            module._modules.clear()
            module._modules.update(children)
    if changed:
        raise ModulesReplaced(
            f"calling the model replaces modules of {changed[0]}, so what becomes of a row depends on the batches "
            "before it"
        )


@contextlib.contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Keeps a model in train or eval mode, and gives every module its own mode back.

    Args:
        model: Any module; what a plan keeps in eval mode stays in it.
        training: Which mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


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
