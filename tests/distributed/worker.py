"""Carries runs out in one of several processes and writes what it saw; started by launching.py.

The only argument is JSON: `backend` ("ddp", "fsdp1" or "fsdp2"), `num_processes`, `folder` and `runs`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from tests.distributed.training_run import Run, carry_out

SHARDING = {
    # PyTorch 2.13 frees the weights that a whole state dict of version 1 refers to on the CPU, and ends with a
    # segmentation fault. Only its shards can be written there.
    "fsdp1": {
        "FSDP_VERSION": "1",
        "FSDP_USE_ORIG_PARAMS": "true",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    },
    "fsdp2": {"FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"},
}


def main(task: dict[str, Any]) -> None:
    """Carries out every run of the task."""
    state = meet(task)
    for entry in task["runs"]:
        AcceleratorState._reset_state()  # It keeps the classes that FSDP wraps, and the next model has others.
        run = Run(**entry)
        folder = Path(task["folder"]) / run.name
        record = carry_out(run, folder, num_processes=state.num_processes)
        (folder / f"rank-{state.process_index}.json").write_text(json.dumps(dataclasses.asdict(record)))
    state.destroy_process_group()


def meet(task: dict[str, Any]) -> PartialState:
    """Joins the other processes, and checks that all of them are there.

    Args:
        task: What was asked for; `backend` and `num_processes` count.
    """
    if task["backend"] != "ddp":
        _let_accelerate_shard_on_the_cpu(**SHARDING[task["backend"]])
    state = PartialState(cpu=True)
    assert state.num_processes == task["num_processes"], state
    total = torch.ones(())
    torch.distributed.all_reduce(total)
    assert total.item() == task["num_processes"]
    return state


def _let_accelerate_shard_on_the_cpu(**environment: str) -> None:
    """Has accelerate 1.15 believe in two GPUs, because it switches FSDP off on the CPU, where PyTorch's works well."""
    os.environ.update(
        ACCELERATE_USE_FSDP="true",
        FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP",
        FSDP_CPU_RAM_EFFICIENT_LOADING="false",
        **environment,
    )
    torch.distributed.init_process_group("gloo")

    def set_device(self: PartialState) -> None:
        self.device = torch.device("cpu")

    def prepare_backend(self: PartialState, *_: Any, **__: Any) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_GPU

    PartialState.set_device = set_device
    PartialState._prepare_backend = prepare_backend


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
