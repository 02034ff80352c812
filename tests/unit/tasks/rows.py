"""Small datasets in files, as users have them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_freeze.tasks import PreparedData, get_task

Rows = Sequence[Mapping[str, Any]]

REVIEWS = [
    {"text": "a fine film", "label": "positive"},
    {"text": "a dull film", "label": "negative"},
    {"text": "fine", "label": "positive"},
]


def write_csv(folder: Path, **splits: Rows) -> dict[str, Any]:
    """Writes a csv file per split and returns the arguments of `load_dataset` for them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return {"path": "csv", "data_files": {name: str(folder / f"{name}.csv") for name in splits}}


def write_json(folder: Path, **splits: Rows) -> dict[str, Any]:
    """Writes a file with one JSON object per line per split and returns the arguments of `load_dataset` for them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"path": "json", "data_files": {name: str(folder / f"{name}.jsonl") for name in splits}}


def prepare(load_dataset: Mapping[str, Any], **arguments: Any) -> PreparedData:
    """Prepares a dataset for text classification."""
    return get_task("text-classification").prepare_data(load_dataset, **arguments)
