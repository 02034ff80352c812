from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from hf_freeze import freeze_model
from hf_freeze.plan.apply import apply_loosely, plan_of
from hf_freeze.plan.tracing import StepTrace, trace_step
from tests.tiny import HIDDEN_SIZE, VOCAB_SIZE, tiny_batch, tiny_bert, tiny_gpt2, tiny_llama, tiny_t5

ROWS, LENGTH = 2, 10
LORA = {"peft_type": "LORA", "target_modules": "all-linear", "r": 2, "blocks": {"last": 2}}


def batch_for(model: nn.Module) -> dict[str, torch.Tensor]:
    batch = tiny_batch(rows=ROWS, length=LENGTH)
    is_classifier = type(model).__name__.endswith("SequenceClassification")
    return {**batch, "labels": torch.zeros(ROWS, dtype=torch.long) if is_classifier else batch["input_ids"]}


def flops(trace: StepTrace) -> int:
    return sum(role.forward.flops + role.backward.flops for role in trace.roles.values())


@pytest.mark.parametrize("make", [tiny_bert, tiny_gpt2, tiny_llama, tiny_t5])
@pytest.mark.parametrize("frozen", [0, 3])
def test_flops_are_those_that_torch_counts_in_a_real_step(make: Callable[[], PreTrainedModel], frozen: int) -> None:
    """Attention is written out, because torch counts nothing for the fused kernel of the CPU."""
    model = make()
    model.set_attn_implementation("eager")
    batch = batch_for(model)
    freeze_model(model, {"blocks": {"first": frozen}} if frozen else None)
    model.train()
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(model(**batch).loss)
    assert flops(trace_step(model, batch)) == counter.get_total_flops() > 0


def test_a_frozen_prefix_runs_forward_only_and_keeps_its_last_output_alone() -> None:
    model = freeze_model(tiny_bert(), {"blocks": {"first": 2}})
    roles = trace_step(model.train(), batch_for(model)).roles
    assert [role for role, trace in roles.items() if trace.backward.flops] == ["blocks[2]", "blocks[3]", "head"]
    assert roles["blocks[0]"].forward.flops == roles["blocks[2]"].forward.flops
    hidden_bytes = ROWS * LENGTH * HIDDEN_SIZE * 4
    assert [roles[role].activation_bytes for role in ("blocks[0]", "blocks[1]")] == [0, hidden_bytes]
    assert roles["blocks[2]"].activation_bytes > 10 * hidden_bytes


def test_the_frozen_base_of_an_adapter_has_no_weight_gradients() -> None:
    full = trace_step(tiny_frozen(None).train(), batch_for(tiny_bert())).roles["blocks[3]"]
    adapted = trace_step(tiny_frozen(None, [LORA]).train(), batch_for(tiny_bert())).roles["blocks[3]"]
    assert adapted.forward.flops > full.forward.flops
    assert adapted.backward.flops < full.backward.flops


def tiny_frozen(freeze: Any, adapters: Any = ()) -> nn.Module:
    return freeze_model(tiny_bert(), freeze, adapters)


def test_weights_are_not_needed_and_nothing_of_the_model_changes() -> None:
    with torch.device("meta"):
        empty = type(tiny_bert())(tiny_bert().config)
    model = freeze_model(empty, {"blocks": {"first": 2}}).train()
    before = dict(model.named_parameters())
    trace = trace_step(model, batch_for(model))
    real = freeze_model(tiny_bert(), {"blocks": {"first": 2}}).train()
    assert trace == trace_step(real, batch_for(real))
    assert all(parameter is before[name] and parameter.grad is None for name, parameter in model.named_parameters())
    assert not any(module._forward_hooks for module in model.bert.encoder.layer)


