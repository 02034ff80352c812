"""Turns adapter entries into one PEFT config whose targets are full module names, and attaches it.

PEFT itself says which modules an entry matches: it is attached to a copy of the model that has no storage, so that
PEFT's rules (suffixes, regular expressions, `all-linear`, defaults per model type, excluded modules) hold as they are.
Of these modules, those in the entry's blocks are kept. Entries of one method become one config, because a model that
carries two PEFT methods cannot be saved by PEFT: ranks and scales that differ go to `rank_pattern` and `alpha_pattern`.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import TaskType
from torch import nn
from transformers.models.auto import modeling_auto

from hf_freeze.config import AdapterConfig, Selection
from hf_freeze.config.selection import spell_blocks
from hf_freeze.errors import PlanError, did_you_mean
from hf_freeze.plan.layout import Layout
from hf_freeze.plan.resolve import select_roles

_TASK_TYPES = {
    TaskType.SEQ_CLS: modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    TaskType.TOKEN_CLS: modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    TaskType.QUESTION_ANS: modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    TaskType.CAUSAL_LM: modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    TaskType.SEQ_2_SEQ_LM: modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
}

# What PEFT calls rank and scale in its methods; each has a pattern that says where another value holds.
_PATTERNS = {"r": "rank_pattern", "lora_alpha": "alpha_pattern", "alpha": "alpha_pattern"}


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One entry with the modules that it adapts."""

    key: str
    config: PeftConfig
    targets: tuple[str, ...]
    feedforward: tuple[str, ...]


def adapter_config(model: nn.Module, layout: Layout, adapters: Sequence[AdapterConfig]) -> PeftConfig:
    """Returns the PEFT config that carries all entries; the model is only looked at.

    Args:
        model: A model without adapters.
        layout: The layout of this model.
        adapters: Entries of one PEFT method; at least one.

    Raises:
        PlanError: A target module or a block does not exist, two entries adapt the same module, or options differ that
            one PEFT config cannot hold.
    """
    configs = [_peft_config(entry) for entry in adapters]
    if configs[0].is_prompt_learning:
        return _prompt_config(model, adapters, configs)
    entries = [
        _match(model, layout, adapter, config, key=f"adapters.{index}")
        for index, (adapter, config) in enumerate(zip(adapters, configs, strict=True))
    ]
    _check_disjoint(entries)
    return _merge(entries)


def _peft_config(entry: AdapterConfig) -> PeftConfig:
    return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(entry.peft_type)](**entry.peft_options)


def attach_adapters(model: nn.Module, config: PeftConfig) -> PeftModel:
    """Attaches the adapters and returns the PEFT model around `model`.

    Args:
        model: The model that `config` was made for. Its adapted modules are replaced in place.
        config: What `adapter_config` returned.
    """
    task_type = config.task_type or infer_task_type(model)
    config = copy.deepcopy(config)
    if not config.is_prompt_learning:
        # With a task type PEFT would copy the head into a wrapper. The plan trains the head where it is, and the task
        # type goes into the saved config.
        config.task_type = None
    with _quiet_peft():
        adapted = get_peft_model(model, config)
    adapted.peft_config[adapted.active_adapter].task_type = task_type
    return adapted


def infer_task_type(model: nn.Module) -> TaskType | None:
    """Returns PEFT's task type for a Transformers model class, or None where PEFT has none.

    Args:
        model: Any model.
    """
    name = type(model).__name__
    return next((task for task, names in _TASK_TYPES.items() if name in _flatten(names.values())), None)


def _flatten(names: Any) -> set[str]:
    return {name for value in names for name in (value if isinstance(value, tuple) else (value,))}


def _prompt_config(model: nn.Module, adapters: Sequence[AdapterConfig], configs: Sequence[PeftConfig]) -> PeftConfig:
    method = adapters[0].peft_type
    if len(configs) > 1:
        raise PlanError(f"adapters: PEFT holds one {method} at a time; got {len(configs)} entries. Keep one of them.")
    if adapters[0].blocks is not None:
        raise PlanError(
            f"adapters.0.blocks: {method} acts on the input of the model, not on blocks; got "
            f"{spell_blocks(adapters[0].blocks)!r}. Remove this key."
        )
    config = configs[0]
    if config.task_type is None:
        config.task_type = infer_task_type(model)
    return config


def _match(model: nn.Module, layout: Layout, adapter: AdapterConfig, config: Any, *, key: str) -> _Entry:
    """Finds the modules of the entry's blocks that PEFT matches."""
    selection = adapter.blocks if adapter.blocks is not None else Selection("all", None)
    paths = _block_paths(layout, select_roles(layout, selection, key=f"{key}.blocks"))
    matched = _matched_by_peft(model, config, key=key)
    inside = {name: module for name, module in matched.items() if name.startswith(tuple(f"{path}." for path in paths))}
    written = config.target_modules
    if vars(config).get("bias", "none") != "none":
        raise PlanError(
            f"{key}.bias: biases of the base model are trained by the plan; got {config.bias!r}. Set "
            "freeze.always_train to ['*.bias'] instead."
        )
    named = [str(written)] if isinstance(written, str | None) else sorted(written)
    for target in named:
        if not inside or not (isinstance(written, str | None) or _names_any(target, inside)):
            raise _no_match(model, paths, target, key=key)
    feedforward = tuple(name for name, module in inside.items() if vars(module).get("is_feedforward", False))
    return _Entry(key, config, tuple(inside), feedforward)


