"""One run with a schedule, for one process or for several; as a script, one of several.

As a script the only argument is JSON: `backend` ("ddp" or "fsdp2"), `num_processes`, `folder` and `runs`. The global
batch is eight rows whatever the number of processes: the runs must be equal.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import sys
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from hf_freeze.errors import FreezeError, PlanError
from hf_freeze.plan import named_parameters
from hf_freeze.plan.audit import tensor_digest
from hf_freeze.schedules import Choice, Moment, RunLength, Schedule
from hf_freeze.training import FreezeTrainer
from tests.distributed.worker import meet
from tests.tiny import tiny_bert
from tests.unit.training.runs import arguments, logged, rows

GLOBAL_BATCH = 8
NUM_ROWS = 48
# Seconds that all runs of a launch may take.
TIMEOUT = 600.0


class Disagrees(Schedule):
    """Decides otherwise in every process."""

    def decide(self, moment: Moment) -> Choice | None:
        """Freezes the block that has the number of the process."""
        rank = int(AcceleratorState().process_index)
        return Choice(frozenset({"embeddings", f"blocks[{rank}]"}), "mine") if moment.step == 2 else None


class ScalesOtherwise(Schedule):
    """Scales the learning rate otherwise in every process."""

    def lr_factors(self, moment: Moment) -> dict[str, float]:
        """Scales that of the first block from the third step on."""
        return {"blocks[0]": 0.5 + int(AcceleratorState().process_index)} if moment.step == 2 else {}

    def decide(self, moment: Moment) -> Choice | None:
        """Freezes nothing more."""
        return None


class FailsInOne(Schedule):
    """Fails in the second process alone."""

    def decide(self, moment: Moment) -> Choice | None:
        """Raises there at the third step."""
        if moment.step == 2 and AcceleratorState().process_index == 1:
            raise ValueError("no")
        return None


class FailsElsewhereInOne(Schedule):
    """Fails in the second process alone, outside what decides."""

    def decide(self, moment: Moment) -> Choice | None:
        """Changes nothing."""
        return None

    def fail(self) -> None:
        """Raises in the second process."""
        if AcceleratorState().process_index == 1:
            raise ValueError("no")


class FailsBeginInOne(FailsElsewhereInOne):
    """Fails before training."""

    def begin(self, run: RunLength) -> None:
        """Raises there."""
        self.fail()


class FailsNeedsInOne(FailsElsewhereInOne):
    """Fails from the third step on."""

    step = 0

    def decide(self, moment: Moment) -> Choice | None:
        """Notes the step."""
        self.step = moment.step

    @property
    def needs(self) -> frozenset[str]:
        """Raises there."""
        if self.step >= 2:
            self.fail()
        return frozenset()


class FailsStateInOne(FailsElsewhereInOne):
    """Fails when a checkpoint is written."""

    def state_dict(self) -> dict[str, Any]:
        """Raises there."""
        self.fail()
        return {}


class NeedsInOne(FailsElsewhereInOne):
    """Needs a statistic in the second process alone."""

    @property
    def needs(self) -> frozenset[str]:
        """Differs between the processes."""
        return frozenset({"gradients"} if AcceleratorState().process_index else ())


class FollowsMetric(Schedule):
    """Freezes the block whose number was evaluated."""

    def decide(self, moment: Moment) -> Choice | None:
        """Reads the metric."""
        number = moment.metrics.get("eval_number")
        return None if number is None else Choice(frozenset({f"blocks[{number:.0f}]"}), "evaluated")


class EvaluatesItsNumber(TrainerCallback):
    """Has every process evaluate something else."""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Adds the number of the process to the metrics."""
        metrics["eval_number"] = args.process_index


class DueInOne(Schedule):
    """Calls the third step due in the second process alone."""

    needs = frozenset({"gradients"})

    def is_due(self, moment: Moment) -> bool:
        """Differs between the processes."""
        return moment.step == 2 and AcceleratorState().process_index == 1

    def decide(self, moment: Moment) -> Choice | None:
        """Changes nothing."""
        return None


@dataclasses.dataclass(frozen=True)
class ScheduledRun:
    """What to train and on which schedule.

    Attributes:
        name: The name of the run, and of the folder that it writes to.
        schedule: The `schedule` section.
        keywords: Further keyword arguments of the trainer.
        options: Training arguments beside the usual ones.
        caches: Whether the activation cache is asked for.
        resumed_at: Step of the checkpoint that a second trainer resumes from, or None for no second trainer.
    """

    name: str
    schedule: Mapping[str, Any]
    keywords: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    caches: bool = False
    resumed_at: int | None = None