def test_dropout_draws_random_numbers_in_training_only() -> None:
    model = freeze_model(tiny_bert(hidden_dropout_prob=0.1), {"blocks": {"first": 2}})
    drawn = {
        role: trace.forward.num_random for role, trace in trace_step(model.train(), batch_for(model)).roles.items()
    }
    assert drawn["blocks[0]"] == 0
    assert drawn["blocks[2]"] == 2 * ROWS * LENGTH * HIDDEN_SIZE
    evaluation = trace_step(model.eval(), batch_for(model), trains=False)
    assert sum(trace.forward.num_random for trace in evaluation.roles.values()) == 0
    assert evaluation.backward_peak_bytes < 10_000


def test_activation_checkpointing_keeps_less_and_computes_more() -> None:
    batch = {**tiny_batch(rows=16, length=60), "labels": torch.zeros(16, dtype=torch.long)}
    plain = trace_step(tiny_frozen(None).train(), batch)
    saving = trace_step(tiny_frozen(None).train(), batch, checkpoints=True)
    assert saving.activation_bytes < plain.activation_bytes / 4
    assert saving.backward_peak_bytes < plain.backward_peak_bytes
    block, again = plain.roles["blocks[1]"], saving.roles["blocks[1]"]
    assert again.forward == block.forward
    assert again.backward.flops == block.backward.flops + block.forward.flops


@pytest.mark.parametrize("make", [tiny_bert, tiny_gpt2, tiny_llama])
def test_a_frozen_loop_with_activation_checkpointing_does_what_one_without_this_package_does(
    make: Callable[[], PreTrainedModel],
) -> None:
    """Transformers has the embeddings ask for gradients, so the backward pass runs through frozen blocks, too."""
    ours, plain = make(), make()
    batch = batch_for(plain)
    freeze_model(ours, {"blocks": {"first": 2}})
    apply_loosely(ours, plan_of(ours))
    for (_, parameter), other in zip(plain.named_parameters(), ours.parameters(), strict=True):
        parameter.requires_grad_(other.requires_grad)
    for model in (ours, plain):
        model.set_attn_implementation("eager")
    plain.config.use_cache = False
    plain.activation_checkpointing_enable()
    plain.train()
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(plain(**batch).loss)
    trace = trace_step(ours.train(), batch, checkpoints=True)
    assert flops(trace) == counter.get_total_flops()
    assert min(trace.roles[f"blocks[{index}]"].backward.flops for index in range(4)) > 0


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_a_language_model_head_stands_by_itself(make: Callable[[], PreTrainedModel]) -> None:
    model = freeze_model(make(), {"blocks": {"first": 3}})
    roles = trace_step(model.train(), batch_for(model)).roles
    assert [*roles][-1] == "lm_head"
    assert roles["lm_head"].forward.flops == 2 * ROWS * LENGTH * HIDDEN_SIZE * VOCAB_SIZE


def test_half_precision_keeps_less() -> None:
    model = tiny_frozen(None).train()
    # Autocast keeps copies of the weights, too, which few tokens would not outweigh.
    batch = {**tiny_batch(rows=64, length=LENGTH), "labels": torch.zeros(64, dtype=torch.long)}
    whole, half = (trace_step(model, batch, autocast=each) for each in (None, torch.bfloat16))
    assert half.activation_bytes < whole.activation_bytes
    assert flops(half) == flops(whole)


def test_attention_that_is_fused_keeps_no_scores() -> None:
    model = freeze_model(tiny_bert(attention_probs_dropout_prob=0.1)).train()
    apart, fused = (trace_step(model, batch_for(model), fuses_attention=each) for each in (False, True))
    assert fused.activation_bytes < apart.activation_bytes


def test_a_model_that_looks_at_values_cannot_be_traced() -> None:
    class Curious(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            for block in self.blocks:
                x = block(x)
            return {"loss": x.sum() if x.sum().item() > 0 else -x.sum()}

    model = freeze_model(Curious(), {"blocks": {"first": 1}})
    with pytest.raises(RuntimeError):
        trace_step(model, {"x": torch.ones(2, 4)})
