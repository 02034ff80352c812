"""Profiles the steps of a cached training: where the time goes that is left when the frozen blocks cost nothing.

Profiling makes Python slower than PyTorch, so the figures tell where time goes rather than how much.
"""

from __future__ import annotations

import argparse
import pstats
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.contenders import CACHED, Reviews, make_trainer, require_cache, training_arguments
from benchmarks.overhead import NUM_DROPPED, ProfileCallback
from benchmarks.pacing import steps_of
from benchmarks.reviews import load_minilm, review_rows
from benchmarks.whole_runs import table_head, table_row


def profile_lines(options: argparse.Namespace) -> list[str]:
    """Returns the table of the functions that take the most time, those that they call included."""
    num_steps = steps_of(options.rounds, NUM_DROPPED)
    model, tokenizer = load_minilm(seed=options.seed)
    num_rows = num_steps * options.batch_size
    rows = review_rows(tokenizer, "train", num_rows=num_rows, max_length=options.max_length, seed=options.seed)
    callback = ProfileCallback(num_steps)
    with tempfile.TemporaryDirectory(dir=options.folder) as cache, tempfile.TemporaryDirectory() as folder:
        args = training_arguments(
            Path(folder),
            batch_size=options.batch_size,
            seed=options.seed,
            max_steps=num_steps,
            train_sampling_strategy="sequential",
        )
        reviews = Reviews(model, tokenizer, rows)
        trainer = make_trainer(CACHED, reviews, args, depth=options.depth, cache=Path(cache), callbacks=[callback])
        trainer.train()
        require_cache(trainer)
    # Each entry is (primitive calls, calls, own seconds, cumulative seconds, the same four by caller).
    entries: dict[Any, Any] = vars(pstats.Stats(callback.profile))["stats"]
    largest = sorted(entries.items(), key=lambda entry: -entry[1][3])[: options.functions]
    scale = 1e6 / options.rounds
    return [
        f"Steps of {options.batch_size} rows at k = {options.depth}, profiled, the largest first.",
        "",
        *table_head(["function", "calls a step", "own, µs a step", "with what it calls, µs a step"]),
        *(
            table_row(
                [
                    f"`{_name(*function)}`",
                    f"{calls / options.rounds:.1f}",
                    f"{own * scale:.0f}",
                    f"{cumulative * scale:.0f}",
                ]
            )
            for function, (_, calls, own, cumulative, _) in largest
        ),
    ]


def _name(path: str, line: int, name: str) -> str:
    """Returns where a function is, from its package on; built-in ones are in no file."""
    place = path.rpartition("site-packages/")[2].removeprefix(f"{Path(__file__).resolve().parent.parent}/")
    return name if path == "~" else f"{place}:{line} {name}"
