"""Trains in a folder that holds a finished run already, in a process that kills itself at a step.

`python -m tests.unit.training.killed_again FOLDER STEP` leaves the checkpoints of both runs in FOLDER/STEP.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hf_freeze.training import FreezeTrainer
from tests.tiny import tiny_bert
from tests.unit.training.killed import Kill
from tests.unit.training.runs import arguments, rows

FREEZE = {"blocks": {"first": 2}}


def trainer_of(folder: Path, *, later: bool, freeze: Any = FREEZE, **options: Any) -> FreezeTrainer:
    """A trainer over the rows of the earlier run, or over those of the later one, that saves at every step."""
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4, **options}
    data = rows(64, length=12 if later else 10)
    return FreezeTrainer(tiny_bert(), arguments(folder, **settings), train_dataset=data, freeze=freeze)


def main(folder: Path, step: int) -> None:
    """Trains to the end, and then once more, over other rows, to the step."""
    trainer_of(folder, later=False).train()
    trainer = trainer_of(folder, later=True)
    trainer.add_callback(Kill(step))
    trainer.train()


if __name__ == "__main__":
    main(Path(sys.argv[1], sys.argv[2]), int(sys.argv[2]))
