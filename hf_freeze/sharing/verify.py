"""Compares a trained model with its base, tensor by tensor: what was frozen has to be equal to the bit."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from hf_freeze.errors import ConfigError, ShareError
from hf_freeze.plan.audit import tensor_digest
from hf_freeze.plan.layout import Layout, find_layout
from hf_freeze.plan.places import ROLE_HEAD
from hf_freeze.plan.wrappers import canonical_tree, join, named_parameters
from hf_freeze.sharing.classes import load_recorded_base
from hf_freeze.sharing.loading import load_source
from hf_freeze.sharing.sources import find_source
from hf_freeze.training.record import DELTA_FILE, PLAN_FILE, TrainingRecord

_SUMMED: Final = torch.float64  # what norms are summed in


@dataclass(frozen=True)
class RoleChange:
    """How far one role moved.

    Attributes:
        role: The role.
        num_frozen: Its tensors that were frozen.
        num_trained: Its tensors that trained.
        num_fresh: Its tensors that the base has not, or has in another shape: there is nothing to compare them with.
        num_moved: Its tensors that differ from the base.
        norm: The Euclidean norm of the difference, over all of its tensors that the base has.
        base_norm: The Euclidean norm of the same tensors in the base.
    """

    role: str
    num_frozen: int
    num_trained: int
    num_fresh: int
    num_moved: int
    norm: float
    base_norm: float

    @property
    def relative_norm(self) -> float:
        """The norm of the difference over that of the base; 0 where nothing moved."""
        if self.base_norm == 0:
            return math.inf if self.norm else 0.0
        return self.norm / self.base_norm


@dataclass(frozen=True)
class Verification:
    """What a comparison found.

    Attributes:
        base: The base model: a folder or its name on the Hub.
        revision: Its revision, where it came from the Hub.
        roles: How far each role moved, in the order of the layout.
        moved: The canonical names of the frozen tensors that differ from the base.
        num_frozen: The number of frozen tensors that were compared.
    """

    base: str
    revision: str | None
    roles: tuple[RoleChange, ...]
    moved: tuple[str, ...]
    num_frozen: int

    @property
    def holds(self) -> bool:
        """Whether every frozen tensor is that of the base, to the bit."""
        return not self.moved


def verify_model(
    path_or_repo: str | Path,
    *,
    base: str | Path | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **from_pretrained_options: Any,
) -> Verification:
    """Compares a trained model with its base, parameters and persistent buffers alike.

    Both are loaded and compared in memory, in the type that they were trained in: many models have other names on disk
    than in memory. Frozen tensors of an adapter folder that it does not hold are those of the base by construction.

    Args:
        path_or_repo: The folder that a run has written, or the name of a repository on the Hub.
        base: The base model, where it is not where it was in training, or another to compare with.
        revision: The revision of the trained model on the Hub.
        trust_remote_code: Whether code that comes with the model may run.
        from_pretrained_options: Further arguments of `from_pretrained`, such as `token`.

    Raises:
        ConfigError: There is no model, it does not say what was frozen, or its files are damaged.
        PlanError: The base model cannot be loaded.
        ShareError: The base model lacks what was frozen, so that there is nothing to compare it with.
    """
    source = find_source(path_or_repo, revision=revision, options=from_pretrained_options)
    record = source.record
    if record is None:
        raise ConfigError(
            f"{source.name}: this folder does not say what was frozen; it has neither {PLAN_FILE} nor {DELTA_FILE}. "
            "hf_freeze writes them when it saves a model. Name the folder that a run has written."
        )
    base = source.base_beside if base is None else base
    options = {key: value for key, value in from_pretrained_options.items() if key != "dtype"}
    shared: dict[str, Any] = {"trust_remote_code": trust_remote_code, "options": options}
    trained = load_source(source, base=None if source.kind == "plain" else base, **shared)
    original, fresh = load_recorded_base(source, record, base=base, **shared)
    layout = find_layout(original, blocks_path=record.blocks_path)
    _check_roles(source.name, record, layout)
    pairs = _pairs(trained, original, layout, record, fresh)
    base_name = record.base if base is None else str(base)
    _check_comparable(source.name, base_name, pairs)
    return Verification(
        base=base_name,
        revision=record.revision if base is None else None,
        roles=tuple(_change(role, pairs) for role in dict.fromkeys((*layout.modules, *(pair.role for pair in pairs)))),
        moved=tuple(pair.name for pair in pairs if pair.is_frozen and pair.has_moved),
        num_frozen=sum(pair.is_frozen and not pair.is_fresh for pair in pairs),
    )


@dataclass(frozen=True)
class _Pair:
    """A tensor of the base, and what has become of it."""

    name: str
    role: str
    is_frozen: bool
    is_fresh: bool
    before: torch.Tensor
    after: torch.Tensor

    @property
    def has_moved(self) -> bool:
        return not self.is_fresh and tensor_digest(self.before) != tensor_digest(self.after)


def _pairs(
    trained: nn.Module, original: PreTrainedModel, layout: Layout, record: TrainingRecord, fresh: Collection[str]
) -> list[_Pair]:
    after = _tensors(trained)
    roles = {parameter.name: parameter.role for parameter in layout.parameters}
    planned = record.plan["roles"]
    pairs = []
    for name, before in {**dict(named_parameters(original)), **_buffers(original)}.items():
        role = roles.get(name) or _role_of_buffer(name, layout)
        if name not in roles:
            # Buffers, such as the averages of BatchNorm, stay as they are where a module is in eval mode throughout.
            is_frozen = not planned[role]["trains"] and not record.plan["keep_dropout"]
        elif planned[role]["treatment"] == "adapter" and not isinstance(trained, PeftModel):
            # Where PEFT has no place for what trained, the merged model is saved: adapters have gone into the weights.
            is_frozen = False
        else:
            is_frozen = name not in record.trained_names
        pairs.append(_Pair(name, role, is_frozen, name in fresh, before.detach(), after[name].detach()))
    return pairs


def _check_roles(name: str, record: TrainingRecord, layout: Layout) -> None:
    """Refuses a record that says nothing of a role which the model has."""
    unknown = sorted(layout.modules.keys() - record.plan["roles"].keys())
    if unknown:
        raise ConfigError(
            f"{name}: its record does not say what was frozen in {', '.join(unknown)}; got "
            f"{', '.join(sorted(record.plan['roles'])) or 'no role'}. {PLAN_FILE} or {DELTA_FILE} was changed, or is "
            "that of another model. Name the folder as the run has written it."
        )


def _check_comparable(name: str, base: str, pairs: Iterable[_Pair]) -> None:
    """Refuses a base that lacks what was frozen: what was never compared would count as equal.

    Of the head, a base may lack tensors: they are drawn anew, whether they are frozen then or not.
    """
    frozen = [pair for pair in pairs if pair.is_frozen]
    compared = any(not pair.is_fresh for pair in frozen)
    lacking = [pair.name for pair in frozen if pair.is_fresh and (pair.role != ROLE_HEAD or not compared)]
    if lacking:
        raise ShareError(
            f"{name}: what was frozen cannot be compared with this base; got {base!r}, in which "
            f"{', '.join(map(repr, lacking[:3]))} and {max(0, len(lacking) - 3)} more are missing or have another "
            "shape. Pass the model that it was trained from as base, which is --base of a command."
        )


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns parameters and persistent buffers by canonical name, those under adapters included."""
    leaves = {name: leaf.parameter for name, leaf in canonical_tree(model).named_leaves() if not leaf.idle}
    return {**leaves, **_buffers(model)}


def _buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        join(node.path, name): buffer
        for node in canonical_tree(model).walk()
        if not node.idle
        for name, buffer in node.inner.named_buffers(recurse=False)
        if name in node.inner.state_dict()
    }


def _role_of_buffer(name: str, layout: Layout) -> str:
    """Returns the role whose module is the nearest around a buffer."""
    around = [
        (len(path), role) for role, paths in layout.modules.items() for path in paths if name.startswith(f"{path}.")
    ]
    return max(around)[1] if around else ROLE_HEAD


def _change(role: str, pairs: Iterable[_Pair]) -> RoleChange:
    own = [pair for pair in pairs if pair.role == role]
    known = [pair for pair in own if not pair.is_fresh]
    return RoleChange(
        role=role,
        num_frozen=sum(pair.is_frozen for pair in own),
        num_trained=sum(not pair.is_frozen for pair in own),
        num_fresh=len(own) - len(known),
        num_moved=sum(pair.has_moved for pair in known),
        norm=_norm(pair.after.to(_SUMMED) - pair.before.to(_SUMMED) for pair in known),
        base_norm=_norm(pair.before.to(_SUMMED) for pair in known),
    )


def _norm(tensors: Iterable[torch.Tensor]) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors))
