"""Trains from the activation cache in processes of their own, forked from one that has imported everything.

As a script it reads lists of tasks from its input, a line of JSON each, starts a process for every task of a list at
once, and writes how they ended. It never trains or opens a store itself: neither survives a fork.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from hf_freeze.activation_cache import building
from hf_freeze.training import FreezeTrainer
from tests.tiny import tiny_bert
from tests.unit.training.cached import DROPOUT, FROZEN, padding, sentences
from tests.unit.training.runs import arguments, logged

NUM_ROWS = 80
NUM_EVALUATED = 24
LONGEST = 40
# Rows of up to 20 KB fill pages of their own, as those of real models do.
SIZES = {"hidden_size": 128, "intermediate_size": 64}


@dataclasses.dataclass(frozen=True)
class Task:
    """One training run.

    Attributes:
        output: Where it writes its result and what it says.
        cache: The `activation_cache` section.
        num_rows: How many rows it trains on.
        num_steps: Optimizer steps.
        killed_after: Seconds until it is killed, after the store has changed for the first time, or None.
        bytes_at_once: How many bytes building stores at once, or None for as many as it does by itself.
        max_file_size: How large a file may become, in bytes, or None.
    """

    output: str
    cache: dict[str, Any]
    num_rows: int = NUM_ROWS
    num_steps: int = 10
    killed_after: float | None = None
    bytes_at_once: int | None = None
    max_file_size: int | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run logged and did.

    Attributes:
        losses: The loss of every step.
        evaluations: Every evaluation loss.
        is_on: Whether the cache was used.
        hits: Rows that were served from the store.
        misses: Rows that were computed while training or evaluating.
        built: Rows that were computed and stored before training.
    """

    losses: list[float]
    evaluations: list[float]
    is_on: bool
    hits: int
    misses: int
    built: int


def trainer_of(task: Task) -> FreezeTrainer:
    """Makes the trainer of a task; parts of the model that train drop out.

    Args:
        task: What to train.
    """
    options = {"eval_strategy": "steps", "eval_steps": 5, "per_device_train_batch_size": 8}
    return FreezeTrainer(
        tiny_bert(**DROPOUT, **SIZES),
        arguments(Path(task.output) / "run", **{**options, "max_steps": task.num_steps}),
        train_dataset=sentences(5000, longest=LONGEST).select(range(task.num_rows)),
        eval_dataset=sentences(NUM_EVALUATED, longest=LONGEST, seed=1),
        data_collator=padding(),
        freeze=FROZEN,
        activation_cache=task.cache,
    )


def carry_out(task: Task) -> Result:
    """Trains and returns what was logged and done.

    Args:
        task: What to train.
    """
    trainer = trainer_of(task)
    trainer.train()
    cache = trainer.activation_cache
    return Result(
        losses=logged(trainer, "loss"),
        evaluations=logged(trainer, "eval_loss"),
        is_on=cache.is_on,
        hits=cache.stats.hits,
        misses=cache.stats.misses,
        built=cache.stats.built,
    )


def _start(task: Task) -> int:
    """Starts a process for a task and returns its id."""
    child = os.fork()
    if child:
        return child
    output = Path(task.output)
    output.mkdir(parents=True, exist_ok=True)
    said = os.open(output / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    if task.max_file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (task.max_file_size, task.max_file_size))
    if task.bytes_at_once is not None:
        building._BYTES_AT_ONCE = task.bytes_at_once
    status = 1
    try:
        (output / "result.json").write_text(json.dumps(dataclasses.asdict(carry_out(task))))
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def _end(task: Task, child: int, started: float) -> int:
    """Waits for a process, kills it when its time has come, and returns its exit code."""
    if task.killed_after is not None:
        _wait_until_stored(Path(task.cache["dir"]), since=started)
        time.sleep(task.killed_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _wait_until_stored(root: Path, *, since: float) -> None:
    """Waits until the file of a store has changed; longer than anything takes it does not wait."""
    while time.time() < since + 100 and not any(path.stat().st_mtime > since for path in root.rglob("data.mdb")):
        time.sleep(0.01)


def main() -> None:
    """Carries out what the input says."""
    for line in sys.stdin:
        tasks = [Task(**entry) for entry in json.loads(line)]
        started = time.time()
        children = [(task, _start(task)) for task in tasks]
        codes = [_end(task, child, started) for task, child in children]
        sys.stdout.write(f"{json.dumps(codes)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
