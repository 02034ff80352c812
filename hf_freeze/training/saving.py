"""Writes the final model so that nobody needs hf_freeze to load it.

With adapters this is a plain PEFT folder. PEFT itself would write the adapters only and lose the blocks and heads that
trained in full; they are added under `modules_to_save`, the place that PEFT has for whole modules, and PEFT loads them
from there exactly.
"""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import safetensors
import safetensors.torch
import torch
from peft import PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import nn
from transformers import PreTrainedModel

from hf_freeze.config import SaveConfig
from hf_freeze.errors import PlanError
from hf_freeze.plan.audit import tensor_digest
from hf_freeze.plan.prepare import merge_adapters
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.plan.wrappers import canonical_tree, named_parameters
from hf_freeze.training.delta import digest_of_all, write_delta
from hf_freeze.training.record import TrainingRecord

logger = logging.getLogger(__name__)

_CARD: Final = "README.md"
_STAGED: Final = "_adapters"  # where adapters are written, before they are moved to where they belong


def save_adapted(
    model: PeftModel, plan: FreezePlan, folder: Path, *, state_dict: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Writes a PEFT folder with everything that trained.

    Where PEFT has no place for a trained parameter (a head tied to trained embeddings, a parameter of a module that
    also carries adapters), the merged model is written whole instead, and a warning says why.

    Args:
        model: The PEFT model that carries the plan, unwrapped.
        plan: What trained.
        folder: Where to write.
        state_dict: The gathered state of the model, where its parameters are sharded.
    """
    modules, homeless = modules_to_save(model, plan)
    if homeless:
        logger.warning(
            "%s: PEFT has no place for %s, which trained in full (it is tied, or shares a module with adapters). "
            "The merged model is written whole instead.",
            folder,
            homeless,
        )
        merged = merge_adapters(copy.deepcopy(model))
        if isinstance(merged, PreTrainedModel):
            merged.save_pretrained(folder)
        return
    # The config is what makes a folder one of adapters: without it, a killed save leaves nothing that loads.
    staged = folder / _STAGED
    shutil.rmtree(staged, ignore_errors=True)  # What a killed save left behind.
    staged.mkdir(parents=True)
    if (folder / _CARD).exists():
        shutil.copyfile(folder / _CARD, staged / _CARD)  # PEFT adds to a card that is there.
    _write_adapted(model, modules, staged, state_dict)
    for entry in sorted(staged.iterdir(), key=lambda entry: entry.name == CONFIG_NAME):
        if entry.is_dir():  # adapters of another name than the default
            shutil.copytree(entry, folder / entry.name, dirs_exist_ok=True)
        else:
            entry.replace(folder / entry.name)
    shutil.rmtree(staged)


def _write_adapted(
    model: PeftModel, modules: tuple[str, ...], folder: Path, state_dict: Mapping[str, torch.Tensor] | None
) -> None:
    model.save_pretrained(str(folder), state_dict=state_dict)
    if not modules:
        return
    weights = folder / SAFETENSORS_WEIGHTS_NAME
    tensors = safetensors.torch.load_file(weights)
    raw = state_dict if state_dict is not None else model.state_dict()
    # Methods that tune prompts wrap the model directly, all others through a tuner.
    prefix = "base_model" if model.active_peft_config.is_prompt_learning else "base_model.model"
    prefixes = tuple(f"{prefix}.{module}." for module in modules)
    # A clone, because tied or sliced tensors share storage, which safetensors refuses.
    tensors.update({name: t.detach().cpu().clone() for name, t in raw.items() if name.startswith(prefixes)})
    safetensors.torch.save_file(tensors, weights, metadata={"format": "pt"})
    config = json.loads((folder / CONFIG_NAME).read_text())
    config["modules_to_save"] = sorted({*modules, *(config.get("modules_to_save") or ())})
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True))


def digest_of_frozen(
    model: PeftModel,
    plan: FreezePlan,
    folder: Path,
    digests: Mapping[str, str],
    *,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> tuple[str | None, tuple[str, ...]]:
    """Returns one digest of the weights that a PEFT folder lacks, and the names of those that it leaves out.

    Left out are the weights that the folder holds, and those that a base may load in another form: quantised ones, and
    those that were cast to another type than that of the model.

    Args:
        model: The PEFT model that carries the plan, unwrapped.
        plan: What trained.
        folder: The folder that `save_adapted` wrote.
        digests: Digests of frozen parameters that are known already, by canonical name.
        state_dict: The gathered state of the model, where its parameters are sharded.
    """
    weights = folder / SAFETENSORS_WEIGHTS_NAME
    if not weights.exists():
        return None, ()  # The merged model was written whole.
    with safetensors.safe_open(weights, framework="pt") as file:
        held = held_names(file.keys())
    raw = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = dict(named_parameters(model))
    decisions = {id(parameters[decision.name]): decision for decision in plan.decisions}
    undigested: list[str] = []
    found: dict[str, str] = {}
    # The names that they have in the base: where PEFT tunes prompts, it keeps the embeddings under another one, too.
    for name, leaf in canonical_tree(model.get_base_model()).named_leaves():
        parameter = leaf.parameter
        if leaf.kind == "adapter" or leaf.idle or id(parameter) not in decisions:
            continue
        decision = decisions.pop(id(parameter))  # Tied weights come once.
        is_cast = parameter.dtype != model.dtype or decision.parameter.quantized
        if is_cast or not held.isdisjoint((name, decision.name, *decision.parameter.aliases)):
            undigested.append(name)
        elif state_dict is None:
            found[name] = digests.get(decision.name) or tensor_digest(parameter)
        elif raw[id(parameter)] in state_dict:
            found[name] = tensor_digest(state_dict[raw[id(parameter)]])
        else:
            return None, ()
    return digest_of_all(found), tuple(sorted(undigested))


def held_names(keys: Iterable[str]) -> set[str]:
    """Returns the canonical names that the keys of a PEFT file may stand for.

    Args:
        keys: The keys.
    """
    # Methods that tune prompts wrap the model directly, all others through a tuner.
    return {key.removeprefix(prefix) for key in keys for prefix in ("base_model.", "base_model.model.")}


def check_saving(model: nn.Module, plan: FreezePlan, section: SaveConfig) -> None:
    """Refuses what a model cannot be saved as, before time is spent on training it.

    Args:
        model: The model that carries the plan, unwrapped.
        plan: What trains.
        section: The `save` section.

    Raises:
        PlanError: A delta of a model with adapters, or without a base model; full checkpoints that PEFT cannot hold.
    """
    if isinstance(model, PeftModel):
        if section.format == "delta":
            raise PlanError(
                "save.format: a model with adapters is saved as a PEFT folder, which holds what trained and no more; "
                "got 'delta'. A delta is for models without adapters. Leave save.format out."
            )
        homeless = modules_to_save(model, plan)[1] if section.checkpoints == "full" else None
        if homeless is not None:
            raise PlanError(
                f"save.checkpoints: PEFT, in whose format the Trainer writes checkpoints, has no place for {homeless}, "
                "which trains in full (it is tied, or shares a module with adapters); got 'full'. Small checkpoints "
                "hold it. Leave save.checkpoints out."
            )
    elif section.format == "delta" and not (isinstance(model, PreTrainedModel) and model.name_or_path):
        raise PlanError(
            f"save.format: a delta needs a base model that can be loaded again; got 'delta' for a "
            f"{type(model).__name__} that was not loaded with from_pretrained. Leave save.format out."
        )


def save_delta(
    model: PreTrainedModel,
    plan: FreezePlan,
    folder: Path,
    *,
    record: TrainingRecord,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> bool:
    """Writes the final model as a delta where its base can still be loaded, and says why where it cannot.

    Args:
        model: The model that carries the plan, unwrapped, without adapters.
        plan: What trained.
        folder: Where to write.
        record: What is said of its training, and of its base model.
        state_dict: The gathered state of the model, where its parameters are sharded.

    Returns:
        Whether the delta was written.
    """
    try:
        write_delta(model, plan, folder, record=record, state_dict=state_dict)
    except PlanError as error:
        logger.warning("%s: the model is written whole instead of as a delta. %s", folder, error)
        return False
    return True


def modules_to_save(model: PeftModel, plan: FreezePlan) -> tuple[tuple[str, ...], str | None]:
    """Returns the modules that hold what trained in full, and the first parameter that none of them can hold.

    A module of the layout counts whole if anything in it trained, unless it carries adapters: then its parts do.

    Args:
        model: The PEFT model that carries the plan, unwrapped.
        plan: What trained.
    """
    existing = {name for name, _ in model.get_base_model().named_modules()}
    wrapped = tuple(
        f"{name}." for config in model.peft_config.values() for name in vars(config).get("modules_to_save") or ()
    )
    adapted = {d.name.rpartition(".")[0] for d in plan.decisions if d.parameter.kind == "adapter"}
    modules: dict[str, None] = {}
    for decision in plan.decisions:
        # A frozen head that was made anew is in no base model, so it is kept like one that trained.
        is_kept = decision.trainable or (decision.parameter.outside_base and not decision.parameter.output_embedding)
        if not is_kept or decision.parameter.kind == "adapter" or decision.name.startswith(wrapped):
            continue
        home = _home(decision.name, plan, adapted)
        if home is None or decision.parameter.aliases or home not in existing:
            return (), decision.name
        modules[home] = None
    return tuple(modules), None


def _home(name: str, plan: FreezePlan, adapted: set[str]) -> str | None:
    """Returns the largest module of the layout around the parameter that carries no adapter."""
    owner = name.rpartition(".")[0]
    containing = [path for paths in plan.layout.modules.values() for path in paths if _within(owner, path)]
    for path in (*containing, owner):
        if path and not any(_within(module, path) for module in adapted):
            return path
    return None


def _within(module: str, path: str) -> bool:
    return module == path or module.startswith(f"{path}.")
