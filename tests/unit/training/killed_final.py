"""Saves final models in processes that kill themselves with SIGKILL at each step of a save, and loads what is left.

`python -m tests.unit.training.killed_final FOLDER` writes FOLDER/told.json: by kind, what every kill left behind.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from hf_freeze import FreezeError, load_model
from hf_freeze.training import FreezeTrainer
from tests.tiny import tiny_gpt2
from tests.unit.sharing.trained import FROZEN, KINDS, logits
from tests.unit.training.runs import arguments

LORA = {"peft_type": "LORA", "target_modules": ["c_attn"], "r": 2, "blocks": {"indices": [2]}}
# PEFT expects no head of a language model: what is lost in a save is not missed.
CASES = {"plain": KINDS["plain"], "delta": KINDS["delta"], "mixed": {"freeze": FROZEN, "adapters": (LORA,)}}


class KillAtStep:
    """Kills this process where a file of a folder is written, moved or removed."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder, self.left = str(folder), step
        sys.addaudithook(self.watch)
        sys.setprofile(self.watch_calls)

    def watch(self, event: str, given: tuple[Any, ...]) -> None:
        """Counts what Python does with files."""
        writes = event == "open" and str(given[1] or "").startswith(("w", "x", "a", "r+"))
        if (writes or event in ("os.rename", "os.remove")) and str(given[0]).startswith(self.folder):
            self.count()

    def watch_calls(self, frame: object, event: str, function: Any) -> None:
        """Counts where safetensors begins and ends to write a file: it does so without Python."""
        if event in ("c_call", "c_return") and function.__name__ == "serialize_file":
            self.count()

    def count(self) -> None:
        """Counts a step."""
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)


def trainer_of(kind: str, base: Path, folder: Path) -> FreezeTrainer:
    """A trainer whose model has weights of its own wherever it trains."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_pretrained(base)
    return FreezeTrainer(model, arguments(folder), **CASES[kind])


def move(trainer: FreezeTrainer) -> torch.Tensor:
    """Changes what trains, as training would, and returns the logits."""
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return logits(trainer.model.eval())


def is_killed(trainer: FreezeTrainer, folder: Path, step: int) -> bool:
    """Saves in a process of its own, and returns whether it was killed before it had done all steps."""
    if (child := os.fork()) == 0:
        KillAtStep(folder, step)
        trainer.save_model(str(folder))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


def left_in(folder: Path, models: dict[str, torch.Tensor]) -> str:
    """What the model in a folder is: one of those that are known, another one, or none."""
    try:
        found = logits(load_model(folder))
    except FreezeError:
        return "none"
    return next((name for name, expected in models.items() if torch.equal(found, expected)), "another")


def main(root: Path) -> None:
    """Kills a save at every step, in an empty folder and over an earlier model, and tells what loads then."""
    tiny_gpt2().save_pretrained(root / "base")
    told = {}
    for kind in CASES:
        trainer = trainer_of(kind, root / "base", root / "unused")
        earlier = move(trainer)
        trainer.save_model(str(root / kind / "earlier"))
        models = {"earlier": earlier, "new": move(trainer)}
        told[kind] = {
            start: list(kill_at_every_step(trainer, root / kind, start, models)) for start in ("empty", "over")
        }
    (root / "told.json").write_text(json.dumps(told))


def kill_at_every_step(trainer: FreezeTrainer, root: Path, start: str, models: dict[str, torch.Tensor]) -> Any:
    """Yields what each kill left, and in the end what a whole save left."""
    for step in range(99):
        folder = root / f"{start}-{step}"
        if start == "over":
            shutil.copytree(root / "earlier", folder)
        killed = is_killed(trainer, folder, step)
        yield left_in(folder, models) if folder.exists() else "none"
        if not killed:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
