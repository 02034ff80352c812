"""Loading a dataset, and deciding which of its splits to train on, validate on and test on."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import datasets
from datasets import Dataset
from datasets.exceptions import DatasetNotFoundError, DatasetsError

from hf_freeze.errors import ConfigError, did_you_mean
from hf_freeze.tasks.columns import listed

ROLES: Final = ("train", "validation", "test")

# Where the evaluation rows are looked for when the config does not say, the best first.
_VALIDATION_NAMES = ("validation", "valid", "val", "dev", "eval", "validation_matched", "test")

# What makes a split an expression over splits: `train[:90%]`, `train+validation`.
_EXPRESSION = re.compile(r"[\[+]")


def load_splits(
    load_dataset: Mapping[str, Any], *, splits: Mapping[str, str | None] | None = None
) -> tuple[dict[str, Dataset], dict[str, str]]:
    """Loads a dataset and returns its rows by role (`train`, `validation`, `test`), and where each came from.

    `train` must exist. Without `validation` the rows come from the first of valid, val, dev, eval, validation_matched
    and test that exists; where that is test, nothing is left to test on.

    Args:
        load_dataset: The arguments of `datasets.load_dataset`, `path` among them.
        splits: Split names or expressions (`train[:90%]`) by role; None, as a role that is left out, is inferred.

    Raises:
        ConfigError: The dataset cannot be loaded, or a split does not exist or has no rows.
    """
    if load_dataset.get("streaming"):
        raise ConfigError(
            "data.load_dataset.streaming: rows are shuffled and counted, so they cannot be streamed; got True. "
            "Leave the key out."
        )
    wanted = {role: name for role, name in (splits or {}).items() if name is not None}
    for role in wanted:
        if role not in ROLES:
            raise ConfigError(
                f"data.splits: there is no role {role!r}; the roles are {listed(ROLES)}.{did_you_mean(role, ROLES)}"
            )
    existing = _load(load_dataset)
    chosen = _choose(wanted, existing)
    rows: dict[str, Dataset] = {}
    for role, name in chosen.items():
        rows[role] = _load(load_dataset, split=name)[name] if _EXPRESSION.search(name) else existing[name]
        if len(rows[role]) == 0:
            raise _empty_split_error(name)
    return rows, chosen


def _empty_split_error(name: str) -> ConfigError:
    return ConfigError(
        f"data.splits: the split {name!r} has no rows. Fill it, leave its file out, or name another one in data.splits."
    )


def _choose(wanted: Mapping[str, str], existing: Mapping[str, Dataset]) -> dict[str, str]:
    """Returns the split name or expression for each role that has one."""
    for role, name in wanted.items():
        for part in (part.split("[")[0].strip() for part in name.split("+")):
            if part not in existing:
                raise ConfigError(
                    f"data.splits.{role}: the dataset has no split {part!r}; it has {listed(existing)}."
                    f"{did_you_mean(part, existing)}"
                )
    if "train" not in wanted and "train" not in existing:
        raise ConfigError(
            f"data.splits.train: the dataset has no split 'train'; it has {listed(existing)}. "
            "Set data.splits.train to the split to learn from."
        )
    chosen = {"train": "train", **wanted}
    if "validation" not in chosen:
        free = [name for name in _VALIDATION_NAMES if name in existing and name not in chosen.values()]
        if free:
            chosen["validation"] = free[0]
    if "test" not in chosen and "test" in existing and "test" not in chosen.values():
        chosen["test"] = "test"
    return chosen


def _load(load_dataset: Mapping[str, Any], *, split: str | None = None) -> dict[str, Dataset]:
    """Returns the splits of a dataset by name, or the one that `split` describes."""
    arguments = dict(load_dataset) if split is None else {**load_dataset, "split": split}
    path = str(arguments.pop("path", ""))
    try:
        with _quiet_repocard():
            loaded = datasets.load_dataset(path, **arguments)
    except (DatasetsError, OSError, StopIteration, TypeError, ValueError) as error:
        raise _load_error(path, error) from error
    if isinstance(loaded, Dataset):
        return {split or "train": loaded}
    return dict(loaded)


def _load_error(path: str, error: Exception) -> ConfigError:
    """Returns the error for a dataset that `datasets.load_dataset` cannot load.

    Credentials may stand in its arguments, so none of them but the path is repeated.
    """
    empty = re.search(r'Instruction "(.+)" corresponds to no data', str(error))
    if empty:
        return _empty_split_error(empty[1])
    if isinstance(error, StopIteration):  # what datasets raises for a JSON file without a line
        return ConfigError(
            f"data.load_dataset: a data file has no rows; got path {path!r}. Fill the file, or leave it out."
        )
    is_path = path.startswith((".", "~")) or Path(path).is_absolute() or Path(path).exists()
    if not is_path and isinstance(error, ConnectionError | DatasetNotFoundError):
        why = (
            "the hub is switched off (HF_HUB_OFFLINE)"
            if datasets.config.HF_HUB_OFFLINE
            else "the hub has no dataset of this name, keeps it private, or cannot be reached"
        )
        return ConfigError(
            f"data.load_dataset: there is no folder {path!r}, and no dataset of that name could be loaded: {why}. "
            "Give a folder, the name of a dataset on the Hugging Face hub, or csv, json or parquet with data_files."
        )
    if isinstance(error, FileNotFoundError):
        return ConfigError(
            f"data.load_dataset: no data was found; got path {path!r}. {_first_sentence(error)} "
            "Give a folder with data files, or name the files in data_files."
        )
    return ConfigError(
        f"data.load_dataset: the dataset {path!r} could not be loaded. {_first_sentence(error.__cause__ or error)} "
        "The keys of data.load_dataset are the arguments of datasets.load_dataset."
    )


def _first_sentence(error: BaseException) -> str:
    """Returns the first line of what a library says, without anything that looks like a token of the hub."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"hf_\w{8,}", "(hidden)", line).rstrip(".") + "."


@contextlib.contextmanager
def _quiet_repocard() -> Iterator[None]:
    """Keeps huggingface_hub from reporting that a README has no metadata: that of local data need not have any."""
    logger = logging.getLogger("huggingface_hub.repocard")

    def says_something_else(record: logging.LogRecord) -> bool:
        return "Repo card metadata block was not found" not in record.getMessage()

    logger.addFilter(says_something_else)
    try:
        yield
    finally:
        logger.removeFilter(says_something_else)
