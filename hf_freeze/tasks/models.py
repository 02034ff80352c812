"""Loading pretrained models, safetensors only, and building models without weights."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import is_offline_mode
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils.hub import has_file

from hf_freeze.errors import ConfigError, did_you_mean
from hf_freeze.tasks.heads import empty_classifier, fit_output_layer, output_parameters
from hf_freeze.tasks.labels import ProblemType
from hf_freeze.training.pretrained import check_index, named_weights, quiet_load_report

_log = logging.getLogger(__name__)

# The arguments of `from_pretrained` that say where files come from; configs and tokenizers take them too.
_HUB_KEYS: Final = frozenset(
    {"cache_dir", "code_revision", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token"}
)

# The arguments of `from_pretrained` that are about weights, and no part of a model's config.
_WEIGHT_KEYS: Final = frozenset({"device_map", "dtype", "key_mapping", "max_memory", "quantization_config", "variant"})

# The names that pickled weights go by. Reading them can run code.
_PICKLED_NAMES: Final = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def load_classifier(
    name_or_path: str,
    *,
    labels: Sequence[str],
    problem_type: ProblemType,
    trust_remote_code: bool = False,
    from_pretrained: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Loads a model with an output for each label, and returns it with the names of its fresh parameters.

    Weights are read in float32 unless `from_pretrained` has a `dtype`: many checkpoints hold float16 or bfloat16, in
    which small updates are lost. The output layer of a checkpoint is kept where it is for the same labels. Fresh
    parameters come from PyTorch's random state, so seed it first.

    Args:
        name_or_path: A folder, or the name of a model on the hub.
        labels: The names of the labels in the order of their ids; empty for regression.
        problem_type: What kind of problem it is.
        trust_remote_code: Whether code that comes with the model may run.
        from_pretrained: Further arguments of `from_pretrained`, such as `revision`, `dtype`, `attn_implementation`,
            `quantization_config`, and values of the model's config.

    Raises:
        ConfigError: There is no such model, its weights are pickled, or they do not fit its config.
    """
    extra = dict(from_pretrained or {})
    checkpoint = load_model_config(name_or_path, trust_remote_code=trust_remote_code, hub=hub_arguments(extra))
    extra.update(_default_dtype(extra, checkpoint))
    _refuse_pickled_weights(name_or_path, hub_arguments(extra))
    model, fresh = _load_weights(name_or_path, checkpoint, _head(labels, problem_type), extra, trust_remote_code)
    if labels:
        old_labels = [str(label) for _, label in sorted((checkpoint.id2label or {}).items())]
        fresh.update(
            fit_output_layer(
                model,
                old_labels=old_labels,
                labels=labels,
                fresh_parameters=fresh,
                trust_remote_code=trust_remote_code,
            )
        )
    _report_fresh(model, name_or_path, fresh)
    return model, tuple(sorted(fresh))


def _load_weights(
    name_or_path: str,
    checkpoint: PreTrainedConfig,
    head: Mapping[str, Any],
    extra: Mapping[str, Any],
    trust_remote_code: bool,
) -> tuple[PreTrainedModel, set[str]]:
    """Loads a classifier from safetensors, and returns it with the names of the parameters that were not there."""
    fixed = {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
    try:
        check_index(name_or_path, named_weights(vars(checkpoint)), extra)
        with quiet_load_report():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                name_or_path, trust_remote_code=trust_remote_code, **head, **{**extra, **fixed}
            )
    except ConfigError:
        raise
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise _weights_error(name_or_path, extra, error) from error
    mismatched = {name for name, *_ in info["mismatched_keys"]}
    _check_mismatched(model, mismatched, trust_remote_code=trust_remote_code)
    return model, set(info["missing_keys"]) | mismatched


def load_model_config(name_or_path: str, *, trust_remote_code: bool, hub: Mapping[str, Any]) -> PreTrainedConfig:
    """Loads the config of a checkpoint.

    Args:
        name_or_path: A folder, or the name of a model on the hub.
        trust_remote_code: Whether code that comes with the model may run.
        hub: Arguments of `from_pretrained`, such as `revision`, and values of the model's config.

    Raises:
        ConfigError: There is no such model, or transformers does not know its kind.
    """
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code, **hub)
    except (OSError, ValueError) as error:
        raise _config_error(name_or_path, error, trust_remote_code=trust_remote_code) from error
    return config


