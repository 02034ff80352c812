"""Which checkpoints in the folder of a run are not those of the training that was started last.

Training that starts in a folder again leaves the checkpoints there as they are, but is not resumed from them: their
names are noted when it begins. It is their names, so that the folder may be moved.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

EARLIER_FILE: Final = "_earlier_checkpoints"  # one name a line; what begins with an underscore is never pushed


class _Trainer(Protocol):
    resumed_folder: Path | None


class StartCallback(TrainerCallback):
    """Sets the checkpoints of earlier runs apart when training begins, and no sooner: until then it may be refused.

    Args:
        trainer: The trainer, which knows what it resumes from.
    """

    def __init__(self, trainer: _Trainer) -> None:
        self.trainer = weakref.proxy(trainer)  # The trainer holds its callbacks: a cycle would keep it.

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Notes them."""
        if args.should_save:
            set_apart(Path(str(args.output_dir)), self.trainer.resumed_folder)


def set_apart(run: Path, start: Path | None) -> None:
    """Notes which checkpoints are not of the training that begins: all but the one it starts from and those before it.

    Args:
        run: The output folder; it need not exist.
        start: The checkpoint that training goes on from, which may be one of an earlier run, or lie elsewhere; None
            where it starts from the beginning.
    """
    steps, earlier = checkpoint_steps(run), earlier_names(run)
    kept: set[str] = set()
    if start is not None and start.name in steps and start.resolve().parent == run.resolve():
        before = {name for name, step in steps.items() if step < steps[start.name]}
        kept = {start.name} if start.name in earlier else {start.name, *(before - earlier)}
    _note(run, steps.keys() - kept)


def earlier_names(run: Path) -> frozenset[str]:
    """Returns the names of the checkpoints that are not of the training that was started last in a folder.

    Args:
        run: The output folder; it need not exist.
    """
    file = run / EARLIER_FILE
    return frozenset(file.read_text().splitlines()) if file.is_file() else frozenset()


def forget(folder: Path) -> None:
    """Forgets a checkpoint that is removed: one of the same name may be written next.

    Args:
        folder: The checkpoint folder.
    """
    earlier = earlier_names(folder.parent)
    if folder.name in earlier:
        _note(folder.parent, earlier - {folder.name})


def checkpoint_steps(run: Path) -> dict[str, int]:
    """Returns the steps of the checkpoints in a folder by their names.

    Args:
        run: The output folder; it need not exist.
    """
    prefix = f"{PREFIX_CHECKPOINT_DIR}-"
    return {
        path.name: int(path.name.removeprefix(prefix))
        for path in run.glob(f"{prefix}*")
        if path.is_dir() and path.name.removeprefix(prefix).isdecimal()
    }


def _note(run: Path, names: Collection[str]) -> None:
    if not names:
        (run / EARLIER_FILE).unlink(missing_ok=True)
        return
    temporary = run / f"{EARLIER_FILE}.new"
    temporary.write_text("".join(f"{name}\n" for name in sorted(names)))
    temporary.replace(run / EARLIER_FILE)
