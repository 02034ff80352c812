"""Trains in processes that kill themselves with SIGKILL while they remove a checkpoint.

`python -m tests.unit.training.killed_removal FOLDER` runs every case in FOLDER/<case>. Processes are forked, so that
the libraries are imported once.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from hf_freeze.training import FreezeTrainer
from tests.tiny import tiny_bert
from tests.unit.training.runs import arguments, rows

FREEZE = {"blocks": {"first": 2}}
BEST = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "worse", "greater_is_better": False}
# What makes a checkpoint go: rotation, a save at a step that has one already, and the end of training.
CASES: dict[str, dict[str, Any]] = {
    "rotated small": {"checkpoints": "small", "save_total_limit": 1},
    "rotated full": {"checkpoints": "full", "save_total_limit": 1},
    "written over": {"checkpoints": "full", "before": 2},
    "at the end": {"checkpoints": "full", "save_total_limit": 1, "load_best_model_at_end": True, **BEST},
}


class KillInRemoval:
    """Kills this process at the second file that goes with a folder whose name holds that of a checkpoint."""

    def __init__(self, *, after: int) -> None:
        self.removals = -after
        self.files: int | None = None

    def __call__(self, event: str, arguments_: tuple[Any, ...]) -> None:
        if event == "shutil.rmtree" and "checkpoint-" in str(arguments_[0]) and Path(arguments_[0]).is_dir():
            self.removals += 1
            self.files = 0 if self.removals == 1 else None
        elif event == "os.remove" and self.files is not None:
            self.files += 1
            if self.files == 2:
                os.kill(os.getpid(), signal.SIGKILL)


def train(
    folder: Path, *, checkpoints: str, resume: str | bool | None = None, max_steps: int = 3, **options: Any
) -> None:
    """Trains and saves at every step."""
    args = arguments(folder, save_strategy="steps", save_steps=1, max_steps=max_steps, **options)
    number = iter(range(1, 9))
    FreezeTrainer(
        tiny_bert(),
        args,
        train_dataset=rows(),
        eval_dataset=rows(4),
        compute_metrics=lambda _: {"worse": next(number)},
        freeze=FREEZE,
        save={"checkpoints": checkpoints},
    ).train(resume_from_checkpoint=resume)


def main(folder: Path) -> None:
    """Lets one process for each case be killed in the removal of its first checkpoint, or of the last."""
    for name, case in CASES.items():
        options = {key: value for key, value in case.items() if key != "before"}
        if "before" in case:
            train(folder / name, max_steps=case["before"], **options)
        if (child := os.fork()) == 0:
            sys.addaudithook(KillInRemoval(after=1 if name == "at the end" else 0))
            train(folder / name, **options)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), (name, status)
        assert os.WTERMSIG(status) == signal.SIGKILL


if __name__ == "__main__":
    main(Path(sys.argv[1]))
