"""Adapter entries become one PEFT config with full module names, and PEFT's own rules say what they match."""

from __future__ import annotations

import re
from typing import Any

import peft
import pytest
import torch
from torch import nn

from hf_freeze.config import parse_adapters
from hf_freeze.errors import ConfigError, PlanError
from hf_freeze.plan import find_layout, freeze_model, merge_adapters, plan_of
from hf_freeze.plan.adapters import adapter_config
from tests.tiny import tiny_bert, tiny_llama, tiny_t5

IDS = torch.randint(5, 99, (4, 10), generator=torch.Generator().manual_seed(0))
BATCH = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


def planned(model: nn.Module, *adapters: object) -> peft.PeftConfig:
    return adapter_config(model, find_layout(model), parse_adapters(adapters))


def query(*blocks: int) -> set[str]:
    return {f"bert.encoder.layer.{block}.attention.self.query" for block in blocks}


def test_targets_are_full_module_names_of_the_selected_blocks() -> None:
    config = planned(tiny_bert(), {"peft_type": "LORA", "target_modules": ["query"], "blocks": {"last": 2}})
    assert config.target_modules == query(2, 3)


def test_all_linear_stays_inside_the_blocks() -> None:
    config = planned(tiny_bert(), {"peft_type": "LORA", "target_modules": "all-linear", "blocks": {"last": 1}})
    assert all(name.startswith("bert.encoder.layer.3.") for name in config.target_modules)
    assert len(config.target_modules) == 6


def test_the_defaults_of_peft_hold_where_no_target_is_named() -> None:
    config = planned(tiny_bert(), {"peft_type": "LORA", "blocks": {"first": 1}})
    assert {name.rpartition(".")[2] for name in config.target_modules} == {"query", "value"}


def test_entries_with_different_ranks_share_one_config() -> None:
    lora = {"peft_type": "LORA", "target_modules": ["query"]}
    config = planned(
        tiny_bert(),
        {**lora, "blocks": {"indices": [1, 2]}, "r": 4, "lora_alpha": 8},
        {**lora, "blocks": {"indices": [3]}, "r": 16, "lora_alpha": 32},
    )
    [top] = query(3)
    assert config.target_modules == query(1, 2, 3)
    assert (config.r, config.lora_alpha) == (4, 8)
    assert (config.rank_pattern, config.alpha_pattern) == ({top: 16}, {top: 32})


def test_ranks_reach_the_modules() -> None:
    lora = {"peft_type": "LORA", "target_modules": ["query"]}
    adapters = ({**lora, "blocks": {"indices": [2]}, "r": 4}, {**lora, "blocks": {"indices": [3]}, "r": 16})
    plan = plan_of(freeze_model(tiny_bert(), None, adapters))
    ranks = {d.role: d.parameter.shape[0] for d in plan.decisions if d.name.endswith("lora_A.weight")}
    assert ranks == {"blocks[2]": 4, "blocks[3]": 16}


def test_a_peft_config_object_is_an_entry() -> None:
    objects = planned(
        tiny_bert(), peft.LoraConfig(r=4, target_modules=["query"], layers_to_transform=[3], task_type="SEQ_CLS")
    )
    entries = planned(tiny_bert(), {"peft_type": "LORA", "r": 4, "target_modules": ["query"], "blocks": {"last": 1}})
    assert objects == entries


METHODS: dict[str, dict[str, Any]] = {
    "lora": {"peft_type": "LORA", "target_modules": ["query", "value"]},
    "dora": {"peft_type": "LORA", "target_modules": ["query", "value"], "use_dora": True},
    "ia3": {"peft_type": "IA3"},
    "loha": {"peft_type": "LOHA", "target_modules": ["query", "value"]},
    "oft": {"peft_type": "OFT", "target_modules": ["query", "value"], "oft_block_size": 8},
    "ln_tuning": {"peft_type": "LN_TUNING", "target_modules": ["LayerNorm"]},
}


