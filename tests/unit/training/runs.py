"""What the trainer tests share: a small data set, training arguments, and what a run logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_freeze.plan import plan_of
from hf_freeze.plan.wrappers import named_parameters


def rows(number: int = 64, *, length: int = 10, labels: str = "classes") -> Dataset:
    """Rows of random words: with a class each, or with themselves as labels of a language model."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(5, 99, (number, length), generator=generator).tolist()
    classes = torch.randint(0, 2, (number,), generator=generator).tolist()
    columns = {"input_ids": words, "attention_mask": [[1] * length] * number}
    return Dataset.from_dict({**columns, "labels": classes if labels == "classes" else words})


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    """Training arguments for a quick, reproducible run on the CPU that logs every step."""
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "seed": 3,
    }
    return TrainingArguments(**{**defaults, **options})


def logged(trainer: Trainer, key: str) -> list[float]:
    """The values of one key in the order in which they were logged."""
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def monitored(trainer: Trainer) -> list[dict[str, float]]:
    """What the monitor logged, without its prefix and with the step, in the order in which it was logged."""
    entries = [entry for entry in trainer.state.log_history if any(name.startswith("monitor/") for name in entry)]
    return [
        {name.removeprefix("monitor/"): value for name, value in entry.items() if name != "epoch"} for entry in entries
    ]


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every parameter by canonical name."""
    return {name: parameter.detach().clone() for name, parameter in named_parameters(model)}


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the whole state dict."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Asserts equality to the bit."""
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def assert_followed(model: nn.Module, before: dict[str, torch.Tensor], *, unused: tuple[str, ...] = ()) -> None:
    """Asserts that what the plan freezes is bit-equal, and that all else has moved.

    Args:
        model: The model that carries the plan.
        before: Its values before training.
        unused: Parameters that train but that the model does not reach.
    """
    plan, after = plan_of(model), values(model)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert sorted(moved & set(plan.frozen_names)) == []
    assert sorted(set(plan.trainable_names) - moved - set(unused)) == []
