"""Trains in one of several processes and pushes to a Hub while it does; started by test_push.py.

The only argument is JSON: `backend` ("ddp" or "fsdp2"), `num_processes`, `folder` and `model`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_freeze.errors import ShareError
from hf_freeze.training import FreezeTrainer, pushing
from tests.distributed.worker import meet
from tests.unit.training.runs import arguments, rows


def push(task: dict[str, Any], repo: str) -> dict[str, Any]:
    """Trains for two steps, saves and pushes after each and at the end, and returns what this process saw."""
    AcceleratorState._reset_state()  # It keeps the classes that FSDP wraps, and the next model has others.
    try:
        trainer = trainer_for(task, repo)
        trainer.train()
        return {"steps": trainer.state.global_step, "address": trainer.push_to_hub()}
    except ShareError as error:
        return {"error": str(error)}


def trainer_for(task: dict[str, Any], repo: str) -> FreezeTrainer:
    """A trainer that pushes while it trains."""
    settings = {"save_strategy": "steps", "save_steps": 1, "hub_strategy": "checkpoint", "hub_always_push": True}
    return FreezeTrainer(
        AutoModelForSequenceClassification.from_pretrained(task["model"]),
        arguments(Path(task["folder"], Path(repo).name), max_steps=2, push_to_hub=True, hub_model_id=repo, **settings),
        train_dataset=rows(),
        processing_class=AutoTokenizer.from_pretrained(task["model"]),
        freeze={"blocks": {"first": 2}},
        activation_cache={"enabled": False},
    )


def main(task: dict[str, Any]) -> None:
    """Pushes to a repo that takes it, to one that does not, and to one that cannot be made."""
    state = meet(task)
    pushing._MEETING = 0.02  # They meet more than once, as they do where an upload takes long.
    seen = {repo: push(task, repo) for repo in ("taken", "refused", "someone/model")}
    state.wait_for_everyone()  # Whatever failed in one process, the others are there.
    (Path(task["folder"]) / f"rank-{state.process_index}.json").write_text(json.dumps(seen))
    state.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
