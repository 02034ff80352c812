"""`apply_plan` is total and idempotent, and what it froze stays frozen and in eval mode under any loop."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Callable

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from hf_freeze.errors import PlanError
from hf_freeze.plan import apply_plan, find_layout, freeze_model, plan_of, print_trainable_parameters, resolve_plan
from hf_freeze.plan.apply import forget_plan, has_plan
from hf_freeze.plan.wrappers import named_parameters
from tests.tiny import tiny_bart, tiny_bert, tiny_gpt2, tiny_llama, tiny_t5, tiny_vit, tiny_wav2vec2

DROPOUT = 0.3


def words(labels: bool = True) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 99, (4, 10), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**batch, "labels": torch.tensor([0, 1, 0, 1])} if labels else batch


def flags(model: nn.Module) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_applying_twice_is_applying_once() -> None:
    model = freeze_model(tiny_bert().train(), {"blocks": {"first": 2}})
    before = flags(model), modes(model), len(model.get_input_embeddings()._forward_hooks)
    apply_plan(model, plan_of(model))
    assert (flags(model), modes(model), len(model.get_input_embeddings()._forward_hooks)) == before


def test_a_new_plan_replaces_the_old_one_without_undoing() -> None:
    model = freeze_model(tiny_bert().train(), {"blocks": "all"})
    freeze_model(model, {"blocks": {"first": 1}})
    fresh = freeze_model(tiny_bert().train(), {"blocks": {"first": 1}})
    assert (flags(model), modes(model)) == (flags(fresh), modes(fresh))
    freeze_model(model)
    assert all(flags(model).values())
    assert all(modes(model).values())
    assert not model.get_input_embeddings()._forward_hooks


def test_gradients_of_frozen_parameters_are_dropped() -> None:
    model = tiny_bert()
    model(**words()).loss.backward()
    freeze_model(model, {"blocks": {"first": 2}})
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(plan_of(model).trainable_names)


def test_a_plan_for_another_model_is_refused() -> None:
    plan = resolve_plan(find_layout(tiny_bert()), {"blocks": {"first": 2}})
    message = (
        "BertForSequenceClassification: the plan was made for another model; this one lacks "
        "'bert.embeddings.LayerNorm.bias' and 72 more. Make the plan anew from find_layout(model), "
        "after adapters are attached."
    )
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        apply_plan(tiny_gpt2(), plan)


def test_a_plan_for_a_model_with_fewer_parameters_is_refused() -> None:
    plan = resolve_plan(find_layout(tiny_bert(num_hidden_layers=3)), {"blocks": {"first": 2}})
    message = (
        "BertForSequenceClassification: the plan was made for another model; this one has besides "
        "'bert.encoder.layer.3.attention.output.LayerNorm.bias' and 15 more. Make the plan anew from "
        "find_layout(model), after adapters are attached."
    )
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        apply_plan(tiny_bert(), plan)


def test_a_model_without_a_plan_says_so() -> None:
    message = (
        "BertForSequenceClassification: no plan was applied to this model. Call freeze_model(model, ...) first, or "
        "apply_plan(model, plan)."
    )
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        plan_of(tiny_bert())


class TestEvalMode:
    def test_frozen_blocks_stay_in_eval_mode_through_train(self) -> None:
        model = freeze_model(tiny_bert(), {"blocks": {"first": 2}})
        model.train()
        blocks = model.get_submodule("bert.encoder.layer")
        assert [any(m.training for m in block.modules()) for block in blocks] == [False, False, True, True]
        assert not any(m.training for m in model.get_submodule("bert.embeddings").modules())
        assert model.training
        assert model.get_submodule("classifier").training

    def test_eval_switches_everything_off(self) -> None:
        model = freeze_model(tiny_bert(), {"blocks": {"first": 2}})
        model.train()
        model.eval()
        assert not any(modes(model).values())

    def test_the_lock_survives_deepcopy_and_is_bound_to_the_copy(self) -> None:
        model = freeze_model(tiny_bert(), {"blocks": {"first": 2}})
        model.eval()
        copied = copy.deepcopy(model)
        copied.train()
        assert not any(modes(model).values())
        assert not copied.get_submodule("bert.encoder.layer.0").training
        assert copied.get_submodule("bert.encoder.layer.2").training

    def test_the_lock_survives_pickling(self) -> None:
        stored = io.BytesIO()
        torch.save(freeze_model(tiny_bert(), {"blocks": {"first": 2}}), stored)
        stored.seek(0)
        model = torch.load(stored, weights_only=False)
        model.train()
        assert not model.get_submodule("bert.encoder.layer.0").training
        assert plan_of(model).depth == 2

    def test_keep_dropout_opts_out(self) -> None:
        model = freeze_model(tiny_bert(), {"blocks": {"first": 2}, "keep_dropout": True})
        model.train()
        assert all(modes(model).values())

    def test_a_frozen_head_stays_in_eval_mode(self) -> None:
        model = freeze_model(tiny_bert(), {"blocks": {"first": 2}, "head": "frozen"})
        model.train()
        assert not model.get_submodule("dropout").training
        assert not model.get_submodule("bert.pooler").training

    def test_blocks_with_trained_biases_keep_their_dropout(self) -> None:
        model = freeze_model(tiny_bert(), {"blocks": "all", "always_train": ["*.bias"]})
        model.train()
        assert all(modes(model).values())

    def test_blocks_with_adapters_keep_their_dropout(self) -> None:
        adapters = ({"peft_type": "LORA", "target_modules": ["query"], "blocks": {"last": 1}},)
        model = freeze_model(tiny_bert(), None, adapters)
        model.train()
        base = model.get_base_model().get_submodule("bert.encoder.layer")
        assert [block.get_submodule("output.dropout").training for block in base] == [False, False, False, True]


Build = Callable[..., PreTrainedModel]
NOISY: dict[str, tuple[Build, dict[str, float], dict[str, torch.Tensor]]] = {
    "bert": (tiny_bert, {"hidden_dropout_prob": DROPOUT, "attention_probs_dropout_prob": DROPOUT}, words()),
    "gpt2": (tiny_gpt2, {"resid_pdrop": DROPOUT, "embd_pdrop": DROPOUT, "attn_pdrop": DROPOUT}, words(labels=False)),
    "t5": (tiny_t5, {"dropout_rate": DROPOUT}, {**words(), "labels": words()["input_ids"]}),
    "bart": (
        tiny_bart,
        {"dropout": DROPOUT, "attention_dropout": DROPOUT},
        {**words(), "labels": words()["input_ids"]},
    ),
    "vit": (tiny_vit, {"hidden_dropout_prob": DROPOUT}, {"pixel_values": torch.randn(2, 3, 32, 32)}),
    "wav2vec2": (
        tiny_wav2vec2,
        {"hidden_dropout": DROPOUT, "feat_proj_dropout": DROPOUT, "layerdrop": 0.5, "mask_time_prob": 0.3},
        {"input_values": torch.randn(2, 800)},
    ),
}


@pytest.mark.parametrize("name", NOISY)
def test_the_frozen_prefix_is_deterministic_in_train_mode(name: str) -> None:
    """Dropout of embeddings is applied by the module that owns the blocks in GPT-2, T5, BART and Wav2Vec2."""
    build, dropout, batch = NOISY[name]
    model = freeze_model(build(**dropout), {"blocks": {"first": 2}})
    stack = plan_of(model).layout.stacks[0]
    outputs: list[torch.Tensor] = []
    last = model.get_submodule(stack.blocks[1])
    last.register_forward_hook(
        lambda module, args, output: outputs.append(output[0] if isinstance(output, tuple) else output)
    )
    for seed in (0, 1):
        torch.manual_seed(seed)
        model.train()
        model(**batch)
    assert len(outputs) == 2
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)


@pytest.mark.parametrize("name", NOISY)
def test_the_trained_part_keeps_its_dropout(name: str) -> None:
    build, dropout, batch = NOISY[name]
    model = freeze_model(build(**dropout), {"blocks": {"first": 2}})
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model.train()
        results.append(model(**batch).logits)
    assert not torch.equal(results[0], results[1])


class TestActivationCheckpointing:
    """Transformers makes the embeddings' output require a gradient, which would pull backward through every block."""

    @staticmethod
    def reached(
        model: PreTrainedModel, blocks: nn.ModuleList, batch: dict[str, torch.Tensor]
    ) -> tuple[list[int], list[int]]:
        forwards, backwards = [0] * len(blocks), [0] * len(blocks)

        def count(index: int, block: nn.Module) -> None:
            inner = next(module for module in block.modules() if isinstance(module, nn.Linear))
            inner.register_forward_hook(lambda *_: forwards.__setitem__(index, forwards[index] + 1))

            def watch(module: nn.Module, args: object, output: object) -> None:
                hidden = output[0] if isinstance(output, tuple) else output
                if hidden.requires_grad:
                    hidden.register_hook(lambda _: backwards.__setitem__(index, backwards[index] + 1))

            block.register_forward_hook(watch)

        for index, block in enumerate(blocks):
            count(index, block)
        model.train()
        model(**batch).loss.backward()
        return forwards, backwards

    @pytest.mark.parametrize("when", ["before", "after", "twice"])
    def test_backward_and_recompute_reach_trained_blocks_only(self, when: str) -> None:
        model = tiny_bert()
        if when == "before":
            model.activation_checkpointing_enable()
        freeze_model(model, {"blocks": {"first": 2}})
        if when != "before":
            model.activation_checkpointing_enable()
        if when == "twice":
            model.enable_input_require_grads()
        forwards, backwards = self.reached(model, model.get_submodule("bert.encoder.layer"), words())
        assert (forwards, backwards) == ([1, 1, 2, 2], [0, 0, 1, 1])

    def test_the_same_with_lora_on_the_top_blocks(self) -> None:
        adapters = ({"peft_type": "LORA", "target_modules": ["query"], "blocks": {"last": 2}},)
        model = freeze_model(tiny_bert(), None, adapters)
        model.activation_checkpointing_enable()
        blocks = model.get_base_model().get_submodule("bert.encoder.layer")
        assert self.reached(model, blocks, words()) == ([1, 1, 2, 2], [0, 0, 1, 1])

    def test_trained_embeddings_are_reached(self) -> None:
        model = freeze_model(tiny_bert(), {"blocks": "none"})
        model.activation_checkpointing_enable()
        model.train()
        model(**words()).loss.backward()
        assert model.get_input_embeddings().weight.grad is not None

    def test_it_changes_no_gradient(self) -> None:
        gradients = []
        for enable in (False, True):
            model = freeze_model(tiny_llama(), {"blocks": {"first": 2}})
            if enable:
                model.activation_checkpointing_enable()
            model.train()
            model(**{**words(), "labels": words()["input_ids"]}).loss.backward()
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert gradients[0].keys() == gradients[1].keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradient, gradients[1][name], rtol=0, atol=0)


