"""What the training section and the rows say about the amount of work: batches, updates and evaluations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from hf_freeze.activation_cache.rows import expected_maximum, token_lengths
from hf_freeze.plan.timing import RunLength
from hf_freeze.schedules import RunLength as ScheduledLength
from hf_freeze.schedules.run_length import count_evaluations
from hf_freeze.tasks import PreparedData

# Steps of a run whose rows are not known.
ASSUMED_STEPS: Final = 1000
_DEFAULTS: Final[Mapping[str, Any]] = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}


@dataclass(frozen=True)
class Lengths:
    """How long rows are, in tokens.

    Attributes:
        train: Of every row that is trained on.
        validation: Of every row that is evaluated on while training and at the end.
        test: Of every row that is evaluated on at the end.
    """

    train: Sequence[int]
    validation: Sequence[int]
    test: Sequence[int]

    @property
    def of_all(self) -> tuple[int, ...]:
        """Of every row that a run goes through."""
        return (*self.train, *self.validation, *self.test)


class Settings:
    """The training section with the defaults of Transformers; nothing is created and nothing needs a device.

    Args:
        section: The training section of a config.
    """

    def __init__(self, section: Mapping[str, Any]) -> None:
        self._values = {**_DEFAULTS, **section}
        self.batch_size = int(self._values["per_device_train_batch_size"])
        self.accumulation = int(self._values["gradient_accumulation_steps"])
        self.checkpoints = bool(self._values["activation_checkpointing"])
        self.clips = bool(self._values["max_grad_norm"])
        self.groups_by_length = self._values["train_sampling_strategy"] == "group_by_length"
        self.optimizer = OptimizerNames(self._values["optim"]).value

    @property
    def optimizer_options(self) -> dict[str, str]:
        """What `optim_args` says."""
        given = self._values["optim_args"] or ""
        if isinstance(given, Mapping):
            return {str(name): str(value) for name, value in given.items()}
        return dict(part.strip().split("=", 1) for part in str(given).split(",") if "=" in part)

    @property
    def _eval_strategy(self) -> str:
        return str(getattr(self._values["eval_strategy"], "value", self._values["eval_strategy"]))

    def precision(self, of_processes: str) -> str:
        """Returns `no`, `fp16` or `bf16`: the training section wins over the accelerate config."""
        return next((name for name in ("bf16", "fp16") if self._values[name]), of_processes)

    def device(self, of_processes: str) -> str:
        """Returns the type of the device."""
        return "cpu" if self._values["use_cpu"] else of_processes

    def padded_length(self, lengths: Sequence[int], *, evaluates: bool = False) -> int:
        """Returns how many tokens a row takes in a typical batch, padding included."""
        size = int(self._values["per_device_eval_batch_size"]) if evaluates else self.batch_size
        if self.groups_by_length:
            return round(sum(lengths) / len(lengths))
        return round(expected_maximum(lengths, size))

    def run_length(self, lengths: Lengths, *, num_processes: int) -> RunLength:
        """Returns how much there is to do in one process.

        Args:
            lengths: How long rows are.
            num_processes: How many processes share the rows.
        """
        steps_an_epoch = self._steps_an_epoch(lengths, num_processes)
        num_steps = int(self._values["max_steps"])
        if num_steps <= 0:
            num_steps = math.ceil(steps_an_epoch * float(self._values["num_train_epochs"]))
        tokens_a_batch = self.batch_size * self.padded_length(lengths.train)
        # `train` ends with an evaluation, whatever is evaluated while training.
        passes = 1 + self._num_evaluations(num_steps, steps_an_epoch)
        evaluated = passes * self._evaluated_tokens(lengths.validation) + self._evaluated_tokens(lengths.test)
        # Rows that training does not get through are not computed.
        built = min(1.0, num_steps / steps_an_epoch) * sum(lengths.train)
        built += sum(lengths.validation) + sum(lengths.test)
        return RunLength(
            num_steps=num_steps,
            accumulation=self.accumulation,
            evaluation_batches=evaluated / tokens_a_batch / num_processes,
            build_batches=built / tokens_a_batch / num_processes,
        )

    def _steps_an_epoch(self, lengths: Lengths, num_processes: int) -> int:
        batches = math.ceil(len(lengths.train) / (self.batch_size * num_processes))
        return math.ceil(batches / self.accumulation)

    def passes(self, lengths: Lengths, *, num_processes: int) -> tuple[float, int]:
        """Returns how often training passes over its rows, and over those that are evaluated meanwhile.

        Args:
            lengths: How long rows are.
            num_processes: How many processes share the rows.
        """
        num_steps = self.run_length(lengths, num_processes=num_processes).num_steps
        steps_an_epoch = self._steps_an_epoch(lengths, num_processes)
        return num_steps / steps_an_epoch, self._num_evaluations(num_steps, steps_an_epoch)

    def _evaluated_tokens(self, lengths: Sequence[int]) -> int:
        return len(lengths) * self.padded_length(lengths, evaluates=True) if lengths else 0

    def scheduled_length(self, lengths: Lengths | None, *, num_processes: int) -> ScheduledLength:
        """Returns how long a run is for its schedule; a length is assumed where the rows are not known.

        Args:
            lengths: How long rows are; None where there are none.
            num_processes: How many processes share the rows.
        """
        num_steps, num_epochs = int(self._values["max_steps"]), float(self._values["num_train_epochs"])
        evaluates = lengths is None or self._eval_strategy != "no"
        if lengths is None:
            num_steps = num_steps if num_steps > 0 else ASSUMED_STEPS
            return ScheduledLength(num_steps, num_steps / num_epochs, evaluates)
        steps_an_epoch = self._steps_an_epoch(lengths, num_processes)
        num_steps = num_steps if num_steps > 0 else math.ceil(steps_an_epoch * num_epochs)
        num_evaluations = count_evaluations(
            num_steps,
            steps_an_epoch,
            strategy=self._eval_strategy,
            every=float(self._values["eval_steps"] or self._values["logging_steps"]),
            delay=float(self._values["eval_delay"] or 0),
            at_start=bool(self._values["eval_on_start"]),
        )
        return ScheduledLength(num_steps, steps_an_epoch, evaluates, num_evaluations)

    def _num_evaluations(self, num_steps: int, steps_an_epoch: int) -> int:
        strategy = self._eval_strategy
        first = int(bool(self._values["eval_on_start"]))
        if strategy == "epoch":
            return first + math.ceil(num_steps / steps_an_epoch)
        if strategy == "steps":
            interval = float(self._values["eval_steps"] or self._values["logging_steps"])
            interval = math.ceil(num_steps * interval) if interval < 1 else interval
            return first + int(num_steps // interval)
        return 0


def lengths_of(data: PreparedData) -> Lengths | None:
    """Returns how long tokenised rows are, or None where they have no tokens or there are none.

    Args:
        data: The rows.
    """
    train = token_lengths(data.train)
    evaluated = (None if rows is None else token_lengths(rows) for rows in (data.validation, data.test))
    return Lengths(train, *(lengths or [] for lengths in evaluated)) if train else None
