"""Loads a trained model of any kind: a plain folder, adapters on their base, or a delta on its base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from hf_freeze.errors import ConfigError, PlanError
from hf_freeze.sharing.adapters import load_adapters
from hf_freeze.sharing.classes import as_dtype, config_of, model_class_of
from hf_freeze.sharing.delta import load_delta
from hf_freeze.sharing.sources import Source, find_source
from hf_freeze.training.pretrained import load_base


def load_model(
    path_or_repo: str | Path,
    *,
    revision: str | None = None,
    base: str | Path | None = None,
    trust_remote_code: bool = False,
    **from_pretrained_options: Any,
) -> PreTrainedModel | PeftModel:
    """Loads a trained model, whichever way it was saved.

    Args:
        path_or_repo: The folder that a run has written, or the name of a repository on the Hub.
        revision: The revision of that repository.
        base: The base model of adapters or of a delta, where it has moved: a folder or its name on the Hub.
        trust_remote_code: Whether code that comes with the model may run.
        from_pretrained_options: Further arguments of `from_pretrained`, such as `dtype` and `token`.

    Returns:
        The model in eval mode: a `PeftModel` where adapters were saved, else a plain model.

    Raises:
        ConfigError: There is no model, its files are missing, damaged or pickled, or an option does not fit it.
        PlanError: The base model is not the one that the model was trained from, or the weights do not fit it.

    Example:
        >>> import tempfile
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     BertModel(config).save_pretrained(folder)
        ...     type(load_model(folder)).__name__
        'BertModel'
    """
    source = find_source(path_or_repo, revision=revision, options=from_pretrained_options)
    return load_source(source, base=base, trust_remote_code=trust_remote_code, options=from_pretrained_options)


def load_source(
    source: Source, *, base: str | Path | None, trust_remote_code: bool, options: Mapping[str, Any]
) -> PreTrainedModel | PeftModel:
    """Loads the model of a source that was found; arguments, result and errors are those of `load_model`."""
    as_dtype(options.get("dtype"), torch.float32)  # A wrong name is found before anything is loaded.
    if source.kind == "delta":
        return load_delta(source, base=base, trust_remote_code=trust_remote_code, options=options)
    if source.kind == "adapters":
        return load_adapters(source, base=base, trust_remote_code=trust_remote_code, options=options)
    if base is not None:
        raise ConfigError(
            f"base: {source.name!r} holds all of its weights and has no base model; got {str(base)!r}. Leave base out."
        )
    config = config_of(source.name, source.options, trust_remote_code=trust_remote_code)
    name = (config.architectures or ["nothing"])[0]
    model_class = model_class_of(source, name, config, trust_remote_code=trust_remote_code)
    asked = {"dtype": config.dtype or torch.float32, **source.without_hub_options(options)}
    model, missing = load_base(model_class, source.name, config, **{**asked, **source.options})
    if missing:
        raise PlanError(
            f"{source.name}: the weights are not those of this {name}; {sorted(missing)[0]!r} and {len(missing) - 1} "
            "more are missing or have another shape. Save or download the folder again."
        )
    return model
