"""The scale of a loss that ignores `num_items_in_batch`, where micro-batches differ in how many labels they have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForTokenClassification, PreTrainedModel

from hf_freeze.training import FreezeTrainer
from hf_freeze.training.loss import count_items, loss_responds, scale_loss
from tests.tiny import tiny_batch, tiny_bert, tiny_llama
from tests.unit.training.runs import arguments, logged, rows

NO_LABEL = torch.full((2, 10), -100)


def tiny_tagger() -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForTokenClassification.from_config(tiny_bert().config)
    return model


def test_accumulation_over_micro_batches_without_labels_equals_one_large_batch(
    tmp_path: Path,
) -> None:
    """The first of them has none: it must neither decide about the scale nor spoil the sum."""
    labels = [[-100] * 10, [0, 1, *[-100] * 8], [-100] * 10, [1] * 10] * 3
    dataset = rows(len(labels)).remove_columns("labels").add_column("labels", labels)
    runs = []
    for batch, accumulation in ((4, 1), (1, 4)):
        options = {
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": accumulation,
            "max_steps": 3,
            "train_sampling_strategy": "sequential",
        }
        trainer = FreezeTrainer(tiny_tagger(), arguments(tmp_path, **options), train_dataset=dataset)
        trainer.train()
        runs.append((logged(trainer, "loss"), logged(trainer, "grad_norm")))
    np.testing.assert_allclose(runs[0], runs[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("labels", [NO_LABEL, torch.ones(2, 10, dtype=torch.long)], ids=["no label", "labels"])
def test_whether_a_loss_responds_does_not_hang_on_the_labels_at_hand(labels: torch.Tensor) -> None:
    batch = {**tiny_batch(), "labels": labels}
    assert loss_responds(tiny_tagger(), batch, torch.tensor(20)) is False
    assert loss_responds(tiny_llama(), batch, torch.tensor(20)) is True
    assert torch.equal(batch["labels"], labels)


@pytest.mark.parametrize(
    ("inputs", "shifted", "count"),
    [
        ({"labels": torch.tensor([1, 0, -100])}, False, 2),
        ({"labels": torch.tensor([[1, 2, -100], [3, -100, -100]])}, False, 3),
        ({"labels": torch.tensor([[1, 2, -100], [3, -100, -100]])}, True, 1),
        ({"labels": torch.zeros(1, 2), "shift_labels": torch.tensor([[5, -100]])}, True, 1),
        ({"labels": torch.tensor([[0.0, 1.0], [1.0, 0.0]])}, False, 4),
        ({"labels": NO_LABEL}, False, 0),
    ],
)
def test_labels_that_count(inputs: dict[str, torch.Tensor], shifted: bool, count: int) -> None:
    assert count_items(inputs, shifted=shifted).item() == count


def test_a_micro_batch_without_labels_adds_nothing() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    loss = nn.functional.cross_entropy(logits, torch.full((4,), -100))
    scaled = scale_loss(loss, torch.tensor(0.0))
    scaled.backward()
    assert loss.isnan()
    assert scaled.item() == 0
    assert torch.equal(logits.grad, torch.zeros(4, 3))


def test_a_loss_that_is_not_a_number_is_shown_where_there_are_labels() -> None:
    assert scale_loss(torch.tensor(float("nan")), torch.tensor(0.5)).isnan()
