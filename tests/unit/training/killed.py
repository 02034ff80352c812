"""Trains with a schedule in a process of its own, and ends it at a step without any warning."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tests.unit.training.scheduled import SCHEDULES, trainer_of


class Kill(TrainerCallback):
    """Kills this process at a step, before the optimizer moves."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path, names: list[str], steps: list[int]) -> None:
    """Starts one process for each schedule, and lets each be killed at its step."""
    for name, step in zip(names, steps, strict=True):
        child = os.fork()  # Importing everything once is what takes long.
        if child == 0:
            trainer = trainer_of(folder / name, SCHEDULES[name], save_strategy="steps", save_steps=2)
            trainer.add_callback(Kill(step))
            trainer.train()
            os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), (name, status)
        assert os.WTERMSIG(status) == signal.SIGKILL


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(";"), [int(step) for step in sys.argv[3].split(";")])
