"""Config in, result out: the only module that knows all the others."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import datasets
import torch
from pydantic import Field
from transformers import PreTrainedModel, set_seed

from hf_freeze.activation_cache.forecast import forecast_depth, forecast_size
from hf_freeze.activation_cache.outputs import CacheStats
from hf_freeze.config import (
    ActivationCacheConfig,
    FreezeConfig,
    LearningRateMultipliers,
    ModelConfig,
    RunConfig,
    load_config,
    parse_overrides,
    parse_section,
    to_yaml,
)
from hf_freeze.config.schema import Adapters, DataConfig, Section
from hf_freeze.config.writing import SECRETS, without_secrets
from hf_freeze.errors import ConfigError, FreezeError
from hf_freeze.plan.apply import plan_of
from hf_freeze.plan.layout import find_layout
from hf_freeze.plan.optimizer import role_multipliers
from hf_freeze.plan.prepare import freeze_model
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.plan.table import LayoutTable, PlanTable, layout_table, plan_table
from hf_freeze.tasks import LoadedModel, PreparedData, Task, get_task
from hf_freeze.training import FreezeTrainer
from hf_freeze.training.arguments import check_evaluation, check_output_folder, refusal, training_arguments
from hf_freeze.training.checkpoint import newest_complete
from hf_freeze.training.reloading import loading_lines

__all__ = [
    "CONFIG_FILE",
    "LayoutTable",
    "PlanTable",
    "Run",
    "RunResult",
    "layout",
    "newest_checkpoint",
    "plan",
    "train",
]

CONFIG_FILE: Final = "hf_freeze.yaml"

_TWO_LABELS: Final = "The head is counted with 2 labels: data.labels does not say how many there are."


@dataclass(frozen=True)
class RunResult:
    """What a run did.

    Attributes:
        output_dir: The folder with the trained model.
        plan: What trained.
        metrics: `train_loss`, and the metrics of the validation and test rows as `eval_...` and `test_...`.
        seconds: How long training took, in seconds, evaluation at its end not included.
        peak_memory_bytes: The most memory that this process held, in bytes: of its GPU where there is one.
        on_gpu: Whether the peak is of GPU memory.
        cache: What the activation cache did, in this process; None where it was off.
        cache_reason: Why it was off; None where it was on, where it was not asked for, or where nothing is frozen.
        loading_lines: Lines of Python that load the saved model and its tokenizer.
    """

    output_dir: str
    plan: FreezePlan
    metrics: Mapping[str, float]
    seconds: float
    peak_memory_bytes: int
    on_gpu: bool
    cache: CacheStats | None
    cache_reason: str | None
    loading_lines: tuple[str, ...]


class _PlanRequest(Section):
    """The sections of a config that a plan follows from."""

    model: ModelConfig
    freeze: FreezeConfig | None = None
    adapters: Adapters = ()
    lr_multipliers: LearningRateMultipliers = Field(default=LearningRateMultipliers())
    activation_cache: ActivationCacheConfig = Field(default=ActivationCacheConfig())


class Run:
    """A run that is ready to train: everything in its config is known to fit.

    Args:
        config: The config.

    Raises:
        ConfigError: Something in the config does not exist or does not fit the data or the model.
        LayoutError: The blocks of the model cannot be found.
        PlanError: The freeze or adapters section does not fit the model.
    """

    def __init__(self, config: RunConfig) -> None:
        task = self._task = get_task(config.model.task)
        self.config = config
        self.args = training_arguments(config.training)
        check_output_folder(str(self.args.output_dir))
        if not self.is_main_process:
            datasets.disable_progress_bars()
        _empty_plan(_request_of(config), num_labels=_num_labels(config.data) or 2)
        with self.args.main_process_first(desc="reading the data"):
            data = _prepared_data(task, config.data)
        check_evaluation(self.args, splits=data.splits.values(), has_rows=data.validation is not None)
        compute_metrics = task.compute_metrics(data, config.metrics, trust_remote_code=config.model.trust_remote_code)
        set_seed(self.args.seed)  # What the model starts with does not depend on what was drawn before.
        loaded = self._loaded = task.load_model(
            config.model.name_or_path,
            data,
            trust_remote_code=config.model.trust_remote_code,
            from_pretrained=config.model.from_pretrained_options,
        )
        with self.args.main_process_first(desc="tokenising"):
            self.data = task.tokenize(data, loaded, max_length=config.data.max_length)
        try:
            self.trainer = FreezeTrainer(
                model=loaded.model,
                args=self.args,
                train_dataset=self.data.train,
                eval_dataset=self.data.validation,
                data_collator=task.data_collator(loaded),
                processing_class=loaded.tokenizer,
                compute_metrics=compute_metrics,
                freeze=config.freeze,
                adapters=config.adapters,
                schedule=config.schedule,
                lr_multipliers=config.lr_multipliers,
                activation_cache=config.activation_cache,
                blocks_path=config.model.blocks_path,
                allow_changed_plan=config.allow_changed_plan,
            )
        except FreezeError:
            raise
        except ValueError as error:
            raise refusal("Trainer", error) from error

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that speaks for all."""
        return bool(self.args.process_index == 0)

    @property
    def table(self) -> PlanTable:
        """The plan for a reader."""
        table = _table(self.trainer.plan, _request_of(self.config))
        return _with_size(table, self.config.activation_cache, self.data, self._loaded.model)

    def train(self) -> RunResult:
        """Trains, evaluates and saves.

        Raises:
            PlanError: The checkpoint to resume from cannot be used.
            PlanViolation: Training did not follow the plan.
        CacheError: `activation_cache.enabled` is true, and the cache does not hold or does not fit.
        """
        on_gpu = self.args.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        try:
            output = self.trainer.train(resume_from_checkpoint=self.args.resume_from_checkpoint)
        except ImportError as error:
            raise refusal("Trainer", error) from error  # Some optimizers need a package of their own.
        seconds = time.perf_counter() - start
        metrics = {"train_loss": output.training_loss}
        if self.data.validation is not None:
            metrics.update(self.trainer.evaluate())
        if self.data.test is not None:
            metrics.update(self.trainer.evaluate(self.data.test, metric_key_prefix="test"))
        self.trainer.save_model()
        cache = self.trainer.activation_cache
        cache.close()
        folder = str(self.args.output_dir)
        if self.args.should_save:
            Path(folder, CONFIG_FILE).write_text(to_yaml(without_secrets(self.config)))
        return RunResult(
            output_dir=folder,
            plan=self.trainer.plan,
            metrics={name: value for name, value in metrics.items() if _tells_quality(name)},
            seconds=seconds,
            peak_memory_bytes=torch.cuda.max_memory_allocated() if on_gpu else _peak_process_memory(),
            on_gpu=on_gpu,
            cache=cache.stats if cache.is_on else None,
            cache_reason=cache.reason if self._has_something_to_cache else None,
            loading_lines=self._loading_lines(folder),
        )

    @property
    def _has_something_to_cache(self) -> bool:
        return self.config.activation_cache.enabled is not False and bool(self.trainer.plan.frozen_names)

    def _loading_lines(self, folder: str) -> tuple[str, ...]:
        section = self.config.model
        options = {name: value for name, value in section.from_pretrained_options.items() if name not in SECRETS}
        if section.trust_remote_code:
            options["trust_remote_code"] = True
        return loading_lines(
            folder,
            self._loaded.model,
            auto_class=self._task.auto_class,
            base=section.name_or_path,
            options=options,
            has_fresh_parameters=bool(self._loaded.fresh_parameters),
        )