def trained(model: nn.Module) -> nn.Module:
    """Trains two steps and returns the model in eval mode."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        model.train()
        model(**BATCH, labels=torch.tensor([0, 1, 0, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize("method", METHODS)
class TestMethods:
    def test_only_the_plan_moves(self, method: str) -> None:
        model = freeze_model(tiny_bert(), {"blocks": {"first": 2}}, ({**METHODS[method], "blocks": {"indices": [2]}},))
        plan = plan_of(model)
        assert list(plan.treatments.values()) == ["frozen", "frozen", "frozen", "adapter", "full", "full"]
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        trained(model)
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert moved == {name for name, p in model.named_parameters() if p.requires_grad}
        assert not any("layer.0." in name or "layer.1." in name or "embeddings" in name for name in moved)
        assert any("layer.2." in name for name in moved)

    def test_merged_logits_are_those_of_the_adapted_model(self, method: str) -> None:
        model = trained(
            freeze_model(tiny_bert(), {"blocks": {"first": 2}}, ({**METHODS[method], "blocks": {"indices": [2]}},))
        )
        expected = model(**BATCH).logits
        merged = merge_adapters(model)
        assert not isinstance(merged, peft.PeftModel)
        torch.testing.assert_close(merged(**BATCH).logits, expected, rtol=0, atol=1e-5)


def test_prompt_tuning_trains_the_prompt_and_the_head() -> None:
    model = freeze_model(tiny_bert(), None, ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3},))
    plan = plan_of(model)
    assert plan.trainable_names == ("classifier.weight", "classifier.bias", "prompt_encoder.embedding.weight")
    assert plan.backward_reaches == "embeddings"
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained(model)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(moved) == 3


def test_adapters_alone_train_in_a_language_model() -> None:
    lora = {"peft_type": "LORA", "target_modules": ["q_proj"], "blocks": {"last": 2}}
    plan = plan_of(freeze_model(tiny_llama(), None, (lora,)))
    assert plan.trainable_names
    assert {decision.parameter.kind for decision in plan.decisions if decision.trainable} == {"adapter"}


def test_the_task_type_follows_from_the_model() -> None:
    lora = {"peft_type": "LORA", "target_modules": "all-linear"}
    for build, task in ((tiny_bert, "SEQ_CLS"), (tiny_llama, "CAUSAL_LM"), (tiny_t5, "SEQ_2_SEQ_LM")):
        assert freeze_model(build(), {"blocks": "none"}, (lora,)).peft_config["default"].task_type == task


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        (
            ({"peft_type": "LORA", "target_modules": ["qury"]},),
            (
                "adapters.0.target_modules: no module of the selected blocks matches; got 'qury'. These blocks hold "
                "LayerNorm, dense, dropout, intermediate_act_fn, key, query, value. Name one of these modules. "
                "Did you mean 'query'?"
            ),
        ),
        (
            ({"peft_type": "LORA", "target_modules": ["query", "classifier"]},),
            (
                "adapters.0.target_modules: no module of the selected blocks matches; got 'classifier'. "
                "These blocks hold "
                "LayerNorm, dense, dropout, intermediate_act_fn, key, query, value. Name one of these modules."
            ),
        ),
        (
            (
                {"peft_type": "LORA", "target_modules": ["query"], "blocks": {"last": 2}},
                {"peft_type": "LORA", "target_modules": ["query"], "blocks": {"last": 1}},
            ),
            (
                "adapters.1.blocks: a module can carry one adapter; got "
                "bert.encoder.layer.3.attention.self.query, which "
                "adapters.0 adapts already. Give the entries different blocks or different target_modules."
            ),
        ),
        (
            (
                {"peft_type": "LORA", "target_modules": ["query"], "blocks": {"first": 2}},
                {"peft_type": "LORA", "target_modules": ["query"], "blocks": {"last": 2}, "lora_dropout": 0.1},
            ),
            (
                "adapters.1.lora_dropout: entries of one PEFT method must agree in this option; got 0.1 "
                "here and 0.0 in "
                "adapters.0. Options that may differ: lora_alpha, r. Write the same value in both."
            ),
        ),
        (
            (
                {"peft_type": "IA3", "blocks": {"first": 2}},
                {"peft_type": "IA3", "blocks": {"last": 2}, "init_ia3_weights": False},
            ),
            (
                "adapters.1.init_ia3_weights: entries of one PEFT method must agree in this option; got False here and "
                "True in adapters.0. Options that may differ: none. Write the same value in both."
            ),
        ),
        (
            ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3, "blocks": {"last": 2}},),
            (
                "adapters.0.blocks: PROMPT_TUNING acts on the input of the model, not on blocks; got {'last': 2}. "
                "Remove this key."
            ),
        ),
        (
            (
                {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3},
                {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4},
            ),
            "adapters: PEFT holds one PROMPT_TUNING at a time; got 2 entries. Keep one of them.",
        ),
        (
            ({"peft_type": "LN_TUNING"},),
            (
                "adapters.0.target_modules: PEFT knows no default for this model; got nothing. LN_TUNING can adapt the "
                "modules of BertForSequenceClassification that it names. Set target_modules, for example "
                "to 'all-linear'."
            ),
        ),
        (
            ({"peft_type": "LORA", "target_modules": ["query"], "bias": "all"},),
            (
                "adapters.0.bias: biases of the base model are trained by the plan; got 'all'. Set "
                "freeze.always_train to ['*.bias'] instead."
            ),
        ),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(adapters: tuple[object, ...], message: str) -> None:
    model = tiny_bert()
    before = [name for name, _ in model.named_parameters()]
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        freeze_model(model, None, adapters)
    assert [name for name, _ in model.named_parameters()] == before
    assert all(p.requires_grad for p in model.parameters())


def test_two_methods_are_refused() -> None:
    adapters = ({"peft_type": "LORA", "target_modules": ["query"]}, {"peft_type": "IA3"})
    with pytest.raises(ConfigError, match=re.escape("PEFT cannot save a mixed model")):
        freeze_model(tiny_bert(), None, adapters)


def test_a_model_with_adapters_takes_no_more() -> None:
    model = freeze_model(tiny_bert(), None, ({"peft_type": "LORA", "target_modules": ["query"]},))
    message = (
        "adapters: this model carries adapters already; got 1 more entries. It has default. Pass the model without "
        "adapters, or leave adapters out."
    )
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        freeze_model(model, None, ({"peft_type": "LORA", "target_modules": ["value"]},))


def test_adapters_that_the_user_attached_are_kept() -> None:
    config = peft.LoraConfig(target_modules=["query"], layers_to_transform=[3])
    model = freeze_model(peft.get_peft_model(tiny_bert(), config), {"blocks": {"first": 2}})
    assert list(plan_of(model).treatments.values()) == ["frozen", "frozen", "frozen", "full", "adapter", "full"]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (tiny_bert, "BertForSequenceClassification: this model has no adapters to merge. Use it as it is."),
        (
            lambda: freeze_model(tiny_bert(), None, ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3},)),
            (
                "PeftModelForSequenceClassification: adapters of this method cannot be merged; got PROMPT_TUNING. Its "
                "parameters are inputs, not weights. Keep the PEFT folder and load it with peft."
            ),
        ),
    ],
)
def test_what_cannot_be_merged_is_refused(build: Any, message: str) -> None:
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        merge_adapters(build())


def test_what_peft_refuses_is_told_in_its_words() -> None:
    with pytest.raises(PlanError) as caught:
        freeze_model(tiny_bert(), None, ({"peft_type": "LORA", "target_modules": ["dropout"]},))
    cause = str(caught.value.__cause__)
    assert cause.startswith("Target module Dropout")
    assert str(caught.value) == f"adapters.0: PEFT refuses this adapter; {cause}"
