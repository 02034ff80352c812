"""What is gathered for schedules is what it says, changes nothing in training, and is freed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers import TrainerCallback

from hf_freeze.errors import PlanError
from hf_freeze.schedules import Choice, Moment, Schedule, Statistics
from hf_freeze.training import FreezeTrainer
from hf_freeze.training.gathering import pooled
from tests.tiny import tiny_bert, tiny_gpt2, tiny_t5
from tests.unit.training.runs import arguments, assert_same, logged, rows, state, values
from tests.unit.training.scheduled import SCHEDULES, trainer_of

HERE = "tests.unit.training.test_gathering"


class Noting(Schedule):
    """Needs everything at every other step, and notes it; freezes the first block at step 4."""

    needs = frozenset({"gradients", "drift", "probe"})
    noted: ClassVar[list[Statistics]] = []

    def is_due(self, moment: Moment) -> bool:
        return moment.step % 2 == 0

    def decide(self, moment: Moment) -> Choice | None:
        if moment.statistics.probe:
            self.noted.append(moment.statistics)
        return Choice(frozenset({"embeddings", "blocks[0]"}), "now") if moment.step == 4 else None


class NeedsMuch(Schedule):
    """Needs a statistic that does not exist."""

    needs = frozenset({"gradient"})


class Started(TrainerCallback):
    """Keeps the weights at the start."""

    def on_train_begin(self, *_: Any, **kwargs: Any) -> None:
        self.before = values(kwargs["model"])


@pytest.fixture(autouse=True)
def _noted() -> None:
    Noting.noted.clear()


def blocks_of(model: Any) -> dict[str, Any]:
    return {f"blocks[{index}]": block for index, block in enumerate(model.bert.encoder.layer)}


def still_trainer(folder: Path, **options: Any) -> FreezeTrainer:
    """A trainer whose weights do not move, over rows in order."""
    settings = {"learning_rate": 0.0, "train_sampling_strategy": "sequential", "max_steps": 5, "max_grad_norm": 1e-6}
    return FreezeTrainer(
        tiny_bert(),
        arguments(folder, **{**settings, **options}),
        train_dataset=rows(24),
        schedule={"type": f"{HERE}:Noting"},
        activation_cache={"enabled": False},
    )


def test_gradients_are_summed_whole_and_unclipped(tmp_path: Path) -> None:
    trainer = still_trainer(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    model, dataset = tiny_bert(), rows(24).with_format("torch")
    model.load_state_dict(trainer.model.state_dict())
    trainer.train()
    for step, statistics in zip((2, 4), Noting.noted[1:], strict=True):
        model.zero_grad()
        for start in (4 * (step - 2), 4 * (step - 1)):
            model(**dataset[start : start + 4]).loss.backward()
        for name, block in blocks_of(model).items():
            expected = sum(float(parameter.grad.abs().sum()) for parameter in block.parameters())
            assert statistics.gradients[name] == pytest.approx(expected, rel=1e-4)
    assert Noting.noted[0].gradients == {}


def test_the_probe_is_the_mean_output_of_each_block_for_the_same_rows(tmp_path: Path) -> None:
    trainer = still_trainer(tmp_path)
    trainer.train()
    first, second, _ = Noting.noted
    assert first.probe.keys() == second.probe.keys() == {"blocks[0]", "blocks[1]", "blocks[2]"}
    assert_same(dict(first.probe), dict(second.probe))
    outputs = trainer.model.eval()(**rows(24).with_format("torch")[:], output_hidden_states=True).hidden_states
    for index in range(3):
        expected, found = outputs[index + 1].mean(1), first.probe[f"blocks[{index}]"]
        assert torch.allclose(found, expected, atol=1e-5)


def test_drift_is_the_way_from_the_start(tmp_path: Path) -> None:
    trainer = still_trainer(tmp_path, learning_rate=1e-2, max_steps=4)
    start = Started()
    trainer.add_callback(start)
    trainer.train()
    assert set(Noting.noted[0].drift.values()) == {0.0}
    halfway = dict(Noting.noted[1].drift)
    again = still_trainer(tmp_path, learning_rate=1e-2, max_steps=4)
    again.add_callback(begun := Started())

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step == 2

    again.add_callback(Stop())
    again.train()
    now = values(again.model)
    for block in ("blocks[0]", "blocks[3]"):
        names = [name for name in now if f".layer.{block[7]}." in name]
        way = sum(float(((now[name] - begun.before[name]) ** 2).sum()) for name in names) ** 0.5
        length = sum(float((start.before[name] ** 2).sum()) for name in names) ** 0.5
        assert halfway[block] == pytest.approx(way / length, rel=1e-4)


def test_drift_goes_on_from_the_start_of_the_run_that_is_resumed(tmp_path: Path) -> None:
    options = {"learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 1}
    still_trainer(tmp_path, **options).train()
    whole = [dict(statistics.drift) for statistics in Noting.noted]
    Noting.noted.clear()
    still_trainer(tmp_path, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert [dict(statistics.drift) for statistics in Noting.noted] == whole[2:]


def test_gathering_changes_nothing_in_training(tmp_path: Path) -> None:
    phases = [{"until": {"step": 4}, "freeze": {"blocks": "none"}}, {"freeze": {"blocks": {"first": 1}}}]
    plain = trainer_of(tmp_path / "plain", {"type": "phases", "phases": phases, "warmup": 0})
    plain.train()
    gathering = trainer_of(tmp_path / "gathering", {"type": f"{HERE}:Noting"})
    gathering.train()
    assert len(Noting.noted) == 12
    assert logged(gathering, "loss") == logged(plain, "loss")
    assert_same(state(gathering.model), state(plain.model))


def test_what_is_frozen_is_freed_and_all_is_at_the_end(tmp_path: Path) -> None:
    trainer = still_trainer(tmp_path, max_steps=6)
    gatherer, held = trainer._controller._gatherer, []

    class Look(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            held.append({name for name in gatherer._sums if ".layer.0." in name})

    trainer.add_callback(Look())
    trainer.train()
    assert [bool(names) for names in held] == [True, True, True, True, False, False]
    assert not gatherer._sums
    assert not gatherer._start
    assert not gatherer._rows


def test_nothing_is_gathered_that_is_not_needed(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, SCHEDULES["linear"], save_strategy="steps", save_steps=12)
    trainer.train()
    assert trainer._controller.tensors() == {}
    assert not (tmp_path / "checkpoint-12" / "freeze_schedule.safetensors").exists()


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_t5], ids=["gpt2", "t5"])
def test_blocks_of_other_models_are_probed(tmp_path: Path, make: Any) -> None:
    trainer = FreezeTrainer(
        make(),
        arguments(tmp_path, max_steps=1),
        train_dataset=rows(8, labels="words"),
        schedule={"type": f"{HERE}:Noting"},
        activation_cache={"enabled": False},
    )
    trainer.train()
    (statistics,) = Noting.noted
    assert list(statistics.probe) == list(trainer._controller.scheduled.course.blocks[:-1])
    assert {output.shape[0] for output in statistics.probe.values()} == {8}


def test_padding_has_no_part_in_the_mean() -> None:
    hidden = torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    expected = torch.stack([hidden[0, :2].mean(0), hidden[1].mean(0)])
    assert torch.allclose(pooled(hidden, mask), expected)
    assert torch.allclose(pooled(hidden.transpose(0, 1), mask), expected)
    assert torch.allclose(pooled(hidden, None), hidden.mean(1))


def test_a_statistic_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    message = (
        f"schedule: {HERE}:NeedsMuch needs a statistic that is not gathered; got 'gradient'. There are drift, "
        "gradients, probe. Return some of these from needs. Did you mean 'gradients'?"
    )
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        trainer_of(tmp_path, {"type": f"{HERE}:NeedsMuch"}).train()
