"""`resolve_plan` decides purely: the table of defaults, then the roles, then `always_train`."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq

from hf_freeze.errors import PlanError
from hf_freeze.plan import find_layout, resolve_plan
from hf_freeze.plan.layout import Layout
from tests.tiny import build, tiny_bart, tiny_bert, tiny_gpt2, tiny_llama, tiny_t5

LORA = {"peft_type": "LORA", "target_modules": "all-linear"}


@pytest.fixture(scope="module")
def bert() -> Layout:
    return find_layout(tiny_bert())


def short(treatments: dict[str, str]) -> str:
    return " ".join(treatment[1] for treatment in treatments.values())


@pytest.mark.parametrize(
    ("freeze", "adapters", "expected"),
    [
        # The second letter of each treatment: f(r)ozen, f(u)ll, a(d)apter; embeddings, four blocks, head.
        (None, (), "u u u u u u"),
        ({}, (), "u u u u u u"),
        ({"blocks": "none"}, (), "u u u u u u"),
        ({"blocks": {"first": 2}}, (), "r r r u u u"),
        ({"blocks": {"first": 0}}, (), "u u u u u u"),
        ({"blocks": {"last": 2}}, (), "u u u r r u"),
        ({"blocks": {"fraction": 0.5}}, (), "r r r u u u"),
        ({"blocks": {"indices": [-1, 1]}}, (), "u u r u r u"),
        ({"blocks": "all"}, (), "r r r r r u"),
        ({"blocks": {"first": 2}, "embeddings": "full"}, (), "u r r u u u"),
        ({"blocks": "none", "embeddings": "frozen"}, (), "r u u u u u"),
        ({"blocks": {"first": 2}, "head": "frozen"}, (), "r r r u u r"),
        (None, (LORA,), "r d d d d u"),
        (None, ({**LORA, "blocks": {"last": 1}},), "r r r r d u"),
        ({"blocks": {"first": 2}}, ({**LORA, "blocks": {"last": 1}},), "r r r u d u"),
        ({"blocks": {"first": 2}}, (LORA,), "r d d d d u"),
        ({"blocks": "none"}, ({**LORA, "blocks": {"last": 1}},), "u u u u d u"),
        ({"embeddings": "full"}, (LORA,), "u d d d d u"),
    ],
)
def test_the_table_of_defaults(bert: Layout, freeze: object, adapters: tuple[object, ...], expected: str) -> None:
    plan = resolve_plan(bert, freeze, adapters)
    assert " ".join(treatment[1] for treatment in plan.treatments.values()) == expected
    assert list(plan.treatments) == list(bert.roles)


def test_the_plan_partitions_the_parameters_of_the_model() -> None:
    model = tiny_bert()
    plan = resolve_plan(find_layout(model), {"blocks": {"first": 2}})
    assert [d.name for d in plan.decisions] == [name for name, _ in model.named_parameters()]
    assert set(plan.trainable_names) | set(plan.frozen_names) == {name for name, _ in model.named_parameters()}
    assert not set(plan.trainable_names) & set(plan.frozen_names)


def test_equal_arguments_give_equal_plans_and_equal_digests(bert: Layout) -> None:
    one, other = (resolve_plan(bert, {"blocks": {"first": 2}}) for _ in range(2))
    assert one == other
    assert one.digest == other.digest


@pytest.mark.parametrize(
    "freeze",
    [
        {"blocks": {"first": 3}},
        {"blocks": {"first": 2}, "keep_dropout": True},
        {"blocks": {"first": 2}, "head": "frozen"},
    ],
)
def test_another_plan_has_another_digest(bert: Layout, freeze: dict[str, object]) -> None:
    assert resolve_plan(bert, freeze).digest != resolve_plan(bert, {"blocks": {"first": 2}}).digest


@pytest.mark.parametrize(
    ("freeze", "depth", "reaches"),
    [
        (None, 0, "embeddings"),
        ({"blocks": {"first": 2}}, 2, "blocks[2]"),
        ({"blocks": "all"}, 4, "head"),
        ({"blocks": {"first": 2}, "embeddings": "full"}, 0, "embeddings"),
        ({"embeddings": "frozen"}, 0, "blocks[0]"),
        ({"blocks": {"indices": [0, 2]}}, 1, "blocks[1]"),
        ({"blocks": {"first": 3}, "always_train": ["bert.encoder.layer.1.*.bias"]}, 1, "blocks[1]"),
    ],
)
def test_the_frozen_prefix_ends_where_the_first_trainable_parameter_is(
    bert: Layout, freeze: object, depth: int, reaches: str
) -> None:
    plan = resolve_plan(bert, freeze)
    assert (plan.depth, plan.backward_reaches) == (depth, reaches)


def test_always_train_wins_over_frozen_roles(bert: Layout) -> None:
    plan = resolve_plan(bert, {"blocks": "all", "head": "frozen", "always_train": ["*.bias"]})
    assert plan.trainable_names == tuple(p.name for p in bert.parameters if p.name.endswith(".bias"))
    assert plan.start.frozen == ()
    assert {d.reason for d in plan.decisions if d.trainable} == {"freeze.always_train: *.bias"}


def test_adapters_alone_train_what_lies_outside_the_base_model() -> None:
    plan = resolve_plan(find_layout(tiny_bert()), None, (LORA,))
    assert plan.trainable_names == ("classifier.weight", "classifier.bias")


def test_adapters_alone_leave_a_language_model_head_frozen() -> None:
    layout = find_layout(tiny_llama())
    assert resolve_plan(layout, None, (LORA,)).trainable_names == ()  # The adapters are not attached yet.
    assert "lm_head.weight" in resolve_plan(layout, {"blocks": "all"}, (LORA,)).trainable_names


class TestTwoStacks:
    def test_one_selection_holds_for_each_stack(self) -> None:
        plan = resolve_plan(find_layout(tiny_bart()), {"blocks": {"first": 1}})
        assert [role for role, treatment in plan.treatments.items() if treatment == "frozen"] == [
            "embeddings",
            "encoder.blocks[0]",
            "decoder.blocks[0]",
        ]

    def test_selections_per_stack(self) -> None:
        plan = resolve_plan(find_layout(tiny_t5()), {"blocks": {"encoder": "all", "decoder": {"first": 1}}})
        frozen = [role for role, treatment in plan.treatments.items() if treatment == "frozen"]
        assert frozen == ["embeddings", *(f"encoder.blocks[{i}]" for i in range(4)), "decoder.blocks[0]"]
        assert plan.depth == 4

    def test_the_final_norm_of_the_encoder_lies_before_the_decoder(self) -> None:
        layout = find_layout(tiny_t5())
        plan = resolve_plan(layout, {"blocks": {"encoder": "all", "decoder": {"first": 1}}})
        assert plan.backward_reaches == "head"
        without = {"blocks": {"encoder": "all", "decoder": {"first": 1}}, "head": "frozen"}
        assert resolve_plan(layout, without).backward_reaches == "decoder.blocks[1]"

    def test_embeddings_follow_block_0_of_the_first_stack(self) -> None:
        layout = find_layout(tiny_bart())
        assert resolve_plan(layout, {"blocks": {"decoder": "all"}}).treatments["embeddings"] == "full"
        assert resolve_plan(layout, {"blocks": {"encoder": {"first": 1}}}).treatments["embeddings"] == "frozen"

    def test_a_stack_that_does_not_exist_is_refused(self) -> None:
        message = (
            "freeze.blocks: BartForConditionalGeneration has no stack of this name; got 'encodr'. "
            "The stacks are decoder, encoder. Name one of them. Did you mean 'encoder'?"
        )
        with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
            resolve_plan(find_layout(tiny_bart()), {"blocks": {"encodr": "all"}})

    def test_a_stack_is_not_named_where_there_is_only_one(self, bert: Layout) -> None:
        message = (
            "freeze.blocks: BertForSequenceClassification has no stack of this name; got 'encoder'. "
            "It has only one stack. Give one selection without a name."
        )
        with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
            resolve_plan(bert, {"blocks": {"encoder": "all"}})


class TestTiedWeights:
    def test_they_follow_the_embeddings(self) -> None:
        layout = find_layout(tiny_gpt2())
        plan = resolve_plan(layout, {"blocks": {"first": 2}})
        assert "transformer.wte.weight" in plan.frozen_names
        assert "transformer.ln_f.weight" in plan.trainable_names

    @pytest.mark.parametrize(
        ("freeze", "head", "embeddings"),
        [
            ({"blocks": {"first": 2}, "head": "full"}, "full", "frozen"),
            ({"embeddings": "full", "head": "frozen"}, "frozen", "full"),
        ],
    )
    def test_an_explicit_contradiction_is_refused(self, freeze: object, head: str, embeddings: str) -> None:
        message = (
            f"freeze.head: a weight cannot be frozen and trained at once; got {head!r} while the embeddings are "
            f"{embeddings}. The weight of the head is tied to the embeddings (transformer.wte.weight = lm_head.weight) "
            f"and follows them. Set freeze.embeddings to {head!r} too, leave freeze.head out, or untie the weights "
            "(tie_word_embeddings: false in the model's config)."
        )
        with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
            resolve_plan(find_layout(tiny_gpt2()), freeze)

    def test_an_explicit_head_that_agrees_is_taken(self) -> None:
        plan = resolve_plan(find_layout(tiny_gpt2()), {"embeddings": "full", "head": "full", "blocks": {"last": 1}})
        assert "transformer.wte.weight" in plan.trainable_names


def tiny_whisper() -> nn.Module:
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    words = {"vocab_size": 99, "pad_token_id": 0, "decoder_start_token_id": 1, "bos_token_id": 1, "eos_token_id": 2}
    places = {"max_source_positions": 50, "max_target_positions": 64, "num_mel_bins": 8}
    return build(AutoModelForSpeechSeq2Seq, "whisper", **sizes, **heads, **words, **places)


class TestConstants:
    name = "model.encoder.embed_positions.weight"

    def test_parameters_that_the_model_keeps_constant_are_never_thawed(self) -> None:
        plan = resolve_plan(find_layout(tiny_whisper()))
        assert plan.frozen_names == (self.name,)

    def test_a_glob_that_matches_only_constants_is_refused(self) -> None:
        message = (
            "freeze.always_train: the model keeps every parameter that this glob matches constant; "
            f"got '{self.name}'. It matches {self.name}. Remove the glob."
        )
        with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
            resolve_plan(find_layout(tiny_whisper()), {"always_train": [self.name]})

    def test_a_glob_that_matches_others_too_leaves_constants_alone(self) -> None:
        plan = resolve_plan(
            find_layout(tiny_whisper()), {"blocks": "all", "always_train": ["*.embed_positions.weight"]}
        )
        assert "model.decoder.embed_positions.weight" in plan.trainable_names
        assert self.name in plan.frozen_names


class Quantized(nn.Module):
    """A linear layer whose weight is stored as integers, as quantising libraries keep it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(4))


