"""Uploads a folder to the Hub: what of it is pushed, in one commit, and what the client raises, in words.

A push is one commit: whoever loads the repo sees the old model or the new one, and weights of another form that lie in
the repo go with the same commit, so that they are not loaded in the place of the new ones. A folder that is pushed,
such as a checkpoint, holds just what was pushed of it.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from io import StringIO
from pathlib import Path, PureWindowsPath
from typing import Any, Final

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
    hf_hub_url,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from hf_freeze.errors import ConfigError, ShareError
from hf_freeze.training.hub_answers import HTTP_ERROR

CONFIG_FILE: Final = "hf_freeze.yaml"  # the config of a run
# What a repo is made of. Pickles, states of optimizers and generators, logs and checkpoints are not among it.
_PUSHED: Final = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.model",
    "*.txt",
    "*.svg",
    "*.codes",
    "*.tokenizer",
    "README.md",
    CONFIG_FILE,
)
_KEPT_HERE: Final = ("trainer_state.json", "training_args.json", ".*", "_*")
_PUSHED_FOLDERS: Final = ("additional_chat_templates",)
# What makes a repo load as something: it is removed from the repo where the folder has nothing of that name.
_REPLACED: Final = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin*",
    "adapter_model.bin",
    "adapter_config.json",
    "config.json",
    "hf_freeze_*.json",
)
# Files that say where things were on the machine that trained.
_TELL_PLACES: Final = ("adapter_config.json", "config.json", "hf_freeze_*.json", "tokenizer_config.json")
_LOCAL = re.compile(r"(file://)?(/|~|\.\./|\.\.\\|[A-Za-z]:[\\/]|\\\\).*[\\/].+")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
_BASE_LINE = re.compile(r"(- )?['\"]?base_model: ?(adapter:)?['\"]?([^'\"]*)['\"]?")
_LOCAL_START = re.compile(r"[/~.]|[A-Za-z]:\\")
# What names a model, which is a folder where there is one of this name, and else on the Hub.
_MODEL_KEYS: Final = ("base", "base_model_name_or_path", "name_or_path", "_name_or_path")
_REPO_LINE = re.compile(r'^repo = "[^"\n]*"', re.MULTILINE)

Files = dict[str, Path | bytes]


def check_repo_id(repo_id: str) -> None:
    """Raises where no repo can have this name.

    Args:
        repo_id: What the user calls the repo.

    Raises:
        ConfigError: It is not the name of a repo.
    """
    try:
        hf_hub_url(repo_id, "README.md")  # asks nobody: it checks the name
    except HFValidationError as error:
        raise ConfigError(
            f"repo: this is not the name of a repo; got {repo_id!r}. A name is NAME or OWNER/NAME, of letters, digits, "
            "'-', '_' and '.', without '--' or '..'. Choose such a name."
        ) from error


def pushed_files(folder: Path, repo_id: str) -> Files:
    """Returns what of a folder is pushed: its path in the repo, and the file or its content.

    Files that name places on this machine are pushed with the last part of each path only, and links to the Web
    without credentials. The lines of the card that load the model name the repo.

    Args:
        folder: A folder that `save_model` or a run wrote.
        repo_id: The repo that it goes to.

    Raises:
        ConfigError: A file that would name places is damaged.
    """
    files: Files = {}
    for path in _paths(folder):
        name = path.relative_to(folder).as_posix()
        with _sound(path):
            if _matches(name, _TELL_PLACES):
                files[name] = json.dumps(_without_places(json.loads(path.read_text())), indent=2).encode()
            elif name == CONFIG_FILE:
                files[name] = _yaml_without_places(path.read_text()).encode()
            elif name == "README.md":
                files[name] = _REPO_LINE.sub(f'repo = "{repo_id}"', _card_without_places(path.read_text())).encode()
            else:
                files[name] = path
    return files


def checkpoint_files(folder: Path, name: str) -> Files:
    """Returns all files of a checkpoint, to be resumed from by whoever downloads them.

    Args:
        folder: The checkpoint.
        name: The folder that it gets in the repo.
    """
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {f"{name}/{path.relative_to(folder).as_posix()}": path for path in paths}


def prepare_repo(repo_id: str, *, private: bool | None, revision: str | None, token: str | None) -> str:
    """Makes a repo and a branch, where they do not exist, and returns the full name of the repo.

    Args:
        repo_id: The repo; without an owner, it belongs to whom the token belongs to.
        private: Whether a repo that is made is private; None for what its owner has as default.
        revision: The branch, or None for `main`.
        token: A token, or None for the one that huggingface_hub knows.
    """
    api = _api(token)
    name = str(api.create_repo(repo_id, private=private, exist_ok=True).repo_id)
    if revision is not None:
        api.create_branch(name, branch=revision, exist_ok=True)
    return name


def upload(files: Files, repo_id: str, *, message: str, revision: str | None = None, token: str | None = None) -> str:
    """Uploads files in one commit, and returns its address.

    Args:
        files: What is pushed: path in the repo to file or content.
        repo_id: The full name of the repo.
        message: The message of the commit.
        revision: The branch, or None for `main`.
        token: A token, or None for the one that huggingface_hub knows.
    """
    api = _api(token)
    present = api.list_repo_files(repo_id, revision=revision)
    pushed = {name.partition("/")[0] for name in files if "/" in name}
    stale = [
        name
        for name in present
        if name not in files and (_matches(name, _REPLACED) or ("/" in name and name.partition("/")[0] in pushed))
    ]
    operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
        *(CommitOperationDelete(name, is_folder=False) for name in stale),
        *(CommitOperationAdd(name, content) for name, content in files.items()),
    ]
    commit = api.create_commit(repo_id, operations, commit_message=message, revision=revision)
    return str(commit.commit_url)


def push_command(folder: Path, repo_id: str, *, revision: str | None) -> str:
    """Returns the command that pushes a run by hand.

    Args:
        folder: The folder of the run.
        repo_id: The repo.
        revision: The branch, or None for `main`.
    """
    branch = [] if revision is None else ["--revision", revision]
    return shlex.join(["hf-freeze", "push", str(folder), repo_id, *branch])


@contextlib.contextmanager
def errors_in_words(repo_id: str, *, remedy: str) -> Iterator[None]:
    """Turns what the client raises where the Hub refuses or cannot be reached into an error in words.

    Args:
        repo_id: The repo that is asked for.
        remedy: Sentences that say what is kept, and how to try again.

    Raises:
        ShareError: The Hub refuses, or cannot be reached, or a file cannot be read.
    """
    try:
        yield
    except (HTTP_ERROR, OSError, RuntimeError, ValueError) as error:
        reason = _reason(error)
        if reason is None:
            raise
        what, do = reason
        raise ShareError(f"repo: {what}; got {repo_id!r}. {do} {remedy}") from error


def _reason(error: Exception) -> tuple[str, str] | None:
    """Returns what is wrong, and a sentence on what to do about it; None where it has nothing to do with the Hub."""
    place = _CREDENTIALS.sub("", constants.ENDPOINT)
    # The client wraps whatever stops the upload of a large file.
    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
    if isinstance(cause, OfflineModeIsEnabled):
        return "the Hub is not asked while HF_HUB_OFFLINE is set", "Unset HF_HUB_OFFLINE."
    if isinstance(cause, HfHubHTTPError):
        return _refusal(cause.response.status_code, place)
    if isinstance(cause, (HTTP_ERROR, ConnectionError, TimeoutError)):
        return f"the connection to {place} failed ({type(cause).__name__})", "Look after the network."
    if isinstance(cause, OSError) and cause.filename is not None:
        return f"a file cannot be read ({_one_line(cause)})", "Look after that file."
    # Wrong metadata of the card, and names that no repo and no branch can have.
    if isinstance(error, HFValidationError) or (
        isinstance(error, ValueError) and isinstance(error.__cause__, HfHubHTTPError)
    ):
        return f"the Hub refuses what is pushed ({_one_line(error)})", "Change what it names."
    if isinstance(error, RuntimeError):
        return f"the upload to {place} failed ({_one_line(cause)})", "Try again."
    return None


def _refusal(status: int, place: str) -> tuple[str, str]:
    if status == 401 and get_token() is None:
        return f"{place} asks for a token, and none is known", "Run `hf auth login`, or set HF_TOKEN."
    if status == 401:
        return f"{place} does not accept your token", "Run `hf auth login` again, or set HF_TOKEN."
    if status == 403:
        return "your token may not write to this repo", "Use a token with write access, or another owner."
    return f"{place} answered with status {status}", "Wait until it answers."


@contextlib.contextmanager
def _sound(path: Path) -> Iterator[None]:
    """Says which file is damaged where one is."""
    try:
        yield
    except (AttributeError, OSError, ValueError, YAMLError) as error:
        raise ConfigError(
            f"{path}: this file is read before it is pushed, and it is damaged; got the error {_one_line(error)!r}. "
            "Nothing was pushed. Save the model again, or mend the file."
        ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _api(token: str | None) -> HfApi:
    return HfApi(token=token, library_name="hf_freeze")


def _matches(name: str, globs: tuple[str, ...]) -> bool:
    return "/" not in name and any(fnmatchcase(name, glob) for glob in globs)


def _paths(folder: Path) -> Iterator[Path]:
    """Yields the files that make a model, its tokenizer, its card and its config."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and _matches(path.name, _PUSHED) and not _matches(path.name, _KEPT_HERE):
            yield path
        elif path.is_dir() and path.name in _PUSHED_FOLDERS:
            yield from sorted(inner for inner in path.iterdir() if inner.is_file())
    config = folder / "config.json"
    if config.is_file():
        with _sound(config):
            has_code = bool(json.loads(config.read_text()).get("auto_map"))
        if has_code:
            yield from sorted(folder.glob("*.py"))  # the code of a model that is no part of transformers


def _without_places(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _last_part(inner) if key in _MODEL_KEYS and _is_folder(inner) else _without_places(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_without_places(inner) for inner in value]
    if not isinstance(value, str):
        return value
    return _last_part(value) if _LOCAL.fullmatch(value) else _CREDENTIALS.sub("", value)


def _is_folder(value: Any) -> bool:
    return isinstance(value, str) and Path(value).is_dir()


def _last_part(path: str) -> str:
    return PureWindowsPath(path).name  # understands both separators


def _yaml_without_places(text: str) -> str:
    yaml = YAML()  # keeps the order of keys
    stream = StringIO()
    yaml.width = 120
    yaml.dump(_without_places(yaml.load(text)), stream)
    return stream.getvalue()


def _card_without_places(text: str) -> str:
    """Returns a card whose metadata names no folder as the base model, which PEFT does in two places."""
    return "\n".join(line for line in text.split("\n") if not _names_folder(line))


def _names_folder(line: str) -> bool:
    base = _BASE_LINE.fullmatch(line)
    return base is not None and (bool(_LOCAL_START.match(base[3])) or _is_folder(base[3]))