def build_empty_classifier(
    name_or_path: str,
    *,
    num_labels: int,
    trust_remote_code: bool = False,
    from_pretrained: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """Returns a model that is built from its config alone, on the meta device: names and shapes, no weights.

    Args:
        name_or_path: A folder with a config, or the name of a model on the hub.
        num_labels: The number of outputs.
        trust_remote_code: Whether code that comes with the model may run.
        from_pretrained: Further arguments of `from_pretrained`.

    Raises:
        ConfigError: There is no such model, transformers does not know its kind, or it cannot classify text.
    """
    extra = dict(from_pretrained or {})
    values = {key: value for key, value in extra.items() if key not in _WEIGHT_KEYS}
    config = load_model_config(
        name_or_path, trust_remote_code=trust_remote_code, hub={**values, "num_labels": num_labels}
    )
    wanted = _default_dtype(extra, config).get("dtype", extra.get("dtype"))
    dtype = wanted if isinstance(wanted, torch.dtype) else vars(torch).get(str(wanted))
    try:
        return empty_classifier(config, trust_remote_code=trust_remote_code, dtype=dtype)
    except ValueError as error:
        raise _config_error(name_or_path, error, trust_remote_code=trust_remote_code) from error


def hub_arguments(from_pretrained: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `from_pretrained` that say where files come from.

    Args:
        from_pretrained: All of them.
    """
    return {key: value for key, value in from_pretrained.items() if key in _HUB_KEYS}


def _head(labels: Sequence[str], problem_type: ProblemType) -> dict[str, Any]:
    """Returns the values of a model's config that say what its outputs mean."""
    if not labels:
        return {"num_labels": 1, "problem_type": problem_type}
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: position for position, label in enumerate(labels)},
        "problem_type": problem_type,
    }


def _default_dtype(extra: Mapping[str, Any], config: PreTrainedConfig) -> dict[str, Any]:
    """Returns the type to read weights in where the user gave none, once the one that was given is known to exist."""
    if "dtype" in extra:
        dtype = extra["dtype"]
        names = [name for name, value in vars(torch).items() if isinstance(value, torch.dtype)]
        if isinstance(dtype, str) and dtype != "auto" and dtype not in names:
            raise ConfigError(
                f"model.dtype: PyTorch has no such type; got {dtype!r}. Usual types are bfloat16, float16, float32 "
                f"and auto, the type that the checkpoint is in.{did_you_mean(dtype, names)}"
            )
        return {}
    is_quantized = "quantization_config" in extra or config.to_dict().get("quantization_config") is not None
    return {} if is_quantized else {"dtype": "float32"}


def _refuse_pickled_weights(name_or_path: str, hub: Mapping[str, Any]) -> None:
    """Raises where a folder has pickled weights and no others."""
    folder = Path(name_or_path, str(hub.get("subfolder", "")))
    for pickled, safe in (
        ("pytorch_model*.bin", "model*.safetensors"),
        ("adapter_model.bin", "adapter_model.safetensors"),
    ):
        if any(folder.glob(pickled)) and not any(folder.glob(safe)):
            raise _pickled_error(name_or_path)


def _pickled_error(name_or_path: str) -> ConfigError:
    return ConfigError(
        f"model.name_or_path: the weights of {name_or_path!r} are pickled, and reading a pickle can run code. "
        "hf_freeze reads safetensors only. Load the model where you trust it and save it again with "
        "model.save_pretrained, which writes safetensors."
    )