def train(config: RunConfig) -> RunResult:
    """Trains, evaluates and saves what a config describes.

    Args:
        config: The config.

    Raises:
        ConfigError: Something in the config does not exist or does not fit the data or the model.
        LayoutError: The blocks of the model cannot be found.
        PlanError: The freeze or adapters section does not fit the model, or a checkpoint cannot be used.
        PlanViolation: Training did not follow the plan.
    """
    return Run(config).train()


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
    request, data, num_labels = _request(target, overrides)
    made = _empty_plan(request, num_labels=num_labels or 2)
    table = _table(made, request)
    if num_labels is None:
        table = replace(table, notes=(*table.notes, _TWO_LABELS))
    if data is None or made.depth == 0:
        return table
    try:
        task, model = get_task(request.model.task), _empty_model(request.model, num_labels=num_labels or 2)
        tokenizer = task.load_tokenizer(
            request.model.name_or_path,
            trust_remote_code=request.model.trust_remote_code,
            from_pretrained=request.model.from_pretrained_options,
        )
        loaded = LoadedModel(model, tokenizer, fresh_parameters=())
        rows = task.tokenize(_prepared_data(task, data), loaded, max_length=data.max_length)
    except ConfigError as error:
        return replace(table, cache=(*table.cache, f"How much of the disk it takes is not known. {error}"))
    return _with_size(table, request.activation_cache, rows, model)


