"""Starts two processes that carry the same cached runs out together, once per test session."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.distributed.cached_run import CachedRecord, CachedRun
from tests.distributed.launching import NUM_PROCESSES

WORKER = Path(__file__).with_name("cached_run.py")
# One process that waits in vain for the other is what a cache can cause: it has to be told from a slow machine.
_TIMEOUT = 120.0
Records = dict[str, list[CachedRecord]]


def launch(runs: Sequence[CachedRun], folder: Path, *, backend: str) -> Records:
    """Returns, by run, what every rank saw; of several test processes that ask for the same, one launches.

    Args:
        runs: What to carry out, in this order.
        folder: Where the runs write.
        backend: "ddp" or "fsdp2".
    """
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / "done"
        if not done.exists():
            _start(runs, folder, backend)
            done.touch()
    return {
        run.name: [
            CachedRecord(**json.loads((folder / f"{run.name} {rank}.json").read_text()))
            for rank in range(NUM_PROCESSES)
        ]
        for run in runs
    }


def _start(runs: Sequence[CachedRun], folder: Path, backend: str) -> None:
    task = {
        "backend": backend,
        "num_processes": NUM_PROCESSES,
        "folder": str(folder),
        "runs": [dataclasses.asdict(run) for run in runs],
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(NUM_PROCESSES), str(WORKER), json.dumps(task)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output = f"The processes wait for each other.\n{process.communicate()[0]}"
    (folder / "output").write_text(output)
    assert process.returncode == 0, output[-6000:]
