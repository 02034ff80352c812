"""Whether a model's frozen prefix can be cached at all, found out on a few rows before anything is stored.

Shapes: `B` batch, `L` sequence length of the batch, padding included, `H` hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.nn.parallel import DataParallel
from transformers import PreTrainedModel

from hf_freeze.activation_cache.comparing import (
    PADDING_TOLERANCE,
    TOLERANCE,
    Loss,
    differs_in_training,
    is_close,
    kept_buffers,
)
from hf_freeze.activation_cache.keys import batch_size, row_lengths
from hf_freeze.activation_cache.outputs import PrefixOutputs
from hf_freeze.activation_cache.records import dtype_name, overflown
from hf_freeze.activation_cache.replay import MISSES_EXTRAS, Replay, in_mode, select_rows
from hf_freeze.activation_cache.rows import kept_random_state
from hf_freeze.activation_cache.stand_ins import CAPTURED
from hf_freeze.errors import CacheError
from hf_freeze.plan.apply import asking_for_gradients
from hf_freeze.plan.places import ROLE_EMBEDDINGS, block_role
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.plan.wrappers import canonical_tree, named_parameters

# Rows that are looked at before anything is stored.
PROBE_SIZE = 8
# With this setting, the longest batch so far decides what positions mean: a row has no value of its own. The rows that
# are looked at may all be too short to show it.
_REMEMBERS_WIDTHS = ("rope_type", "dynamic")
# With this one, a row has one value in narrow batches and another in wide ones; the rows may all be narrow, or wide.
_TELLS_WIDTHS = ("rope_type", "longrope")


def prefix_end(plan: FreezePlan) -> str:
    """Returns what ends the frozen prefix, in words: what trains first, seen from the input.

    Args:
        plan: What is frozen.
    """
    frozen = set(plan.start.frozen)
    first = plan.layout.stacks[0]
    roles = [ROLE_EMBEDDINGS, *(block_role(first.name, index) for index in range(first.num_blocks))]
    role = next((role for role in roles if role not in frozen), None)
    if role is None:
        return "the last block"
    names = plan.trainable_by_role()[role]
    return f"{role}, where {names[0]} trains" if names else f"{role}, which is not frozen"


def reason_of_plan(plan: FreezePlan) -> str | None:
    """Returns why the plan leaves nothing to cache, or None.

    Args:
        plan: What is frozen.
    """
    if plan.depth == 0:
        return f"no block is frozen from the input on: the frozen prefix ends at {prefix_end(plan)}"
    if plan.keep_dropout:
        return "freeze.keep_dropout is true: what the frozen blocks return is random"
    return None


def reason_of_model(model: nn.Module) -> str | None:
    """Returns why the model as it is wrapped and configured cannot be replayed, or None.

    Args:
        model: The model as the training loop calls it, or as it is without wrappers.
    """
    if any(isinstance(module, OptimizedModule) for module in model.modules()):
        return "the model is compiled with torch.compile, which would run the frozen blocks all the same"
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        return "FSDP version 1 gathers the frozen blocks for calls of its own only; version 2 can be cached"
    if isinstance(model, DataParallel):
        return "torch.nn.DataParallel copies the model for every GPU; accelerate launch starts a process for each"
    inner = canonical_tree(model).inner
    if isinstance(inner, PreTrainedModel):
        asked = [name for name in CAPTURED if getattr(inner.config, name, False)]
        if asked:
            return f"{asked[0]} is true in the model's config: the frozen blocks have to run for it"
    if _REMEMBERS_WIDTHS in _settings(inner):
        return "rope_type is dynamic in the model's config: the longest batch so far decides what positions mean"
    return None


def tells_widths(model: nn.Module) -> bool:
    """Returns whether the positions of a row depend on how wide its batch is.

    Args:
        model: The model, wrapped or not.
    """
    return _TELLS_WIDTHS in _settings(model)


def _settings(model: nn.Module) -> list[tuple[str, str]]:
    """Returns names and values of the words in a model's config, and in those inside it."""
    inner = canonical_tree(model).inner
    parts: list[Mapping[str, Any]] = [inner.config.to_dict()] if isinstance(inner, PreTrainedModel) else []
    for part in parts:
        parts += [value for value in part.values() if isinstance(value, Mapping)]
    return [(name, value) for part in parts for name, value in part.items() if isinstance(value, str)]


