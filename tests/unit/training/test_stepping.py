from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from hf_freeze import freeze_model
from hf_freeze.training.stepping import Steps
from tests.tiny import tiny_batch, tiny_bert


@pytest.mark.parametrize("checkpoints", [False, True])
def test_steps_that_are_measured_compute_again_what_those_of_the_run_do(tmp_path: Path, checkpoints: bool) -> None:
    model = freeze_model(tiny_bert(), {"blocks": {"first": 2}})
    calls: Counter[int] = Counter()
    for index in range(4):
        inner = model.get_submodule(f"bert.encoder.layer.{index}.attention.self.query")
        inner.register_forward_hook(lambda *_, index=index: calls.update([index] if torch.is_grad_enabled() else []))
    args = TrainingArguments(output_dir=str(tmp_path), activation_checkpointing=checkpoints, use_cpu=True)
    batch = {**tiny_batch(rows=2, length=10), "labels": torch.zeros(2, dtype=torch.long)}
    timing = Steps(batch, args, device=torch.device("cpu"), precision="no").timing(model)
    again = 2 if checkpoints else 1
    assert calls == {0: 5, 1: 5, 2: 5 * again, 3: 5 * again}
    assert 0 < timing.prefix_step < timing.step
    assert not model.is_activation_checkpointing
