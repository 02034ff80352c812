"""The sections of a config, as frozen pydantic models that report every problem together."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    Strict,
    model_validator,
)

from hf_freeze.config import options
from hf_freeze.config.freeze import Blocks, FreezeConfig
from hf_freeze.config.monitor import MonitorConfig
from hf_freeze.config.problems import Problem, ProblemsFound, shown
from hf_freeze.config.save import SaveConfig
from hf_freeze.config.schedule import ScheduleConfig
from hf_freeze.config.search import SearchConfig
from hf_freeze.config.section import Section, Size, Switch, Text, Texts
from hf_freeze.config.selection import Selection

__all__ = [
    "ActivationCacheConfig",
    "AdapterConfig",
    "Adapters",
    "DataConfig",
    "FreezeConfig",
    "LearningRateMultipliers",
    "ModelConfig",
    "RunConfig",
    "SaveConfig",
    "ScheduleConfig",
    "SearchConfig",
    "Selection",
    "SplitsConfig",
]

Plain = Annotated[Any, AfterValidator(options.as_plain)]


class ModelConfig(Section):
    """The pretrained model; keys other than these go to `from_pretrained`."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Plain]

    name_or_path: Text = Field(description="Pretrained model: its name on the Hub, or a folder.")
    task: Text = Field("text-classification", description="Name of the task that is learned.")
    blocks_path: Text | None = Field(
        None, description="Path of the blocks inside the model, such as encoder.layer; null: they are found."
    )
    trust_remote_code: bool = Field(False, description="Whether code that comes with the model may run.")

    @classmethod
    def problems_upstream(cls, given: Mapping[str, Any]) -> list[Problem]:
        """Returns what is wrong with the keys for `from_pretrained`."""
        return options.model_problems(_without(given, cls.model_fields), cls.model_fields)

    @property
    def from_pretrained_options(self) -> dict[str, Any]:
        """The keyword arguments for `from_pretrained`."""
        return dict(self.model_extra or {})


class SplitsConfig(Section):
    """Which split of the dataset serves which purpose."""

    train: Text | None = Field(None, description="Split that is trained on; null: train.")
    validation: Text | None = Field(
        None, description="Split that is evaluated on; null: validation, else dev, else test, else none."
    )
    test: Text | None = Field(None, description="Split that is kept for the end; null: test where it is there.")


class DataConfig(Section):
    """The rows, and which of their columns are texts and labels."""

    load_dataset: Annotated[dict[str, Any], AfterValidator(lambda given: _checked(given, options.dataset_problems))] = (
        Field(description="Keyword arguments for datasets.load_dataset; path is required.")
    )
    max_length: int | None = Field(
        None, gt=0, description="Number of tokens above 0 at which rows are cut; null: what the model can take."
    )
    text_columns: Annotated[Texts, Field(min_length=1, max_length=2)] | None = Field(
        None, description="List of one text column, or of two for sentence pairs; null: inferred."
    )
    label_column: Text | None = Field(None, description="Column that holds the labels; null: inferred.")
    labels: Annotated[Texts, Field(min_length=1), AfterValidator(_distinct)] | None = Field(
        None, description="List of the names of the labels in the order of their numbers; null: inferred."
    )
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | None = Field(
        None, description="Kind of label; null: inferred from the label column."
    )
    splits: SplitsConfig = Field(SplitsConfig(), description="Splits of the dataset, each inferred where not given.")

    @model_validator(mode="after")
    def _labels_belong_to_classes(self) -> Self:
        if self.problem_type == "regression" and self.labels is not None:
            what = f"names classes for a regression; got {shown(list(self.labels))}. A regression predicts numbers."
            raise ProblemsFound([Problem(("labels",), f"{what} Remove labels, or change data.problem_type.")])
        return self


class AdapterConfig(Section):
    """One PEFT adapter; keys other than these go to the config class of its method."""

    model_config = ConfigDict(extra="allow")

    peft_type: Annotated[str, AfterValidator(options.peft_method)] = Field(
        description="PEFT method, such as LORA, in any case."
    )
    blocks: Blocks | None = Field(None, description="Blocks that carry the adapter; null: all.")

    @classmethod
    def problems_upstream(cls, given: Mapping[str, Any]) -> list[Problem]:
        """Returns what is wrong with the keys for the config class of the PEFT method, once the method is known."""
        try:
            method = options.peft_method(given.get("peft_type"))
        except ProblemsFound:
            return []
        return options.adapter_problems(method, _without(given, cls.model_fields))

    @property
    def peft_options(self) -> dict[str, Any]:
        """The keyword arguments for the config class of the PEFT method."""
        return dict(self.model_extra or {})


