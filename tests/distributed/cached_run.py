"""One cached training run, described as plain data, for one process or for several; as a script, one of several.

As a script the only argument is JSON: `backend` ("ddp" or "fsdp2"), `num_processes`, `folder` and `runs`. The global
batch is eight rows whatever the number of processes: the runs must be equal.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from accelerate.state import AcceleratorState
from datasets import Dataset, IterableDataset
from torch.distributed.fsdp import FSDPModule
from transformers import DataCollatorWithPadding, TrainerCallback

from hf_freeze.errors import CacheError
from hf_freeze.training import FreezeTrainer
from tests.distributed.worker import meet
from tests.tiny import tiny_bert, tiny_tokenizer
from tests.unit.training.runs import arguments, logged, rows

GLOBAL_BATCH = 8
NUM_ROWS = 96
NUM_EVALUATED = 32
NUM_STEPS = 20
NUM_FROZEN = 2
# Seconds that all runs of a launch may take.
TIMEOUT = 600.0


@dataclasses.dataclass(frozen=True)
class CachedRun:
    """What to train, and where each process keeps what it caches.

    Attributes:
        name: The name of the run, and of the folder that it writes to.
        folders: The cache folder of each process, below the folder of all runs; one for all where there is one.
        section: What else the `activation_cache` section says.
        options: Training arguments beside the usual ones.
        streams: Whether the rows are an iterable dataset, which the main process reads for all.
        evaluates: Whether to evaluate once more at the end, with whatever weights were loaded by then.
    """

    name: str
    folders: tuple[str, ...] = ("shared",)
    section: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"enabled": True})
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    streams: bool = False
    evaluates: bool = False


@dataclasses.dataclass(frozen=True)
class CachedRecord:
    """What one process saw of a run.

    Attributes:
        losses: The loss of every step.
        gradient_norms: The gradient norm of every step.
        evaluations: Every evaluation loss.
        is_on: Whether the cache was used.
        reason: Why it was not.
        error: What was raised instead of training.
        hits: Rows that were served from the store.
        misses: Rows that were computed while training or evaluating.
        built: Rows that this process computed and stored before training.
        num_rows: How many rows its store holds at the end.
        gathered: How often a frozen block was gathered while training.
        gathered_others: How often another block was.
    """

    losses: list[float]
    gradient_norms: list[float]
    evaluations: list[float]
    is_on: bool
    reason: str | None
    error: str
    hits: int
    misses: int
    built: int
    num_rows: int
    gathered: int
    gathered_others: int


def carry_out(run: CachedRun, folder: Path, *, rank: int = 0, num_processes: int = 1) -> CachedRecord:
    """Trains and returns what was seen.

    Args:
        run: What to train, and how it is cached.
        folder: The folder of all runs.
        rank: Which of the processes this is.
        num_processes: How many processes carry the run out together.
    """
    trainer = _trainer(run, folder, rank, num_processes)
    counter = GatheringCounter()
    trainer.add_callback(counter)
    error = ""
    try:
        trainer.train()
        if run.evaluates:
            trainer.evaluate()
    except CacheError as caught:
        error = str(caught)
    cache = trainer.activation_cache
    return CachedRecord(
        losses=logged(trainer, "loss"),
        gradient_norms=logged(trainer, "grad_norm"),
        evaluations=logged(trainer, "eval_loss"),
        is_on=cache.is_on,
        reason=cache.reason,
        error=error,
        hits=cache.stats.hits,
        misses=cache.stats.misses,
        built=cache.stats.built,
        num_rows=cache.num_rows,
        gathered=counter.frozen,
        gathered_others=counter.others,
    )


class GatheringCounter(TrainerCallback):
    """Counts how often FSDP2 gathers the weights of blocks, from the first step on.

    Attributes:
        frozen: How often those of a frozen block.
        others: How often those of another one.
    """

    def __init__(self) -> None:
        self.frozen = 0
        self.others = 0

    def on_train_begin(self, *_: Any, model: torch.nn.Module | None = None, **__: Any) -> None:
        """Watches the blocks."""
        assert model is not None
        if isinstance(model, FSDPModule):
            for index, block in enumerate(model.get_submodule("bert.encoder.layer").children()):
                assert isinstance(block, FSDPModule)
                self._watch(block, is_frozen=index < NUM_FROZEN)

    def _watch(self, block: FSDPModule, *, is_frozen: bool) -> None:
        group = block._get_fsdp_state()._fsdp_param_group
        assert group is not None
        gather = group.unshard

        def counting(*positional: Any, **keywords: Any) -> None:
            self.frozen += is_frozen
            self.others += not is_frozen
            gather(*positional, **keywords)

        group.unshard = counting  # type: ignore[method-assign]


def _trainer(run: CachedRun, folder: Path, rank: int, num_processes: int) -> FreezeTrainer:
    options: dict[str, Any] = {
        "max_steps": NUM_STEPS,
        "per_device_train_batch_size": GLOBAL_BATCH // num_processes,
        "per_device_eval_batch_size": GLOBAL_BATCH // num_processes,
        "eval_strategy": "steps",
        "eval_steps": NUM_STEPS // 2,
    }
    if run.streams:
        options["accelerator_config"] = {"dispatch_batches": True}
    own_folder = run.folders[rank % len(run.folders)]
    dataset = _rows(is_ragged=not run.streams)
    return FreezeTrainer(
        tiny_bert(),
        arguments(folder / run.name, **(options | run.options)),
        train_dataset=_stream(dataset) if run.streams else dataset,
        eval_dataset=dataset.select(range(NUM_EVALUATED)),
        data_collator=DataCollatorWithPadding(tiny_tokenizer()),
        freeze={"blocks": {"first": NUM_FROZEN}},
        activation_cache={"dir": str(folder / own_folder), **run.section},
    )


def _rows(*, is_ragged: bool) -> Dataset:
    """Rows of different lengths, or of one: the main process can join batches only where they are equally wide."""
    draw = random.Random(0)
    dataset = rows(NUM_ROWS)
    if not is_ragged:
        return dataset
    lengths = [draw.randint(4, 10) for _ in range(NUM_ROWS)]
    return Dataset.from_dict(
        {
            name: [
                values[:length] if isinstance(values, list) else values
                for values, length in zip(dataset[name], lengths, strict=True)
            ]
            for name in dataset.column_names
        }
    )


def _stream(dataset: Dataset) -> IterableDataset:
    return dataset.to_iterable_dataset()


def main(task: dict[str, Any]) -> None:
    """Carries out every run of the task."""
    # Processes that wait for each other in vain say where, and end.
    faulthandler.dump_traceback_later(TIMEOUT, exit=True)
    state = meet(task)
    folder = Path(task["folder"])
    for entry in task["runs"]:
        AcceleratorState._reset_state()  # It keeps the classes that FSDP wraps, and the next model has others.
        run = CachedRun(**entry)
        record = carry_out(run, folder, rank=state.process_index, num_processes=state.num_processes)
        (folder / f"{run.name} {state.process_index}.json").write_text(json.dumps(dataclasses.asdict(record)))
    state.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
