"""Finds the class and the config of a saved model, and loads its base model into them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from hf_freeze.errors import ConfigError, did_you_mean
from hf_freeze.plan.layout import is_quantized
from hf_freeze.sharing.sources import Source
from hf_freeze.training.hub_answers import HTTP_ERROR, first_line
from hf_freeze.training.pretrained import load_base, unread_base
from hf_freeze.training.record import TrainingRecord


def config_of(
    name: str, where: Mapping[str, Any], *, trust_remote_code: bool, base_of: str | None = None
) -> PreTrainedConfig:
    """Loads the config of a model.

    Args:
        name: A folder, or the name of a repository on the Hub.
        where: Arguments of `from_pretrained` that say where files come from.
        trust_remote_code: Whether code that comes with the model may run.
        base_of: The folder or repo of the model that it is the base of, for messages; None where it stands for itself.

    Raises:
        ConfigError: There is none that Transformers knows, or it comes with code that may not run.
    """
    try:
        plain, _ = PreTrainedConfig.get_config_dict(name, **where)
        if not trust_remote_code and plain.get("model_type") not in CONFIG_MAPPING and plain.get("auto_map"):
            raise ConfigError(
                f"{name}: this model comes with code of its own, which does not run unless you trust it; got the "
                f"model_type {plain.get('model_type')!r}, which transformers {transformers.__version__} does not have. "
                "Read the code, and set trust_remote_code."
            )
        config: PreTrainedConfig = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **where)
    except ConfigError:
        raise
    except (AttributeError, HTTP_ERROR, OSError, TypeError, ValueError) as error:  # It takes for granted an object.
        if base_of is not None:
            raise ConfigError(unread_base(base_of, name, error)) from error
        raise ConfigError(
            f"{name}: the config of the model cannot be read; got the error {first_line(error)!r}. Save or download it "
            "again."
        ) from error
    return config


def model_class_of(
    source: Source, name: str, config: PreTrainedConfig, *, trust_remote_code: bool
) -> type[PreTrainedModel]:
    """Returns the class of a model by its name.

    Args:
        source: Where the model is, for messages.
        name: The name of the class.
        config: The config of the model.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        ConfigError: Transformers has no such class.
    """
    own_code: Mapping[str, str] = vars(config).get("auto_map") or {}
    reference = next((code for code in own_code.values() if str(code).rpartition(".")[2] == name), None)
    found: object = getattr(transformers, name, None)
    if reference is not None and trust_remote_code:
        found = get_class_from_dynamic_module(reference, str(config.name_or_path), **source.options)
    if isinstance(found, type) and issubclass(found, PreTrainedModel):
        return found
    raise ConfigError(
        f"{source.name}: transformers {transformers.__version__} has no model of this class; got {name!r}. "
        "Load it with the release that wrote it, or set trust_remote_code where the model comes with its code."
    )


def as_dtype(value: object, default: torch.dtype) -> torch.dtype:
    """Returns the type of weights that an option names.

    Args:
        value: A type, its name, or None or `auto` for the default.
        default: What the weights are in.

    Raises:
        ConfigError: PyTorch has no floating-point type of this name.
    """
    if value is None or value == "auto":
        return default
    dtypes = {name: dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}
    names = {name: dtype for name, dtype in dtypes.items() if dtype.is_floating_point}
    dtype = value if isinstance(value, torch.dtype) else names.get(str(value).removeprefix("torch."))
    if dtype is None or not dtype.is_floating_point:
        raise ConfigError(
            f"dtype: weights cannot be in this type; got {value!r}. Usual types are bfloat16, float16, float32 and "
            f"auto, the type that they were saved in.{did_you_mean(str(value), names)}"
        )
    return dtype


def convert(model: PreTrainedModel, dtype: object) -> PreTrainedModel:
    """Returns the model with its weights in another type, where one is asked for.

    Args:
        model: The model; it is changed in place.
        dtype: As for `as_dtype`.

    Raises:
        ConfigError: PyTorch has no such type, or the weights are quantised.
    """
    wanted = as_dtype(dtype, model.dtype)
    if wanted == model.dtype:
        return model  # Quantised models refuse even the type that they are in.
    quantised = next((name for name, parameter in model.named_parameters() if is_quantized(parameter)), None)
    if quantised is not None:
        raise ConfigError(
            f"dtype: quantised weights stay in the type that they are in; got {str(wanted).removeprefix('torch.')!r} "
            f"for a {type(model).__name__} whose {quantised!r} is quantised. Leave dtype out."
        )
    cast(Any, model).to(wanted)  # Its annotation upstream hides its arguments.
    return model


def load_recorded_base(
    source: Source,
    record: TrainingRecord,
    *,
    base: str | Path | None,
    trust_remote_code: bool,
    options: Mapping[str, Any],
) -> tuple[PreTrainedModel, frozenset[str]]:
    """Loads the base model that a record names, as it was loaded for training.

    Args:
        source: Where the trained model is.
        record: What it says of its training.
        base: Another folder or name of the base model.
        trust_remote_code: Whether code that comes with the model may run.
        options: Further arguments of `from_pretrained`; a `dtype` is left out.

    Returns:
        The base model, and the raw names of the tensors that it has not.

    Raises:
        ConfigError: Transformers has no such class.
        PlanError: The base model cannot be loaded.
    """
    name = record.base if base is None else str(base)
    shared = {key: value for key, value in source.options.items() if key not in ("revision", "subfolder")}
    where = shared if base is not None or record.revision is None else {**shared, "revision": record.revision}
    kind = str(record.model_config.get("model_type"))
    if "auto_map" in record.model_config or kind not in CONFIG_MAPPING:
        config_class = type(config_of(name, where, trust_remote_code=trust_remote_code, base_of=source.name))
    else:
        config_class = CONFIG_MAPPING[kind]
    config = config_class.from_dict({**record.model_config}, name_or_path=name)
    model_class = model_class_of(source, record.model_class, config, trust_remote_code=trust_remote_code)
    asked = {key: value for key, value in source.without_hub_options(options).items() if key != "dtype"}
    dtype = as_dtype(record.dtype, torch.float32)
    return load_base(model_class, name, config, dtype=dtype, base_of=source.name, **{**asked, **where})
