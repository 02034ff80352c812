"""What is chosen before training is chosen once, trained, stored, and kept when a run is resumed."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from hf_freeze.errors import PlanError
from hf_freeze.plan import plan_of
from hf_freeze.plan.automatic import Chosen
from hf_freeze.training import FreezeTrainer, checkpoint
from hf_freeze.training.budget_choice import Reading, smallest_depth
from hf_freeze.training.gradient_choice import num_frozen
from tests.tiny import tiny_bert, tiny_t5
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
        tiny_bert(), arguments(tmp_path, max_steps=8), train_dataset=rows(), freeze=gradient(train_top=0.3),
        schedule={"type": "gradual_unfreeze"},
    )  # fmt: skip
    assert made.plan.chosen is not None
    assert made.plan.depth == made.plan.chosen.section.blocks.value > 1


@pytest.mark.parametrize("kind", ["gradual_unfreeze", "autofreeze", "tests.unit.schedules.own:Alternating"])
def test_single_weights_are_not_chosen_beside_a_schedule(tmp_path: Path, kind: str) -> None:
    message = (
        f"freeze.blocks.auto: chooses single weights, and schedules move whole blocks; got 'snr' beside the schedule "
        f"{kind!r}. Leave the schedule out, choose by gradient, or write which blocks are frozen."
    )
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        FreezeTrainer(tiny_bert(), arguments(tmp_path), train_dataset=rows(), freeze=SNR, schedule={"type": kind})


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


def gradient(**options: float) -> dict[str, Any]:
    return {"blocks": {"auto": {"by": "gradient", **options}}}


def budget(**target: Any) -> dict[str, Any]:
    return {"blocks": {"auto": {"by": "budget", **target}}}


@pytest.mark.parametrize("section", [gradient(), budget(seconds=3600), SNR], ids=["gradient", "budget", "snr"])
def test_choosing_leaves_weights_and_random_streams_as_they_were(tmp_path: Path, section: dict[str, Any]) -> None:
    dropping = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    model = tiny_bert(**dropping)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer(tmp_path / "plain", {"blocks": "none"}, model=tiny_bert(**dropping))
    expected = torch.get_rng_state(), random.getstate()
    made = trainer(tmp_path, section, model=model)
    assert torch.equal(torch.get_rng_state(), expected[0])
    assert random.getstate() == expected[1]
    assert_same(dict(made.model.state_dict()), before)
    assert all(parameter.grad is None for parameter in made.model.parameters())
    assert made.plan.chosen is not None


def test_training_after_choosing_equals_training_with_the_section_that_was_chosen(tmp_path: Path) -> None:
    chosen = trainer(tmp_path / "auto", gradient(train_top=0.6))
    chosen.train()
    assert chosen.plan.chosen is not None
    plain = trainer(tmp_path / "plain", chosen.plan.chosen.section.model_dump(exclude_defaults=True))
    plain.train()
    assert plain.plan.digest == chosen.plan.digest
    assert_same(values(plain.model), values(chosen.model))


def test_blocks_with_small_gradients_for_their_weights_are_frozen(tmp_path: Path) -> None:
    model = tiny_bert()
    with torch.no_grad():
        for index in (0, 1):  # weights a hundred times as large have a hundredth of the relative gradient, or less
            for parameter in model.bert.encoder.layer[index].parameters():
                parameter.mul_(100)
    made = trainer(tmp_path, gradient(train_top=0.9), model=model)
    assert made.plan.depth == 2
    assert made.plan.chosen is not None
    assert made.plan.chosen.lines[0] == (
        "freeze.blocks.auto: the first 2 of 4 blocks are frozen: those after them have 90% of all relative gradients "
        "at least (gradient)."
    )


def test_the_smallest_suffix_with_the_share_trains() -> None:
    scores = [1.0, 1.0, 2.0, 6.0]
    found = {share: num_frozen(scores, share) for share in (0.1, 0.6, 0.61, 0.8, 0.9, 0.95, 1.0)}
    assert found == {0.1: 3, 0.6: 3, 0.61: 2, 0.8: 2, 0.9: 1, 0.95: 0, 1.0: 0}


def test_bisection_finds_the_smallest_depth() -> None:
    for num_blocks in range(1, 14):
        for first in range(num_blocks):
            readings = [Reading(float(depth), depth >= first) for depth in range(num_blocks)]
            assert smallest_depth(num_blocks, readings.__getitem__) == first
    assert smallest_depth(6, lambda depth: Reading(0.0, meets=False)) is None
    # Freezing may cost more than it saves.
    assert smallest_depth(6, lambda depth: Reading(0.0, meets=depth == 0)) == 0


def test_memory_that_everything_fits_in_freezes_nothing(tmp_path: Path) -> None:
    made = trainer(tmp_path, budget(memory="1 TB"))
    assert made.plan.depth == 0
    assert made.plan.start.frozen == ()


@pytest.mark.parametrize(
    ("name", "target", "shown", "best"),
    [
        ("speedup", 1000, "1000", r"\d+\.\d\d times as fast as full fine-tuning"),
        ("memory", "1 MB", "1.0 MB", r"[\d.]+ .B"),
        ("seconds", 1e-6, "1e-06", r"0\.\d+ seconds"),
    ],
)
def test_a_target_that_nothing_meets_is_refused_with_the_best(
    tmp_path: Path, name: str, target: Any, shown: str, best: str
) -> None:
    message = (
        rf"freeze\.blocks\.auto\.{name}: no number of frozen blocks meets it; got {re.escape(shown)}\. At best, "
        rf"with [03] of 4 blocks frozen, it is {best}\. Ask for that, or train the head alone \(freeze\.blocks: all\)\."
    )
    with pytest.raises(PlanError, match=f"^{message}$"):
        trainer(tmp_path, budget(**{name: target}))


def test_what_is_reached_at_best_may_be_reached_without_freezing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter((0.95, 1.0))
    monkeypatch.setattr("hf_freeze.training.budget_choice._Bench.reading", lambda *_: Reading(next(found), meets=False))
    message = (
        "freeze.blocks.auto.speedup: no number of frozen blocks meets it; got 1000. At best, with 0 of 4 blocks "
        "frozen, it is 1.00 times as fast as full fine-tuning. Ask for that, or train the head alone (freeze.blocks: "
        "all)."
    )
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        trainer(tmp_path, budget(speedup=1000))


@pytest.mark.parametrize("section", [gradient(), budget(speedup=2)], ids=["gradient", "budget"])
def test_rows_that_fill_no_batch_are_said(tmp_path: Path, section: dict[str, Any]) -> None:
    by = section["blocks"]["auto"].get("by")
    message = (
        f"freeze.blocks.auto: choosing by {by} takes batches of training rows; got none of 65 rows. "
        "dataloader_drop_last is True. Take more rows or smaller batches, or say which blocks are frozen."
    )
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        trainer(tmp_path, section, per_device_train_batch_size=65, dataloader_drop_last=True)


@pytest.mark.parametrize(
    ("section", "weight", "message"),
    [
        (
            SNR,
            "bert.encoder.layer.1.output.dense.weight",
            (
                r"freeze\.blocks\.auto: this weight cannot be scored, as it is not finite; got bert\.encoder\.layer\.1"
                r"\.output\.dense\. snr takes the singular values of every linear weight in a block\. Load a model "
                r"whose weights are sound\."
            ),
        ),
        (
            gradient(),
            "classifier.weight",
            (
                r"freeze\.blocks\.auto: nothing can be chosen by gradients that are not finite; got blocks\[0\] nan, .*"
                r"blocks\[3\] nan\. The weights, the loss or training\.learning_rate, with which the head was warmed "
                r"up, are at fault\. Correct them, or say which blocks are frozen\."
            ),
        ),
    ],
    ids=["snr", "gradient"],
)
def test_nothing_is_chosen_by_what_is_not_finite(
    tmp_path: Path, section: dict[str, Any], weight: str, message: str
) -> None:
    model = tiny_bert()
    with torch.no_grad():
        model.get_parameter(weight).fill_(float("nan"))
    with pytest.raises(PlanError, match=f"^{message}$"):
        trainer(tmp_path, section, model=model)


def test_choosing_by_rows_needs_rows(tmp_path: Path) -> None:
    message = (
        "freeze.blocks.auto: choosing by gradient takes training rows; got train_dataset=None. Pass them to the "
        "trainer, or say which blocks are frozen."
    )
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        FreezeTrainer(tiny_bert(), arguments(tmp_path), freeze=gradient())


def test_two_stacks_are_one_row_of_blocks(tmp_path: Path) -> None:
    made = FreezeTrainer(
        tiny_t5(), arguments(tmp_path), train_dataset=rows(labels="words"), freeze=gradient(train_top=0.3)
    )
    assert made.plan.chosen is not None
    assert list(made.plan.chosen.scores) == [
        f"{stack}.blocks[{i}]" for stack in ("encoder", "decoder") for i in range(4)
    ]
    assert plan_of(made.model).treatments["encoder.blocks[0]"] == "frozen"
