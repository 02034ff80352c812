"""What the tests of schedules in the trainer share: quick runs that move their freeze state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_freeze.training import FreezeTrainer
from tests.tiny import tiny_bert
from tests.unit.training.runs import arguments, rows

DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
NUM_STEPS = 24
PHASES = [
    {"until": 0.3, "freeze": {"blocks": {"first": 2}}},
    {"until": {"step": 16}, "freeze": {"blocks": "all"}},
    {"freeze": {"blocks": {"first": 1}}},
]
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {"type": "progressive"},
    "exponential": {"type": "progressive", "curve": "exponential"},
    "autofreeze": {"type": "autofreeze", "intervals": 8, "percentile": 70},
    "plasticity": {"type": "plasticity", "every": 2, "threshold": 0.9, "measure": "cka"},
    "shuffled": {"type": "autofreeze", "intervals": 12, "blocks_per_decision": 1, "control": "shuffled"},
    "cubic": {"type": "progressive", "curve": "cubic", "t0": 0.3},
    "gradual_unfreeze": {"type": "gradual_unfreeze", "warmup": 4},
    "plateau": {"type": "plateau", "warmup": 3, "min_delta": 1.0},
    "rotating": {"type": "rotating", "every": 3, "order": "shuffle"},
    "rotating, state kept": {"type": "rotating", "every": 2, "reset_state": False},
    "phases": {"type": "phases", "phases": PHASES, "warmup": 3},
    "own": {"type": "tests.unit.schedules.own:Alternating", "every": 3},
}


def trainer_of(folder: Path, schedule: Mapping[str, Any], *, keywords: Any = None, **options: Any) -> FreezeTrainer:
    """A trainer of 24 steps in four epochs that evaluates every four steps and does not cache.

    Args:
        folder: Where it may write.
        schedule: The `schedule` section.
        keywords: Further arguments of the trainer.
        **options: Further training arguments.
    """
    settings = {"max_steps": NUM_STEPS, "eval_strategy": "steps", "eval_steps": 4, **options}
    defaults = {"train_dataset": rows(24), "eval_dataset": rows(8), "activation_cache": {"enabled": False}}
    return FreezeTrainer(
        tiny_bert(**DROPOUT), arguments(folder, **settings), schedule=schedule, **{**defaults, **(keywords or {})}
    )