def check_batch(name: str, batch: object) -> None:
    """Refuses what is no batch.

    Args:
        name: What it was given to.
        batch: Anything.

    Raises:
        CacheError: It is no mapping.
    """
    if not isinstance(batch, Mapping):
        raise CacheError(
            f"{name}: a batch maps the names of the model's inputs to tensors; got a {type(batch).__name__}. "
            'Pass what the model is called with, such as {"input_ids": input_ids}.'
        )


def reason_of_inputs(keyed: Mapping[str, Any], keys: torch.Tensor | None = None) -> str | None:
    """Returns why rows of a batch cannot be looked up by what the prefix reads of them, or None.

    Args:
        keyed: What of the batch the prefix reads.
        keys: The keys of its rows; None where it has none yet.
    """
    if not any(isinstance(value, torch.Tensor) and value.ndim > 0 for value in keyed.values()):
        return "the inputs of the model are not tensors with one row for each example"
    size = batch_size(keyed)
    if keys is not None and len(keys) != size:
        return "the batch does not have one row for each of its keys"
    for name, value in keyed.items():
        if not isinstance(value, torch.Tensor):
            if not isinstance(value, bool | int | float | str | None):
                return f"{name} is a {type(value).__name__}, which does not say what belongs to which row"
        elif value.requires_grad:
            return f"{name} asks for a gradient, which does not come through stored hidden states"
        elif value.ndim > 0 and value.shape[0] != size:
            return f"{name} does not have one row for each example"
    return None


