"""Whether an automatic selection by budget keeps its promise: MiniLM and the reviews.

`python -m benchmarks.budget speedup` has `freeze.blocks: {auto: {by: budget, speedup: 2}}` choose, and trains in turns
everything, what was chosen, and one block less. `python -m benchmarks.budget memory` trains with a limit on the memory
of the process, and watches it.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import DataCollatorWithPadding, TrainingArguments

from benchmarks.reviews import load_minilm, review_rows
from benchmarks.whole_runs import table_head, table_row
from hf_freeze.config.sizes import read_size, spell_size
from hf_freeze.run.trials import PeakMemory
from hf_freeze.training import FreezeTrainer

NUM_BLOCKS = 6


class Bench:
    """Makes trainers that are alike but for what they freeze.

    Args:
        options: Those of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._model, self._tokenizer = load_minilm(seed=0)
        self._rows = review_rows(self._tokenizer, "train", num_rows=options.rows, max_length=64, seed=0)

    def trainer(self, freeze: dict[str, Any] | None, folder: str) -> FreezeTrainer:
        """Returns a trainer with a cache of its own."""
        args = TrainingArguments(
            output_dir=folder, num_train_epochs=self._options.epochs, per_device_train_batch_size=32, use_cpu=True,
            report_to="none", save_strategy="no", disable_tqdm=True, logging_strategy="no", learning_rate=1e-4,
        )  # fmt: skip
        return FreezeTrainer(
            copy.deepcopy(self._model), args, train_dataset=self._rows, freeze=freeze,
            data_collator=DataCollatorWithPadding(self._tokenizer),
            activation_cache={"dir": str(Path(folder) / "cache")},
        )  # fmt: skip

    def seconds(self, freeze: dict[str, Any] | None) -> float:
        """Returns how long training takes, the build of the cache included."""
        with tempfile.TemporaryDirectory() as folder:
            trainer = self.trainer(freeze, folder)
            start = time.perf_counter()
            trainer.train()
            return time.perf_counter() - start


def measure_speedup(options: argparse.Namespace) -> None:
    """Chooses, trains in turns, and prints predictions beside measurements."""
    bench = Bench(options)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        budget = {"by": "budget", "speedup": options.target}
        chosen = bench.trainer({"blocks": {"auto": budget}}, folder).plan.chosen
        took = time.perf_counter() - start
    if chosen is None:
        sys.exit("Nothing was chosen.")
    print(*chosen.lines, f"Choosing took {took:.1f} seconds.", sep="\n")
    depth = chosen.section.blocks.value  # type: ignore[union-attr]
    depths = [each for each in (depth - 1, depth) if each > 0]
    full: list[float] = []
    taken: dict[int, list[float]] = {each: [] for each in depths}
    for _ in range(options.repeats):
        full.append(bench.seconds(None))
        for each in depths:
            taken[each].append(bench.seconds({"blocks": {"first": each}}))
    print("\n".join(speedup_table(full, taken, chosen.scores)))


def speedup_table(
    full: Sequence[float], taken: Mapping[int, Sequence[float]], scores: Mapping[str, float]
) -> list[str]:
    """Returns the lines of the table of speed-ups, whose ratios are taken within a round.

    Args:
        full: Seconds of full fine-tuning, one per round.
        taken: Seconds by the number of frozen blocks, one per round.
        scores: What was predicted, as a choice by budget keeps it.
    """
    lines = table_head(["frozen blocks", "seconds", "full / this", "smallest to largest", "predicted"])
    lines.append(table_row([0, f"{statistics.median(full):.1f}", "1.00", "", ""]))
    for depth, seconds in taken.items():
        ratios = [whole / own for whole, own in zip(full, seconds, strict=True)]
        predicted = scores.get(f"up to blocks[{depth - 1}]")
        cells = [f"{statistics.median(seconds):.1f}", f"{statistics.median(ratios):.2f}"]
        cells += [f"{min(ratios):.2f} to {max(ratios):.2f}", "not tried" if predicted is None else f"{predicted:.2f}"]
        lines.append(table_row([depth, *cells]))
    return lines


def measure_memory(options: argparse.Namespace) -> None:
    """Trains under a limit, and prints it beside what the process took."""
    bench = Bench(options)
    with tempfile.TemporaryDirectory() as folder:
        budget = {"by": "budget", "memory": read_size(options.limit)}
        trainer = bench.trainer({"blocks": {"auto": budget}}, folder)
        if trainer.plan.chosen is None:
            sys.exit("Nothing was chosen.")
        print(*trainer.plan.chosen.lines, sep="\n")
        with PeakMemory(torch.device("cpu")) as memory:
            trainer.train()
        print(f"The process took {spell_size(memory.peak)} at most; the limit was {options.limit}.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["speedup", "memory"])
    parser.add_argument("--rows", type=int, default=640)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--target", type=float, default=2.0)
    parser.add_argument("--limit", default="1.2 GB")
    parser.add_argument("--threads", type=int, default=2, help="threads that an operation of torch may use")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    {"speedup": measure_speedup, "memory": measure_memory}[options.what](options)


if __name__ == "__main__":
    main()
