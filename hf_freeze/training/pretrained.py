"""Loads pretrained weights into the class and config of a model that is there already."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME
from transformers.utils.hub import cached_file, extract_commit_hash

from hf_freeze.errors import ConfigError, FreezeError, PlanError
from hf_freeze.training.hub_answers import HTTP_ERROR, first_line, hub_remedy

# The arguments of `from_pretrained` that say where files come from, beside the revision.
HUB_KEYS: Final = frozenset({"cache_dir", "force_download", "local_files_only", "proxies", "subfolder", "token"})
# What Transformers raises where files and config do not make a model; a config of another class lacks attributes.
_UNREADABLE: Final = (AttributeError, HTTP_ERROR, OSError, RuntimeError, SafetensorError, TypeError, ValueError)
_SHARD = re.compile(r"[^/\\]+\.safetensors")
_INDEX_SUFFIX: Final = ".safetensors.index.json"


def load_base(
    model_class: type[PreTrainedModel],
    name_or_path: str,
    config: PreTrainedConfig,
    *,
    dtype: torch.dtype | str,
    revision: str | None = None,
    base_of: str | None = None,
    **options: Any,
) -> tuple[PreTrainedModel, frozenset[str]]:
    """Loads a base model under the config of a model that was trained from it, from safetensors only.

    Args:
        model_class: The class of the model that was trained.
        name_or_path: The base model: a folder or its name on the Hub.
        config: The config of the model that was trained.
        dtype: What its weights were trained in.
        revision: The revision on the Hub.
        base_of: The folder or repo of the model that it is the base of, for messages; None where it stands for itself.
        options: Further arguments of `from_pretrained`.

    Returns:
        The base model, and the names of the tensors that it has not, which start anew.

    Raises:
        ConfigError: Its index is damaged, or names other files than safetensors beside it.
        PlanError: There is no such model, or its weights cannot be read.
    """
    fixed = {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
    where: dict[str, Any] = {} if revision is None else {"revision": revision}
    if Path(name_or_path, ADAPTER_CONFIG_NAME).is_file():
        # Adapters beside a model would be applied to it. Upstream has no switch for that but another place to look in.
        where["adapter_kwargs"] = {"subfolder": "none"}
    try:
        check_index(name_or_path, named_weights(vars(config)), {**options, **where})
        # What starts anew is drawn from PyTorch's random state, which is the caller's.
        with quiet_load_report(), torch.random.fork_rng(devices=[]):
            loaded: Any = model_class.from_pretrained(
                name_or_path, config=copy.deepcopy(config), dtype=dtype, **{**options, **where, **fixed}
            )
    except FreezeError:
        raise
    except _UNREADABLE as error:
        raise PlanError(
            _unread(model_class, name_or_path, error) if base_of is None else unread_base(base_of, name_or_path, error)
        ) from error
    model, info = loaded
    return model, frozenset(info["missing_keys"]) | {name for name, *_ in info["mismatched_keys"]}


def _unread(model_class: type[PreTrainedModel], name_or_path: str, error: Exception) -> str:
    return (
        f"{name_or_path}: no {model_class.__name__} can be loaded from it; got the error {first_line(error)!r}. "
        f"{hub_remedy(error)}hf_freeze reads safetensors only. Name a folder, or a model on the Hub, that has a "
        "model.safetensors."
    )


def unread_base(base_of: str, name_or_path: str, error: Exception) -> str:
    """Returns the message for a base model that cannot be loaded.

    Args:
        base_of: The folder or repo of the model that was trained from it.
        name_or_path: The base model: a folder or its name on the Hub.
        error: What was raised.
    """
    is_here = "" if Path(name_or_path).is_dir() else "There is no such folder here. "
    return (
        f"{base_of}: its base model {name_or_path!r} cannot be loaded; got the error {first_line(error)!r}. "
        f"{is_here}{hub_remedy(error)}Pass the model that it was trained from as base, which is --base of a command."
    )


def named_weights(config: Mapping[str, Any]) -> str | None:
    """Returns the file of weights that a config names in the place of the usual ones; None for those.

    Args:
        config: The values of the config.
    """
    named = config.get("transformers_weights")
    return None if named is None else str(named)


def check_index(name_or_path: str, named: str | None, options: Mapping[str, Any]) -> None:
    """Refuses a model whose weights Transformers would not read from safetensors files of its own folder.

    Transformers reads whatever an index names, by its suffix: pickles, and files of other folders.

    Args:
        name_or_path: A folder, or the name of a model on the Hub.
        named: As `named_weights` returns it.
        options: Arguments of `from_pretrained`.

    Raises:
        ConfigError: The index is damaged, or names other files than safetensors beside it.
    """
    where = {key: value for key, value in options.items() if key in HUB_KEYS or key == "revision"}
    is_folder = Path(name_or_path).is_dir()
    if not is_folder:
        cached_file(name_or_path, CONFIG_NAME, **where)  # Of a missing file of weights, the Hub does not say why.
    index = _index_of(name_or_path, named, where, variant=options.get("variant"))
    if index is None:
        return
    absent = [name for name in shards_of(index) if is_folder and not (index.parent / name).is_file()]
    if absent:
        raise ConfigError(
            f"{index}: weights that this file names are missing; got no {absent[0]!r} and {len(absent) - 1} more. Save "
            "or download the model again."
        )


def _index_of(name_or_path: str, named: str | None, where: Mapping[str, Any], *, variant: str | None) -> Path | None:
    """Returns the index that the weights are read by; None where they are one file of safetensors, or missing."""
    if named is not None and not (_SHARD.fullmatch(named) or (named.endswith(_INDEX_SUFFIX) and "/" not in named)):
        raise ConfigError(
            f"{name_or_path}: weights are read from safetensors files in the folder of the model only, since a pickle "
            f"runs code; got transformers_weights={named!r} in its config. Save the model again with save_pretrained."
        )
    part = "" if variant is None else f".{variant}"
    names = (f"model{part}.safetensors", f"model.safetensors.index{part}.json") if named is None else (named,)
    for name in names:
        found = cached_file(name_or_path, name, _raise_exceptions_for_missing_entries=False, **where)
        if found is not None:
            return Path(found) if name.endswith(".json") else None
    return None


def shards_of(index: Path) -> tuple[str, ...]:
    """Returns the names of the files that an index names.

    Args:
        index: Such as `model.safetensors.index.json`.

    Raises:
        ConfigError: It is damaged, or names anything but safetensors files beside it.
    """
    try:
        content = json.loads(index.read_text())
        names = sorted({str(name) for name in content["weight_map"].values()})
        dict(content["metadata"])  # Transformers takes it for granted.
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{index}: this file does not say where the weights are; got {type(error).__name__} reading it. Save or "
            "download the model again."
        ) from error
    other = [name for name in names if not _SHARD.fullmatch(name)]
    if other:
        raise ConfigError(
            f"{index}: weights are read from safetensors files beside this one only, since a pickle runs code; got "
            f"{other[0]!r}. Load the model in a place that you trust and save it with save_pretrained."
        )
    return tuple(names)


def commit_of(name_or_path: str, revision: str | None = None) -> str | None:
    """Returns the commit of a model on the Hub as it lies in the local cache; None for a folder.

    Args:
        name_or_path: A folder, or the name of a model on the Hub.
        revision: A branch, a tag or a commit.
    """
    if not name_or_path or Path(name_or_path).is_dir():
        return None
    try:
        file = cached_file(name_or_path, CONFIG_NAME, revision=revision, local_files_only=True)
    except OSError:
        return revision
    return extract_commit_hash(file, None) or revision


@contextlib.contextmanager
def quiet_load_report() -> Iterator[None]:
    """Keeps transformers from reporting fresh parameters as a problem: the caller says what there is to say."""
    logger = logging.getLogger("transformers.modeling_utils")

    def says_something_else(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(says_something_else)
    try:
        yield
    finally:
        logger.removeFilter(says_something_else)
