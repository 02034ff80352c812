"""What a checkpoint of hf_freeze holds: what can change, a digest of the rest, and a manifest written last.

A small checkpoint holds, beside the Trainer's own state files:

- `freeze_weights.safetensors`: every tensor that can change, under its raw `state_dict` name. Models that are converted
  on load (Mixtral, Qwen3-MoE, GPT-NeoX) have other names on disk than in memory, so a file in the released format
  cannot simply be loaded into the model at hand.
- `freeze_state.json`: the plan in force, and the digests of the frozen weights that are not in the file.
- `freeze_schedule.safetensors`: what a schedule gathered, where it gathers anything.
- `manifest.json` (`hf_freeze.training.manifest`): a checkpoint without a manifest that fits is incomplete, and is never
  resumed from.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from pydantic import TypeAdapter
from torch import nn
from transformers import PreTrainedModel

from hf_freeze.errors import PlanError
from hf_freeze.plan.audit import tensor_digest
from hf_freeze.plan.automatic import Chosen
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.plan.wrappers import named_parameters, unwrap_model
from hf_freeze.training.pretrained import load_base
from hf_freeze.training.shapes import VERSIONED, PlanShape, parsed

WEIGHTS_FILE = "freeze_weights.safetensors"
STATE_FILE = "freeze_state.json"
SCHEDULE_FILE = "freeze_schedule.safetensors"
FORMAT_VERSION = 1
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PICKLED_WEIGHTS = ("pytorch_model", "adapter_model")


def write_state(
    model: nn.Module,
    plan: FreezePlan,
    folder: Path,
    digests: Mapping[str, str],
    *,
    union: FreezePlan | None = None,
    trained: Collection[str] = (),
    schedule: Mapping[str, Any] | None = None,
) -> None:
    """Writes the weights that can change or have changed, and the freeze state.

    Args:
        model: The model that carries the plan.
        plan: What trains.
        folder: The checkpoint folder; it is made if it does not exist.
        digests: Digests of the frozen parameters by canonical name.
        union: The plan with all that may ever train, where a schedule changes what does.
        trained: Canonical names of the parameters that have trained so far, under an earlier plan too.
        schedule: The schedule and where it stands, as plain data; None where there is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    saved = _kept(model, plan if union is None else union, trained)
    names = {id(parameter): name for name, parameter in named_parameters(model)}
    written = {names[id(tensor)] for tensor in saved.values() if id(tensor) in names}
    tensors = {key: tensor.detach().contiguous() for key, tensor in saved.items()}
    safetensors.torch.save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    base_digests = {name: digest for name, digest in digests.items() if name not in written}
    write_plan(plan, folder, base_digests, trained=trained, schedule=schedule)


def write_plan(
    plan: FreezePlan,
    folder: Path,
    base_digests: Mapping[str, str],
    *,
    trained: Collection[str] = (),
    schedule: Mapping[str, Any] | None = None,
) -> None:
    """Writes the freeze state alone: sharded weights keep the format of their backend.

    Args:
        plan: What trains.
        folder: The checkpoint folder.
        base_digests: Digests of the frozen parameters that the checkpoint does not hold, by canonical name.
        trained: Canonical names of the parameters that have trained so far, under an earlier plan too.
        schedule: The schedule and where it stands, as plain data; None where there is none.
    """
    state: dict[str, Any] = {"format_version": FORMAT_VERSION, "plan": plan_record(plan)}
    state |= {"trained": sorted(trained), "schedule": schedule, "base_digests": dict(base_digests)}
    (folder / STATE_FILE).write_text(json.dumps(state, indent=1))


