"""FSDP version 1 keeps a static plan: two processes with sharded weights train as one process does, and resume.

It runs on the CPU with gloo as version 2 does, but writes no whole model there (worker.py).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.distributed.launching import launch, session_folder
from tests.distributed.training_run import Record, Run, carry_out

pytestmark = pytest.mark.distributed

FREEZE = {"freeze": {"blocks": {"first": 2}}}
LORA = {"peft_type": "LORA", "target_modules": ["query", "value"], "r": 4, "blocks": {"last": 2}}
RUNS = [
    Run("classifier, frozen", "classifier", FREEZE, resumed_at=12),
    Run("language, frozen, accumulated", "language", FREEZE, accumulation=2),
    Run("classifier, adapted", "classifier", {**FREEZE, "adapters": [LORA]}),
    Run("classifier, multiplied", "classifier", {**FREEZE, "lr_multipliers": {"block_decay": 0.9}}),
]
Records = dict[str, list[Record]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Records:
    return launch(RUNS, session_folder(tmp_path_factory.getbasetemp()) / "fsdp1", backend="fsdp1")


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_two_processes_equal_one(seen: Records, tmp_path: Path, run: Run) -> None:
    one = carry_out(run, tmp_path, num_processes=1)
    for two in seen[run.name]:
        assert len(two.losses) == len(two.gradient_norms) == 20
        np.testing.assert_allclose(two.losses, one.losses, rtol=0, atol=1e-4)
        np.testing.assert_allclose(two.gradient_norms, one.gradient_norms, rtol=0, atol=1e-3)
        np.testing.assert_allclose(two.evaluations, one.evaluations, rtol=0, atol=1e-4)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_what_trains_moves_and_nothing_else(seen: Records, run: Run) -> None:
    first, second = seen[run.name]
    assert first.weights == second.weights
    assert sorted(first.moved) == sorted(first.trained)
    assert first.frozen


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_each_process_keeps_half_of_the_weights(seen: Records, run: Run) -> None:
    assert [record.share for record in seen[run.name]] == pytest.approx([0.5, 0.5], abs=0.01)


@pytest.mark.parametrize("run", [run for run in RUNS if run.resumed_at is not None], ids=lambda run: run.name)
def test_resumed_equals_uninterrupted(seen: Records, run: Run) -> None:
    for record in seen[run.name]:
        assert len(record.resumed_losses) == 8
        assert record.resumed_losses == record.losses[12:]
        assert record.resumed_weights == record.weights
