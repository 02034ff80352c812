"""Removes checkpoints so that a removal which is killed leaves nothing that could be resumed from.

A checkpoint gets a name that is none of a checkpoint before any of its files goes: cut short, the removal leaves a
folder that nobody reads, and the next run in the same folder removes it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints

from hf_freeze.training.earlier import earlier_names, forget

_REMOVED: Final = "_removed-"


def remove_checkpoint(folder: Path) -> None:
    """Removes a checkpoint, and what is noted of it.

    Args:
        folder: The checkpoint folder; it need not exist.
    """
    if folder.is_dir():
        gone = folder.with_name(f"{_REMOVED}{folder.name}")
        shutil.rmtree(gone, ignore_errors=True)  # What a killed removal left behind.
        folder.replace(gone)
        shutil.rmtree(gone, ignore_errors=True)
    forget(folder)


def rotate(newest: Path, limit: int | None, *, best: str | None) -> None:
    """Removes the oldest checkpoints in a folder, as the Trainer does: the newest and the best one are kept.

    Those of earlier runs go first.

    Args:
        newest: The folder of the checkpoint that was just written; the others lie beside it.
        limit: The number of checkpoints to keep; None or 0 keeps all.
        best: The folder of the best checkpoint, where there is one.
    """
    if not limit:
        return
    # The Trainer tells the newest by the clock, and by its step where the clock is too coarse.
    kept = {str(newest)} if best is None else {str(newest), str(Path(best))}
    others = [folder for folder in sort_checkpoints(str(newest.parent), use_mtime=True) if folder not in kept]
    earlier = earlier_names(newest.parent)
    others.sort(key=lambda folder: Path(folder).name not in earlier)
    for folder in others[: max(0, len(others) + len(kept) - max(limit, len(kept)))]:
        remove_checkpoint(Path(folder))


def keep_only(run: Path, best: str) -> None:
    """Removes all checkpoints of a run but the best one, as the Trainer does in the end where it is to keep one.

    Args:
        run: The folder of the run.
        best: The folder of the best checkpoint.
    """
    for folder in sort_checkpoints(str(run)):
        if Path(folder).resolve() != Path(best).resolve():
            remove_checkpoint(Path(folder))


def remove_leftovers(run: Path) -> None:
    """Removes what removals that were killed left in the folder of a run.

    Args:
        run: The folder of the run; it need not exist.
    """
    for folder in run.glob(f"{_REMOVED}{PREFIX_CHECKPOINT_DIR}-*"):
        shutil.rmtree(folder, ignore_errors=True)
