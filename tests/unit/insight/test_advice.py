"""Advice follows from the record, with the numbers behind it, and not from noise."""

from __future__ import annotations

from typing import Any

import pytest

from hf_freeze.insight.advice import Advice, Record, advise, hardly_move, overfits, stays_high

FALLING = [(100, 0.6), (200, 0.4), (300, 0.2)]


def record(
    losses: list[tuple[int, float]] | None = None,
    evaluations: list[tuple[int, float]] | None = None,
    drifts: dict[str, float] | None = None,
) -> Record:
    return Record(losses or [], {"eval_loss": evaluations or []}, drifts or {})


def test_evaluation_that_rises_while_training_falls_asks_for_more_frozen_blocks() -> None:
    assert overfits(FALLING, [(100, 0.5), (200, 0.52), (300, 0.55)], name="eval_loss") == Advice(
        "overfits",
        "eval_loss",
        "eval_loss rises while the training loss falls: 0.5 at step 100 was the lowest, and it is 0.55 at step 300; "
        "the training loss went from 0.6 before to 0.3 after. Freeze more blocks, or train for fewer steps.",
    )


@pytest.mark.parametrize(
    ("losses", "evaluations"),
    [
        pytest.param(FALLING, [(100, 0.5), (200, 0.6)], id="two evaluations"),
        pytest.param(FALLING, [(100, 0.5), (200, 0.7), (300, 0.6)], id="it falls again"),
        pytest.param(FALLING, [(100, 0.5), (200, 0.504), (300, 0.509)], id="less than 2 %"),
        pytest.param([(100, 0.2), (200, 0.4)], [(100, 0.5), (200, 0.6), (300, 0.7)], id="training rises too"),
        pytest.param([], [(100, 0.5), (200, 0.6), (300, 0.7)], id="no training loss"),
        pytest.param(FALLING[1:], [(100, 0.5), (200, 0.6), (300, 0.7)], id="none before the lowest"),
    ],
)
def test_evaluation_that_does_not_rise_beyond_noise_asks_for_nothing(losses: Any, evaluations: Any) -> None:
    assert overfits(losses, evaluations, name="eval_loss") is None


def test_a_loss_that_has_hardly_fallen_asks_for_fewer_frozen_blocks() -> None:
    losses = [(step, 0.69 - step * 1e-5) for step in range(100, 900, 100)]
    assert stays_high(losses, chance=0.6931) == Advice(
        "stays high",
        "loss",
        "The training loss stays high: it was 0.6885 over the first quarter of the steps so far, and is 0.6825 over "
        "the last (guessing gives 0.6931). Freeze fewer blocks, or raise training.learning_rate.",
    )
    advice = stays_high([(100, 2.5), (200, 2.5), (300, 2.5), (400, 2.5)], chance=None)
    assert advice is not None
    assert advice.text == (
        "The training loss stays high: it was 2.5 over the first quarter of the steps so far, and is 2.5 over the "
        "last. Freeze fewer blocks, or raise training.learning_rate."
    )


@pytest.mark.parametrize(
    ("values", "chance"),
    [
        pytest.param([0.69, 0.69, 0.69], 0.6931, id="three losses"),
        pytest.param([0.69, 0.66, 0.65, 0.65], 0.6931, id="fallen by more than 5 %"),
        pytest.param([0.2, 0.2, 0.2, 0.2], 0.6931, id="low from the start"),
    ],
)
def test_a_loss_that_fell_or_is_low_asks_for_nothing(values: list[float], chance: float) -> None:
    assert stays_high([(100 * i, value) for i, value in enumerate(values, start=1)], chance=chance) is None


def test_a_role_that_hardly_moves_beside_others_is_to_be_frozen() -> None:
    assert hardly_move({"blocks[2]": 5e-4, "blocks[3]": 2e-3, "head": 0.041}) == [
        Advice(
            "hardly moves",
            "blocks[2]",
            "blocks[2] hardly moves: its weights are 0.05% from where they started, and those of head 4.10%. Freeze "
            "it, or raise its learning rate.",
        )
    ]


def test_roles_that_move_alike_ask_for_nothing() -> None:
    assert hardly_move({"blocks[2]": 5e-4, "head": 4e-3}) == []
    assert hardly_move({"head": 1e-5}) == []
    assert hardly_move({}) == []


def test_little_is_said_early() -> None:
    """The first steps say nothing, and before half of the run neither the loss nor the drift does."""
    losses = [(10 * i, 0.69) for i in range(1, 9)]
    shown = record(losses, [(10, 0.5), (20, 0.6), (30, 0.7)], {"blocks[0]": 0.0, "head": 1.0})
    assert advise(shown, step=49, num_steps=50, chance=None) == []
    late = advise(shown, step=50, num_steps=100, chance=None)
    assert [advice.kind for advice in late] == ["stays high", "hardly moves"]
    shown = record(FALLING, [(100, 0.5), (200, 0.6), (300, 0.7)], {"blocks[0]": 0.0, "head": 1.0})
    assert [advice.kind for advice in advise(shown, step=300, num_steps=601, chance=None)] == ["overfits"]


def test_the_record_of_a_resumed_run_is_that_of_its_history() -> None:
    history = [
        {"loss": 0.7, "grad_norm": 1.0, "epoch": 0.5, "step": 10},
        {"eval_loss": 0.6, "eval_accuracy": 0.7, "step": 10},
        {"eval_other_loss": 0.5, "step": 10},
        {"monitor/drift/blocks[1]": 0.01, "monitor/grad_norm/blocks[1]": 2.0, "step": 20},
        {"loss": 0.6, "step": 20},
        {"train_loss": 0.65, "step": 20},
    ]
    assert Record.of(history) == Record(
        [(10, 0.7), (20, 0.6)], {"eval_loss": [(10, 0.6)], "eval_other_loss": [(10, 0.5)]}, {"blocks[1]": 0.01}
    )
