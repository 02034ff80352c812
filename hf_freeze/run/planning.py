"""Config in, plan out: what would train, told without reading weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

from peft import PeftModel
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from hf_freeze.activation_cache.checks import reason_of_plan
from hf_freeze.activation_cache.forecast import CacheSize, forecast_depth, forecast_size
from hf_freeze.activation_cache.notices import sentence
from hf_freeze.config import (
    ActivationCacheConfig,
    DataConfig,
    FreezeConfig,
    LearningRateMultipliers,
    ModelConfig,
    RunConfig,
    ScheduleConfig,
    load_config,
    parse_overrides,
    parse_section,
)
from hf_freeze.config.schema import Adapters
from hf_freeze.config.section import Section
from hf_freeze.errors import ConfigError
from hf_freeze.plan.apply import apply_plan, plan_of
from hf_freeze.plan.automatic import check_automatic
from hf_freeze.plan.layout import find_layout
from hf_freeze.plan.optimizer import role_multipliers
from hf_freeze.plan.prepare import freeze_model
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.plan.table import LayoutTable, PlanTable, layout_table, plan_table
from hf_freeze.run.caching import reason_without_weights
from hf_freeze.run.choosing import chosen_by_weights, undecided_note
from hf_freeze.run.settings import Lengths, Settings, lengths_of
from hf_freeze.schedules.registry import find_schedule
from hf_freeze.tasks import LoadedModel, PreparedData, Task, get_task
from hf_freeze.training.scheduled import Scheduled, schedule_plan

_TWO_LABELS: Final = "The head is counted with 2 labels: data.labels does not say how many there are."


class PlanRequest(Section):
    """The sections of a config that a plan follows from."""

    model: ModelConfig
    freeze: FreezeConfig | None = None
    adapters: Adapters = ()
    schedule: ScheduleConfig = Field(default=ScheduleConfig())
    lr_multipliers: LearningRateMultipliers = Field(default=LearningRateMultipliers())
    activation_cache: ActivationCacheConfig = Field(default=ActivationCacheConfig())


@dataclass(frozen=True)
class Prepared:
    """A plan with what else is known without weights.

    Attributes:
        request: The sections that the plan follows from.
        training: The `training` section; empty where there is none.
        num_labels: The number of outputs; None where the config does not say it.
        model: The frozen model on the meta device.
        data: The tokenised rows; None where no data is named, or where it cannot be read.
        tokenizer: The tokenizer; None where there are no rows.
        problem: Why the data cannot be read; None where it can or need not.
        notes: What was chosen automatically, or that it is still to be chosen, a sentence each.
        scheduled: The schedule; None where nothing changes.
    """

    request: PlanRequest
    training: Mapping[str, Any]
    num_labels: int | None
    model: nn.Module
    data: PreparedData | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    problem: str | None = None
    notes: tuple[str, ...] = ()
    scheduled: Scheduled | None = None

    @property
    def plan(self) -> FreezePlan:
        """What trains."""
        return plan_of(self.model)

    @property
    def base(self) -> PreTrainedModel:
        """The model of Transformers beneath adapters."""
        model = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        return cast(PreTrainedModel, model)


def prepare(target: str, overrides: Iterable[str] = ()) -> Prepared:
    """Returns what a config would train, or what overrides would train of a model, and reads the data of a config.

    Args:
        target: A config file, or a model: a folder or its name on the hub.
        overrides: Such as `freeze.blocks.first=8`.

    Raises:
        ConfigError: Something in the config does not exist.
        LayoutError: The blocks of the model cannot be found.
        PlanError: The freeze or adapters section does not fit the model.
    """
    request, data, training, num_labels = request_for(target, overrides)
    request, notes = _with_choice(request, num_labels=num_labels or 2)
    model, scheduled = _frozen_and_scheduled(request, num_labels=num_labels or 2)
    if request.freeze is not None:
        request = request.model_copy(update={"freeze": request.freeze.undecided})
    made = Prepared(request, training, num_labels, model, notes=notes, scheduled=scheduled)
    if data is None:
        return made
    try:
        task = get_task(request.model.task)
        tokenizer = task.load_tokenizer(
            request.model.name_or_path,
            trust_remote_code=request.model.trust_remote_code,
            from_pretrained=request.model.from_pretrained_options,
        )
        loaded = LoadedModel(made.base, tokenizer, fresh_parameters=())
        rows = task.tokenize(prepared_data(task, data), loaded, max_length=data.max_length)
    except ConfigError as error:
        return replace(made, problem=str(error))
    return replace(made, data=rows, tokenizer=tokenizer)


def _with_choice(request: PlanRequest, *, num_labels: int) -> tuple[PlanRequest, tuple[str, ...]]:
    """Returns the sections with what the weights alone choose, and what there is to say about the choice."""
    section = request.freeze
    if section is None or section.automatic is None:
        return request, ()
    check_automatic(section.automatic, request.adapters, request.schedule.type)
    empty = empty_model(request.model, num_labels=num_labels)
    chosen = chosen_by_weights(empty, request.model, section)
    if chosen is not None:
        return request.model_copy(update={"freeze": chosen.section}), chosen.lines
    return request, (undecided_note(section.automatic),)


def plan(target: str, overrides: Iterable[str] = ()) -> PlanTable:
    """Returns what a config would train, or what overrides would train of a model; no weights are read.

    For a config whose frozen prefix is cached, its data is read and tokenised to tell how much of the disk that takes.

    Args:
        target: A config file, or a model: a folder or its name on the hub.
        overrides: Such as `freeze.blocks.first=8`.

    Raises:
        ConfigError: Something in the config does not exist.
        LayoutError: The blocks of the model cannot be found.
        PlanError: The freeze or adapters section does not fit the model.
    """
    return prepared_table(prepare(target, overrides))


def prepared_table(made: Prepared, *, num_processes: int = 1) -> PlanTable:
    """Returns a plan for a reader, with what the activation cache would hold, and whether training would use it.

    Args:
        made: The plan.
        num_processes: How many processes share the rows.
    """
    table = table_of(made.plan, made.request)
    table = replace(table, notes=(*table.notes, *made.notes))
    if made.num_labels is None:
        table = replace(table, notes=(*table.notes, _TWO_LABELS))
    section = made.request.activation_cache
    if reason_of_plan(made.plan) is not None or section.enabled is False:
        return table
    if made.problem is not None:
        table = replace(table, cache=(*table.cache, f"How much of the disk it takes is not known. {made.problem}"))
    if made.data is not None:
        table = with_size(table, section, made.data, made.base)
    if (reason := reason_of_cache(made, made.plan, num_processes=num_processes)) is not None:
        refused = f"Training {'refuses it' if section.enabled is True else 'leaves it off'}. {sentence(reason)}"
        table = replace(table, cache=(*table.cache, refused))
    return table


def reason_of_cache(made: Prepared, plan: FreezePlan, *, num_processes: int) -> str | None:
    """Returns why training would not use the activation cache, as far as that is known without weights, or None.

    Args:
        made: What is known without weights.
        plan: The plan, or that of a later freeze state.
        num_processes: How many processes share the rows.
    """
    return reason_without_weights(
        made.request.activation_cache,
        plan,
        made.base,
        made.data,
        Settings(made.training),
        num_processes=num_processes,
    )


def layout(target: str, overrides: Iterable[str] = ()) -> LayoutTable:
    """Returns where the roles are in a model, before adapters; no weights are read.

    Args:
        target: A config file, or a model: a folder or its name on the hub.
        overrides: Such as `model.blocks_path=encoder.layers`.

    Raises:
        ConfigError: Something in the config does not exist.
        LayoutError: The blocks of the model cannot be found.
    """
    request, _, _, num_labels = request_for(target, overrides)
    table = layout_table(
        find_layout(empty_model(request.model, num_labels=num_labels or 2), blocks_path=request.model.blocks_path)
    )
    if num_labels is None:
        table = replace(table, notes=(*table.notes, _TWO_LABELS))
    return table


def prepared_data(task: Task, section: DataConfig, *, allow_blank: bool = False) -> PreparedData:
    """Reads the rows that a config names, with their columns and labels found.

    Args:
        task: The task of the config.
        section: The `data` section.
        allow_blank: Whether texts may be missing or blank, which training refuses.

    Raises:
        ConfigError: The data has not what the section says.
    """
    splits = section.splits
    return task.prepare_data(
        section.load_dataset,
        text_columns=section.text_columns,
        label_column=section.label_column,
        labels=section.labels,
        problem_type=section.problem_type,
        splits={role: name for role, name in splits.model_dump().items() if name is not None},
        allow_blank=allow_blank,
    )


def table_of(made: FreezePlan, request: PlanRequest) -> PlanTable:
    """Returns a plan for a reader, with a sentence on how deep the cache would reach.

    Args:
        made: The plan.
        request: The sections that it follows from.
    """
    depth = forecast_depth(made, request.activation_cache)
    table = plan_table(made, role_multipliers(made.layout, request.lr_multipliers))
    if request.schedule.type != "static":
        moves = f"This is the plan as training starts: the schedule {request.schedule.type} changes what is frozen."
        table = replace(table, notes=(*table.notes, moves))
    return replace(table, cache=() if depth is None else (depth,))


def with_size(
    table: PlanTable, section: ActivationCacheConfig, data: PreparedData, model: PreTrainedModel
) -> PlanTable:
    """Adds how much of the disk the cache takes, where there is something to cache."""
    lengths = lengths_of(data)
    if section.enabled is False or lengths is None or reason_of_plan(plan_of(model)) is not None:
        return table
    return replace(table, cache=(*table.cache, cache_size(section, lengths, model).sentence))


def cache_size(section: ActivationCacheConfig, lengths: Lengths, model: PreTrainedModel) -> CacheSize:
    """Returns how much of the disk the cache takes for all rows that a run goes through.

    Args:
        section: The `activation_cache` section.
        lengths: How long the rows are.
        model: The model.
    """
    hidden = model.config.get_text_config().hidden_size
    return forecast_size(lengths.of_all, section, hidden_size=hidden, dtype=model.dtype)


def request_for(
    target: str, overrides: Iterable[str]
) -> tuple[PlanRequest, DataConfig | None, Mapping[str, Any], int | None]:
    """Returns the sections that a plan follows from, the data, the training section, and the number of outputs.

    What a model alone does not tell is None or empty.
    """
    if target.endswith((".yaml", ".yml")) or Path(target).is_file():
        config = load_config(target, overrides)
        return request_of(config), config.data, config.training, num_labels_of(config.data)
    given = parse_overrides(overrides)
    sections = {**given, "model": {"name_or_path": target, **given.get("model", {})}}
    return parse_section(PlanRequest, sections, key=""), None, {}, None


def request_of(config: RunConfig) -> PlanRequest:
    """Returns the sections of a config that its plan follows from."""
    return PlanRequest(
        model=config.model,
        freeze=config.freeze,
        adapters=config.adapters,
        schedule=config.schedule,
        lr_multipliers=config.lr_multipliers,
        activation_cache=config.activation_cache,
    )


def num_labels_of(data: DataConfig) -> int | None:
    """Returns the number of outputs as far as the config tells it without the data."""
    if data.problem_type == "regression":
        return 1
    return None if data.labels is None else len(data.labels)


def empty_plan(request: PlanRequest, *, num_labels: int) -> FreezePlan:
    """Returns what would train at first, from a model without weights: mistakes are found before anything is read."""
    return plan_of(frozen_empty_model(request, num_labels=num_labels))


def frozen_empty_model(request: PlanRequest, *, num_labels: int) -> nn.Module:
    """Makes the model of a plan without weights, as training starts: frozen and with its adapters."""
    return _frozen_and_scheduled(request, num_labels=num_labels)[0]


def _frozen_and_scheduled(request: PlanRequest, *, num_labels: int) -> tuple[nn.Module, Scheduled | None]:
    model = empty_model(request.model, num_labels=num_labels)
    section = request.freeze
    if section is not None and section.automatic is not None:
        check_automatic(section.automatic, request.adapters, request.schedule.type)
        find_schedule(request.schedule)
        # What the schedule starts from is not known yet: it is checked when that is chosen.
        frozen = freeze_model(model, section.undecided, request.adapters, blocks_path=request.model.blocks_path)
        return frozen, None
    frozen = freeze_model(model, section, request.adapters, blocks_path=request.model.blocks_path)
    scheduled = schedule_plan(plan_of(frozen), request.schedule, section, seed=TrainingArguments.seed)
    if scheduled is not None:
        apply_plan(frozen, scheduled.start)
    return frozen, scheduled


def empty_model(model: ModelConfig, *, num_labels: int) -> PreTrainedModel:
    """Makes the model of a config without weights, on the meta device.

    Args:
        model: The `model` section.
        num_labels: The number of outputs of the head.

    Raises:
        ConfigError: The model does not exist or does not fit the task.
    """
    return get_task(model.task).build_empty_model(
        model.name_or_path,
        num_labels=num_labels,
        trust_remote_code=model.trust_remote_code,
        from_pretrained=model.from_pretrained_options,
    )