def _names_any(target: str, names: Iterable[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for name in names)


def _block_paths(layout: Layout, roles: Sequence[str]) -> tuple[str, ...]:
    return tuple(path for role in roles for path in layout.modules[role])


def _matched_by_peft(model: nn.Module, config: Any, *, key: str) -> dict[str, nn.Module]:
    trial = copy.deepcopy(config)
    trial.task_type = None
    try:
        with _quiet_peft():
            adapted = get_peft_model(_without_storage(model), trial)
    except ValueError as error:
        if config.target_modules is None:
            method = config.peft_type.value
            raise PlanError(
                f"{key}.target_modules: PEFT knows no default for this model; got nothing. "
                f"{method} can adapt the modules of {type(model).__name__} that it names. "
                "Set target_modules, for example to 'all-linear'."
            ) from error
        # Nothing matched, or PEFT refuses a module: the caller reports the former, and PEFT's words explain the latter.
        if "not found in the base model" in str(error):
            return {}
        raise PlanError(f"{key}: PEFT refuses this adapter; {error}") from error
    modules: Iterator[tuple[str, nn.Module]] = adapted.get_base_model().named_modules()
    return {name: module for name, module in modules if _is_adapted(module)}


def _is_adapted(module: nn.Module) -> bool:
    return isinstance(module, BaseTunerLayer)


def _without_storage(model: nn.Module) -> nn.Module:
    """Copies the modules with parameters and buffers on the meta device, so that the copy needs no memory."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def _no_match(model: nn.Module, paths: Sequence[str], target: str, *, key: str) -> PlanError:
    prefixes = tuple(f"{path}." for path in paths)
    leaves = [name for name, module in model.named_modules() if not list(module.children())]
    existing = sorted({name.rpartition(".")[2] for name in leaves if name.startswith(prefixes)})
    return PlanError(
        f"{key}.target_modules: no module of the selected blocks matches; got {target!r}. "
        f"These blocks hold {', '.join(existing)}. Name one of these modules.{did_you_mean(target, existing)}"
    )


def _check_disjoint(entries: Sequence[_Entry]) -> None:
    seen: dict[str, str] = {}
    for entry in entries:
        for target in entry.targets:
            if target in seen:
                raise PlanError(
                    f"{entry.key}.blocks: a module can carry one adapter; got {target}, which {seen[target]} adapts "
                    "already. Give the entries different blocks or different target_modules."
                )
            seen[target] = entry.key


def _merge(entries: Sequence[_Entry]) -> PeftConfig:
    """Writes the entries into the config of the first one."""
    merged: Any = copy.deepcopy(entries[0].config)
    merged.target_modules = {target for entry in entries for target in entry.targets}
    if "feedforward_modules" in vars(merged):
        merged.feedforward_modules = {name for entry in entries for name in entry.feedforward}
    for option in ("layers_to_transform", "layers_pattern", "exclude_modules"):
        if option in vars(merged):
            setattr(merged, option, None)
    for entry in entries[1:]:
        for option, value in _differing(entries[0], entry).items():
            pattern = vars(merged)[_PATTERNS[option]]
            pattern.update(dict.fromkeys(entry.targets, value))
    return cast(PeftConfig, merged)


def _differing(first: _Entry, other: _Entry) -> Mapping[str, Any]:
    """Returns the options of `other` that differ from those of `first`, all of which a pattern can hold."""
    where = {"target_modules", "feedforward_modules", "layers_to_transform", "layers_pattern", "exclude_modules"}
    here, there = vars(first.config), vars(other.config)
    differing = {name: value for name, value in there.items() if name not in where and value != here.get(name)}
    for name in differing:
        if _PATTERNS.get(name, "") not in here:
            can = sorted(option for option, pattern in _PATTERNS.items() if option in here and pattern in here)
            raise PlanError(
                f"{other.key}.{name}: entries of one PEFT method must agree in this option; got {differing[name]!r} "
                f"here and {here.get(name)!r} in {first.key}. "
                f"Options that may differ: {', '.join(can) if can else 'none'}. Write the same value in both."
            )
    return differing


@contextlib.contextmanager
def _quiet_peft() -> Iterator[None]:
    with warnings.catch_warnings():
        # LN tuning warns of every LayerNorm though LayerNorm is what it is for.
        warnings.filterwarnings("ignore", message="Unsupported layer type")
        # GPT-2 keeps its linear layers transposed; PEFT notices, sets the option right and warns that it did.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        # PEFT reads a property that Transformers 5.23 renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield
