"""The final model as a delta: what a base model does not give back, and which base model that is.

A delta folder holds, beside the config and the tokenizer:

- `hf_freeze_delta.safetensors`: under their raw `state_dict` names, the tensors that trained, those that the base model
  lacks (fresh heads), and any other in which the trained model differs from it (resized embeddings).
- `hf_freeze_delta.json`: the base model's name, revision and digest, the plan, and a digest of the tensors.

The digest of the base is taken of the base itself, loaded once more when the delta is written: base and delta give
back the trained model to the bit, or loading refuses.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from pydantic import TypeAdapter
from transformers import PreTrainedModel

from hf_freeze.errors import PlanError
from hf_freeze.plan.audit import tensor_digest
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.plan.wrappers import named_parameters
from hf_freeze.training.checkpoint import distinct_tensors
from hf_freeze.training.pretrained import load_base
from hf_freeze.training.record import DELTA_FILE, DELTA_WEIGHTS_FILE, TrainingRecord, lies_in, read_versioned


def write_delta(
    model: PreTrainedModel,
    plan: FreezePlan,
    folder: Path,
    *,
    record: TrainingRecord,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Writes the delta of a model to its base, with the config.

    Args:
        model: The model that carries the plan, unwrapped, without adapters.
        plan: What trained.
        folder: Where to write.
        record: What is said of its training, and of its base model.
        state_dict: The gathered state of the model, where its parameters are sharded.

    Raises:
        PlanError: The base model cannot be loaded, or lies where the delta would be.
    """
    _check_apart(record.base, folder)
    base, fresh = load_base(type(model), record.base, model.config, dtype=model.dtype, revision=record.revision)
    there = tensor_digests(base)
    trained = {id(parameter) for name, parameter in named_parameters(model) if name in set(plan.trainable_names)}
    tensors = {}
    for name, tensor in distinct_tensors(model).items():
        whole = tensor if state_dict is None else state_dict[name]
        if id(tensor) in trained or name in fresh or tensor_digest(whole) != there.get(name):
            tensors[name] = whole.detach().cpu().contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    # The description is what makes a folder a delta: without it, a killed save leaves nothing that loads.
    (folder / DELTA_FILE).unlink(missing_ok=True)
    safetensors.torch.save_file(tensors, folder / DELTA_WEIGHTS_FILE, metadata={"format": "pt"})
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    description = {
        **record.as_dict(),
        "fresh": sorted(fresh & there.keys()),
        "base_digest": digest_of_base(there, fresh),
        "weights_digest": digest_of_all({name: tensor_digest(tensor) for name, tensor in tensors.items()}),
    }
    temporary = folder / f".{DELTA_FILE}"
    temporary.write_text(json.dumps(description, indent=1))
    temporary.replace(folder / DELTA_FILE)


def _check_apart(base: str, folder: Path) -> None:
    if lies_in(base, folder):
        raise PlanError(
            f"{folder}: a delta cannot lie beside its base model, which would be loaded in its place; got "
            f"{base!r} as the base. Save the delta in another folder."
        )


def tensor_digests(model: PreTrainedModel) -> dict[str, str]:
    """Returns the digest of every tensor of a model by its raw name, of tied ones once.

    Args:
        model: A model without wrappers.
    """
    return {name: tensor_digest(tensor) for name, tensor in distinct_tensors(model).items()}


def digest_of_base(digests: Mapping[str, str], fresh: Collection[str]) -> str:
    """Returns one digest (blake2b, 16 bytes, hexadecimal) of all that a base model holds.

    Args:
        digests: What `tensor_digests` returned of it.
        fresh: The names of the tensors that the base has not.
    """
    return digest_of_all({name: digest for name, digest in digests.items() if name not in fresh})


def digest_of_all(digests: Mapping[str, str]) -> str:
    """Returns one digest (blake2b, 16 bytes, hexadecimal) of many.

    Args:
        digests: Digests of tensors by their names.
    """
    lines = "\n".join(f"{name} {digest}" for name, digest in sorted(digests.items()))
    return hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class _DescriptionShape:
    fresh: list[str]
    base_digest: str
    weights_digest: str


_DESCRIPTION: Final = TypeAdapter(_DescriptionShape)


def read_description(file: Path) -> dict[str, Any]:
    """Reads what a delta says of itself beyond the record of its training.

    Args:
        file: `hf_freeze_delta.json`.

    Raises:
        PlanError: It is damaged, or of another version.
    """
    content = read_versioned(file, _DESCRIPTION)
    return {name: content[name] for name in _DescriptionShape.__dataclass_fields__}