@dataclasses.dataclass(frozen=True)
class ScheduledRecord:
    """What one process saw of a run.

    Attributes:
        losses: The loss of every step.
        gradient_norms: The gradient norm of every step.
        evaluations: Every evaluation loss.
        timeline: Every transition in words.
        weights: Digests of the parameters at the end, by canonical name.
        hits: Rows that were served from the activation cache.
        error: What was raised instead of training.
        resumed_losses: The losses of the resumed run, after the checkpoint.
        resumed_weights: Digests of the parameters at the end of the resumed run.
    """

    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    evaluations: list[float] = field(default_factory=list)
    timeline: list[str] = field(default_factory=list)
    weights: dict[str, str] = field(default_factory=dict)
    hits: int = 0
    error: str = ""
    resumed_losses: list[float] = field(default_factory=list)
    resumed_weights: dict[str, str] = field(default_factory=dict)


def carry_out(run: ScheduledRun, folder: Path, *, num_processes: int = 1) -> ScheduledRecord:
    """Trains, resumes where asked to, and returns what was seen.

    Args:
        run: What to train.
        folder: The folder of all runs.
        num_processes: How many processes carry the run out together.
    """
    try:
        trainer = _trainer(run, folder, num_processes)
    except PlanError as caught:
        return ScheduledRecord(error=str(caught))
    error = ""
    try:
        trainer.train()
    except FreezeError as caught:
        error = str(caught)
    resumed_losses: list[float] = []
    resumed_weights: dict[str, str] = {}
    if run.resumed_at is not None:
        resumed = _trainer(run, folder, num_processes)
        resumed.train(resume_from_checkpoint=str(folder / run.name / f"checkpoint-{run.resumed_at}"))
        resumed_losses, resumed_weights = logged(resumed, "loss")[run.resumed_at :], _digests(resumed)
        assert resumed.timeline == trainer.timeline
    return ScheduledRecord(
        losses=logged(trainer, "loss"),
        gradient_norms=logged(trainer, "grad_norm"),
        evaluations=logged(trainer, "eval_loss"),
        timeline=[transition.line for transition in trainer.timeline],
        weights=_digests(trainer),
        hits=trainer.activation_cache.stats.hits,
        error=error,
        resumed_losses=resumed_losses,
        resumed_weights=resumed_weights,
    )


def _trainer(run: ScheduledRun, folder: Path, num_processes: int) -> FreezeTrainer:
    options: dict[str, Any] = {
        "max_steps": 24,
        "per_device_train_batch_size": GLOBAL_BATCH // num_processes,
        "per_device_eval_batch_size": GLOBAL_BATCH // num_processes,
        "eval_strategy": "steps",
        "eval_steps": 4,
    }
    if run.resumed_at is not None:
        options |= {"save_strategy": "steps", "save_steps": run.resumed_at}
    dataset = rows(NUM_ROWS)
    return FreezeTrainer(
        tiny_bert(),
        arguments(folder / run.name, **(options | run.options)),
        train_dataset=dataset,
        eval_dataset=dataset.select(range(16)),
        schedule=run.schedule,
        activation_cache={"enabled": run.caches, "dir": str(folder / "cache" / run.name)},
        callbacks=[EvaluatesItsNumber()],
        **run.keywords,
    )


def _digests(trainer: FreezeTrainer) -> dict[str, str]:
    return {
        name: tensor_digest(p.full_tensor() if isinstance(p, DTensor) else p)
        for name, p in named_parameters(trainer.model)
    }


def main(task: dict[str, Any]) -> None:
    """Carries out every run of the task."""
    # Processes that wait for each other in vain say where, and end.
    faulthandler.dump_traceback_later(TIMEOUT, exit=True)
    state = meet(task)
    folder = Path(task["folder"])
    for entry in task["runs"]:
        AcceleratorState._reset_state()  # It keeps the classes that FSDP wraps, and the next model has others.
        run = ScheduledRun(**entry)
        record = carry_out(run, folder, num_processes=state.num_processes)
        (folder / f"{run.name} {state.process_index}.json").write_text(json.dumps(dataclasses.asdict(record)))
    state.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
