"""Loads a delta: its base model, checked to the bit, and the tensors that differ from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from hf_freeze.errors import ConfigError, PlanError
from hf_freeze.plan.audit import tensor_digest
from hf_freeze.sharing.classes import convert, load_recorded_base
from hf_freeze.sharing.sources import Source, sound_safetensors
from hf_freeze.training.checkpoint import distinct_tensors
from hf_freeze.training.delta import digest_of_all, digest_of_base, read_description, tensor_digests
from hf_freeze.training.record import DELTA_FILE, TrainingRecord


def load_delta(
    source: Source, *, base: str | Path | None, trust_remote_code: bool, options: Mapping[str, Any]
) -> PreTrainedModel:
    """Loads the model that a delta and its base make.

    Args:
        source: Where the delta is.
        base: Another folder or name of the base model.
        trust_remote_code: Whether code that comes with the model may run.
        options: Further arguments of `from_pretrained`.

    Raises:
        ConfigError: The file with the tensors is missing or damaged.
        PlanError: The base model cannot be loaded, or is another one; the tensors do not fit it.
    """
    record, described = source.record, source.file(DELTA_FILE)
    assert record is not None
    assert described is not None  # It makes the source a delta.
    description = read_description(described)
    tensors = read_tensors(source)
    if (
        digest_of_all({name: tensor_digest(tensor) for name, tensor in tensors.items()})
        != description["weights_digest"]
    ):
        raise ConfigError(
            f"{source.weights_file()}: this file is not the one that {DELTA_FILE} was written with; got other tensors "
            "in it. Copy both files from the same folder."
        )
    model, _ = load_recorded_base(source, record, base=base, trust_remote_code=trust_remote_code, options=options)
    _check_base(source, record, model, description, name=record.base if base is None else str(base))
    _check_fit(source, model, tensors)
    model.load_state_dict(tensors, strict=False)
    if (generation := source.file(GENERATION_CONFIG_NAME)) is not None:
        model.generation_config = GenerationConfig.from_pretrained(generation.parent)
    return convert(model, options.get("dtype"))


def read_tensors(source: Source) -> dict[str, torch.Tensor]:
    """Reads the tensors of a delta or of adapters.

    Args:
        source: Where they are.

    Raises:
        ConfigError: The file is missing or damaged.
    """
    file = source.weights_file()
    with sound_safetensors(file):
        return safetensors.torch.load_file(file)


def _check_base(
    source: Source, record: TrainingRecord, model: PreTrainedModel, description: Mapping[str, Any], *, name: str
) -> None:
    found = digest_of_base(tensor_digests(model), description["fresh"])
    if found != description["base_digest"]:
        revision = f" at revision {record.revision}" if record.revision is not None else ""
        raise PlanError(
            f"{source.name}: this delta was made from another base model; got {name!r} with the digest {found}. It was "
            f"made from {record.base!r}{revision} with the digest {description['base_digest']}. "
            "Pass that model as base."
        )


def _check_fit(source: Source, model: PreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in distinct_tensors(model).items()}
    for name, tensor in tensors.items():
        if shapes.get(name) != tuple(tensor.shape):
            has = f"has it in the shape {list(shapes[name])}" if name in shapes else "has no tensor of this name"
            raise PlanError(
                f"{source.name}: this delta does not fit its model; got {name!r} in the shape {list(tensor.shape)}. "
                f"A {type(model).__name__} with this config {has}. Save or download the folder again."
            )
