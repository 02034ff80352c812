"""The weights that stand out most from noise are found from the weights alone, within each type of module."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn

from hf_freeze import freeze_model
from hf_freeze.errors import PlanError
from hf_freeze.plan import plan_of
from hf_freeze.plan.snr import signal_to_noise
from tests.tiny import NUM_BLOCKS, tiny_bert, tiny_gpt2, tiny_t5

LINEARS = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)


def snr(**options: float) -> dict[str, object]:
    return {"blocks": {"auto": {"by": "snr", **options}}}


def low_rank(size: int, *, rank: int) -> torch.Tensor:
    """A matrix of a few equal directions above little noise."""
    singular = torch.cat([torch.ones(rank), torch.linspace(0.01, 0.002, size - rank)])
    directions, _ = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(0)))
    return directions @ torch.diag(singular)


def test_directions_above_the_noise_score_higher_than_noise() -> None:
    noise = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    assert signal_to_noise(noise) < signal_to_noise(low_rank(32, rank=3)) < signal_to_noise(low_rank(32, rank=6))


def test_the_score_is_the_formula_of_spectrum() -> None:
    singular = torch.tensor([9.0, 5.0, 3.0, 2.5, 2.0, 1.0])
    left, _ = torch.linalg.qr(torch.randn(12, 6, generator=torch.Generator().manual_seed(0)))
    sigma = (4.5 - 2.125) / 1.349  # quartiles of the six values, linearly interpolated
    threshold = sigma * (1 + math.sqrt(6 / 12))
    above = [value for value in singular.tolist() if value > threshold]
    expected = sum(above) / (float(singular.sum()) - sum(above)) / 9.0
    assert signal_to_noise(left @ torch.diag(singular)) == pytest.approx(expected, rel=1e-5)


def test_weights_without_any_noise_or_signal() -> None:
    assert signal_to_noise(torch.eye(8)) == math.inf
    assert signal_to_noise(torch.zeros(8, 4)) == 0.0


def test_half_of_each_type_trains_with_its_biases_and_nothing_else_in_the_blocks() -> None:
    plan = plan_of(freeze_model(tiny_bert(), snr()))
    trained = [name for name in plan.trainable_names if "encoder.layer" in name]
    for kind in LINEARS:
        weights = [name for name in trained if re.fullmatch(rf"bert\.encoder\.layer\.\d\.{kind}\.weight", name)]
        assert len(weights) == NUM_BLOCKS // 2
        assert all(name.replace("weight", "bias") in trained for name in weights)
    assert len(trained) == len(LINEARS) * NUM_BLOCKS  # half of the weights, and their biases
    assert plan.treatments["embeddings"] == "frozen"
    assert "classifier.weight" in plan.trainable_names


def test_the_weights_that_were_made_to_stand_out_are_chosen() -> None:
    model = tiny_bert()
    with torch.no_grad():
        for index in (0, 2):
            model.get_submodule(f"bert.encoder.layer.{index}.attention.self.query").weight.copy_(low_rank(32, rank=6))
    weights = [
        name for name in plan_of(freeze_model(model, snr())).trainable_names if name.endswith("self.query.weight")
    ]
    assert weights == [f"bert.encoder.layer.{index}.attention.self.query.weight" for index in (0, 2)]


def test_the_choice_is_told_with_a_score_per_block_and_stays_with_the_plan() -> None:
    plan = plan_of(freeze_model(tiny_bert(), snr(train_top=0.25)))
    chosen = plan.chosen
    assert chosen is not None
    assert chosen.asked == {"auto": {"by": "snr", "train_top": 0.25}}
    assert chosen.lines[0] == (
        "freeze.blocks.auto: 6 of 24 linear weights train, the 25% of each type that stand out most from noise (snr)."
    )
    assert list(chosen.scores) == [f"blocks[{index}]" for index in range(NUM_BLOCKS)]
    assert chosen.lines[-1].startswith("Mean score of the weights of a block: blocks[0] ")
    assert type(chosen).from_record(chosen.record()) == chosen
    again = plan_of(freeze_model(tiny_bert(), chosen.section))
    assert again.digest == plan.digest


@pytest.mark.parametrize(("model", "types"), [(tiny_gpt2, 4), (tiny_t5, 6 + 10)])
def test_other_architectures_have_types_of_their_own(model: object, types: int) -> None:
    chosen = plan_of(freeze_model(model(), snr())).chosen  # type: ignore[operator]
    assert chosen is not None
    assert len(chosen.why) == 1 + types


def test_what_the_section_says_besides_holds() -> None:
    section = {**snr(), "always_train": ["*.LayerNorm.bias"], "head": "frozen"}
    plan = plan_of(freeze_model(tiny_bert(), section))
    assert "bert.encoder.layer.0.output.LayerNorm.bias" in plan.trainable_names
    assert "classifier.weight" in plan.frozen_names


def test_a_model_without_linear_layers_is_refused() -> None:
    model = nn.Sequential()
    model.blocks = nn.ModuleList(nn.LayerNorm(4) for _ in range(3))
    message = (
        "freeze.blocks.auto: Sequential has no weights to score; got 'snr'. It scores the weights of linear layers in "
        "blocks, unquantised. Choose by gradient, or say which blocks are frozen."
    )
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        freeze_model(model, snr())


def test_adapters_beside_it_are_refused() -> None:
    adapters = [{"peft_type": "LORA", "target_modules": "all-linear"}]
    message = (
        "freeze.blocks.auto: chooses what trains in full, which blocks with adapters do not; got 'snr' beside 1 entry "
        "in adapters. Say which blocks are frozen, or leave adapters out."
    )
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        freeze_model(tiny_bert(), snr(), adapters)


def test_what_takes_training_rows_is_refused_without_a_trainer() -> None:
    message = (
        "freeze.blocks: what is frozen is not chosen yet; got {'auto': {'by': 'gradient', 'train_top': 0.9}}. Going by "
        "gradient takes training rows, which FreezeTrainer has. Use it, or write which blocks."
    )
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        freeze_model(tiny_bert(), {"blocks": {"auto": {"by": "gradient"}}})
