"""A tiny model, a few rows and a config on disk: what a run needs, quick to train."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_freeze.config import RunConfig, parse_config
from tests.tiny import tiny_bert, tiny_tokenizer

TEXTS = (
    "a good film",
    "a bad film",
    "good good film with a good end",
    "bad end of a bad film",
    "what a good end",
    "what a bad end",
)


def write_model(folder: Path, **config: Any) -> Path:
    """Writes a tiny BERT with its tokenizer."""
    tiny_bert(**config).save_pretrained(folder)
    tiny_tokenizer(TEXTS).save_pretrained(folder)
    return folder


def write_rows(folder: Path, labels: Sequence[object] = ("negative", "positive"), *, splits: str = "train") -> Path:
    """Writes 24 rows per split, with the labels in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in splits.split():
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows([TEXTS[row % len(TEXTS)], labels[row % len(labels)]] for row in range(24))
    return folder


def sections(model: Path, rows: Path, output: Path, **training: Any) -> dict[str, Any]:
    """The sections of a quick run of three steps, as a config file spells them."""
    defaults = {
        "output_dir": str(output),
        "max_steps": 3,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_steps": 1,
    }
    return {
        "model": {"name_or_path": str(model)},
        "data": {"load_dataset": {"path": str(rows)}},
        "training": {**defaults, **training},
    }


def config(
    model: Path, rows: Path, output: Path, /, *, training: dict[str, Any] | None = None, **more: Any
) -> RunConfig:
    """The config of a quick run of three steps.

    Args:
        model: Folder of the model.
        rows: Folder of the rows.
        output: Folder to write.
        training: Further training arguments.
        **more: Further sections, or keys of `model` and `data`.
    """
    plain = sections(model, rows, output, **(training or {}))
    for name, section in more.items():
        plain[name] = {**plain[name], **section} if name in plain else section
    return parse_config(plain)