def layout(target: str, overrides: Iterable[str] = ()) -> LayoutTable:
    """Returns where the roles are in a model, before adapters; no weights are read.

    Args:
        target: A config file, or a model: a folder or its name on the hub.
        overrides: Such as `model.blocks_path=encoder.layers`.

    Raises:
        ConfigError: Something in the config does not exist.
        LayoutError: The blocks of the model cannot be found.
    """
    request, _, num_labels = _request(target, overrides)
    table = layout_table(
        find_layout(_empty_model(request.model, num_labels=num_labels or 2), blocks_path=request.model.blocks_path)
    )
    if num_labels is None:
        table = replace(table, notes=(*table.notes, _TWO_LABELS))
    return table


def newest_checkpoint(config: RunConfig) -> str | None:
    """Returns the newest complete checkpoint in the output folder of a run, or None.

    Args:
        config: The config of the run.
    """
    found = newest_complete(Path(str(config.training["output_dir"])))
    return None if found is None else str(found)


def _prepared_data(task: Task, section: DataConfig) -> PreparedData:
    splits = section.splits
    return task.prepare_data(
        section.load_dataset,
        text_columns=section.text_columns,
        label_column=section.label_column,
        labels=section.labels,
        problem_type=section.problem_type,
        splits={role: name for role, name in splits.model_dump().items() if name is not None},
    )


def _table(made: FreezePlan, request: _PlanRequest) -> PlanTable:
    depth = forecast_depth(made, request.activation_cache)
    table = plan_table(made, role_multipliers(made.layout, request.lr_multipliers))
    return replace(table, cache=() if depth is None else (depth,))


def _with_size(
    table: PlanTable, section: ActivationCacheConfig, data: PreparedData, model: PreTrainedModel
) -> PlanTable:
    """Adds how much of the disk the cache takes, where there is something to cache."""
    if not table.cache or section.enabled is False:
        return table
    size = forecast_size(
        (data.train, data.validation, data.test), section, hidden_size=model.config.hidden_size, dtype=model.dtype
    )
    return table if size is None else replace(table, cache=(*table.cache, size))


def _request(target: str, overrides: Iterable[str]) -> tuple[_PlanRequest, DataConfig | None, int | None]:
    """Returns the sections that a plan follows from, the data, and the number of outputs, as far as they are given."""
    if target.endswith((".yaml", ".yml")) or Path(target).is_file():
        config = load_config(target, overrides)
        return _request_of(config), config.data, _num_labels(config.data)
    given = parse_overrides(overrides)
    sections = {**given, "model": {"name_or_path": target, **given.get("model", {})}}
    return parse_section(_PlanRequest, sections, key=""), None, None


def _request_of(config: RunConfig) -> _PlanRequest:
    return _PlanRequest(
        model=config.model,
        freeze=config.freeze,
        adapters=config.adapters,
        lr_multipliers=config.lr_multipliers,
        activation_cache=config.activation_cache,
    )


def _num_labels(data: DataConfig) -> int | None:
    """Returns the number of outputs as far as the config tells it without the data."""
    if data.problem_type == "regression":
        return 1
    return None if data.labels is None else len(data.labels)


def _empty_plan(request: _PlanRequest, *, num_labels: int) -> FreezePlan:
    """Returns what would train, from a model without weights: mistakes are found before anything large is read."""
    model = _empty_model(request.model, num_labels=num_labels)
    frozen = freeze_model(model, request.freeze, request.adapters, blocks_path=request.model.blocks_path)
    return plan_of(frozen)


def _empty_model(model: ModelConfig, *, num_labels: int) -> PreTrainedModel:
    return get_task(model.task).build_empty_model(
        model.name_or_path,
        num_labels=num_labels,
        trust_remote_code=model.trust_remote_code,
        from_pretrained=model.from_pretrained_options,
    )


def _peak_process_memory() -> int:
    """Returns the most memory that this process has held so far, in bytes."""
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def _tells_quality(metric: str) -> bool:
    """Tells metrics of the model from those of the machine, which Trainer mixes."""
    return not metric.endswith(("_runtime", "_per_second", "epoch", "_preparation_time"))
