"""What a final model says of its training: the plan, the base model, and the versions that wrote it.

It is a file beside the weights, `hf_freeze_plan.json`; a delta has it in `hf_freeze_delta.json`. Transformers and PEFT
load the model without it; `hf_freeze.load_model` and `hf-freeze verify` read it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final

import torch
from pydantic import AfterValidator, TypeAdapter
from transformers import PreTrainedModel

from hf_freeze.errors import PlanError
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.training.checkpoint import plan_record
from hf_freeze.training.pretrained import commit_of
from hf_freeze.training.shapes import VERSIONED, PlanShape, parsed

PLAN_FILE: Final = "hf_freeze_plan.json"
DELTA_FILE: Final = "hf_freeze_delta.json"
DELTA_WEIGHTS_FILE: Final = "hf_freeze_delta.safetensors"
FORMAT_VERSION: Final = 1
# What models are saved as, of whatever kind; first what declares them: a folder without it never loads as
# the old model. Adapters that are left beside a plain model would be applied to it.
_MODEL_FILES: Final = (
    "adapter_config.json",
    DELTA_FILE,
    PLAN_FILE,
    "adapter_model.safetensors",
    DELTA_WEIGHTS_FILE,
    "model.onnx*",
)
_PLAIN_WEIGHTS: Final = ("model.safetensors.index.json", "model.safetensors", "model-*-of-*.safetensors")
_RECORDED: Final = ("hf-freeze", "transformers", "peft", "torch")


@dataclass(frozen=True)
class TrainingRecord:
    """What a final model says of its training.

    Attributes:
        model_class: The Transformers class of the model, without adapters.
        dtype: What its weights were trained in, such as `float32`.
        base: The base model: a folder or its name on the Hub; empty where the model was made from a config.
        revision: The commit of the base model, where it came from the Hub.
        model_config: The config of the model, labels included: an adapter folder has no other place for it.
        blocks_path: Where its blocks are, where that was given.
        plan: The plan as `plan_record` returns it.
        versions: The versions of the packages that wrote it.
        frozen_digest: One digest of the weights that the folder lacks because they are those of the base; None where it
            lacks none, or where they are not whole in any process.
        undigested: The canonical names of the weights of the base that the digest leaves out.
        format_version: The version of this format.
    """

    model_class: str
    dtype: str
    base: str
    revision: str | None
    model_config: Mapping[str, Any]
    blocks_path: str | None
    plan: Mapping[str, Any]
    versions: Mapping[str, str]
    frozen_digest: str | None = None
    undigested: tuple[str, ...] = ()
    format_version: int = FORMAT_VERSION

    @property
    def trained_names(self) -> frozenset[str]:
        """The canonical names of the parameters that trained."""
        return frozenset(name for role in self.plan["roles"].values() for name in role["trains"])

    def as_dict(self) -> dict[str, Any]:
        """Returns the record as plain data."""
        return asdict(self)


def _of_weights(dtype: str) -> str:
    found = vars(torch).get(dtype)
    if not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError("weights cannot be in this type")
    return dtype


@dataclass(frozen=True)
class _ConfigShape:
    model_type: str


@dataclass(frozen=True)
class _RecordShape:
    """What a file says of the fields of `TrainingRecord`, none left out."""

    model_class: str
    dtype: Annotated[str, AfterValidator(_of_weights)]
    base: str
    revision: str | None
    model_config: _ConfigShape
    blocks_path: str | None
    plan: PlanShape
    versions: dict[str, str]
    frozen_digest: str | None
    undigested: list[str]


_RECORD: Final = TypeAdapter(_RecordShape)


def training_record(
    model: PreTrainedModel, plan: FreezePlan, *, revision: str | None, blocks_path: str | None
) -> TrainingRecord:
    """Describes a model that was trained.

    Args:
        model: The model, unwrapped, without the adapters around it.
        plan: What trained.
        revision: The revision of the base model that was asked for, where one was.
        blocks_path: Where its blocks are, where that was given.
    """
    base = model.name_or_path or ""
    return TrainingRecord(
        model_class=type(model).__name__,
        dtype=str(model.dtype).removeprefix("torch."),
        base=base,
        revision=commit_of(base, revision),
        model_config=json.loads(model.config.to_json_string(use_diff=False)),
        blocks_path=blocks_path,
        plan=plan_record(plan),
        versions={package: version(package) for package in _RECORDED},
    )


def write_record(record: TrainingRecord, folder: Path) -> None:
    """Writes the record beside the weights.

    Args:
        record: The record.
        folder: The folder of the final model.
    """
    (folder / PLAN_FILE).write_text(json.dumps(record.as_dict(), indent=1))


def remove_models(folder: Path, *, base: str = "") -> None:
    """Removes the models of every kind from a folder, before another one is written there.

    Args:
        folder: Where a model will be written; it need not exist.
        base: The base model of adapters that will be written, which stays where it lies in the same folder.
    """
    for pattern in _MODEL_FILES if lies_in(base, folder) else (*_MODEL_FILES, *_PLAIN_WEIGHTS):
        for file in folder.glob(pattern):
            file.unlink()


def lies_in(base: str, folder: Path) -> bool:
    """Returns whether a base model lies in a folder.

    Args:
        base: A folder, or the name of a model on the Hub; empty where there is none.
        folder: The folder.
    """
    return bool(base) and Path(base).resolve() == folder.resolve()


def read_record(file: Path) -> TrainingRecord:
    """Reads a record, or what a delta says.

    Args:
        file: `hf_freeze_plan.json` or `hf_freeze_delta.json`.

    Raises:
        PlanError: It is damaged, or of another version.
    """
    content = read_versioned(file, _RECORD)
    return TrainingRecord(**{name: content[name] for name in TrainingRecord.__dataclass_fields__})


def read_versioned(file: Path, shape: TypeAdapter[Any]) -> dict[str, Any]:
    """Reads what is said of a final model, after its version.

    Args:
        file: `hf_freeze_plan.json` or `hf_freeze_delta.json`.
        shape: What it has to say.

    Raises:
        PlanError: It is damaged, or of another version.
    """
    text = file.read_bytes()
    try:
        found = parsed(text, VERSIONED)["format_version"]
        if found == FORMAT_VERSION:
            return parsed(text, shape)
    except ValueError as error:
        raise PlanError(
            f"{file}: this file does not say how the model was trained; got {error}. hf_freeze writes it when it saves "
            "a model. Save or download the folder again."
        ) from error
    raise PlanError(
        f"{file}: this file has another format; got version {found}. This hf_freeze reads version {FORMAT_VERSION}. "
        "Load it with the release that wrote it."
    )