class Stacked(nn.Module):
    """A plain module with a list of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Quantized() for _ in range(3))
        self.out = nn.Linear(4, 2)


def test_a_quantised_weight_cannot_train_in_full() -> None:
    layout = find_layout(Stacked())
    message = (
        "freeze.blocks: a quantised weight cannot be trained in full; got blocks.2.weight (int8) and 0 more. "
        "They lie in blocks[2]. Freeze these roles, give their blocks adapters, or load the model without "
        "quantization_config."
    )
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        resolve_plan(layout, {"blocks": {"first": 2}})
    plan = resolve_plan(layout, {"blocks": "all", "always_train": ["*.bias"]})
    assert "blocks.2.weight" in plan.frozen_names


def test_nothing_left_to_train_is_refused(bert: Layout) -> None:
    message = (
        f"freeze: nothing is left to train; all {len(bert.parameters)} parameters are frozen. "
        "Freeze fewer blocks, set freeze.head to 'full', or add adapters."
    )
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        resolve_plan(bert, {"blocks": "all", "head": "frozen"})


def test_a_glob_that_matches_nothing_names_the_nearest_parameter(bert: Layout) -> None:
    message = (
        "freeze.always_train: no parameter matches this glob; got 'bert.pooler.dense.wieght'. "
        f"The model has {len(bert.parameters)} parameters, such as 'bert.embeddings.word_embeddings.weight'. "
        "Write a glob that matches full parameter names, such as '*.bias'. "
        "Did you mean 'bert.pooler.dense.weight'?"
    )
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        resolve_plan(bert, {"always_train": ["bert.pooler.dense.wieght"]})


def test_more_blocks_than_there_are_is_refused(bert: Layout) -> None:
    message = "freeze.blocks: cannot select the first 99 blocks; bert.encoder.layer has 4. Select at most 4."
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        resolve_plan(bert, {"blocks": {"first": 99}})


def test_an_adapter_on_a_block_that_does_not_exist_is_refused(bert: Layout) -> None:
    message = (
        "adapters.1.blocks: cannot select block 7; bert.encoder.layer has 4. Blocks are numbered 0 to 3 from the "
        "input, and -1 to -4 from the output."
    )
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        resolve_plan(bert, None, ({**LORA, "blocks": {"first": 1}}, {**LORA, "blocks": {"indices": [7]}}))


def test_the_plan_is_immutable(bert: Layout) -> None:
    plan = resolve_plan(bert)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.keep_dropout = True  # type: ignore[misc]


def test_a_model_of_two_stacks_without_an_encoder_selection_leaves_it_training() -> None:
    layout = find_layout(build(AutoModelForSeq2SeqLM, "t5", d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4))
    plan = resolve_plan(layout, {"blocks": {"decoder": {"first": 1}}})
    assert plan.treatments["encoder.blocks[0]"] == "full"
