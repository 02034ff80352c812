"""Two processes of DistributedDataParallel train as one process does, follow the plan on every rank, and resume.

The global batch is the same and every dropout is 0, except where a resumed run is compared with itself.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification

from tests.distributed.launching import launch, session_folder
from tests.distributed.training_run import Record, Run, carry_out
from tests.tiny import tiny_batch, tiny_bert

pytestmark = pytest.mark.distributed

FREEZE = {"freeze": {"blocks": {"first": 2}}}
LORA = {"peft_type": "LORA", "target_modules": ["query", "value"], "r": 4, "blocks": {"last": 2}}
RUNS = [
    Run("classifier", "classifier"),
    Run("classifier, frozen", "classifier", FREEZE),
    Run("classifier, frozen, accumulated", "classifier", FREEZE, accumulation=2, monitored_every=5),
    Run("classifier, frozen, checkpointed", "classifier", FREEZE, {"activation_checkpointing": True}),
    Run("classifier, frozen, adapted", "classifier", {**FREEZE, "adapters": [LORA]}),
    Run("language, frozen", "language", FREEZE),
    Run("language, frozen, accumulated", "language", FREEZE, accumulation=2),
    Run("tokens, frozen", "tokens", FREEZE),
    Run("tokens, frozen, accumulated", "tokens", FREEZE, accumulation=2),
    Run("few tokens, frozen", "few tokens", FREEZE),
    Run("few tokens, frozen, accumulated", "few tokens", FREEZE, accumulation=4),
]
RESUMED = [
    Run("resumed, frozen", "classifier", FREEZE, num_steps=10, dropout=0.1, resumed_at=7),
    Run("resumed, adapted", "classifier", {**FREEZE, "adapters": [LORA]}, num_steps=10, dropout=0.1, resumed_at=7),
]
AUTO_CLASSES = {
    "classifier": AutoModelForSequenceClassification,
    "language": AutoModelForCausalLM,
    "tokens": AutoModelForTokenClassification,
    "few tokens": AutoModelForTokenClassification,
}
Records = dict[str, list[Record]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return session_folder(tmp_path_factory.getbasetemp()) / "ddp"


@pytest.fixture(scope="module")
def seen(folder: Path) -> Records:
    return launch([*RUNS, *RESUMED], folder, backend="ddp")


def names(runs: list[Run]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("run", runs, ids=lambda run: run.name)


@names(RUNS)
def test_losses_gradient_norms_and_evaluations_equal_one_process(seen: Records, tmp_path: Path, run: Run) -> None:
    one = carry_out(run, tmp_path, num_processes=1)
    two = seen[run.name][0]
    assert len(two.losses) == len(two.gradient_norms) == 20
    np.testing.assert_allclose(two.losses, one.losses, rtol=0, atol=1e-4)
    np.testing.assert_allclose(two.gradient_norms, one.gradient_norms, rtol=0, atol=1e-3)
    assert len(two.evaluations) == 2
    np.testing.assert_allclose(two.evaluations, one.evaluations, rtol=0, atol=1e-4)


def test_the_monitor_of_the_main_process_measures_what_one_process_would(seen: Records, tmp_path: Path) -> None:
    (run,) = [run for run in RUNS if run.monitored_every is not None]
    one = carry_out(run, tmp_path, num_processes=1).monitored
    two, other = (record.monitored for record in seen[run.name])
    assert [entry["step"] for entry in two] == [5, 10, 15, 20]
    assert [entry.keys() for entry in two] == [entry.keys() for entry in one]
    for mine, theirs in zip(two, one, strict=True):
        np.testing.assert_allclose(list(mine.values()), list(theirs.values()), rtol=1e-3, atol=1e-5)
    assert other == []


@names([*RUNS, *RESUMED])
def test_every_rank_moves_what_trains_and_nothing_else(seen: Records, run: Run) -> None:
    for record in seen[run.name]:
        assert sorted(record.moved) == sorted(record.trained)
        assert set(record.weights) == {*record.frozen, *record.trained}
        assert bool(record.frozen) == bool(run.keywords)


@names([*RUNS, *RESUMED])
def test_all_ranks_hold_the_same_weights(seen: Records, run: Run) -> None:
    first, second = seen[run.name]
    assert first.weights == second.weights


@names(RESUMED)
def test_resumed_equals_uninterrupted_to_the_bit(seen: Records, run: Run) -> None:
    for record in seen[run.name]:
        assert len(record.resumed_losses) == 3
        assert record.resumed_losses == record.losses[7:]
        assert record.resumed_weights == record.weights


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
