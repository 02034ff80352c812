"""Starts two processes that carry the same cached runs out together, once per test session."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.distributed.cached_run import CachedRecord, CachedRun
from tests.distributed.launching import NUM_PROCESSES, once

WORKER = Path(__file__).with_name("cached_run.py")
Records = dict[str, list[CachedRecord]]


def launch(runs: Sequence[CachedRun], folder: Path, *, backend: str) -> Records:
    """Returns, by run, what every rank saw; of several test processes that ask for the same, one launches.

    Args:
        runs: What to carry out, in this order.
        folder: Where the runs write.
        backend: "ddp" or "fsdp2".
    """
    with once(folder) as is_first:
        if is_first:
            _start(runs, folder, backend)
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
    process = subprocess.run(
        command, env=environment, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    (folder / "output").write_text(process.stdout)
    assert process.returncode == 0, process.stdout[-6000:]
