"""Finds what a folder or a repository on the Hub holds: a plain model, adapters, or a delta."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from safetensors import SafetensorError
from transformers.utils import CONFIG_NAME
from transformers.utils.hub import cached_file

from hf_freeze.errors import ConfigError
from hf_freeze.training.checkpoint import STATE_FILE
from hf_freeze.training.hub_answers import HTTP_ERROR, first_line, hub_remedy
from hf_freeze.training.pretrained import HUB_KEYS
from hf_freeze.training.record import DELTA_FILE, PLAN_FILE, TrainingRecord, read_record

Kind = Literal["plain", "adapters", "delta"]
# The files of each kind: what says that it is there, and what holds its weights.
_CONFIGS: Final[Mapping[Kind, str]] = {"delta": DELTA_FILE, "adapters": ADAPTER_CONFIG_NAME, "plain": CONFIG_NAME}
_PICKLES: Final = ("pytorch_model.bin", "pytorch_model.bin.index.json", "adapter_model.bin")
WEIGHTS: Final[Mapping[Kind, tuple[str, ...]]] = {
    "adapters": ("adapter_model.safetensors",),
    "plain": ("model.safetensors", "model.safetensors.index.json"),
    "delta": ("hf_freeze_delta.safetensors",),
}


@dataclass(frozen=True)
class Source:
    """Where a model is, and what kind of model.

    Attributes:
        name: A folder, or the name of a repository on the Hub.
        kind: What it holds.
        options: Arguments of `from_pretrained` that say where files come from.
        record: What it says of its training, where hf_freeze wrote it.
    """

    name: str
    kind: Kind
    options: Mapping[str, Any]
    record: TrainingRecord | None

    @property
    def subfolder(self) -> str:
        """The folder of the model inside the folder or repository."""
        return str(self.options.get("subfolder", ""))

    @property
    def base_beside(self) -> Path | None:
        """The folder of adapters where a whole model lies beside them: it is their base, as Transformers has it, too.

        None for anything else, and on the Hub, where the config of the adapters says what their base is.
        """
        folder = Path(self.name, self.subfolder)
        files = {path.name for path in folder.iterdir()} if self.kind == "adapters" and folder.is_dir() else set()
        return folder if CONFIG_NAME in files and not files.isdisjoint(WEIGHTS["plain"]) else None

    @property
    def download_options(self) -> dict[str, Any]:
        """The options that the Hub's own downloads take."""
        return {key: value for key, value in self.options.items() if key not in ("subfolder", "proxies")}

    def without_hub_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the arguments of `from_pretrained` that are not about where files come from.

        Args:
            options: All of them.
        """
        return {key: value for key, value in options.items() if key not in self.options}

    def file(self, name: str) -> Path | None:
        """Returns a file of the model as it lies on the disk, downloaded where it comes from the Hub; None: no such.

        Args:
            name: The name of the file.
        """
        return _file(self.name, name, self.options)

    def weights_file(self) -> Path:
        """Returns the file with the weights of a delta or of adapters.

        Raises:
            ConfigError: It is missing.
        """
        (name,) = WEIGHTS[self.kind]
        found = self.file(name)
        if found is None:
            raise _missing_weights(self.name, self.kind, self.options)
        return found


def find_source(path_or_repo: str | Path, *, revision: str | None, options: Mapping[str, Any]) -> Source:
    """Finds what a folder or a repository holds.

    Args:
        path_or_repo: A folder, or the name of a repository on the Hub.
        revision: The revision on the Hub.
        options: Arguments of `from_pretrained`; those that say where files come from are used.

    Raises:
        ConfigError: There is no model, its weights are missing or pickled, or a folder is asked for a revision.
        PlanError: What it says of its training is damaged.
    """
    name = str(path_or_repo)
    where = {key: value for key, value in options.items() if key in HUB_KEYS}
    if revision is not None and Path(name).is_dir():
        raise ConfigError(
            f"revision: a folder has no revisions; got {revision!r} for {name!r}. Leave revision out, or name the "
            "repository on the Hub."
        )
    if revision is not None:
        where["revision"] = revision
    kind = next((kind for kind, config in _CONFIGS.items() if _file(name, config, where) is not None), None)
    if kind is None:
        raise _no_model(name, where)
    if all(_file(name, weights, where) is None for weights in WEIGHTS[kind]):
        raise _missing_weights(name, kind, where)
    described = _file(name, DELTA_FILE if kind == "delta" else PLAN_FILE, where)
    return Source(name, kind, where, None if described is None else read_record(described))


@contextlib.contextmanager
def sound_safetensors(file: Path) -> Iterator[None]:
    """Says which file is damaged where one is.

    Args:
        file: The file that is read inside the context.

    Raises:
        ConfigError: It is no sound safetensors file.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{file}: this file is no sound safetensors file; got the error {str(error)!r}. Save or download it again."
        ) from error


def _file(name: str, file: str, where: Mapping[str, Any]) -> Path | None:
    """Returns a file of a folder or a repository, or None where there is no such."""
    if Path(name).is_dir():
        path = Path(name, str(where.get("subfolder", "")), file)
        return path if path.is_file() else None
    try:
        found = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **where)
    except (HTTP_ERROR, OSError) as error:
        raise _no_repository(name, error) from error
    return None if found is None else Path(found)


def _no_repository(name: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"{name}: there is no folder of this name, and no such model can be read from the Hub; got the answer "
        f"{first_line(error)!r}. {hub_remedy(error)}Name the folder that a run has written, or a repository that you "
        "may read."
    )


def _no_model(name: str, where: Mapping[str, Any]) -> ConfigError:
    if not Path(name).is_dir():
        try:  # Looking for one file alone tells whether the Hub was reached.
            cached_file(name, CONFIG_NAME, **where)
        except (HTTP_ERROR, OSError) as error:
            return _no_repository(name, error)
    holds = ", ".join(_listed(name)) or "no files"
    if _file(name, STATE_FILE, where) is not None:
        return ConfigError(
            f"{name}: this is a checkpoint, which holds only what can change; got a folder with {holds}. To make a "
            "model of it, resume the run from it; the final model is in the output folder of the run."
        )
    return ConfigError(
        f"{name}: there is no model here; got a folder with {holds}. "
        f"A model has one of {', '.join(_CONFIGS.values())}. Name the folder that a run has written."
    )


def _missing_weights(name: str, kind: Kind, where: Mapping[str, Any]) -> ConfigError:
    pickled = next((pickle for pickle in _PICKLES if _file(name, pickle, where) is not None), None)
    if pickled is not None:
        return ConfigError(
            f"{name}: the weights are pickled, and loading a pickle runs code from the file; got {pickled!r}. "
            "hf_freeze reads safetensors only. Load the weights in a place that you trust and save them with "
            "save_pretrained."
        )
    return ConfigError(
        f"{name}: the weights are missing; got a folder with {', '.join(_listed(name))}. "
        f"Beside {_CONFIGS[kind]} it has to hold {' or '.join(WEIGHTS[kind])}. Save or download it again."
    )


def _listed(name: str) -> Iterator[str]:
    if Path(name).is_dir():
        yield from sorted(entry.name for entry in Path(name).iterdir())[:10]
