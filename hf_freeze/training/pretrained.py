"""Loads pretrained weights into the class and config of a model that is there already."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME
from transformers.utils.hub import cached_file, extract_commit_hash

from hf_freeze.errors import PlanError


def load_base(
    model_class: type[PreTrainedModel],
    name_or_path: str,
    config: PreTrainedConfig,
    *,
    dtype: torch.dtype | str,
    revision: str | None = None,
    **options: Any,
) -> tuple[PreTrainedModel, frozenset[str]]:
    """Loads a base model under the config of a model that was trained from it, from safetensors only.

    Args:
        model_class: The class of the model that was trained.
        name_or_path: The base model: a folder or its name on the Hub.
        config: The config of the model that was trained.
        dtype: What its weights were trained in.
        revision: The revision on the Hub.
        options: Further arguments of `from_pretrained`.

    Returns:
        The base model, and the names of the tensors that it has not, which start anew.

    Raises:
        PlanError: There is no such model, or its weights cannot be read.
    """
    fixed = {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
    where: dict[str, Any] = {} if revision is None else {"revision": revision}
    if Path(name_or_path, ADAPTER_CONFIG_NAME).is_file():
        # Adapters beside a model would be applied to it. Upstream has no switch for that but another place to look in.
        where["adapter_kwargs"] = {"subfolder": "none"}
    try:
        # What starts anew is drawn from PyTorch's random state, which is the caller's.
        with quiet_load_report(), torch.random.fork_rng(devices=[]):
            loaded: Any = model_class.from_pretrained(
                name_or_path, config=copy.deepcopy(config), dtype=dtype, **{**options, **where, **fixed}
            )
    except (OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise PlanError(
            f"{name_or_path}: no {model_class.__name__} can be loaded from it; got the error {first!r}. "
            "hf_freeze reads safetensors only. Name a folder, or a model on the Hub, that has a model.safetensors."
        ) from error
    model, info = loaded
    return model, frozenset(info["missing_keys"]) | {name for name, *_ in info["mismatched_keys"]}


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