def distinct_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns what a `state_dict` holds, under its names, but tied weights once.

    Args:
        model: A model, wrapped or not.
    """
    inner = unwrap_model(model)
    raw: dict[str, torch.Tensor] = {**dict(inner.named_parameters()), **dict(inner.named_buffers())}
    persistent = inner.state_dict().keys()
    return {name: tensor for name, tensor in raw.items() if name in persistent}


def plan_record(plan: FreezePlan) -> dict[str, Any]:
    """Returns the plan as plain data: its digest, what every role does, and what was chosen before training.

    Args:
        plan: What trains.
    """
    trained = plan.trainable_by_role()
    roles = {role: {"treatment": plan.treatments[role], "trains": list(trained[role])} for role in plan.treatments}
    chosen = {} if plan.chosen is None else {"chosen": plan.chosen.record()}
    return {"digest": plan.digest, "keep_dropout": plan.keep_dropout, "roles": roles, **chosen}


def read_chosen(folder: Path) -> Chosen | None:
    """Returns what was chosen before the training that a checkpoint is of, or None where nothing was.

    Args:
        folder: A checkpoint.
    """
    record = _read_state(folder)["plan"].get("chosen") if (folder / STATE_FILE).exists() else None
    return None if record is None else Chosen.from_record(record)


def same_plan(folder: Path, plan: FreezePlan, schedule: Mapping[str, Any] | None = None) -> bool:
    """Returns whether a checkpoint was written under this plan and schedule.

    Args:
        folder: A checkpoint that `write_state` wrote.
        plan: What trains now.
        schedule: The `type` and `options` of the schedule; None where there is none.
    """
    state = _read_state(folder)
    return bool(state["plan"]["digest"] == plan.digest) and not _schedule_differences(state, schedule)


def check_plan(plan: FreezePlan, folder: Path, schedule: Mapping[str, Any] | None = None) -> None:
    """Refuses a checkpoint that was written under another plan or schedule.

    Args:
        plan: What trains now.
        folder: A checkpoint that holds a freeze state.
        schedule: The `type` and `options` of the schedule; None where there is none.

    Raises:
        PlanError: The plan or the schedule changed.
    """
    if same_plan(folder, plan, schedule):
        return
    state = _read_state(folder)
    differences = _schedule_differences(state, schedule)
    if state["plan"]["digest"] != plan.digest:
        differences = _differences(state["plan"], plan_record(plan)) + differences
    sections = "freeze, adapters and schedule" if schedule or state.get("schedule") else "freeze and adapters"
    raise PlanError(
        f"{folder}: this checkpoint was written under another plan; got one in which {'; '.join(differences)}. "
        f"Restore the {sections} sections of that run, or set allow_changed_plan to true "
        "(the weights are kept, the optimizer starts anew)."
    )


def read_schedule(folder: Path | None) -> dict[str, Any] | None:
    """Returns the schedule of a checkpoint and where it stood, or None where it has none.

    Args:
        folder: A checkpoint; None where training starts from the beginning.
    """
    if folder is None or not (folder / STATE_FILE).exists():
        return None
    record: dict[str, Any] | None = _read_state(folder).get("schedule")
    return record


def read_trained(folder: Path) -> frozenset[str]:
    """Returns the canonical names of the parameters that had trained when a checkpoint was written; none if not ours.

    Args:
        folder: A checkpoint.
    """
    return frozenset(_read_state(folder)["trained"]) if (folder / STATE_FILE).exists() else frozenset()


def write_schedule_tensors(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Writes what a schedule gathered, where there is anything.

    Args:
        tensors: By name.
        folder: The checkpoint folder.
    """
    if tensors:
        whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        safetensors.torch.save_file(whole, folder / SCHEDULE_FILE)


def read_schedule_tensors(folder: Path | None) -> dict[str, torch.Tensor]:
    """Returns what a schedule had gathered; nothing where it had not.

    Args:
        folder: A checkpoint; None where training starts from the beginning.
    """
    file = None if folder is None else folder / SCHEDULE_FILE
    return {} if file is None or not file.exists() else safetensors.torch.load_file(file)


def read_state(model: nn.Module, plan: FreezePlan, folder: Path) -> None:
    """Loads the weights of a checkpoint into the model.

    Args:
        model: The model that carries the plan.
        plan: What trains now.
        folder: A checkpoint that `write_state` wrote.

    Raises:
        PlanError: The checkpoint was written from another model, or over other frozen weights; nothing is loaded then.
    """
    tensors = safetensors.torch.load_file(folder / WEIGHTS_FILE)
    inner = unwrap_model(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in inner.state_dict().items()}
    if unexpected := [name for name in tensors if name not in shapes]:
        raise PlanError(
            f"{folder}: this checkpoint holds weights that the model lacks; got {unexpected[0]!r} and "
            f"{len(unexpected) - 1} more. The model is a {plan.layout.model_class}. "
            "Load the model, adapters included, that the checkpoint was written from."
        )
    if other := [name for name, tensor in tensors.items() if tuple(tensor.shape) != shapes[name]]:
        raise PlanError(
            f"{folder}: this checkpoint holds weights of other shapes; got {other[0]!r} of shape "
            f"{tuple(tensors[other[0]].shape)} and {len(other) - 1} more. The model, a {plan.layout.model_class}, has "
            f"{shapes[other[0]]} there. Load the model, with as many labels, that the checkpoint was written from."
        )
    _check_base(model, _read_state(folder)["base_digests"], folder)
    inner.load_state_dict(tensors, strict=False)


