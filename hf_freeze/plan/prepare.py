"""The model-level door: from a model and a few plain values to a model that any loop trains as planned."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from hf_freeze.config import AdapterConfig, FreezeConfig, parse_adapters, parse_section
from hf_freeze.config.automatic import SnrSelection
from hf_freeze.errors import PlanError
from hf_freeze.plan.adapters import adapter_config, attach_adapters
from hf_freeze.plan.apply import apply_plan, forget_plan, has_plan, plan_of
from hf_freeze.plan.automatic import Chosen, check_automatic
from hf_freeze.plan.layout import Layout, find_layout, is_quantized
from hf_freeze.plan.resolve import FreezePlan, resolve_plan
from hf_freeze.plan.snr import choose_by_snr
from hf_freeze.plan.wrappers import join


def freeze_model(
    model: nn.Module,
    freeze: FreezeConfig | Mapping[str, object] | None = None,
    adapters: Iterable[AdapterConfig | Mapping[str, object] | object] = (),
    *,
    blocks_path: str | None = None,
) -> nn.Module:
    """Freezes and adapts a model; any loop then trains it as planned.

    The model is changed in place. Nothing is touched before every part of the request is known to fit it.

    Args:
        model: A model of Transformers, of PEFT, or a plain module with an `nn.ModuleList` of blocks.
        freeze: The `freeze` section: `{"blocks": {"first": 8}}`. Of the automatic selections, `snr` alone works here:
            the others take training rows.
        adapters: Entries of one PEFT method: mappings with `peft_type`, or PEFT config objects.
        blocks_path: Path of the `nn.ModuleList` that holds the blocks, where it cannot be found by itself.

    Returns:
        The model: a `PeftModel` around it where adapters are given.

    Raises:
        ConfigError: A section cannot be read; every problem is listed.
        LayoutError: The blocks of the model cannot be found.
        PlanError: The request does not fit the model.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64)
        >>> model = freeze_model(BertForSequenceClassification(config), {"blocks": {"first": 3}})
        >>> plan_of(model).depth
        3
    """
    entries = tuple(parse_adapters(adapters))
    constants = _constants(model)
    layout = find_layout(model, blocks_path=blocks_path, constants=constants)
    section, chosen = _decided(model, layout, freeze, entries)
    plan = resolve_plan(layout, section, entries)
    if entries:
        if isinstance(model, PeftModel):
            raise PlanError(
                f"adapters: this model carries adapters already; got {len(entries)} more entries. "
                f"It has {', '.join(sorted(model.peft_config))}. "
                "Pass the model without adapters, or leave adapters out."
            )
        model = attach_adapters(model, adapter_config(model, layout, entries))
        plan = resolve_plan(find_layout(model, blocks_path=blocks_path, constants=constants), section, entries)
    apply_plan(model, replace(plan, chosen=chosen))
    return model


def _decided(
    model: nn.Module, layout: Layout, freeze: FreezeConfig | Mapping[str, object] | None, entries: Sequence[object]
) -> tuple[FreezeConfig | None, Chosen | None]:
    """Returns the section with its blocks chosen where the weights alone tell which."""
    section = None if freeze is None else parse_section(FreezeConfig, freeze, key="freeze")
    if section is None or section.automatic is None:
        return section, None
    check_automatic(section.automatic, entries)
    if not isinstance(section.automatic, SnrSelection):
        return section, None
    chosen = choose_by_snr(model, layout, section, section.automatic)
    return chosen.section, chosen


def _constants(model: nn.Module) -> frozenset[str] | None:
    """Returns what an earlier plan found that the model keeps constant: its own freezing hides that by now."""
    if not has_plan(model):
        return None
    return frozenset(decision.name for decision in plan_of(model).decisions if decision.parameter.constant)


def merge_adapters(model: nn.Module) -> nn.Module:
    """Merges the adapters into the weights and returns the plain model, in eval mode and free of the plan.

    Args:
        model: A `PeftModel`, such as `freeze_model` returns.

    Raises:
        PlanError: The model has no adapters, adapters that cannot be merged, or quantised weights under them.
    """
    if not isinstance(model, PeftModel):
        raise PlanError(f"{type(model).__name__}: this model has no adapters to merge. Use it as it is.")
    if model.active_peft_config.is_prompt_learning:
        raise _cannot_merge(model, "Its parameters are inputs, not weights.")
    if not isinstance(model.base_model, BaseTuner):
        raise _cannot_merge(model, "It adds modules that a plain model has no place for.")
    _check_unquantised(model)
    forget_plan(model)
    try:
        # PeftModel forwards the call to the tuner, which mypy cannot see.
        return cast(nn.Module, cast(Any, model).merge_and_unload(safe_merge=True)).eval()
    except (NotImplementedError, TypeError) as error:
        raise _cannot_merge(model, f"PEFT says: {str(error).strip() or type(error).__name__}") from error


def _check_unquantised(model: PeftModel) -> None:
    """Refuses to add adapters to weights that hold a few bits each: most of what was trained would be rounded away."""
    for path, module in model.get_base_model().named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        for name, parameter in module.get_base_layer().named_parameters():
            if is_quantized(parameter):
                raise PlanError(
                    f"{type(model).__name__}: adapters cannot be merged into quantised weights, which would round them "
                    f"away; got {join(path, name)!r} in {str(parameter.dtype).removeprefix('torch.')}. Keep the PEFT "
                    "folder and load it with peft, or put the adapters on the unquantised base model and merge there."
                )


def _cannot_merge(model: PeftModel, why: str) -> PlanError:
    return PlanError(
        f"{type(model).__name__}: adapters of this method cannot be merged; got "
        f"{model.active_peft_config.peft_type.value}. {why} Keep the PEFT folder and load it with peft."
    )


def print_trainable_parameters(model: nn.Module) -> None:
    """Prints how many parameters train, in the words of PEFT's method of the same name.

    Args:
        model: A model that a plan was applied to.

    Raises:
        PlanError: No plan was applied to the model.
    """
    plan: FreezePlan = plan_of(model)
    trainable = sum(decision.parameter.numel for decision in plan.decisions if decision.trainable)
    total = sum(decision.parameter.numel for decision in plan.decisions)
    sys.stdout.write(
        f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {100 * trainable / total:.4f}\n"
    )
