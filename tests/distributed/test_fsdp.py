"""FSDP2 keeps a static plan: two processes with sharded weights train as one process does, and resume.

FSDP2 itself runs on the CPU with gloo; accelerate has to be told that it may (worker.py).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.distributed.launching import launch, session_folder
from tests.distributed.training_run import Record, Run, carry_out
from tests.tiny import tiny_batch, tiny_bert

pytestmark = pytest.mark.distributed

FREEZE = {"freeze": {"blocks": {"first": 2}}}
LORA = {"peft_type": "LORA", "target_modules": ["query", "value"], "r": 4, "blocks": {"last": 2}}
RUNS = [
    Run("classifier, frozen", "classifier", FREEZE),  # ends with an evaluation: that leaves units unsharded by itself
    Run("classifier, frozen, resumed", "classifier", FREEZE, resumed_at=12, monitored_every=4),
    Run("language, frozen", "language", FREEZE, resumed_at=12),
    Run("language, frozen, accumulated", "language", FREEZE, accumulation=2, monitored_every=5),
    Run("classifier, adapted", "classifier", {**FREEZE, "adapters": [LORA]}, resumed_at=12),
]
AUTO_CLASSES = {"classifier": AutoModelForSequenceClassification, "language": AutoModelForCausalLM}
Records = dict[str, list[Record]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return session_folder(tmp_path_factory.getbasetemp()) / "fsdp"


@pytest.fixture(scope="module")
def seen(folder: Path) -> Records:
    return launch(RUNS, folder, backend="fsdp2")


def names(runs: list[Run]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("run", runs, ids=lambda run: run.name)


@names(RUNS)
def test_losses_gradient_norms_and_evaluations_equal_one_process(seen: Records, tmp_path: Path, run: Run) -> None:
    one = carry_out(run, tmp_path, num_processes=1)
    two = seen[run.name][0]
    assert len(two.losses) == 20
    np.testing.assert_allclose(two.losses, one.losses, rtol=0, atol=1e-4)
    np.testing.assert_allclose(two.gradient_norms, one.gradient_norms, rtol=0, atol=1e-3)
    np.testing.assert_allclose(two.evaluations, one.evaluations, rtol=0, atol=1e-4)


@names([run for run in RUNS if run.monitored_every is not None])
def test_the_monitor_measures_sharded_weights_as_whole_ones(seen: Records, tmp_path: Path, run: Run) -> None:
    """Every process takes part, the main process logs; a resumed run measures what the whole one did."""
    one = carry_out(run, tmp_path, num_processes=1).monitored
    two, other = (record.monitored for record in seen[run.name])
    assert len(two) >= 4
    assert [entry.keys() for entry in two] == [entry.keys() for entry in one]
    for mine, theirs in zip(two, one, strict=True):
        np.testing.assert_allclose(list(mine.values()), list(theirs.values()), rtol=1e-3, atol=1e-5)
    assert other == []
    if run.resumed_at is not None:
        resumed = seen[run.name][0].resumed_monitored
        assert len(resumed) == 2
        assert resumed == [entry for entry in two if entry["step"] > run.resumed_at]


@names(RUNS)
def test_what_trains_moves_and_nothing_else(seen: Records, run: Run) -> None:
    for record in seen[run.name]:
        assert sorted(record.moved) == sorted(record.trained)
        assert record.frozen


@names(RUNS)
def test_each_process_keeps_half_of_the_weights(seen: Records, run: Run) -> None:
    assert [record.share for record in seen[run.name]] == pytest.approx([0.5, 0.5], abs=0.01)


@names([run for run in RUNS if run.resumed_at is not None])
def test_resumed_equals_uninterrupted(seen: Records, run: Run) -> None:
    for record in seen[run.name]:
        assert record.resumed_losses == record.losses[12:]
        assert record.resumed_weights == record.weights


@names([run for run in RUNS if run.resumed_at is not None and "adapters" not in run.keywords])
def test_a_changed_plan_is_not_resumed(seen: Records, run: Run) -> None:
    for record in seen[run.name]:
        assert "this checkpoint was written under another plan; got one in which blocks[2] was" in record.refusal


@names([run for run in RUNS if "adapters" not in run.keywords])
def test_the_saved_folder_loads(seen: Records, folder: Path, run: Run) -> None:
    model = AUTO_CLASSES[run.model].from_pretrained(folder / run.name / "model").eval()
    assert_same_logits(model, seen[run.name][0])


@names([run for run in RUNS if "adapters" in run.keywords])
def test_the_saved_adapters_load_in_peft(seen: Records, folder: Path, run: Run) -> None:
    model = peft.PeftModel.from_pretrained(tiny_bert(), folder / run.name / "model").eval()
    assert_same_logits(model, seen[run.name][0])


@torch.no_grad()
def assert_same_logits(model: torch.nn.Module, record: Record) -> None:
    torch.testing.assert_close(model(**tiny_batch()).logits, torch.tensor(record.logits), rtol=0, atol=1e-5)
