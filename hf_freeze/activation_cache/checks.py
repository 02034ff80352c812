"""Whether a model's frozen prefix can be cached at all, found out on a few rows before anything is stored.

Shapes: `B` batch, `L` sequence length of the batch, padding included, `H` hidden.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.nn.parallel import DataParallel
from transformers import PreTrainedModel

from hf_freeze.activation_cache.keys import batch_size, row_lengths
from hf_freeze.activation_cache.outputs import PrefixOutputs
from hf_freeze.activation_cache.replay import MISSES_EXTRAS, ModulesReplaced, Replay, in_mode, select_rows, tensors_of
from hf_freeze.activation_cache.rows import kept_random_state
from hf_freeze.activation_cache.stand_ins import CAPTURED
from hf_freeze.plan.apply import asking_for_gradients
from hf_freeze.plan.places import ROLE_EMBEDDINGS, block_role
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.plan.wrappers import canonical_tree, named_parameters

# Rows that are looked at before anything is stored.
PROBE_SIZE = 8
# How far outputs may be apart, as a share of the largest: rounding in the dtype of the stored rows, never dropout.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
# Hidden states of real tokens may be this far apart, as a share of the largest, when padding is added behind them.
_PADDING_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


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
    return None


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
    with kept_random_state(), in_mode(replay.model, training=True), _kept_buffers(replay.model):
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
    if not _is_close(whole[: len(part)], part, _PADDING_TOLERANCE[whole.dtype]):
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


def padding_matters(replay: Replay, inputs: Mapping[str, Any]) -> bool:
    """Returns whether the prefix computes something else for real tokens when there is padding behind them.

    A row is cut in half, and computed once more at full length with the second half masked. Where hidden states do not
    follow the mask position by position, it counts as mattering.

    Args:
        replay: The prefix.
        inputs: A batch; its `attention_mask` has the shape (B, L).
    """
    mask, lengths = inputs.get("attention_mask"), row_lengths(inputs)
    if mask is None or lengths is None:
        return True
    row = max(range(len(lengths)), key=lengths.__getitem__)
    half, width = lengths[row] // 2, mask.shape[1]
    whole = select_rows(inputs, [row, row], batch_size(inputs))
    if half == 0 or replay.prefix(whole).shape[1] != width:
        return True
    masked = {**whole, "attention_mask": whole["attention_mask"].clone()}
    masked["attention_mask"][:, half:] = 0
    cut = {
        name: value[:, :half] if isinstance(value, torch.Tensor) and value.shape[:2] == (2, width) else value
        for name, value in whole.items()
    }
    try:
        padded, alone = replay.prefix(masked)[:, :half], replay.prefix(cut)
    except (IndexError, ModulesReplaced, RuntimeError, ValueError):
        return True  # The model takes rows of one length only.
    return padded.shape != alone.shape or not _is_close(padded, alone, _PADDING_TOLERANCE[alone.dtype])


def find_trimming(
    replay: Replay, inputs: Mapping[str, Any], keyed: Mapping[str, Any], hidden: torch.Tensor, dtype: Any
) -> bool | None:
    """Returns whether rows can be stored without their padding, or None where they cannot be replayed at all.

    Args:
        replay: The prefix.
        inputs: A batch, labels included.
        keyed: What of it the prefix reads.
        hidden: The prefix's output for it, of shape (B, L, H).
        dtype: What rows are stored in.
    """
    if not padding_matters(replay, inputs):
        # What is behind the prefix must not read padding either.
        padded = _with_padding(replay.model, inputs)
        padded_keyed = {name: padded[name] for name in keyed}
        served = (hidden if padded is inputs else replay.prefix(padded)).to(dtype).to(hidden.dtype).clone()
        for index, length in enumerate(row_lengths(padded_keyed) or ()):
            served[index, length:] = 0
        if not differs_in_training(replay, padded, padded_keyed, served, dtype):
            return True
    served = hidden.to(dtype).to(hidden.dtype)
    return None if differs_in_training(replay, inputs, keyed, served, dtype) else False


def is_stored_wrongly(outputs: PrefixOutputs, hidden: torch.Tensor, keyed: Mapping[str, Any]) -> bool:
    """Returns whether a row is stored that is not what the prefix makes of it now.

    Args:
        outputs: With their store.
        hidden: The prefix's output for a batch, of shape (B, L, H).
        keyed: What of the batch the prefix reads.
    """
    tolerance = max(_TOLERANCE[outputs.stored_dtype], _TOLERANCE[hidden.dtype])
    return any(not _is_close(stored, value, tolerance) for stored, value in outputs.stored_beside(hidden, keyed))


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
    return _is_close(grown, hidden, _PADDING_TOLERANCE[hidden.dtype])


def _with_padding(model: nn.Module, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the batch itself where a row has padding, or else with the second half of every other row made padding.

    Args:
        model: The model, for its padding token.
        inputs: A batch, labels included; its `attention_mask` has the shape (B, L).
    """
    mask = inputs["attention_mask"]
    if not bool(mask.all()):
        return inputs
    pad = model.config.pad_token_id if isinstance(model, PreTrainedModel) else None
    fills = {"attention_mask": 0, "labels": -100} | ({} if pad is None else {"input_ids": pad})
    padded = dict(inputs)
    for name in fills.keys() & padded.keys():
        if padded[name].shape == mask.shape:
            padded[name] = padded[name].clone()
            padded[name][::2, mask.shape[1] // 2 :] = fills[name]
    return padded


def pads_to_the_longest(keyed: Mapping[str, Any]) -> bool:
    """Whether a batch is as wide as its longest row and no wider, while rows differ in length.

    Args:
        keyed: What of a batch the prefix reads.
    """
    mask = keyed.get("attention_mask")
    if mask is None or mask.ndim != 2:
        return False
    real = mask.sum(dim=1)
    return bool(real.min() < real.max() == mask.shape[1])


def pads_on_the_left(keyed: Mapping[str, Any]) -> bool:
    """Whether a row of a batch has padding in front of its tokens, which stays with a stored row.

    Args:
        keyed: What of a batch the prefix reads.
    """
    mask = keyed.get("attention_mask")
    return mask is not None and mask.ndim == 2 and not bool(mask[:, 0].all())


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


def differs_in_training(
    replay: Replay, inputs: Mapping[str, Any], keyed: Mapping[str, Any], hidden: torch.Tensor, stored: torch.dtype
) -> bool:
    """Returns whether the model in train mode computes something else from stored rows than in full.

    Both calls draw the same random numbers. Dropout that is left in the prefix shows here only: in eval mode it is off.
    Random state, buffers and modes are as before afterwards.

    Args:
        replay: The prefix.
        inputs: A batch, labels included.
        keyed: What of it the prefix reads.
        hidden: The prefix's output as the store would return it, of shape (B, L, H).
        stored: The dtype that it is stored in.
    """
    mask = keyed.get("attention_mask")
    with torch.no_grad(), in_mode(replay.model, training=True):
        with kept_random_state(), _kept_buffers(replay.model):
            full = tensors_of(replay.model(**inputs))
        with kept_random_state(), _kept_buffers(replay.model), replay.serve(hidden, keyed):
            served = tensors_of(replay.model(**inputs))
    if len(full) != len(served):
        return True
    tolerance = max(_TOLERANCE[stored], _TOLERANCE[hidden.dtype])
    return not all(_is_close(_real(a, mask), _real(b, mask), tolerance) for a, b in zip(full, served, strict=True))


def _random_state(inputs: Mapping[str, Any]) -> list[torch.Tensor]:
    """Returns the states of the generators of the CPU and of the device that the inputs are on."""
    states = [torch.random.get_rng_state()]
    device = next(value.device for value in inputs.values() if isinstance(value, torch.Tensor))
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(device))
    return states


def _real(output: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Returns an output without what belongs to padding."""
    if mask is None or mask.ndim != 2 or output.shape[:2] != mask.shape:
        return output
    return output[mask.to(output.device).bool()]


def _is_close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    a, b = a.float(), b.float()
    # Some models mask logits with the lowest number there is.
    is_finite = a.isfinite() & b.isfinite() & (a.abs() < 1e30)
    if not torch.equal(a[~is_finite], b[~is_finite]):
        return False
    if not is_finite.any():
        return True
    a, b = a[is_finite], b[is_finite]
    return bool((a - b).abs().max() <= tolerance * max(1.0, float(a.abs().max())))


@contextlib.contextmanager
def _kept_buffers(model: nn.Module) -> Iterator[None]:
    """Gives all buffers their values back: the statistics of BatchNorm move in train mode."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