def _weights_error(name_or_path: str, extra: Mapping[str, Any], error: Exception) -> ConfigError:
    """Returns the error for weights that cannot be loaded although the config could. It repeats no argument's value."""
    if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
        values = sorted(set(extra) - _HUB_KEYS - _WEIGHT_KEYS)
        unknown = next((key for key in values if f"'{key}'" in str(error)), ", ".join(values))
        return ConfigError(
            f"model.{unknown}: neither from_pretrained nor the config of {name_or_path!r} has this key. "
            "Mend the key, or leave it out."
        )
    if isinstance(error, OSError) and not Path(name_or_path).is_dir():
        where = {key: value for key, value in hub_arguments(extra).items() if key in ("cache_dir", "revision", "token")}
        with contextlib.suppress(OSError):
            if any(
                has_file(name_or_path, name, local_files_only=is_offline_mode(), **where) for name in _PICKLED_NAMES
            ):
                return _pickled_error(name_or_path)
    if isinstance(error, OSError):
        return ConfigError(
            f"model.name_or_path: {name_or_path!r} has no weights in safetensors files. "
            "Name a checkpoint that has a model.safetensors."
        )
    if "Unrecognized configuration class" in str(error):
        return _cannot_classify_error(name_or_path)
    return ConfigError(
        f"model.name_or_path: the weights of {name_or_path!r} could not be loaded ({type(error).__name__}): "
        f"{str(error).strip().splitlines()[0].rstrip('.')}. Download or save them again, and look at the other keys of "
        "model."
    )


def _cannot_classify_error(name_or_path: str) -> ConfigError:
    return ConfigError(
        f"model.name_or_path: {name_or_path!r} is of a kind that transformers has no text classifier for. "
        "Name a language model such as BERT, ModernBERT, GPT-2 or Llama."
    )


def _config_error(name_or_path: str, error: Exception, *, trust_remote_code: bool) -> ConfigError:
    """Returns the error for a model whose config cannot be loaded."""
    path = Path(name_or_path)
    if "trust_remote_code" in str(error) and not trust_remote_code:
        return ConfigError(
            f"model.trust_remote_code: {name_or_path!r} comes with code of its own, which would run here; got False. "
            "Read that code, then set model.trust_remote_code to true."
        )
    if "Unrecognized configuration class" in str(error):
        return _cannot_classify_error(name_or_path)
    if path.is_dir():
        files = sorted(entry.name for entry in path.iterdir())[:10]
        return ConfigError(
            f"model.name_or_path: the folder {name_or_path!r} has no config.json of a model that transformers knows; "
            f"it has {', '.join(files) or 'no files'}. Give the folder that save_pretrained wrote."
        )
    if path.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") > 1:
        return ConfigError(
            f"model.name_or_path: there is no folder {name_or_path!r}. "
            "Give the folder of a saved model, or the name of a model on the Hugging Face hub."
        )
    why = (
        "the hub is switched off (HF_HUB_OFFLINE), and the model is not in the local cache"
        if is_offline_mode()
        else "the hub has no model of this name, keeps it private, or cannot be reached"
    )
    return ConfigError(
        f"model.name_or_path: there is no folder {name_or_path!r}, and no model of that name could be loaded: {why}. "
        "Check the spelling, sign in with `hf auth login`, or give the folder of a saved model."
    )


def _check_mismatched(model: PreTrainedModel, mismatched: set[str], *, trust_remote_code: bool) -> None:
    """Raises where parameters other than the output layer have another shape than in the checkpoint."""
    if not mismatched:
        return
    wrong = sorted(mismatched - set(output_parameters(model.config, trust_remote_code=trust_remote_code)))
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ConfigError(
            f"model: the config asks for other shapes than the checkpoint has; got {wrong[0]}{more}. "
            "Leave out the keys of model that change the model's size."
        )


def _report_fresh(model: PreTrainedModel, name_or_path: str, fresh: set[str]) -> None:
    """Says which parameters the checkpoint did not give, and raises where it gave none."""
    names = {name for name, _ in model.named_parameters()}
    if fresh >= names:
        raise ConfigError(
            f"model.name_or_path: none of the weights of {name_or_path!r} belong to a {type(model).__name__}. "
            "Name a checkpoint of this kind of model."
        )
    inside = sorted(name for name in fresh if name.startswith(f"{model.base_model_prefix}."))
    if inside:
        _log.warning("Parts of the model itself are not in the checkpoint and start anew: %s.", ", ".join(inside))
    outside = sorted(fresh.difference(inside))
    if outside:
        _log.info("The head is not in the checkpoint and starts anew: %s.", ", ".join(outside))
