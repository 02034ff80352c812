"""Pushes a finished run to the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hf_freeze.errors import ConfigError
from hf_freeze.training.uploading import (
    check_repo_id,
    errors_in_words,
    prepare_repo,
    push_command,
    pushed_files,
    upload,
)

_WEIGHTS: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "hf_freeze_delta.safetensors",
)


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    Attributes:
        repo_id: The full name of the repo.
        url: The address of the commit.
        files: The paths of the files that were pushed.
    """

    repo_id: str
    url: str
    files: tuple[str, ...]


def push_run(folder: str, repo_id: str, *, revision: str | None = None, private: bool | None = None) -> Pushed:
    """Pushes the folder of a finished run: its model, tokenizer, card and config, in one commit.

    Checkpoints, states of the optimizer, pickles and logs stay, and so do secrets and the places of files. The token is
    the one that huggingface_hub knows, and `HF_ENDPOINT` says which Hub it is.

    Args:
        folder: The folder.
        repo_id: The repo; it is made where it does not exist.
        revision: The branch, or None for `main`; it is made where it does not exist.
        private: Whether a repo that is made is private; None for what its owner has as default.

    Raises:
        ConfigError: The folder holds no model or a damaged one, or no repo can have this name.
        ShareError: The Hub refuses, or cannot be reached; the folder is as it was.
    """
    check_repo_id(repo_id)
    run = Path(folder)
    _check_run(run)
    command = push_command(run, repo_id, revision=revision)
    remedy = f"The run in {folder!r} is intact. Then run `{command}{' --private' if private else ''}` again."
    with errors_in_words(repo_id, remedy=remedy):
        name = prepare_repo(repo_id, private=private, revision=revision, token=None)
    files = pushed_files(run, name)
    with errors_in_words(repo_id, remedy=remedy):
        url = upload(files, name, message="Push a run of hf_freeze", revision=revision)
    return Pushed(name, url, tuple(sorted(files)))


def _check_run(run: Path) -> None:
    names = sorted(path.name for path in run.iterdir()) if run.is_dir() else []
    if any(name in _WEIGHTS for name in names):
        return
    held = f"It holds {', '.join(names[:8]) or 'nothing'}." if run.is_dir() else "There is no such folder."
    raise ConfigError(
        f"RUN: there is no model of a finished run; got {str(run)!r}. {held} Name the folder that a run was saved in; "
        "a run that was interrupted is finished with training.resume_from_checkpoint=true."
    )