def reason_of_prefix(replay: Replay, plan: FreezePlan, inputs: Mapping[str, Any]) -> str | None:
    """Returns why the prefix is not a function of its inputs and its own weights alone, or None.

    It runs once as it does in training: DeBERTa's convolution sits between the first blocks and belongs to the head,
    and some models draw random numbers outside of the modules that a plan keeps in eval mode.

    Args:
        replay: The prefix.
        plan: What is frozen.
        inputs: A batch of at least two rows.
    """
    size, others = batch_size(inputs), _others(replay, plan)
    with kept_random_state(), in_mode(replay.model, training=True), kept_buffers(replay.model):
        before = _random_state(inputs)
        with torch.enable_grad(), asking_for_gradients(others.values()):
            hidden = replay.prefix(inputs, as_it_trains=True)
            read = _reached(hidden, replay.model) if hidden.requires_grad else []
        if any(parameter.requires_grad for parameter in read):
            return "a module that trains runs among the frozen blocks"
        if read:
            name = next(name for name, parameter in others.items() if parameter is read[0])
            return f"{name} is no part of a block, and runs among the frozen blocks all the same"
        if not all(map(torch.equal, before, _random_state(inputs))):
            return "random numbers are drawn in the frozen blocks while training"
    whole, part = replay.prefix(inputs), replay.prefix(select_rows(inputs, range(size - size // 2), size))
    shares_positions = "position_ids" in inputs and tells_widths(replay.model)
    if shares_positions or not is_close(whole[: len(part)], part, PADDING_TOLERANCE[whole.dtype]):
        return "what the frozen blocks make of a row depends on the rows beside it"
    return None


def _others(replay: Replay, plan: FreezePlan) -> dict[str, nn.Parameter]:
    """Returns what is frozen outside of the prefix, by its name; nothing under FSDP, which shards it."""
    if isinstance(replay.model, FSDPModule):
        return {}
    first = plan.layout.stacks[0].name
    prefix = {ROLE_EMBEDDINGS, *(block_role(first, index) for index in range(plan.depth))}
    names = {each.name for each in plan.decisions if each.role not in prefix}
    return {
        name: parameter
        for name, parameter in named_parameters(replay.model)
        if name in names and not parameter.requires_grad and parameter.is_floating_point()
    }


def _reached(hidden: torch.Tensor, model: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters that a gradient leads to: MRA adds zeros that ask for one and lead nowhere."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not asking:
        return []
    found: Sequence[torch.Tensor | None] = torch.autograd.grad(hidden.sum(), asking, allow_unused=True)
    return [parameter for parameter, gradient in zip(asking, found, strict=True) if gradient is not None]


def reason_of_dtype(
    replay: Replay,
    inputs: Mapping[str, Any],
    keyed: Mapping[str, Any],
    hidden: torch.Tensor,
    stored: torch.dtype,
    loss: Loss | None,
) -> str | None:
    """Returns why the model cannot be trained on rows as they are stored, or None.

    Args:
        replay: The prefix.
        inputs: A batch, labels included.
        keyed: What of it the prefix reads.
        hidden: The prefix's output for it, of shape (B, L, H).
        stored: What rows are stored in.
        loss: What computes the loss, where that is not the model.
    """
    served = hidden.to(stored)
    if bool(overflown(hidden, served).any()):
        return (
            f"the frozen blocks compute numbers beyond {torch.finfo(stored).max:g}, which {dtype_name(stored)} cannot "
            "hold; activation_cache.dtype auto and bfloat16 can"
        )
    tolerance = max(TOLERANCE[stored], TOLERANCE[hidden.dtype])
    if differs_in_training(replay, inputs, keyed, served.to(hidden.dtype), tolerance, loss):
        return "replaying the frozen blocks gives other results while training: something random is left in them"
    return None


def is_stored_wrongly(outputs: PrefixOutputs, hidden: torch.Tensor, keyed: Mapping[str, Any]) -> bool:
    """Returns whether a row is stored that is not what the prefix makes of it now.

    Args:
        outputs: With their store.
        hidden: The prefix's output for a batch, of shape (B, L, H).
        keyed: What of the batch the prefix reads.
    """
    tolerance = max(TOLERANCE[outputs.stored_dtype], TOLERANCE[hidden.dtype])
    return any(not is_close(stored, value, tolerance) for stored, value in outputs.stored_beside(hidden, keyed))


def grows_exactly(replay: Replay, inputs: Mapping[str, Any], hidden: torch.Tensor, depth: int) -> bool:
    """Returns whether the prefix gives the same from the output of its first blocks on.

    Args:
        replay: The prefix.
        inputs: A batch.
        hidden: The prefix's output for it, of shape (B, L, H).
        depth: How many blocks come first.
    """
    try:
        grown = replay.prefix(inputs, start=depth, hidden=replay.prefix(inputs, end=depth))
    except MISSES_EXTRAS:
        return False
    return is_close(grown, hidden, PADDING_TOLERANCE[hidden.dtype])


def few_rows(inputs: Mapping[str, Any], keyed: Mapping[str, Any]) -> dict[str, Any]:
    """Returns up to eight rows of a batch, short ones and long ones; a single row twice.

    Args:
        inputs: A batch, labels included.
        keyed: What of it the prefix reads.
    """
    size = batch_size(keyed)
    lengths = row_lengths(keyed) or [0] * size
    order = sorted(range(size), key=lengths.__getitem__)
    half = PROBE_SIZE // 2
    rows = order if size <= PROBE_SIZE else order[:half] + order[-half:]
    return select_rows(inputs, rows * 2 if size == 1 else rows, size)


def _random_state(inputs: Mapping[str, Any]) -> list[torch.Tensor]:
    """Returns the states of the generators of the CPU and of the device that the inputs are on."""
    states = [torch.random.get_rng_state()]
    device = next(value.device for value in inputs.values() if isinstance(value, torch.Tensor))
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(device))
    return states
