"""The training section as Transformers' arguments, and what it asks for in vain, found before any work begins."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from hf_freeze.errors import ConfigError


def training_arguments(options: Mapping[str, Any]) -> TrainingArguments:
    """Returns the arguments for the Trainer.

    Args:
        options: The training section of a config.

    Raises:
        ConfigError: The options do not fit together.
    """
    try:
        return TrainingArguments(**{"dataloader_pin_memory": torch.accelerator.is_available(), **options})
    except (ImportError, TypeError, ValueError) as error:
        raise refusal("TrainingArguments", error) from error


def refusal(owner: str, error: Exception) -> ConfigError:
    """Returns the error for options that fit one by one but not together, in the words of Transformers.

    Args:
        owner: The class that refuses them.
        error: What it raised.
    """
    text = " ".join(str(error).split()).rstrip(".")
    return ConfigError(f"training: {owner} refuses these options; {text}. Change the options that it names.")


def check_output_folder(folder: str) -> None:
    """Raises where nothing can be written to the output folder, before time is spent on anything else.

    Args:
        folder: The folder; it is made where it does not exist.

    Raises:
        ConfigError: Nothing can be written to it.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"training.output_dir: this folder cannot be written; got {folder!r}. The system says: {error.strerror}. "
            "Name a folder that you may write."
        ) from error


def check_evaluation(args: TrainingArguments, *, splits: Iterable[str], has_rows: bool) -> None:
    """Raises where evaluation is asked for and there is nothing to evaluate on.

    Args:
        args: The arguments for the Trainer.
        splits: The splits that are used, for the message.
        has_rows: Whether there are rows to evaluate on.

    Raises:
        ConfigError: There are none, and evaluation is asked for.
    """
    if not has_rows and args.eval_strategy != "no":
        raise ConfigError(
            "training.eval_strategy: there are no rows to evaluate on; got "
            f"{IntervalStrategy(args.eval_strategy).value!r}. The data set has the splits "
            f"{', '.join(sorted(set(splits)))}. Name a split in data.splits.validation, or set "
            "training.eval_strategy to 'no'."
        )
