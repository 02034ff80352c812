"""Trains the plans of a search: rows are tokenised once, the activation cache is shared, and nothing is saved."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self

import psutil
import torch
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging as transformers_logging

from hf_freeze.activation_cache.collator import KeyCollator
from hf_freeze.config import RunConfig, ScheduleConfig, override, to_yaml
from hf_freeze.insight.check import DataReport
from hf_freeze.insight.outcomes import TrialOutcome
from hf_freeze.insight.search import Report
from hf_freeze.run.training import Run, tells_quality
from hf_freeze.tasks import PreparedData

# Seconds between two looks at the memory of the process.
_INTERVAL: Final = 0.01
# Rows that are evaluated to learn which metrics there are.
_FEW_ROWS: Final = 32


class TrialRunner:
    """Trains plans one after the other in this process.

    Args:
        tell_data: Is told what the data holds once it has been read.
    """

    def __init__(self, tell_data: Callable[[DataReport], None] = lambda report: None) -> None:
        self._tell_data = tell_data
        self._rows: dict[str, PreparedData] = {}
        self._filled: set[str] = set()

    def prepare(self, config: RunConfig) -> list[str]:
        """Tokenises the rows, fills the activation cache for one plan, and returns the names of what evaluations log.

        Args:
            config: The config of the plan whose frozen prefix all others share.

        Raises:
            ConfigError: The config does not fit the data or the model.
        """
        with _quiet():
            run = self._make(config)
            known = _evaluated(run)
            self._fill(run)
        return known

    def fill(self, config: RunConfig) -> None:
        """Fills the activation cache for one plan, from that of a lesser depth where there is one.

        Args:
            config: Its config.
        """
        with _quiet():
            self._fill(self._make(config))

    def train(self, config: RunConfig, report: Report | None = None, *, on_test: bool = False) -> TrialOutcome:
        """Trains one plan.

        Args:
            config: Its config.
            report: Takes the metrics of each evaluation, and says whether training ends there.
            on_test: Whether the test rows are evaluated at the end.
        """
        with _quiet():
            run = self._make(config)
            trainer = run.trainer
            self._fill(run)
            _give_back_memory()
            reporting = _Reporting(report)
            trainer.add_callback(reporting)
            start = time.perf_counter()
            with PeakMemory(torch.device(run.args.device)) as memory:
                trainer.train()
            seconds = time.perf_counter() - start
            metrics = reporting.metrics
            if on_test:
                trainer.remove_callback(reporting)
                metrics.update(_qualities(trainer.evaluate(run.data.test, metric_key_prefix="test")))
                trainer.activation_cache.close()
            outcome = TrialOutcome(
                metrics=metrics,
                seconds=seconds,
                peak_memory_bytes=memory.peak,
                on_gpu=memory.on_gpu,
                num_trainable=sum(each.parameter.numel for each in trainer.union_plan.decisions if each.trainable),
                num_evaluations=reporting.count,
            )
        del run, trainer
        gc.collect()  # The Trainer and its parts refer to each other.
        return outcome

    def _fill(self, run: Run) -> None:
        """Fills the activation cache for a prefix that this process has not met yet."""
        prefix = f"{run.trainer.plan.depth} {_without_plan(run.config)}"
        if prefix not in self._filled:
            run.trainer.fill_activation_cache()
            self._filled.add(prefix)

    def _make(self, config: RunConfig) -> Run:
        config = _trial_config(config)
        key = _without_plan(config)
        run = Run(config, rows=self._rows.get(key))
        if not self._rows:
            self._tell_data(run.data_report)
        self._rows[key] = run.data
        run.trainer.remove_callback(PrinterCallback)
        return run


def _without_plan(config: RunConfig) -> str:
    """Returns what decides on the rows and the weights of a run, and not on what trains and how."""
    plan = {"freeze": None, "adapters": (), "schedule": ScheduleConfig(), "training": {"output_dir": "any"}}
    return to_yaml(config.model_copy(update=plan))


def _evaluated(run: Run) -> list[str]:
    """Returns the names of what an evaluation logs."""
    rows: Any = run.data.validation
    few = rows.select(range(min(_FEW_ROWS, len(rows))))
    collator = run.trainer.data_collator
    if isinstance(collator, KeyCollator):
        collator.adds_keys = False  # The cache has nothing stored yet, and would turn itself off.
    found = run.trainer.evaluate(few)
    if isinstance(collator, KeyCollator):
        collator.adds_keys = True
    return sorted(_qualities(found))


def _qualities(metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics of the model, without those of the machine."""
    return {name: float(value) for name, value in metrics.items() if tells_quality(name)}


def _trial_config(config: RunConfig) -> RunConfig:
    """Returns the config as a trial needs it: evaluated as it trains, and nothing written."""
    options: dict[str, Any] = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    if config.training.get("eval_strategy", "no") == "no":
        options["eval_strategy"] = "epoch"
    unused = {"eval_on_start": False, "load_best_model_at_end": False, "push_to_hub": False}
    unused_if_given = {**unused, "resume_from_checkpoint": None}
    options.update({key: value for key, value in unused_if_given.items() if key in config.training})
    trained = {f"training.{key}": value for key, value in options.items()}
    return override(config, {"monitor.every": None, **trained}, source="search")


class _Reporting(TrainerCallback):
    """Keeps the metrics of the last evaluation, and passes each on.

    Args:
        report: Takes them, and says whether training ends.
    """

    def __init__(self, report: Report | None) -> None:
        self.metrics: dict[str, float] = {}
        self.count = 0
        self._report = report

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Passes the metrics on."""
        self.metrics = _qualities(metrics or {})
        self.count += 1
        if self._report is not None and self._report(self.metrics, is_last=state.global_step >= state.max_steps):
            control.should_training_stop = True


class PeakMemory:
    """Notes the most memory that is held while it is entered: of the GPU, or what the process itself takes.

    Mapped files, such as those of the activation cache, are the system's to drop, and are left out.

    Attributes:
        peak: That memory, in bytes.
        on_gpu: Whether it is memory of the GPU.

    Args:
        device: Where training runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.peak = 0
        self.on_gpu = device.type == "cuda"
        self._process = psutil.Process()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.on_gpu:
            self.peak = torch.cuda.max_memory_allocated()
        else:
            self._ends.set()
            self._thread.join()

    def _watch(self) -> None:
        while True:
            found = self._process.memory_info()._asdict()
            self.peak = max(self.peak, found["rss"] - found.get("shared", 0))
            if self._ends.wait(_INTERVAL):
                return


def _give_back_memory() -> None:
    """Has the allocator give back what is free, where it can: else a trial seems to take what an earlier one left."""
    gc.collect()
    trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # A function of glibc.
        trim(0)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Transformers from showing a progress bar for each model that it loads."""
    bars: Any = transformers_logging  # Its functions are not typed.
    was_on = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            bars.enable_progress_bar()