def read_whole(model: PreTrainedModel, folder: Path) -> None:
    """Loads a checkpoint that the Trainer would write into the model.

    The Trainer loads such files by their names on disk. Models that are converted on load have other names in memory,
    so the checkpoint is loaded as any model is, and copied from there.

    Args:
        model: The model, unwrapped, without adapters.
        folder: A checkpoint that holds a whole model.

    Raises:
        PlanError: The checkpoint cannot be read, or does not hold all weights of the model in their shapes.
    """
    loaded, missing = load_base(type(model), str(folder), model.config, dtype=model.dtype)
    if missing:
        raise PlanError(
            f"{folder}: this checkpoint does not hold all weights of a {type(model).__name__}; it lacks "
            f"{sorted(missing)[0]!r} and {len(missing) - 1} more. Resume from another checkpoint."
        )
    model.load_state_dict(loaded.state_dict())


def refuse_pickled_weights(folder: Path) -> None:
    """Refuses a checkpoint whose weights are pickled: loading a pickle runs code from the file.

    Args:
        folder: A checkpoint folder.

    Raises:
        PlanError: The folder has pickled weights and no safetensors.
    """
    pickled = sorted(
        path.name
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.suffix in _PICKLED and path.name.startswith(_PICKLED_WEIGHTS) and "fsdp" not in path.name
    )
    if pickled and not any(folder.glob("*.safetensors")):
        raise PlanError(
            f"{folder}: the weights of this checkpoint are pickled, and loading a pickle runs code from the file; "
            f"got {pickled[0]!r}. hf_freeze reads safetensors only. Load the weights in a place that you trust and "
            "save them with save_pretrained."
        )


def _kept(model: nn.Module, plan: FreezePlan, trained: Collection[str]) -> dict[str, torch.Tensor]:
    """Returns the state of the model that no base model can give back, one entry per tensor.

    These are the parameters that train or have trained, the buffers, and frozen parameters that the base model lacks: a
    fresh head or an adapter that is frozen exists nowhere else.
    """
    fresh = {
        decision.name
        for decision in plan.decisions
        if decision.parameter.kind == "adapter"
        or (decision.parameter.outside_base and not decision.parameter.output_embedding)
    }
    keep_names = {*plan.trainable_names, *trained, *fresh}
    keep = {id(parameter) for name, parameter in named_parameters(model) if name in keep_names}
    parameters = {id(parameter) for parameter in unwrap_model(model).parameters()}
    return {
        name: tensor
        for name, tensor in distinct_tensors(model).items()
        if id(tensor) in keep or id(tensor) not in parameters
    }


@dataclass(frozen=True)
class _ScheduleShape:
    type: str
    options: dict[str, Any]


@dataclass(frozen=True)
class _StateShape:
    plan: PlanShape
    trained: list[str]
    schedule: _ScheduleShape | None
    base_digests: dict[str, str]


_STATE: Final = TypeAdapter(_StateShape)


def _read_state(folder: Path) -> dict[str, Any]:
    file = folder / STATE_FILE
    text = file.read_bytes()
    try:
        found = parsed(text, VERSIONED)["format_version"]
        if found == FORMAT_VERSION:
            return parsed(text, _STATE)
    except ValueError as error:
        raise PlanError(
            f"{file}: this file does not say under which plan the checkpoint was written; got {error}. "
            "Resume from another checkpoint, or download this one again."
        ) from error
    raise PlanError(
        f"{file}: this checkpoint has another format; got version {found}. "
        f"This hf_freeze reads version {FORMAT_VERSION}. Resume with the release that wrote it."
    )


def _differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    lines = []
    absent = {"treatment": "absent", "trains": []}
    for role in dict.fromkeys((*saved["roles"], *current["roles"])):
        then, now = (record["roles"].get(role, absent) for record in (saved, current))
        if then["treatment"] != now["treatment"]:
            lines.append(f"{role} was {then['treatment']} and is {now['treatment']} now")
        elif then["trains"] != now["trains"]:
            lines.append(f"{role} trained {len(then['trains'])} parameters and trains {len(now['trains'])} now")
    return lines or ["keep_dropout or the shape of a parameter differs"]


def _schedule_differences(state: Mapping[str, Any], schedule: Mapping[str, Any] | None) -> list[str]:
    then, now = (
        None if record is None else (record["type"], json.loads(json.dumps(record["options"])))
        for record in (state.get("schedule"), schedule)
    )
    if then == now:
        return []
    was, is_now = ("static" if one is None else one[0] for one in (then, now))
    if was == is_now:
        return [f"schedule {was} had other options"]
    return [f"the schedule was {was} and is {is_now} now"]


def _check_base(model: nn.Module, digests: Mapping[str, str], folder: Path) -> None:
    moved = [name for name, p in named_parameters(model) if name in digests and tensor_digest(p) != digests[name]]
    if moved:
        name = model.name_or_path if isinstance(model, PreTrainedModel) else type(model).__name__
        raise PlanError(
            f"{folder}: the frozen weights of the model are not those that this checkpoint was trained on; got another "
            f"{moved[0]} and {len(moved) - 1} more. The model is {name!r}. "
            "Load the same base model, revision and dtype as in that run."
        )
