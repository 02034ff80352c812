"""Loads adapters, and the modules that trained beside them, on their base model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import transformers
from peft import PeftConfig, PeftModel, PeftType, TaskType, get_peft_model_state_dict
from peft.utils import CONFIG_NAME
from transformers import PreTrainedModel

from hf_freeze.errors import ConfigError, PlanError
from hf_freeze.plan.audit import tensor_digest
from hf_freeze.plan.layout import is_quantized
from hf_freeze.plan.wrappers import named_parameters
from hf_freeze.sharing.classes import config_of, convert, load_recorded_base, model_class_of
from hf_freeze.sharing.delta import read_tensors
from hf_freeze.sharing.sources import Source
from hf_freeze.training.delta import digest_of_all
from hf_freeze.training.pretrained import load_base
from hf_freeze.training.record import TrainingRecord
from hf_freeze.training.saving import held_names

logger = logging.getLogger(__name__)

# The Transformers class for each of PEFT's task types: a folder that PEFT wrote names nothing else.
_AUTO_CLASSES: Final[Mapping[str, Any]] = {
    TaskType.SEQ_CLS: transformers.AutoModelForSequenceClassification,
    TaskType.TOKEN_CLS: transformers.AutoModelForTokenClassification,
    TaskType.QUESTION_ANS: transformers.AutoModelForQuestionAnswering,
    TaskType.CAUSAL_LM: transformers.AutoModelForCausalLM,
    TaskType.SEQ_2_SEQ_LM: transformers.AutoModelForSeq2SeqLM,
    TaskType.FEATURE_EXTRACTION: transformers.AutoModel,
}


def load_adapters(
    source: Source, *, base: str | Path | None, trust_remote_code: bool, options: Mapping[str, Any]
) -> PeftModel:
    """Loads adapters on their base model.

    Args:
        source: Where the adapters are.
        base: Another folder or name of the base model.
        trust_remote_code: Whether code that comes with the model may run.
        options: Further arguments of `from_pretrained`.

    Raises:
        ConfigError: The files are missing or damaged, or do not say what the base model is.
        PlanError: The base model cannot be loaded, or the adapters do not fit it.
    """
    tensors = read_tensors(source)
    adapter_config = _read_config(source)
    base = source.base_beside if base is None else base
    if source.record is not None:
        model, fresh = load_recorded_base(
            source, source.record, base=base, trust_remote_code=trust_remote_code, options=options
        )
        _check_whole(source, model, fresh, tensors)
        _check_frozen(source, source.record, model)
        model = convert(model, options.get("dtype"))
    else:
        model, fresh = _load_named_base(
            source, adapter_config, base=base, trust_remote_code=trust_remote_code, options=options
        )
        _check_whole(source, model, fresh, tensors)
    adapted = _put_on(source, model)
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    missing = sorted(set(expected) - set(tensors))
    if missing:
        raise PlanError(
            f"{source.name}: these adapters are not whole; got no {missing[0]!r} and {len(missing) - 1} more. "
            f"{CONFIG_NAME} says that they are there. Save or download the folder again."
        )
    return adapted.eval()


def _put_on(source: Source, model: PreTrainedModel) -> PeftModel:
    name = model.name_or_path
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # They are an error here.
            adapted: PeftModel = PeftModel.from_pretrained(model, source.name, **source.options)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise PlanError(
            f"{source.name}: these adapters do not fit the base model {name!r}; got the error "
            f"{' '.join(line.strip() for line in lines[:2]).rstrip('.')!r} from PEFT. "
            "Pass the model that they were trained on as base."
        ) from error
    return adapted


def _check_whole(source: Source, model: PreTrainedModel, fresh: Collection[str], held: Collection[str]) -> None:
    """Refuses a base that lacks weights which the adapter folder does not hold either: they would be random."""
    given = held_names(held)
    lacking = sorted(name for name in fresh if name not in given)
    if lacking and source.record is None:
        raise PlanError(
            f"{source.name}: neither these adapters nor their base model hold all weights; got {model.name_or_path!r}, "
            f"in which {lacking[0]!r} and {len(lacking) - 1} more are missing or have another shape: they would be "
            "random. Pass a model that has them as base, or load it yourself, and the adapters with peft.PeftModel."
        )
    if lacking:
        raise PlanError(
            f"{source.name}: these adapters were trained on another base model; got {model.name_or_path!r}, in which "
            f"{lacking[0]!r} and {len(lacking) - 1} more are missing or have another shape. Pass the right model as "
            f"base."
        )


def _check_frozen(source: Source, record: TrainingRecord, model: PreTrainedModel) -> None:
    """Refuses a base with other weights than those that were frozen when the adapters were trained."""
    parameters = {name: p for name, p in named_parameters(model) if name not in record.undigested}
    if record.frozen_digest is None:
        return
    if any(is_quantized(parameter) for parameter in parameters.values()):
        logger.warning(
            "%s: the base model is loaded quantised, so it is not compared with the one that the adapters were trained "
            "on.",
            source.name,
        )
        return
    found = digest_of_all({name: tensor_digest(parameter) for name, parameter in parameters.items()})
    if found != record.frozen_digest:
        revision = f" at revision {record.revision}" if record.revision is not None else ""
        raise PlanError(
            f"{source.name}: these adapters were trained on another base model; got {model.name_or_path!r} with the "
            f"digest {found}. They were trained on {record.base!r}{revision} with the digest {record.frozen_digest}. "
            "Pass that model as base."
        )


def _read_config(source: Source) -> PeftConfig:
    """Reads what PEFT says of the adapters."""
    try:
        config: PeftConfig = PeftConfig.from_pretrained(source.name, **source.options)
        PeftType(config.peft_type)  # Without a method, PEFT reads the file all the same.
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{source.name}: {CONFIG_NAME} does not say what the adapters are; got {type(error).__name__} reading it. "
            "Save or download the folder again."
        ) from error
    return config


def _load_named_base(
    source: Source,
    config: PeftConfig,
    *,
    base: str | Path | None,
    trust_remote_code: bool,
    options: Mapping[str, Any],
) -> tuple[PreTrainedModel, frozenset[str]]:
    """Loads the base model that PEFT's own config names, and returns it with the names of the tensors that it has not.

    The labels of its head are those of the base.
    """
    name = config.base_model_name_or_path if base is None else str(base)
    if name is None:
        raise ConfigError(
            f"{source.name}: {CONFIG_NAME} does not name the base model; got {name!r}. Pass the model as base."
        )
    shared = {key: value for key, value in source.options.items() if key not in ("revision", "subfolder")}
    where = {**shared, "revision": config.revision} if base is None and config.revision else shared
    asked = source.without_hub_options(options)
    kind = {key: asked.pop(key) for key in sorted(asked) if key in ("num_labels", "id2label", "label2id")}
    model_config = config_of(name, {**where, **kind}, trust_remote_code=trust_remote_code, base_of=source.name)
    named = (config.auto_mapping or {}).get("base_model_class") if config.task_type is None else None
    model_class = _AUTO_CLASSES.get(config.task_type or "")
    if named is not None:
        model_class = model_class_of(source, named, model_config, trust_remote_code=trust_remote_code)
    if model_class is None:
        raise ConfigError(
            f"{source.name}: {CONFIG_NAME} does not say what kind of model it is for; got the task_type "
            f"{config.task_type!r}. Load the base model yourself, and the adapters with peft.PeftModel."
        )
    dtype = asked.pop("dtype", "auto")
    return load_base(model_class, name, model_config, dtype=dtype, base_of=source.name, **{**asked, **where})
