"""What is chosen before training is chosen once, trained, stored, and kept when a run is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from hf_freeze.plan.automatic import Chosen
from hf_freeze.training import FreezeTrainer, checkpoint
from tests.tiny import tiny_bert
from tests.unit.training.runs import arguments, assert_followed, assert_same, rows, values

SNR = {"blocks": {"auto": {"by": "snr"}}}


def trainer(
    folder: Path, freeze: dict[str, Any], *, model: PreTrainedModel | None = None, **options: Any
) -> FreezeTrainer:
    settings = {"save_strategy": "steps", "save_steps": 2, **options}
    return FreezeTrainer(
        tiny_bert() if model is None else model, arguments(folder, **settings), train_dataset=rows(), freeze=freeze
    )


def test_what_was_chosen_trains_and_nothing_else(tmp_path: Path) -> None:
    made = trainer(tmp_path, SNR)
    before = values(made.model)
    made.train()
    assert made.plan.chosen is not None
    assert_followed(made.model, before)


def test_it_is_printed_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = trainer(tmp_path, SNR, disable_tqdm=False)
    made.train()
    written = "".join(capfd.readouterr()).splitlines()
    assert made.plan.chosen is not None
    assert [written.count(line) for line in made.plan.chosen.lines] == [1] * len(made.plan.chosen.lines)


def test_a_model_that_is_made_anew_gets_the_plan_that_was_chosen(tmp_path: Path) -> None:
    made = FreezeTrainer(model_init=lambda: tiny_bert(), args=arguments(tmp_path), train_dataset=rows(), freeze=SNR)
    chosen = made.plan.chosen
    made.train()
    assert chosen is not None
    assert made.plan.chosen == chosen


def test_a_schedule_starts_from_what_was_chosen(tmp_path: Path) -> None:
    made = FreezeTrainer(
        tiny_bert(), arguments(tmp_path, max_steps=8), train_dataset=rows(), freeze=SNR,
        schedule={"type": "gradual_unfreeze"},
    )  # fmt: skip
    assert made.plan.chosen is not None
    assert set(made.plan.trainable_names) >= set(made.plan.chosen.section.always_train)


@pytest.mark.parametrize("asked_in", ["arguments", "train"])
def test_a_run_that_is_resumed_does_not_choose_again(tmp_path: Path, asked_in: str) -> None:
    """Other weights would be chosen from the model that is resumed with: those of the checkpoint count."""
    whole = trainer(tmp_path, SNR)
    whole.train()
    folder = str(tmp_path / "checkpoint-2")
    model = tiny_bert()
    with torch.no_grad():
        for parameter in model.bert.encoder.layer[0].parameters():
            if parameter.ndim == 2:
                parameter += torch.outer(torch.ones(len(parameter)), torch.linspace(-1, 1, parameter.shape[1]))
    resumed = trainer(tmp_path, SNR, model=model, resume_from_checkpoint=folder if asked_in == "arguments" else None)
    if asked_in == "arguments":
        assert resumed.plan.chosen == whole.plan.chosen
    else:
        assert resumed.plan.chosen != whole.plan.chosen
    model.load_state_dict(tiny_bert().state_dict())  # the frozen weights are those of the run again
    resumed.train(resume_from_checkpoint=folder)
    assert resumed.plan.chosen == whole.plan.chosen
    assert_same(values(resumed.model), values(whole.model))


def test_checkpoints_say_what_was_chosen(tmp_path: Path) -> None:
    made = trainer(tmp_path, SNR)
    made.train()
    found = checkpoint.read_chosen(tmp_path / "checkpoint-4")
    assert isinstance(found, Chosen)
    assert found == made.plan.chosen
