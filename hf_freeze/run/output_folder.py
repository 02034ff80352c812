"""Keeps runs apart: a folder that holds another run is refused, or emptied of it where the config says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from hf_freeze.config import RunConfig, load_config, to_yaml
from hf_freeze.config.writing import without_secrets
from hf_freeze.errors import ConfigError
from hf_freeze.training.rotation import remove_checkpoint
from hf_freeze.training.uploading import CONFIG_FILE

# What runs write, hf_freeze's and others: checkpoints, final models of every kind, and what is said of them.
_MARKS: Final = ("checkpoint-*", "config.json", "adapter_config.json", "hf_freeze_delta.json", CONFIG_FILE)
_WRITTEN: Final = (
    *_MARKS,
    "adapter_model.safetensors",
    "generation_config.json",
    "hf_freeze_delta.safetensors",
    "hf_freeze_plan.json",
    "model*.safetensors",
    "model.safetensors.index.json",
)


def check_other_run(config: RunConfig) -> None:
    """Refuses an output folder that holds another run, unless the config resumes it or removes it.

    Args:
        config: The config of this run.

    Raises:
        ConfigError: The folder holds another run, or is that of the base model.
    """
    folder = Path(str(config.training["output_dir"]))
    base = Path(config.model.name_or_path)
    if base.is_dir() and base.resolve() == folder.resolve():
        raise ConfigError(
            f"training.output_dir: this is the folder of the base model, which the run would write over; got "
            f"{str(folder)!r}. Name another folder."
        )
    held = sorted(path.name for path in _matching(folder, _MARKS))
    if not held or config.save.overwrite or config.training.get("resume_from_checkpoint"):
        return
    if not _is_same_run(config, folder / CONFIG_FILE):
        raise ConfigError(
            f"training.output_dir: this folder holds another run; got {str(folder)!r} with {', '.join(held[:3])}. "
            "Name another folder, resume that run with training.resume_from_checkpoint=true, or remove it with "
            "save.overwrite=true."
        )


def begin_run(config: RunConfig) -> None:
    """Removes another run where the config says so, and writes the config, by which the folder is known from then on.

    Args:
        config: The config of this run.
    """
    folder = Path(str(config.training["output_dir"]))
    if config.save.overwrite and not config.training.get("resume_from_checkpoint"):
        for path in _matching(folder, _WRITTEN):
            remove_checkpoint(path) if path.is_dir() else path.unlink()
    (folder / CONFIG_FILE).write_text(to_yaml(without_secrets(config)))


def _matching(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        yield from folder.glob(pattern)


def _is_same_run(config: RunConfig, file: Path) -> bool:
    try:
        return _identity(load_config(str(file))) == _identity(without_secrets(config))
    except ConfigError:
        return False  # There is none, or one that this release does not read.


def _identity(config: RunConfig) -> dict[str, Any]:
    """Returns what makes a run what it is: not how it is taken up again."""
    plain = config.model_dump(exclude={"save", "allow_changed_plan"})
    plain["training"].pop("resume_from_checkpoint", None)
    return plain
