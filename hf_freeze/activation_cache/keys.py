"""What a stored row is known by: a hash of the row's inputs, under a fingerprint of everything that made its value.

Shapes: `B` batch, `L` sequence length of the batch, padding included.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from hf_freeze.activation_cache.records import dtype_name
from hf_freeze.activation_cache.sources import source_digests
from hf_freeze.plan.audit import tensor_digest
from hf_freeze.plan.places import ROLE_EMBEDDINGS, block_role
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.plan.wrappers import Node, canonical_tree, join, reshard

# The name under which a collated batch carries the keys of its rows.
KEYS = "activation_cache_keys"
# Bytes of one key; a row has two: of its content without padding, and of all of it.
KEY_SIZE = 16
# Inputs that go with the tokens, whatever lies under the padding. Of others it has to be seen.
_OF_TOKENS = frozenset({"attention_mask", "input_ids", "position_ids", "token_type_ids"})
# What names a model, its labels and its loss: it does not change what the blocks compute. The dtype is that of the
# weights, which count themselves; `save_pretrained` notes it in the config while training.
_UNRELATED = frozenset(
    {"_name_or_path", "architectures", "dtype", "id2label", "label2id", "problem_type", "transformers_version"}
)


def row_lengths(inputs: Mapping[str, Any]) -> list[int] | None:
    """Returns how many leading positions of each row are real, or None where the batch has no padding mask.

    Padding counts as such only where it lies on the right: a row that is padded on the left is real from end to end.
    So is one without any token, since a model reads some position of it all the same.

    Args:
        inputs: A collated batch; its `attention_mask` has the shape (B, L).
    """
    mask = inputs.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
        return None
    real = mask.bool()
    padded_right = (real[:, 1:] <= real[:, :-1]).all(dim=1) & real[:, :1].any(dim=1)
    lengths: list[int] = torch.where(padded_right, real.sum(dim=1), real.shape[1]).tolist()
    return lengths


def row_keys(inputs: Mapping[str, Any]) -> torch.Tensor:
    """Returns two keys per row, of its content without padding and of the whole row, of shape (B, 2 * KEY_SIZE).

    Padding is left out of what goes with the tokens, and of other tensors of shape (B, L, ...) that are zero wherever
    there is padding: one that only happens to be as wide as the batch counts as a whole.

    Args:
        inputs: A collated batch without labels, on any device. Tensors whose first dimension is not B, and values that
            are no tensors, count for every row.
    """
    inputs = {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    size = batch_size(inputs)
    lengths = row_lengths(inputs)
    width = inputs["attention_mask"].shape[1] if lengths is not None else 0
    header: list[str] = []
    per_row: list[tuple[bytes, int, int]] = []
    for name in sorted(inputs):
        value = inputs[name]
        if isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == size:
            is_padded = (
                lengths is not None
                and value.ndim > 1
                and value.shape[1] == width
                and (name in _OF_TOKENS or _is_zero_behind(value, lengths))
            )
            header.append(f"{name}:{value.dtype}{tuple(value.shape[2 if is_padded else 1 :])};")
            rows = value.detach().reshape(size, -1).contiguous().view(torch.uint8).numpy()
            per_row.append((rows.tobytes(), rows.shape[1], rows.shape[1] // width if is_padded and width else 0))
        else:
            header.append(f"{name}={_spelled(value)};")
    start = hashlib.blake2b("".join(header).encode(), digest_size=KEY_SIZE).digest()
    keys = bytearray()
    for row in range(size):
        length = lengths[row] if lengths is not None else width
        parts = [data[row * n : row * n + length * cell if cell else (row + 1) * n] for data, n, cell in per_row]
        content = whole = _hash(start, length, parts)
        if length < width:
            padding = [data[row * n + length * cell : (row + 1) * n] for data, n, cell in per_row if cell]
            whole = _hash(content, width, padding)
        keys += content + whole
    return torch.frombuffer(keys, dtype=torch.uint8).view(size, 2 * KEY_SIZE)


def batch_size(inputs: Mapping[str, Any]) -> int:
    """Returns B, the size of the first dimension of the first tensor.

    Args:
        inputs: A collated batch.
    """
    return next(int(v.shape[0]) for v in inputs.values() if isinstance(v, torch.Tensor) and v.ndim > 0)


def _hash(start: bytes, length: int, parts: Sequence[bytes]) -> bytes:
    """Returns the hash of some parts of a row, behind what tells how they are to be read.

    Args:
        start: A hash that comes first.
        length: How many positions the parts reach to.
        parts: Bytes whose number follows from the rest.
    """
    content = b"".join((start, length.to_bytes(8, "little"), *parts))
    return hashlib.blake2b(content, digest_size=KEY_SIZE).digest()


def _is_zero_behind(value: torch.Tensor, lengths: Sequence[int]) -> bool:
    """Returns whether there are only zeros behind the real positions of all rows.

    Args:
        value: A tensor of shape (B, L, ...).
        lengths: How many positions of each row are real.
    """
    is_padding = torch.arange(value.shape[1]) >= torch.tensor(lengths)[:, None]
    return not bool(value[is_padding].any())


def _spelled(value: object) -> str:
    return f"{value.dtype}{value.tolist()}" if isinstance(value, torch.Tensor) else repr(value)


def decoder_inputs(model: nn.Module) -> tuple[str, ...]:
    """Returns the inputs of a decoder behind the first stack, which never reads them.

    Args:
        model: The model, wrapped or not.
    """
    inner = canonical_tree(model).inner
    if not isinstance(inner, PreTrainedModel) or not inner.config.is_encoder_decoder:
        return ()
    return tuple(name for name in inspect.signature(inner.forward).parameters if name.startswith("decoder_"))


def model_name(model: nn.Module) -> str:
    """Returns the name that a model was loaded by, or that of its class.

    Args:
        model: The model, wrapped or not.
    """
    inner = canonical_tree(model).inner
    name = inner.config.name_or_path if isinstance(inner, PreTrainedModel) else ""
    return name or type(inner).__name__


def attention_implementations(modules: Iterable[nn.Module]) -> list[str]:
    """Returns the attention implementation of each model among some modules: those inside a model may have their own.

    Args:
        modules: Any modules.
    """
    return [str(each.config._attn_implementation) for each in modules if isinstance(each, PreTrainedModel)]


def product_precision() -> str:
    """Returns how products of float32 numbers are rounded on each kind of device, whichever way that was set.

    `torch.get_float32_matmul_precision` fails where they were set as `TrainingArguments(tf32=True)` sets them.
    """
    backends: Any = torch.backends  # whose modules torch replaces by objects with more attributes
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    places = (backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn)
    return " ".join(str(place.fp32_precision).replace("none", "ieee") for place in places)


def prefix_fingerprints(model: nn.Module, plan: FreezePlan, *, precision: str, dtype: torch.dtype) -> tuple[str, ...]:
    """Returns the fingerprints of the frozen prefixes of depth 1, 2, ... up to that of the plan.

    A fingerprint covers the modules, weights and buffers of the prefix, the model's config and attention
    implementations, its device, how numbers are rounded and stored, the source of its modelling files, and the versions
    of torch and Transformers.

    Args:
        model: The model that carries the plan.
        plan: What is frozen.
        precision: The autocast dtype that the prefix runs under, or "none".
        dtype: What its outputs are stored in.
    """
    reshard(model)
    root = canonical_tree(model)
    prefix = hashlib.blake2b(digest_size=KEY_SIZE)
    device = next(model.parameters()).device.type
    environment = f"autocast {precision} stored {dtype_name(dtype)} device {device} products {product_precision()}"
    for line in (*_describe(root.inner), *_sources(root, plan), environment):
        prefix.update(line.encode() + b"\n")
    contents = _contents(root, plan)
    prefix.update(contents[ROLE_EMBEDDINGS].digest())
    fingerprints = []
    for index in range(plan.depth):
        prefix.update(contents[block_role(plan.layout.stacks[0].name, index)].digest())
        fingerprints.append(prefix.hexdigest())
    return tuple(fingerprints)


def _describe(model: nn.Module) -> tuple[str, ...]:
    """Returns what makes the computation, weights apart, a line each."""
    lines = [f"torch {torch.__version__}", f"transformers {transformers.__version__}", type(model).__qualname__]
    if isinstance(model, PreTrainedModel):
        config = model.config.to_dict()
        lines.append(repr(sorted((key, repr(value)) for key, value in config.items() if key not in _UNRELATED)))
        lines.append(f"attention {attention_implementations(model.modules())}")
    return tuple(lines)


def _sources(root: Node, plan: FreezePlan) -> tuple[str, ...]:
    """Returns the digests of the modelling files, without those of what runs behind the prefix, such as adapters."""
    places = {path: role for role, paths in plan.layout.modules.items() for path in paths}
    prefix = {ROLE_EMBEDDINGS, *(block_role(plan.layout.stacks[0].name, index) for index in range(plan.depth))}
    classes: set[type[nn.Module]] = set()
    for node in root.walk():
        if _place(node.path, places) in prefix:
            classes.add(type(node.inner))
            if node.path:  # What wraps the whole model, such as DDP or PEFT, is told by what it does inside.
                classes.add(type(node.outer))
    return source_digests(classes)


def _contents(root: Node, plan: FreezePlan) -> dict[str, Any]:
    """Returns, for every role, a running hash over the classes of its modules, their parameters and buffers."""
    hashes: dict[str, Any] = {role: hashlib.blake2b(digest_size=KEY_SIZE) for role in plan.treatments}
    roles = {decision.name: decision.role for decision in plan.decisions}
    places = {path: role for role, paths in plan.layout.modules.items() for path in paths}
    for node in root.walk():
        cls = type(node.inner)  # BigBird exchanges its attention while it runs.
        hashes[_place(node.path, places)].update(f"{node.path}:{cls.__module__}.{cls.__qualname__};".encode())
        for name, leaf in node.leaves.items():
            path = join(node.path, name)
            if path in roles:
                hashes[roles[path]].update(f"{path}={tensor_digest(leaf.parameter)};".encode())
        for name, buffer in node.inner._buffers.items():
            if buffer is not None:
                hashes[_place(node.path, places)].update(f"{join(node.path, name)}={tensor_digest(buffer)};".encode())
    return hashes


def _place(path: str, places: Mapping[str, str]) -> str:
    """Returns the role of a module; those between the top and the stack run with the embeddings."""
    while path:
        if path in places:
            return places[path]
        path = path.rpartition(".")[0]
    return ROLE_EMBEDDINGS
