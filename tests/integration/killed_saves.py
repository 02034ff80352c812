"""Trains in processes that are killed with SIGKILL while they save, and tells what was left and resumed from.

`python -m tests.integration.killed_saves FOLDER KILLS CHECKPOINTS` writes FOLDER/told.json. Processes are forked, so
that the libraries are imported once.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

from hf_freeze.plan.audit import tensor_digest
from hf_freeze.training import FreezeTrainer, manifest
from tests.tiny import tiny_bert
from tests.unit.training.runs import arguments, rows

STEPS_PER_KILL = 3  # At most: a process is killed in its first, second or third save.
FREEZE = {"blocks": {"first": 2}, "embeddings": "full"}


class TellingTrainer(FreezeTrainer):
    """Writes a line to a pipe where it begins and ends, resumes, and begins to save and has saved."""

    pipe: int
    checkpoints = "small"

    def tell(self, **event: Any) -> None:
        """Writes one event."""
        os.write(self.pipe, f"{json.dumps(event)}\n".encode())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.tell(resumed=Path(resume_from_checkpoint).name)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.tell(saving=self.state.global_step)
        start = time.perf_counter()
        super()._save_checkpoint(model, trial)
        self.tell(saved=self.state.global_step, seconds=time.perf_counter() - start)


def train(folder: Path, pipe: int, num_steps: int, *, resume: bool) -> None:
    """Trains to the end, saving at every step, and tells the digest of every parameter."""
    model = tiny_bert(vocab_size=9_000, hidden_dropout_prob=0.1)  # Large enough for a save to take a while.
    args = arguments(folder, max_steps=num_steps, save_strategy="steps", save_steps=1, save_total_limit=3)
    save = {"checkpoints": TellingTrainer.checkpoints}
    trainer = TellingTrainer(model, args, train_dataset=rows(), freeze=FREEZE, save=save)
    trainer.pipe = pipe
    trainer.train(resume_from_checkpoint=resume)
    trainer.tell(ended={name: tensor_digest(parameter) for name, parameter in trainer.model.named_parameters()})


def start(folder: Path, num_steps: int, *, resume: bool) -> tuple[int, int]:
    """Forks a process that trains, and returns its number and the pipe that it writes to."""
    reading, writing = os.pipe()
    if (process := os.fork()) == 0:
        code = 1
        try:
            os.close(reading)
            train(folder, writing, num_steps, resume=resume)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    return process, reading


def events(pipe: int) -> Any:
    """Yields the events of a process until it ends."""
    with os.fdopen(pipe) as lines:
        for line in lines:
            yield json.loads(line)


def run_to_end(folder: Path, num_steps: int, *, resume: bool) -> list[dict[str, Any]]:
    """Lets a process train to the end, and returns its events."""
    process, pipe = start(folder, num_steps, resume=resume)
    told = list(events(pipe))
    if os.waitpid(process, 0)[1] != 0:
        raise RuntimeError(f"the process ended by itself with an error, after {told[-1:]}")
    return told


def kill_while_saving(folder: Path, num_steps: int, draw: random.Random, seconds: float) -> dict[str, Any]:
    """Starts a process, kills it at a random moment of a save, and returns what it had done."""
    newest = manifest.newest_complete(folder)
    process, pipe = start(folder, num_steps, resume=newest is not None)
    saves, resumed, saving = draw.randint(1, STEPS_PER_KILL), None, 0
    for event in events_until_kill(pipe, process, saves, draw.uniform(0, seconds)):
        resumed, saving = event.get("resumed", resumed), event.get("saving", saving)
    os.waitpid(process, 0)
    left = manifest.newest_complete(folder)
    cut = folder / f"checkpoint-{saving}"
    return {
        "newest": newest.name if newest is not None else None,
        "resumed": resumed,
        "saving": saving,
        "left": left.name if left is not None else None,
        "cut": cut.is_dir() and not manifest.is_complete(cut),
    }


def events_until_kill(pipe: int, process: int, saves: int, delay: float) -> Any:
    """Yields the events of a process, which is killed some time after it has begun to save for the last time."""
    for event in events(pipe):
        yield event
        if "saving" in event:
            saves -= 1
            if saves == 0:
                select.select([], [], [], delay)
                os.kill(process, signal.SIGKILL)


def main(folder: Path, kills: int) -> None:
    """Tells what every killed process resumed from and left, and how the killed and the whole run ended."""
    draw, num_steps = random.Random(0), STEPS_PER_KILL * kills + 2
    whole = run_to_end(folder / "whole", num_steps, resume=False)
    seconds = sorted(event["seconds"] for event in whole if "saved" in event)[num_steps // 2]
    trials = [kill_while_saving(folder / "killed", num_steps, draw, seconds) for _ in range(kills)]
    newest = manifest.newest_complete(folder / "killed")
    rest = run_to_end(folder / "killed", num_steps, resume=newest is not None)
    resumed = next((event["resumed"] for event in rest if "resumed" in event), None)
    left = newest.name if newest is not None else None
    ends = {"whole": whole[-1]["ended"], "killed": rest[-1]["ended"]}
    told = {"trials": trials, "left": left, "resumed": resumed, **ends}
    (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    TellingTrainer.checkpoints = sys.argv[3]
    main(Path(sys.argv[1]), int(sys.argv[2]))
