"""Writes a trained model as ONNX, and compares it with the model itself on real rows.

Shapes: `B` batch, `L` sequence length; both are free in what is written.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_freeze.errors import ConfigError, ShareError
from hf_freeze.tasks.tokenizers import load_tokenizer, resolve_max_length

ONNX_FILE: Final = "model.onnx"
TOLERANCE: Final = 1e-4  # the largest absolute difference of any output
_PACKAGES: Final = ("onnx", "onnxruntime", "onnxscript")

Row = str | tuple[str, str]  # a text, or a pair of texts
_Batch = dict[str, torch.Tensor]


def write_onnx(model: PreTrainedModel, folder: Path, rows: Sequence[Row]) -> float:
    """Writes `model.onnx` with free batch size and length, and returns how far it is from the model.

    Args:
        model: A plain model in eval mode; its tokenizer is in the folder already.
        folder: Where to write.
        rows: Texts or pairs of texts, as the model is made for, to compare on.

    Returns:
        The largest absolute difference of any output.

    Raises:
        ConfigError: The packages of the extra are missing, there are too few rows, the model is not in float32, or it
            has no tokenizer that pads.
        ShareError: The model cannot be exported, or what was written gives other results; then nothing is left of it.
    """
    check_onnx(model.dtype, rows)
    tokenizer = _load_tokenizer(folder)
    length = resolve_max_length(None, model=model, tokenizer=tokenizer, is_pair=False)
    batches = [_encode(tokenizer, batch, length) for batch in _batches(rows)]
    target = folder / ONNX_FILE
    try:
        with _inference(model):
            return _write_checked(model, target, batches, num_rows=len(rows))
    except ShareError:
        _remove(target)
        raise


def _write_checked(model: PreTrainedModel, target: Path, batches: Sequence[_Batch], *, num_rows: int) -> float:
    example = batches[0]
    try:
        names = [name for name, value in model(**example).items() if isinstance(value, torch.Tensor)]
    except (RuntimeError, TypeError, ValueError) as error:
        raise ShareError(
            f"format: this model cannot be called with texts alone; got a {type(model).__name__}. It says: "
            f"{_first_line(error)}. Use the format 'transformers'."
        ) from error
    try:
        with _quiet():
            _export(model, example, names, target)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ShareError(
            f"format: this model cannot be exported to ONNX; got a {type(model).__name__}. The exporter says: "
            f"{_first_line(error)}. Use the format 'transformers'."
        ) from error
    distance = _distance(model, batches, names, target)
    if not distance <= TOLERANCE:
        raise ShareError(
            f"format: the ONNX model gives other results than the model; got a difference of {distance:.1e} in "
            f"{', '.join(names)}, over {num_rows} rows. At most {TOLERANCE:.0e} is accepted. Use the format "
            "'transformers'."
        )
    return distance


def check_onnx(dtype: torch.dtype, rows: Sequence[Row]) -> None:
    """Raises where an export cannot work, before a model is written.

    Args:
        dtype: The type of the weights.
        rows: What the export is to be checked on.

    Raises:
        ConfigError: The packages of the extra are missing, there are too few rows, or the model is not in float32.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"format: ONNX needs packages that are not installed; got no {', '.join(missing)}. They come with the "
            "extra 'onnx'. Run `pip install 'hf-freeze[onnx]'`."
        )
    if dtype != torch.float32:
        raise ConfigError(
            f"dtype: ONNX is written in float32 only, so that it can be compared; got {str(dtype)[6:]!r}. Add "
            "`--dtype float32`."
        )
    if len(rows) < 3:
        raise ConfigError(
            f"rows: an ONNX model is compared on at least 3 rows; got {len(rows)}. Name a file with a text on each "
            "line: `--rows FILE`."
        )


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer that lies beside a model, and can form a batch."""
    try:
        tokenizer = load_tokenizer(str(folder))
    except ConfigError as error:
        raise ConfigError(
            "RUN: there is no tokenizer to compare the ONNX model with; got a folder without its files. Save it into "
            "the folder of the model with tokenizer.save_pretrained."
        ) from error
    if tokenizer.pad_token is None:
        raise ConfigError(
            f"RUN: an ONNX model is compared on batches, and its tokenizer cannot pad; got a "
            f"{type(tokenizer).__name__} without a pad_token. Set one and save it with tokenizer.save_pretrained."
        )
    return tokenizer


class _Outputs(nn.Module):
    """Calls a model and returns its tensors, in the order of their names."""

    def __init__(self, model: PreTrainedModel, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        outputs = self.model(**inputs)
        return tuple(outputs[name] for name in self.names)


def _export(model: PreTrainedModel, example: Mapping[str, torch.Tensor], names: Sequence[str], target: Path) -> None:
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    torch.onnx.export(
        _Outputs(model, names).eval(),
        (),
        str(target),
        kwargs={"inputs": dict(example)},
        input_names=list(example),
        output_names=list(names),
        dynamic_shapes={"inputs": dict.fromkeys(example, free)},
        dynamo=True,
        verbose=False,
    )


def _distance(model: PreTrainedModel, batches: Sequence[_Batch], names: Sequence[str], target: Path) -> float:
    """Returns the largest absolute difference over all batches."""
    import onnxruntime  # an extra

    with _errors_of_runtime(model):
        session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    largest = 0.0
    for inputs in batches:
        expected = model(**inputs)
        with _errors_of_runtime(model):
            given = session.run(list(names), {name: value.numpy() for name, value in inputs.items()})
        for name, found in zip(names, given, strict=True):
            difference = (expected[name] - torch.from_numpy(found)).abs().max().item()
            largest = max(largest, difference) if difference == difference else float("inf")
    return largest


@contextlib.contextmanager
def _errors_of_runtime(model: PreTrainedModel) -> Iterator[None]:
    """Says what ONNX Runtime does not take; its errors have no class of their own in common."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "onnxruntime":
            raise
        raise ShareError(
            f"format: ONNX Runtime cannot run what was exported; got a {type(model).__name__}. It says: "
            f"{_first_line(error)}. Use the format 'transformers'."
        ) from error


def _batches(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Yields two rows to export with, one alone, and all in batches of three."""
    yield rows[:2]
    yield rows[:1]
    yield from (rows[start : start + 3] for start in range(0, len(rows), 3))


def _encode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], length: int | None) -> _Batch:
    """Returns the inputs of a batch, each of shape (B, L), of as many tokens as the model reads."""
    first = [row if isinstance(row, str) else row[0] for row in rows]
    second = [row[1] for row in rows if not isinstance(row, str)] or None
    return dict(tokenizer(first, second, padding=True, truncation=True, max_length=length, return_tensors="pt"))


@contextlib.contextmanager
def _inference(model: PreTrainedModel) -> Iterator[None]:
    """Keeps no gradients, and lets decoders return no cache of keys and values."""
    cached = model.config.use_cache if "use_cache" in model.config.to_dict() else None
    if cached is not None:
        model.config.use_cache = False
    try:
        with torch.no_grad():
            yield
    finally:
        if cached is not None:
            model.config.use_cache = cached


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter from reporting its steps."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _remove(target: Path) -> None:
    for file in (target, target.with_name(f"{target.name}.data")):
        file.unlink(missing_ok=True)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")[:200]
