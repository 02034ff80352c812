"""A few of the movie reviews, in files like those of all of them."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path


def write_few(reviews: Path, folder: Path, *, train: int = 16, validation: int = 8, test: int = 8) -> Path:
    """Writes the first rows of each split and returns the folder.

    Args:
        reviews: The folder of all reviews.
        folder: Where to write.
        train: Number of rows to learn from.
        validation: Number of rows to evaluate on.
        test: Number of rows for the end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for split, number in (("train", train), ("validation", validation), ("test", test)):
        with (reviews / f"{split}.csv").open(newline="") as source:
            rows = list(itertools.islice(csv.reader(source), number + 1))
        with (folder / f"{split}.csv").open("w", newline="") as target:
            csv.writer(target).writerows(rows)
    return folder


def review_texts(reviews: Path, number: int) -> list[str]:
    """Returns the texts of the first validation reviews."""
    with (reviews / "validation.csv").open(newline="") as source:
        return [row["text"] for row in itertools.islice(csv.DictReader(source), number)]
