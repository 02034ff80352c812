"""Writes a trained model for deployment: merged, every parameter frozen, in eval mode."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from transformers import PreTrainedModel

from hf_freeze.errors import ConfigError, did_you_mean
from hf_freeze.sharing.classes import as_dtype
from hf_freeze.sharing.merging import check_target, copy_processor, merged_model, remove_run, write_merged
from hf_freeze.sharing.onnx_export import Row, check_onnx, write_onnx
from hf_freeze.sharing.sources import find_source

FORMATS: Final = ("onnx", "transformers")


def export_model(
    path_or_repo: str | Path, folder: str | Path, *, export_format: str, rows: Sequence[Row] = (), **options: Any
) -> PreTrainedModel:
    """Writes a trained model in a format for deployment.

    Args:
        path_or_repo: The folder that a run has written, or the name of a repository on the Hub.
        folder: Where to write.
        export_format: `transformers`: a plain folder; `onnx`: `model.onnx` with the config and the tokenizer.
        rows: Texts or pairs of texts that an ONNX model is compared with the model on.
        options: As for `write_merged`.

    Returns:
        The model that was written, frozen and in eval mode.

    Raises:
        ConfigError: There is no such format, it does not take rows, or has too few; and as `write_merged` does.
        PlanError: As `write_merged` does.
        ShareError: The model cannot be exported to ONNX, or gives other results there.
    """
    if export_format not in FORMATS:
        raise ConfigError(
            f"format: there is no such format; got {export_format!r}. It takes {', '.join(FORMATS)}."
            f"{did_you_mean(export_format, FORMATS)}"
        )
    if export_format == "onnx":
        return _export_onnx(path_or_repo, Path(folder), rows, **options)
    if rows:
        raise ConfigError(
            f"rows: this format is compared with nothing; got {len(rows)} rows for {export_format!r}. The format "
            "'onnx' takes rows. Leave rows out."
        )
    return write_merged(path_or_repo, folder, **options)


def _export_onnx(
    path_or_repo: str | Path,
    target: Path,
    rows: Sequence[Row],
    *,
    dtype: torch.dtype | str | None = None,
    overwrite: bool = False,
    revision: str | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Writes beside the target, and moves what is sound into it."""
    check_target(target, path_or_repo, overwrite=overwrite)
    check_onnx(as_dtype(dtype, torch.float32), rows)
    hub_options = {name: value for name, value in options.items() if name not in ("base", "trust_remote_code")}
    source = find_source(path_or_repo, revision=revision, options=hub_options)
    model = merged_model(path_or_repo, dtype=torch.float32, revision=revision, **options)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        staged = Path(name)
        model.config.save_pretrained(staged)
        copy_processor(source, staged)
        write_onnx(model, staged, rows)
        target.mkdir(exist_ok=True)
        remove_run(target)
        for file in staged.iterdir():
            file.replace(target / file.name)
    return model
