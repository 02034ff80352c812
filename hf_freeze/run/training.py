"""Config in, trained model out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from transformers import set_seed

from hf_freeze.activation_cache.rows import token_lengths
from hf_freeze.config import RunConfig
from hf_freeze.config.problems import SECRETS
from hf_freeze.errors import FreezeError
from hf_freeze.insight.check import DataReport
from hf_freeze.insight.monitor import MonitorCallback
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.plan.table import PlanTable
from hf_freeze.run.checking import report_on, rows_by_role
from hf_freeze.run.output_folder import begin_run, check_other_run
from hf_freeze.run.planning import empty_plan, num_labels_of, prepared_data, request_of, table_of, with_size
from hf_freeze.run.publishing import card_facts, public_options
from hf_freeze.tasks import PreparedData, get_task
from hf_freeze.tasks.tokenizers import resolve_max_length
from hf_freeze.training import FreezeTrainer
from hf_freeze.training.arguments import check_evaluation, check_output_folder, refusal, training_arguments
from hf_freeze.training.card import CardFacts, shown_place
from hf_freeze.training.costs import RunCosts
from hf_freeze.training.manifest import newest_complete
from hf_freeze.training.reloading import loading_lines


@dataclass(frozen=True)
class RunResult:
    """What a run did.

    Attributes:
        output_dir: The folder with the trained model.
        plan: What trained.
        metrics: `train_loss`, and the metrics of the validation and test rows as `eval_...` and `test_...`.
        costs: What it took, in this process.
        advice: What the record of the run advises, in this process.
        loading_lines: Lines of Python that load the saved model and its tokenizer.
    """

    output_dir: str
    plan: FreezePlan
    metrics: Mapping[str, float]
    costs: RunCosts
    advice: tuple[str, ...]
    loading_lines: tuple[str, ...]


class Run:
    """A run that is ready to train: everything in its config is known to fit.

    Args:
        config: The config.
        rows: The tokenised rows of an earlier run with the same `model` and `data` sections; None where they are to be
            read.

    Raises:
        ConfigError: Something in the config does not exist or does not fit the data or the model.
        LayoutError: The blocks of the model cannot be found.
        PlanError: The freeze or adapters section does not fit the model.
    """

    def __init__(self, config: RunConfig, *, rows: PreparedData | None = None) -> None:
        task = self._task = get_task(config.model.task)
        self.config = config
        self.args = training_arguments(config.training)
        check_output_folder(str(self.args.output_dir))
        check_other_run(config)
        if not self.is_main_process:
            datasets.disable_progress_bars()
        empty_plan(request_of(config), num_labels=num_labels_of(config.data) or 2)
        with self.args.main_process_first(desc="reading the data"):
            data = self._texts = prepared_data(task, config.data) if rows is None else rows
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
            self.data = task.tokenize(data, loaded, max_length=config.data.max_length) if rows is None else rows
        every = config.monitor.every
        self._monitor = None if every is None else MonitorCallback(every)
        try:
            self.trainer = FreezeTrainer(
                model=loaded.model,
                args=self.args,
                train_dataset=self.data.train,
                eval_dataset=self.data.validation,
                data_collator=task.data_collator(loaded),
                processing_class=loaded.tokenizer,
                compute_metrics=compute_metrics,
                callbacks=None if self._monitor is None else [self._monitor],
                freeze=config.freeze,
                adapters=config.adapters,
                schedule=config.schedule,
                lr_multipliers=config.lr_multipliers,
                activation_cache=config.activation_cache,
                save=config.save,
                base_revision=config.model.from_pretrained_options.get("revision"),
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
        table = table_of(self.trainer.plan, request_of(self.config))
        return with_size(table, self.config.activation_cache, self.data, self._loaded.model)

    @property
    def data_report(self) -> DataReport:
        """What the data holds; rows are cut already, so that one of exactly `max_length` tokens counts as cut."""
        lengths = {role: np.asarray(token_lengths(rows)) for role, rows in rows_by_role(self.data).items()}
        max_length = resolve_max_length(
            self.config.data.max_length,
            model=self._loaded.model,
            tokenizer=self._loaded.tokenizer,
            is_pair=len(self._texts.text_columns) == 2,
        )
        return report_on(self._texts, lengths, self.args, max_length=max_length, lengths_are_cut=True)

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
        if self.args.should_save:
            begin_run(self.config)
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
        self.trainer.save_model(_internal_call=True)  # Pushing is for later, when all is written.
        self.trainer.activation_cache.close()
        folder = str(self.args.output_dir)
        result = RunResult(
            output_dir=folder,
            plan=self.trainer.plan,
            metrics={name: value for name, value in metrics.items() if tells_quality(name)},
            costs=self.trainer.costs(seconds),
            advice=() if self._monitor is None else tuple(self._monitor.advice),
            loading_lines=self._loading_lines(folder),
        )
        self.trainer.card_facts = self._card_facts(result)
        if self.args.should_save:
            self.trainer.create_model_card()
        return result

    def push(self) -> str | None:
        """Pushes what was trained to the Hub where the config says `training.push_to_hub`.

        Returns:
            The address of the commit; None where nothing is pushed, and in all processes but one.

        Raises:
            ShareError: The Hub refuses, or cannot be reached; the folder of the run is complete.
        """
        if not self.args.push_to_hub:
            return None
        address: str | None = self.trainer.push_to_hub()
        return address

    def _card_facts(self, result: RunResult) -> CardFacts:
        return card_facts(
            self.config,
            self.trainer.describe(),
            metrics=result.metrics,
            history=self.trainer.state.log_history,
            splits=self.data.splits,
            costs=result.costs.sentences,
            loading=self._loading_lines(result.output_dir, is_public=True),
        )

    def _loading_lines(self, folder: str, *, is_public: bool = False) -> tuple[str, ...]:
        section = self.config.model
        options = {name: value for name, value in section.from_pretrained_options.items() if name not in SECRETS}
        if section.trust_remote_code:
            options["trust_remote_code"] = True
        return loading_lines(
            folder,
            self._loaded.model,
            auto_class=self._task.auto_class,
            base=shown_place(section.name_or_path) if is_public else section.name_or_path,
            options=public_options(options) if is_public else options,
            has_fresh_parameters=bool(self._loaded.fresh_parameters),
            name="repo" if is_public else None,
        )


def train(config: RunConfig) -> RunResult:
    """Trains, evaluates and saves what a config describes, and pushes it where the config says so.

    Args:
        config: The config.

    Raises:
        ConfigError: Something in the config does not exist or does not fit the data or the model.
        LayoutError: The blocks of the model cannot be found.
        PlanError: The freeze or adapters section does not fit the model, or a checkpoint cannot be used.
        PlanViolation: Training did not follow the plan.
        ShareError: The Hub refuses, or cannot be reached.
    """
    run = Run(config)
    result = run.train()
    run.push()
    return result


def newest_checkpoint(config: RunConfig) -> str | None:
    """Returns the newest complete checkpoint in the output folder of a run, or None.

    Args:
        config: The config of the run.
    """
    found = newest_complete(Path(str(config.training["output_dir"])))
    return None if found is None else str(found)


def tells_quality(metric: str) -> bool:
    """Tells metrics of the model from those of the machine, which Trainer mixes.

    Args:
        metric: The name of a metric.
    """
    return not metric.endswith(("_runtime", "_per_second", "epoch", "_preparation_time"))
