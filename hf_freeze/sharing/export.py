"""Writes a trained model for deployment: merged, every parameter frozen, in eval mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from transformers import PreTrainedModel

from hf_freeze.errors import ConfigError, did_you_mean
from hf_freeze.sharing.merging import write_merged

FORMATS: Final = ("transformers",)


def export_model(
    path_or_repo: str | Path, folder: str | Path, *, export_format: str, **options: Any
) -> PreTrainedModel:
    """Writes a trained model in a format for deployment.

    Args:
        path_or_repo: The folder that a run has written, or the name of a repository on the Hub.
        folder: Where to write.
        export_format: `transformers`: a plain folder.
        options: As for `write_merged`.

    Returns:
        The model that was written, frozen and in eval mode.

    Raises:
        ConfigError: There is no such format; and as `write_merged` does.
        PlanError: As `write_merged` does.
    """
    if export_format not in FORMATS:
        raise ConfigError(
            f"format: there is no such format; got {export_format!r}. It takes {', '.join(FORMATS)}."
            f"{did_you_mean(export_format, FORMATS)}"
        )
    return write_merged(path_or_repo, folder, **options)
