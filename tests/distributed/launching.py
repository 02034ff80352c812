"""Starts two processes that carry the same runs out together, once per test session."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY
from tests.distributed.training_run import Record, Run

NUM_PROCESSES = 2
WORKER = Path(__file__).with_name("worker.py")


def session_folder(base: Path) -> Path:
    """Returns the folder that all test processes of a session share.

    Args:
        base: The base folder of temporary files of this test process.
    """
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@contextlib.contextmanager
def once(folder: Path) -> Iterator[bool]:
    """Yields True in the first of several test processes that come here, and False in all others, once it is done.

    Args:
        folder: A folder that all of them know; it is made where it does not exist.
    """
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / "done"
        yield not done.exists()
        done.touch()


def launch(runs: Sequence[Run], folder: Path, *, backend: str) -> dict[str, list[Record]]:
    """Returns, by run, what every rank saw; of several test processes that ask for the same, one launches.

    Args:
        runs: What to carry out.
        folder: Where the runs write.
        backend: "ddp", "fsdp1" or "fsdp2".
    """
    with once(folder) as is_first:
        if is_first:
            _start(runs, folder, backend)
    return {
        run.name: [
            Record(**json.loads((folder / run.name / f"rank-{rank}.json").read_text())) for rank in range(NUM_PROCESSES)
        ]
        for run in runs
    }


def free_port() -> int:
    """Returns a port that nobody uses now: launches of several test processes must not share accelerate's default."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(runs: Sequence[Run], folder: Path, backend: str) -> None:
    task = {
        "backend": backend,
        "num_processes": NUM_PROCESSES,
        "folder": str(folder),
        "runs": [dataclasses.asdict(run) for run in runs],
    }
    start(WORKER, task, environment=os.environ)


def start(worker: Path, task: Mapping[str, Any], *, environment: Mapping[str, str]) -> str:
    """Has two processes carry a task out, and returns what they wrote to standard error.

    Args:
        worker: The script, which takes the task as JSON.
        task: The task; `backend` is "ddp", "fsdp1" or "fsdp2".
        environment: Environment variables.
    """
    command = [sys.executable, "-m"]
    if task["backend"] == "ddp":
        config = REPOSITORY / "accelerate_configs" / "two_cpu.yaml"
        command += ["accelerate.commands.accelerate_cli", "launch", "--config_file", str(config)]
        command += ["--main_process_port", str(free_port())]
    else:
        command += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(NUM_PROCESSES)]
    finished = subprocess.run(
        [*command, str(worker), json.dumps(task)],
        env={**environment, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(REPOSITORY)},
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert finished.returncode == 0, finished.stderr[-6000:]
    return finished.stderr
