"""Pushes a finished run to the Hub."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from transformers.utils import CONFIG_NAME

from hf_freeze.errors import ConfigError
from hf_freeze.sharing.sources import WEIGHTS, Source, find_source, sound_safetensors
from hf_freeze.training.pretrained import check_index, named_weights
from hf_freeze.training.uploading import (
    Files,
    check_repo_id,
    errors_in_words,
    prepare_repo,
    push_command,
    pushed_files,
    upload,
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
        PlanError: What it says of its training is damaged.
        ShareError: The Hub refuses, or cannot be reached; the folder is as it was.
    """
    check_repo_id(repo_id)
    run = Path(folder)
    source = _source_of(run)
    _check_weights(source, pushed_files(run, repo_id))  # Nothing is made on the Hub for a run that is damaged.
    command = push_command(run, repo_id, revision=revision)
    remedy = f"The run in {folder!r} is intact. Then run `{command}{' --private' if private else ''}` again."
    with errors_in_words(repo_id, remedy=remedy):
        name = prepare_repo(repo_id, private=private, revision=revision, token=None)
    files = pushed_files(run, name)
    with errors_in_words(repo_id, remedy=remedy):
        url = upload(files, name, message="Push a run of hf_freeze", revision=revision)
    return Pushed(name, url, tuple(sorted(files)))


def _source_of(run: Path) -> Source:
    names = sorted(path.name for path in run.iterdir()) if run.is_dir() else []
    if any(name in weights for weights in WEIGHTS.values() for name in names):
        return find_source(run, revision=None, options={})
    held = f"It holds {', '.join(names[:8]) or 'nothing'}." if run.is_dir() else "There is no such folder."
    raise ConfigError(
        f"RUN: there is no model of a finished run; got {str(run)!r}. {held} Name the folder that a run was saved in; "
        "a run that was interrupted is finished with training.resume_from_checkpoint=true."
    )


def _check_weights(source: Source, files: Files) -> None:
    """Refuses what would not load once it is pushed."""
    if source.kind == "plain":
        check_index(source.name, named_weights(json.loads((Path(source.name) / CONFIG_NAME).read_text())), {})
    for file in files.values():
        if isinstance(file, Path) and file.suffix == ".safetensors":
            with sound_safetensors(file), safe_open(file, framework="pt"):  # The header says how long the file is.
                pass