class LearningRateMultipliers(Section):
    """Factors on training.learning_rate, one for each role."""

    block_decay: float = Field(
        1.0, gt=0, le=1, description="Factor from each block to the one before it, above 0 and at most 1."
    )
    embeddings: float = Field(1.0, gt=0, description="Factor for the embeddings, above 0.")
    head: float = Field(1.0, gt=0, description="Factor for the head, above 0.")


class ActivationCacheConfig(Section):
    """Whether, where and how the outputs of the frozen prefix are kept instead of being computed again."""

    enabled: Switch = Field(
        "auto", description="Whether the cache is on; auto: where it gives the same results and pays."
    )
    dir: Text | None = Field(
        None, description="Folder of the cache, on a local disk; null: one below the user's cache home."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="What the outputs are stored in; auto: as the model gives them."
    )
    max_size: Size | None = Field(
        None,
        description="Size that all that is cached may reach together, such as 50 GB; null: 20 % of the free disk, at "
        "most 50 GB.",
    )
    expire_after: float | None = Field(
        30.0, gt=0, description="Number of days above 0 after which what no run has used is removed; null: never."
    )
    build: Literal["auto", "eager", "lazy"] = Field(
        "auto",
        description="When the outputs are computed: eager, before training; lazy, when first needed; or auto, which "
        "is eager where the dataset has a length.",
    )


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        text = f"names a label twice; got {shown(list(names))}. The place of a name is the number of its label."
        raise ProblemsFound([Problem((), f"{text} Name each label once.")])
    return names


def _without(given: Mapping[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key not in set(fields)}


def _checked(given: dict[str, Any], check: Callable[[Mapping[str, Any]], list[Problem]]) -> dict[str, Any]:
    """Returns a plain copy of keyword arguments that a library will take."""
    if found := check(given):
        raise ProblemsFound(found)
    copy: dict[str, Any] = options.as_plain(given)
    return copy


def _one_method(adapters: tuple[AdapterConfig, ...]) -> tuple[AdapterConfig, ...]:
    methods = [adapter.peft_type for adapter in adapters]
    found = [
        Problem(
            (index, "peft_type"),
            f"is another method than that of the first entry; got {method!r}. PEFT cannot save a mixed model; "
            f"the first entry is {methods[0]!r}. Use one method in all entries.",
        )
        for index, method in enumerate(methods)
        if method != methods[0]
    ]
    if found:
        raise ProblemsFound(found)
    return adapters


_WORD = r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*"  # no dot in front and no two in a row: never a path


def _metric(name: str) -> str:
    if not re.fullmatch(f"{_WORD}(/{_WORD})?", name):
        what = "A metric is bundled, such as accuracy, or the name of one on the Hub, such as organisation/metric."
        raise ProblemsFound([Problem((), f"is not the name of a metric; got {name!r}. {what}")])
    return name


Adapters = Annotated[tuple[AdapterConfig, ...], Strict(False), AfterValidator(_one_method)]


class RunConfig(Section):
    """A whole config: what `hf-freeze train` and `scripts/finetune.py` run."""

    model: ModelConfig = Field(description="Pretrained model and task.")
    data: DataConfig = Field(description="Dataset and its columns.")
    freeze: FreezeConfig | None = Field(None, description="What is frozen; null: nothing, or as the adapters need it.")
    adapters: Adapters = Field((), description="List of adapters of one PEFT method, each on its own blocks.")
    schedule: ScheduleConfig = Field(ScheduleConfig(), description="Schedule of the freeze state.")
    lr_multipliers: LearningRateMultipliers = Field(
        LearningRateMultipliers(), description="Factors on training.learning_rate."
    )
    activation_cache: ActivationCacheConfig = Field(
        ActivationCacheConfig(), description="What is kept of the frozen prefix."
    )
    save: SaveConfig = Field(SaveConfig(), description="Form of checkpoints and of the final model.")
    monitor: MonitorConfig = Field(MonitorConfig(), description="What is measured while training.")
    training: Annotated[dict[str, Any], AfterValidator(lambda given: _checked(given, options.training_problems))] = (
        Field(description="Keyword arguments for transformers.TrainingArguments; output_dir is required.")
    )
    metrics: Annotated[tuple[Annotated[str, AfterValidator(_metric)], ...], Strict(False)] | None = Field(
        None, description="List of the metrics that are computed; null: those of the task."
    )
    search: SearchConfig | None = Field(None, description="What `hf-freeze search` varies; null: nothing.")
    allow_changed_plan: bool = Field(
        False, description="Whether a checkpoint that was written under another plan may be resumed."
    )

    @model_validator(mode="after")
    def _choice_fits_the_schedule(self) -> Self:
        automatic = None if self.freeze is None else self.freeze.automatic
        text = None if automatic is None else automatic.misfit(self.schedule.type)
        if text is not None:
            raise ProblemsFound([Problem(("freeze", "blocks", "auto"), text)])
        return self