def assert_followed(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    plan = plan_of(model)
    after = {name: parameter.detach() for name, parameter in named_parameters(model)}
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert not moved & set(plan.frozen_names)
    # BERT's token types: all rows of the batch have type 0, so type 1 of an unfrozen embedding has a zero gradient.
    assert set(plan.trainable_names) <= moved


class TestOtherLoops:
    def test_a_hand_written_loop(self) -> None:
        model = freeze_model(tiny_bert(hidden_dropout_prob=0.1), {"blocks": {"first": 2}})
        before = values(model)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(2):
            model.train()
            model(**words()).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert_followed(model, before)

    def test_an_optimizer_over_all_parameters_moves_nothing_frozen(self) -> None:
        model = freeze_model(tiny_bert(), {"blocks": {"first": 2}})
        before = values(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        for _ in range(2):
            model(**words()).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert_followed(model, before)

    def test_an_accelerate_loop(self) -> None:
        accelerator = Accelerator(cpu=True)
        model = freeze_model(tiny_bert(), {"blocks": {"first": 2}})
        before = values(model)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        model, optimizer = accelerator.prepare(model, optimizer)
        for _ in range(2):
            model.train()
            accelerator.backward(model(**words()).loss)
            optimizer.step()
            optimizer.zero_grad()
        assert_followed(model, before)


class PlainBlock(nn.Module):
    """A residual block of a module that Transformers knows nothing of."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.5)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.dropout(self.norm(self.linear(hidden)))


class Plain(nn.Module):
    """A plain module with a list of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = nn.Linear(4, 8)
        self.blocks = nn.ModuleList(PlainBlock() for _ in range(3))
        self.out = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.inputs(x)
        for block in self.blocks:
            hidden = block(hidden)
        return self.out(hidden)


def test_batch_norm_of_frozen_blocks_does_not_move() -> None:
    model = freeze_model(Plain(), {"blocks": {"first": 2}})
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    model(torch.randn(16, 4)).sum().backward()
    moved = {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}
    assert moved == {f"blocks.2.norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}


def test_a_plain_module_that_was_frozen_can_be_thawed() -> None:
    model = freeze_model(Plain(), {"blocks": {"first": 2}})
    freeze_model(model, {"blocks": {"first": 1}})
    assert plan_of(model).depth == 1
    assert all(p.requires_grad for p in model.get_submodule("blocks.1").parameters())


def test_forgetting_a_plan_leaves_no_trace() -> None:
    model = freeze_model(tiny_bert(), {"blocks": {"first": 2}})
    forget_plan(model)
    assert not has_plan(model)
    model.train()
    assert all(modes(model).values())
    assert not model.get_input_embeddings()._forward_hooks
    assert not model.get_input_embeddings()._forward_pre_hooks


def test_the_printed_line_is_that_of_peft(capsys: pytest.CaptureFixture[str]) -> None:
    model = freeze_model(tiny_bert(), {"blocks": "all"})
    print_trainable_parameters(model)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    expected = (
        f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {100 * trainable / total:.4f}\n"
    )
    assert capsys.readouterr().out == expected
