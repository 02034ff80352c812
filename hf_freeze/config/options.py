"""The keys that pass through to PEFT, Transformers and Datasets, checked against what those libraries declare.

Importing a library that declares options takes seconds, so it happens inside the functions that need it.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from hf_freeze.config.hints import described, enumerated, fits
from hf_freeze.config.problems import KeyPath, Problem, ProblemsFound, listed, shown, unknown_key, unquoted
from hf_freeze.errors import did_you_mean

Refused = Mapping[str, str]  # key -> what decides it instead

REFUSED_FOR_ADAPTERS: Refused = {
    "alpha_pattern": "Write one more entry of adapters, with the lora_alpha and the target_modules it is meant for.",
    "auto_mapping": "It comes from the model.",
    "base_model_name_or_path": "It comes from model.name_or_path.",
    "inference_mode": "An adapter that is trained is not in inference mode.",
    "layer_replication": "It changes the number of blocks, which freeze.blocks and adapters select from.",
    "layers_pattern": "Select blocks with the key blocks of this entry.",
    "layers_to_transform": "Select blocks with the key blocks of this entry.",
    "modules_to_save": "What trains in full beside the adapters is chosen by freeze.blocks, freeze.head, "
    "freeze.embeddings and freeze.always_train.",
    "peft_version": "It is the version of PEFT that is installed.",
    "rank_pattern": "Write one more entry of adapters, with the r and the target_modules it is meant for.",
    "revision": "It comes from model.revision.",
    "task_type": "It comes from model.task.",
}

# What PEFT fills in itself, and the task, which follows from the model as it does for entries of a config file.
_OF_EVERY_OBJECT = {"auto_mapping", "base_model_name_or_path", "peft_type", "peft_version", "task_type"}

_BY_LAUNCHER = "How many processes, which precision and which sharding are chosen by the file in accelerate_configs."
_BY_COMMAND = "Transformers ignores it. A run trains, and evaluates the validation and test splits that there are."
REFUSED_FOR_TRAINING: Refused = {
    **dict.fromkeys(("bf16", "deepspeed", "fp16", "fsdp", "fsdp_config", "local_rank"), _BY_LAUNCHER),
    "parallelism_config": _BY_LAUNCHER,
    **dict.fromkeys(("do_eval", "do_predict", "do_train"), _BY_COMMAND),
    "evaluation_strategy": "Its name is eval_strategy now.",
    "gradient_checkpointing": "Its name is activation_checkpointing now.",
    "gradient_checkpointing_kwargs": "Its name is activation_checkpointing_kwargs now.",
    "group_by_length": "It is train_sampling_strategy: group_by_length now.",
    "overwrite_output_dir": "It is gone from Transformers. Choose another output_dir.",
    "save_safetensors": "It is gone from Transformers: weights are always saved as safetensors.",
    "warmup_ratio": "It is gone from Transformers: warmup_steps below 1 is a fraction of all steps now.",
}

# What divides the work, which TrainingArguments takes whatever it is: key -> least value, and why.
_LEAST_FOR_TRAINING: Mapping[str, tuple[int, str]] = {
    "dataloader_num_workers": (0, "With 0 the main process reads the rows."),
    "gradient_accumulation_steps": (1, "With 1 each batch is a step."),
    "num_train_epochs": (0, "With 0 nothing is trained."),
    "per_device_eval_batch_size": (1, "A batch has at least one row."),
    "per_device_train_batch_size": (1, "A batch has at least one row."),
}

REFUSED_FOR_MODELS: Refused = {
    "config": "The model's config is read from model.name_or_path.",
    "id2label": "The labels are chosen by data.labels.",
    "label2id": "The labels are chosen by data.labels.",
    "num_labels": "The labels are chosen by data.labels.",
    "pretrained_model_name_or_path": "Its name is name_or_path here.",
    "problem_type": "It is chosen by data.problem_type.",
    "state_dict": "The weights are read from model.name_or_path.",
    "torch_dtype": "Its name is dtype now.",
}

REFUSED_FOR_DATASETS: Refused = {
    "split": "The splits are chosen by data.splits.",
    "streaming": "The rows are read more than once, so they are not streamed.",
    "trust_remote_code": "Datasets does not run code of a repository any more. Name a dataset that holds data files.",
}


def as_plain(value: object) -> Any:
    """Returns a copy made of what YAML can hold: text, numbers, booleans, null, lists and mappings.

    Args:
        value: What a key was given.

    Raises:
        ProblemsFound: If something else is in it.
    """
    found: list[Problem] = []
    copy = _copied(value, (), found)
    if found:
        raise ProblemsFound(found)
    return copy


def _copied(value: object, path: KeyPath, found: list[Problem]) -> Any:
    if value is None or type(value) in {str, int, float, bool}:
        return value
    if isinstance(value, list | tuple):
        return [_copied(entry, (*path, index), found) for index, entry in enumerate(value)]
    if isinstance(value, Mapping) and all(type(key) in {str, int} for key in value):
        return {key: _copied(entry, (*path, key), found) for key, entry in value.items()}
    kinds = "text, numbers, true, false, null, lists and mappings from names"
    found.append(Problem(path, f"is not plain data; got {shown(value, path)}. A config holds {kinds}."))
    return value


def training_problems(options: Mapping[str, Any]) -> list[Problem]:
    """Returns what is wrong with options meant for `transformers.TrainingArguments`.

    Args:
        options: Its keyword arguments.
    """
    from transformers import TrainingArguments

    # Declared as a text, though `Trainer.train`, which it is handed to, takes true as well: the newest checkpoint.
    declared = {**_declared(TrainingArguments), "resume_from_checkpoint": bool | str | None}
    found = _option_problems(options, declared, "TrainingArguments", REFUSED_FOR_TRAINING)
    found += _too_small(options, besides={problem.path for problem in found})
    what = "It is the folder that training writes."
    if "output_dir" not in options:
        given = listed(options) or "nothing"
        found.append(Problem(("output_dir",), f"required key is missing; got {given}. {what} Add it."))
    elif not options["output_dir"]:
        found.append(Problem(("output_dir",), f"names no folder; got {options['output_dir']!r}. {what}"))
    return found


def _too_small(options: Mapping[str, Any], *, besides: Collection[KeyPath]) -> Iterator[Problem]:
    for key, (least, why) in _LEAST_FOR_TRAINING.items():
        if (key,) not in besides and options.get(key, least) < least:
            yield Problem((key,), f"is below {least}; got {shown(options[key])}. {why} Raise it.")


def peft_method(name: object) -> str:
    """Returns the name of a PEFT method as PEFT spells it.

    Args:
        name: The same name in any case, such as `lora`; anything else is not a method.

    Raises:
        ProblemsFound: If PEFT has no such method.
    """
    methods = _peft_configs()
    method = str(name).upper()
    if method not in methods:
        meant = did_you_mean(method, methods)
        raise ProblemsFound(
            [Problem((), f"unknown PEFT method; got {shown(name)}. Methods: {listed(methods)}.{meant}")]
        )
    return method


def adapter_problems(method: str, options: Mapping[str, Any]) -> list[Problem]:
    """Returns what is wrong with options meant for the config class of a PEFT method.

    Args:
        method: The method as PEFT spells it.
        options: The keyword arguments of its config class.
    """
    config_class = _peft_configs()[method]
    declared = {key: hint for key, hint in _declared(config_class).items() if key not in REFUSED_FOR_ADAPTERS}
    del declared["peft_type"]
    return _option_problems(options, declared, config_class.__name__, REFUSED_FOR_ADAPTERS)


def model_problems(options: Mapping[str, Any], fields: Iterable[str]) -> list[Problem]:
    """Returns what is wrong with options meant for `from_pretrained`, which declares too little to check the rest.

    Args:
        options: Its keyword arguments.
        fields: The keys of the section that hf_freeze reads itself, of which an option may be a misspelling.
    """
    fields = sorted(fields)
    found = []
    for key, value in options.items():
        if key in REFUSED_FOR_MODELS:
            found.append(_refusal(key, value, REFUSED_FOR_MODELS))
        elif key in {"use_safetensors", "weights_only"} and value is not True:
            text = (
                f"lets a pickle run code; got {shown(value)}. Weights are read from safetensors only. Remove the key."
            )
            found.append(Problem((key,), text))
        elif did_you_mean(key, fields):
            found.append(unknown_key((key,), value, fields))
    return found


def dataset_problems(options: Mapping[str, Any]) -> list[Problem]:
    """Returns what is wrong with options meant for `datasets.load_dataset`.

    Args:
        options: Its keyword arguments.
    """
    found = [
        _refusal(key, value, REFUSED_FOR_DATASETS) for key, value in options.items() if key in REFUSED_FOR_DATASETS
    ]
    what = "It is a dataset on the Hub, a folder, or a format such as csv or json."
    if "path" not in options:
        given = listed(options) or "nothing"
        found.append(Problem(("path",), f"required key is missing; got {given}. {what} Add it."))
    elif not isinstance(options["path"], str) or not options["path"]:
        found.append(Problem(("path",), f"is not a name; got {shown(options['path'])}. {what}"))
    return found


def _refusal(key: str, value: object, refused: Refused) -> Problem:
    return Problem((key,), f"is not set here; got {shown(value, (key,))}. {refused[key]}")


def _option_problems(
    options: Mapping[str, Any], declared: Mapping[str, Any], owner: str, refused: Refused
) -> list[Problem]:
    found = []
    for key, value in options.items():
        if key in refused:
            found.append(_refusal(key, value, refused))
        elif key not in declared:
            known = declared.keys() - refused.keys()
            found.append(unknown_key((key,), value, known, owner=f"keys of {owner}"))
        elif not fits(value, declared[key]):
            found.append(_misfit(key, value, declared[key], owner))
    return found


def _misfit(key: str, value: object, hint: Any, owner: str) -> Problem:
    meant = did_you_mean(value, enumerated(hint)) if isinstance(value, str) else ""
    text = f"does not fit {owner}; got {shown(value, (key,))}. There it is {described(hint)}.{meant or unquoted(value)}"
    return Problem((key,), text)


def _declared(owner: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(owner)
    return {field.name: hints[field.name] for field in dataclasses.fields(owner) if field.init}


def _peft_configs() -> dict[str, type[Any]]:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return {str(method.value): config_class for method, config_class in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def adapter_entry(value: object) -> object:
    """Returns a PEFT config object as an entry of `adapters` spells it, and anything else as it is.

    Args:
        value: An entry, a mapping, or a PEFT config object such as `LoraConfig(r=8)`.
    """
    from peft import PeftConfig, PeftType

    if not isinstance(value, PeftConfig):
        return value
    given = vars(value)
    method = given["peft_type"]
    entry: dict[str, Any] = {"peft_type": method.value if isinstance(method, PeftType) else method}
    for field in dataclasses.fields(value):
        option = given[field.name]
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if field.name not in _OF_EVERY_OBJECT and option != default:
            entry[field.name] = sorted(option) if isinstance(option, set) else option
    layers = entry.pop("layers_to_transform", None)
    if layers is not None:
        entry["blocks"] = {"indices": [layers] if isinstance(layers, int) else list(layers)}
    return entry
