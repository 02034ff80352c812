"""What checkpoints of the plain Trainer, which have no manifest, lack or hold damaged, and what was optimised there."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import safetensors
import torch
from safetensors import SafetensorError
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from hf_freeze.errors import PlanError

# The forms that each file of a checkpoint may have: adapters of other names than the default have a folder each, and
# each of several processes has a random state.
_STATE_FILES: Final[Mapping[str, tuple[str, ...]]] = {
    OPTIMIZER_NAME: (OPTIMIZER_NAME,),
    "rng_state.pth": ("rng_state.pth", "rng_state_*.pth"),
    SCHEDULER_NAME: (SCHEDULER_NAME,),
    TRAINER_STATE_NAME: (TRAINER_STATE_NAME,),
}
_WEIGHTS: Final[Mapping[str, tuple[str, ...]]] = {
    SAFE_WEIGHTS_NAME: (SAFE_WEIGHTS_NAME, f"{SAFE_WEIGHTS_NAME}.index.json", "model-*-of-*.safetensors")
}
_MODEL: Final = {CONFIG_NAME: (CONFIG_NAME,), **_WEIGHTS}
_ADAPTERS: Final = {name: (name, f"*/{name}") for name in ("adapter_config.json", "adapter_model.safetensors")}


def unsound_files(folder: Path, *, is_adapted: bool, has_config: bool) -> Iterator[str]:
    """Yields the names of the files that a checkpoint of the plain Trainer lacks, and of those that cannot be read.

    Args:
        folder: A checkpoint folder of one that is not sharded.
        is_adapted: Whether the model has adapters of PEFT, which are then all that a checkpoint holds of it.
        has_config: Whether the model is one of Transformers, beside which a config is saved.
    """
    model = _ADAPTERS if is_adapted else _MODEL if has_config else _WEIGHTS
    for name, patterns in {**model, **_STATE_FILES}.items():
        files = sorted(file for pattern in patterns for file in folder.glob(pattern))
        if not files:
            yield name
        for file in files:
            if not _is_sound(file):
                yield str(file.relative_to(folder))


def _is_sound(file: Path) -> bool:
    """Returns whether a file can be opened, and is whole where its form tells: no tensor is read."""
    try:
        if file.suffix == ".json":
            return isinstance(json.loads(file.read_text()), dict)
        if file.suffix == ".safetensors":
            with safetensors.safe_open(file, framework="pt"):
                return True
        return zipfile.is_zipfile(file)  # PyTorch's files end with a directory of what is in them.
    except (OSError, SafetensorError, ValueError):
        return False


def group_sizes(folder: Path) -> list[int] | None:
    """Returns the numbers of parameters in the groups of the optimizer of a checkpoint; None where it has no groups.

    Args:
        folder: A checkpoint folder.

    Raises:
        PlanError: PyTorch cannot read the state of the optimizer without running code from it.
    """
    file = folder / OPTIMIZER_NAME
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise PlanError(
            f"{file}: the state of the optimizer cannot be read without running code from it; got "
            f"{type(error).__name__} reading it. hf_freeze reads tensors and plain data only. Resume from another "
            "checkpoint."
        ) from error
    try:
        return [len(group["params"]) for group in state["param_groups"]]
    except (KeyError, TypeError):
        return None
