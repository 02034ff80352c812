"""The lines of Python that load what a run saved; all but deltas need Transformers and PEFT only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME
from transformers import PreTrainedModel

from hf_freeze.training.record import DELTA_FILE

_WIDTH = 96  # characters at which a call is broken into one line per argument


def loading_lines(
    folder: str,
    model: PreTrainedModel,
    *,
    auto_class: str,
    base: str,
    options: Mapping[str, Any],
    has_fresh_parameters: bool,
    has_tokenizer: bool = True,
    name: str | None = None,
) -> tuple[str, ...]:
    """Returns lines that load a saved model as `model`, and its tokenizer as `tokenizer` where it has one.

    A folder with adapters names its base model, but knows neither its labels nor its dtype: both are in the lines.

    Args:
        folder: The folder that was saved, of either kind.
        model: The model that was trained, without its adapters.
        auto_class: The Transformers class that loads models of the task.
        base: The base model: a folder or its name on the Hub.
        options: The further arguments of `from_pretrained` that the base model was loaded with.
        has_fresh_parameters: Whether parameters were made anew that the base model may hold in another shape.
        has_tokenizer: Whether a tokenizer was saved beside it.
        name: The Python name that stands for the folder in the lines; None to write the folder out.
    """
    place = repr(folder) if name is None else name
    trusts = {"trust_remote_code": True} if options.get("trust_remote_code") else {}
    tokenizer = _call("tokenizer", "AutoTokenizer", [place], trusts) if has_tokenizer else ()
    tokenizer_class = ", AutoTokenizer" if has_tokenizer else ""
    if Path(folder, DELTA_FILE).exists():
        load = "from hf_freeze import load_model"
        imports = ("from transformers import AutoTokenizer",) if has_tokenizer else ()
        return (load, *imports, "", f"model = load_model({place})", *tokenizer)
    imported = f"from transformers import {auto_class}{tokenizer_class}"
    if not Path(folder, CONFIG_NAME).exists():
        return (imported, "", *_call("model", auto_class, [place], trusts), *tokenizer)
    arguments = {**options, **_head(model), "dtype": str(model.dtype).removeprefix("torch.")}
    if has_fresh_parameters:
        arguments["ignore_mismatched_sizes"] = True
    return (
        "from peft import PeftModel",
        imported,
        "",
        *_call("base", auto_class, [repr(base)], arguments),
        *_call("model", "PeftModel", ["base", place], {}),
        *tokenizer,
    )


def _head(model: PreTrainedModel) -> dict[str, Any]:
    """Returns the values of the config that say what the outputs mean."""
    config = model.config
    if config.problem_type == "regression":
        return {"num_labels": 1, "problem_type": "regression"}
    head: dict[str, Any] = {"id2label": config.id2label, "label2id": config.label2id}
    return {**head, "problem_type": config.problem_type} if config.problem_type else head


def _call(name: str, owner: str, positional: Sequence[str], keywords: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the lines of `name = owner.from_pretrained(...)`."""
    arguments = [*positional, *(f"{key}={value!r}" for key, value in keywords.items())]
    opening = f"{name} = {owner}.from_pretrained("
    line = f"{opening}{', '.join(arguments)})"
    if len(line) <= _WIDTH or len(arguments) == 1:
        return (line,)
    return (opening, *(f"    {argument}," for argument in arguments), ")")
