"""Where the parts of a model are."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    BertModel,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)

from hf_freeze.errors import LayoutError
from hf_freeze.plan.layout import (
    ROLE_EMBEDDINGS,
    ROLE_HEAD,
    Layout,
    Parameter,
    Stack,
    block_role,
    find_layout,
    named_parameters,
    resolve_module,
)
from tests import tiny
from tests.unit.plan.architectures import ARCHITECTURES


def layout_of(name: str) -> Layout:
    with torch.device("meta"):
        return find_layout(ARCHITECTURES[name].build())


def parameter(layout: Layout, name: str) -> Parameter:
    return next(found for found in layout.parameters if name in (found.name, *found.aliases))


def built(auto_class: Any, model_type: str, **config: Any) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = auto_class.from_config(AutoConfig.for_model(model_type, **config))
    return model


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.linear(x))


class Plain(nn.Module):
    """A model that nobody has heard of; what runs first is registered last."""

    def __init__(self, num_blocks: int = 3) -> None:
        super().__init__()
        self.classifier = nn.Linear(4, 2)
        self.layers = nn.ModuleList([Block() for _ in range(num_blocks)])
        self.scale = nn.Parameter(torch.ones(4))
        self.embed = nn.Embedding(9, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.classifier(x * self.scale)


# Telling parameters of each architecture, with the role they have: registered before the blocks and used after them, or
# the other way round; tied; held by the model itself; inside the first and the last block.
ROLES: dict[str, dict[str, str]] = {
    "bert": {
        "bert.embeddings.word_embeddings.weight": "embeddings",
        "bert.embeddings.LayerNorm.bias": "embeddings",
        "bert.encoder.layer.0.attention.self.query.weight": "blocks[0]",
        "bert.encoder.layer.3.output.LayerNorm.bias": "blocks[3]",
        "bert.pooler.dense.weight": "head",
        "classifier.bias": "head",
    },
    "bert masked": {
        "cls.predictions.decoder.weight": "embeddings",
        "cls.predictions.decoder.bias": "head",
        "cls.predictions.transform.dense.weight": "head",
    },
    "bart": {
        "model.shared.weight": "embeddings",
        "model.encoder.embed_positions.weight": "embeddings",
        "model.encoder.layernorm_embedding.weight": "embeddings",
        "model.encoder.layers.0.fc1.weight": "encoder.blocks[0]",
        "model.decoder.embed_positions.weight": "embeddings",
        "model.decoder.layernorm_embedding.bias": "embeddings",
        "model.decoder.layers.3.encoder_attn.k_proj.weight": "decoder.blocks[3]",
        "lm_head.weight": "embeddings",
    },
    "t5": {
        "shared.weight": "embeddings",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "encoder.blocks[0]",
        "encoder.final_layer_norm.weight": "head",
        "decoder.block.3.layer.2.DenseReluDense.wo.weight": "decoder.blocks[3]",
        "decoder.final_layer_norm.weight": "head",
        "lm_head.weight": "embeddings",
    },
    "vit": {
        "vit.embeddings.cls_token": "embeddings",
        "vit.embeddings.patch_embeddings.projection.weight": "embeddings",
        "vit.layernorm.weight": "head",
        "classifier.weight": "head",
    },
    "wav2vec2": {
        "wav2vec2.masked_spec_embed": "embeddings",
        "wav2vec2.feature_extractor.conv_layers.0.conv.weight": "embeddings",
        "wav2vec2.feature_projection.projection.weight": "embeddings",
        "wav2vec2.encoder.pos_conv_embed.conv.bias": "embeddings",
        "wav2vec2.encoder.layer_norm.weight": "embeddings",
        "wav2vec2.encoder.layers.0.final_layer_norm.weight": "blocks[0]",
        "projector.weight": "head",
    },
    "wav2vec2 stable": {
        "wav2vec2.encoder.pos_conv_embed.conv.bias": "embeddings",
        "wav2vec2.encoder.layer_norm.weight": "head",
        "wav2vec2.encoder.layers.3.final_layer_norm.weight": "blocks[3]",
    },
    "llama": {
        "model.embed_tokens.weight": "embeddings",
        "model.layers.3.mlp.up_proj.weight": "blocks[3]",
        "model.norm.weight": "head",
        "lm_head.weight": "head",
    },
    "llama classifier": {
        "model.embed_tokens.weight": "embeddings",
        "model.norm.weight": "head",
        "score.weight": "head",
    },
    "gpt2": {
        "transformer.wpe.weight": "embeddings",
        "transformer.h.0.attn.c_attn.weight": "blocks[0]",
        "transformer.ln_f.weight": "head",
        "lm_head.weight": "embeddings",
    },
    "opt": {
        "model.decoder.embed_positions.weight": "embeddings",
        "model.decoder.project_in.weight": "embeddings",
        "model.decoder.project_out.weight": "head",
        "model.decoder.final_layer_norm.weight": "head",
        "lm_head.weight": "embeddings",
    },
    "deberta-v2 with convolution": {
        "deberta.encoder.rel_embeddings.weight": "embeddings",
        "deberta.encoder.LayerNorm.weight": "embeddings",
        "deberta.encoder.conv.conv.weight": "head",
        "pooler.dense.weight": "head",
    },
    "modernbert": {
        "model.embeddings.tok_embeddings.weight": "embeddings",
        "model.final_norm.weight": "head",
        "head.dense.weight": "head",
    },
    "xlnet": {
        "transformer.mask_emb": "embeddings",
        "transformer.word_embedding.weight": "embeddings",
        "transformer.layer.0.rel_attn.q": "blocks[0]",
        "sequence_summary.summary.weight": "head",
    },
    "whisper": {
        "model.encoder.conv1.weight": "embeddings",
        "model.encoder.embed_positions.weight": "embeddings",
        "model.encoder.layer_norm.weight": "head",
        "model.decoder.embed_positions.weight": "embeddings",
        "model.decoder.layers.0.encoder_attn.k_proj.weight": "decoder.blocks[0]",
        "model.decoder.layer_norm.weight": "head",
        "proj_out.weight": "embeddings",
    },
    "clip": {
        "text_model.embeddings.token_embedding.weight": "embeddings",
        "text_model.encoder.layers.3.mlp.fc1.weight": "text.blocks[3]",
        "text_model.final_layer_norm.weight": "head",
        "vision_model.embeddings.class_embedding": "embeddings",
        "vision_model.pre_layrnorm.weight": "embeddings",
        "vision_model.encoder.layers.0.mlp.fc1.weight": "vision.blocks[0]",
        "vision_model.post_layernorm.weight": "head",
        "visual_projection.weight": "head",
        "logit_scale": "head",
    },
    "jamba": {
        "model.embed_tokens.weight": "embeddings",
        "model.layers.0.mamba.in_proj.weight": "blocks[0]",
        "model.layers.1.self_attn.q_proj.weight": "blocks[1]",
        "model.final_layernorm.weight": "head",
    },
    "swin": {
        "swin.embeddings.norm.weight": "embeddings",
        "swin.encoder.layers.0.blocks.1.attention.q_proj.weight": "blocks[0]",
        "swin.encoder.layers.0.downsample.reduction.weight": "blocks[0]",
        "swin.encoder.layers.1.blocks.0.attention.q_proj.weight": "blocks[1]",
        "swin.layernorm.weight": "head",
    },
    "canine": {
        "canine.initial_char_encoder.layer.0.attention.self.query.weight": "embeddings",
        "canine.encoder.layer.0.attention.self.query.weight": "blocks[0]",
        "canine.final_char_encoder.layer.0.attention.self.query.weight": "head",
    },
    "roformer": {"roformer.encoder.embed_positions.weight": "embeddings"},
    "big_bird": {"bert.embeddings.word_embeddings.weight": "embeddings", "bert.pooler.weight": "head"},
    "megatron-bert": {"bert.encoder.ln.weight": "head"},
    "rembert": {"rembert.encoder.embedding_hidden_mapping_in.weight": "embeddings"},
}


@pytest.mark.parametrize("name", ROLES)
def test_parameters_have_these_roles(name: str) -> None:
    layout = layout_of(name)
    assert {key: parameter(layout, key).role for key in ROLES[name]} == ROLES[name]


@pytest.mark.parametrize(
    ("name", "stacks"),
    [
        ("bert", [("", "bert.encoder.layer", 4)]),
        ("bart", [("encoder", "model.encoder.layers", 4), ("decoder", "model.decoder.layers", 4)]),
        ("t5", [("encoder", "encoder.block", 4), ("decoder", "decoder.block", 4)]),
        ("whisper", [("encoder", "model.encoder.layers", 4), ("decoder", "model.decoder.layers", 4)]),
        ("clip", [("vision", "vision_model.encoder.layers", 4), ("text", "text_model.encoder.layers", 4)]),
        ("wav2vec2", [("", "wav2vec2.encoder.layers", 4)]),
        ("jamba", [("", "model.layers", 4)]),
        ("canine", [("", "canine.encoder.layer", 4)]),
        ("swin", [("", "swin.encoder.layers", 2)]),
        ("funnel", [("", "funnel.encoder.blocks", 2)]),
        ("mpnet", [("", "mpnet.encoder.layer", 4)]),
    ],
)
def test_stacks_have_these_names_and_paths(name: str, stacks: list[tuple[str, str, int]]) -> None:
    assert [(stack.name, stack.path, stack.num_blocks) for stack in layout_of(name).stacks] == stacks


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_has_one_role_and_every_block_has_parameters(name: str) -> None:
    with torch.device("meta"):
        model = ARCHITECTURES[name].build()
    layout = find_layout(model)
    assert [found.name for found in layout.parameters] == [name for name, _ in model.named_parameters()]
    assert sum(found.numel for found in layout.parameters) == sum(p.numel() for p in model.parameters())
    assert len({stack.name for stack in layout.stacks}) == len(layout.stacks)
    count = Counter(found.role for found in layout.parameters)
    assert set(count) <= set(layout.roles)
    assert set(layout.roles) - set(count) <= {ROLE_EMBEDDINGS, ROLE_HEAD}
    assert list(layout.modules) == list(layout.roles)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_modules_of_the_roles_cover_the_model_once(name: str) -> None:
    with torch.device("meta"):
        model = ARCHITECTURES[name].build()
    layout = find_layout(model)
    covered = Counter(
        id(module)
        for role in layout.roles
        for path in layout.modules[role]
        for module in model.get_submodule(path).modules()
    )
    between = {"", *layout.straddlers, *(stack.path for stack in layout.stacks)}
    shared = {id(module) for path, module in model.named_modules(remove_duplicate=False) if path not in between}
    assert set(covered) == shared
    assert all(model.get_submodule(path) is resolve_module(model, path) for path in layout.straddlers)


def test_parameterless_modules_used_before_the_blocks_are_embeddings() -> None:
    assert layout_of("gpt2").modules[ROLE_EMBEDDINGS] == ("transformer.wte", "transformer.wpe", "transformer.drop")
    # T5 and XLNet use one dropout before and after.
    assert layout_of("t5").modules[ROLE_EMBEDDINGS] == (
        "shared",
        "encoder.embed_tokens",
        "encoder.dropout",
        "decoder.embed_tokens",
        "decoder.dropout",
    )
    assert layout_of("xlnet").modules[ROLE_EMBEDDINGS] == ("transformer.word_embedding", "transformer.dropout")
    assert layout_of("llama").modules[ROLE_EMBEDDINGS] == ("model.embed_tokens", "model.rotary_emb")


def test_straddlers_lie_between_the_top_and_the_stacks() -> None:
    assert layout_of("bert").straddlers == ("bert", "bert.encoder")
    assert layout_of("bart").straddlers == ("model", "model.encoder", "model.decoder")
    assert layout_of("t5").straddlers == ("encoder", "decoder")
    assert find_layout(Plain()).straddlers == ()


def test_the_blocks_of_a_stack_come_in_order() -> None:
    assert layout_of("gpt2").stacks == (
        Stack("", "transformer.h", ("transformer.h.0", "transformer.h.1", "transformer.h.2", "transformer.h.3")),
    )
    assert layout_of("t5").roles == (
        "embeddings",
        *(f"encoder.blocks[{i}]" for i in range(4)),
        *(f"decoder.blocks[{i}]" for i in range(4)),
        "head",
    )


def test_a_block_of_the_only_stack_needs_no_name() -> None:
    assert block_role("", 3) == "blocks[3]"
    assert block_role("encoder", 3) == "encoder.blocks[3]"


def test_tied_weights_are_one_parameter_that_follows_the_embeddings() -> None:
    layout = layout_of("bart")
    shared = parameter(layout, "lm_head.weight")
    assert shared.name == "model.shared.weight"
    assert shared.aliases == (
        "model.encoder.embed_tokens.weight",
        "model.decoder.embed_tokens.weight",
        "lm_head.weight",
    )
    assert shared.role == ROLE_EMBEDDINGS
    assert "lm_head" in layout.modules[ROLE_HEAD], "the module that holds the other name still runs last"


def test_output_embeddings_are_marked_whether_tied_or_not() -> None:
    assert [p.name for p in layout_of("llama").parameters if p.output_embedding] == ["lm_head.weight"]
    assert [p.name for p in layout_of("gpt2").parameters if p.output_embedding] == ["transformer.wte.weight"]
    assert [p.name for p in layout_of("whisper").parameters if p.output_embedding] == [
        "model.decoder.embed_tokens.weight"
    ]
    assert not any(p.output_embedding for p in layout_of("bert").parameters)


def test_what_lies_outside_the_base_model_is_marked() -> None:
    def outside(name: str) -> list[str]:
        return [found.name for found in layout_of(name).parameters if found.outside_base]

    assert outside("bert") == ["classifier.weight", "classifier.bias"]
    assert outside("llama") == ["lm_head.weight"]
    assert outside("gpt2") == []  # the language-model head is tied to what lies inside
    assert outside("t5") == []  # T5 with a language-model head has no base model inside it


def test_a_model_without_a_head_has_nothing_outside_the_base_model() -> None:
    model = BertModel(tiny.tiny_bert().config)
    assert not any(found.outside_base for found in find_layout(model).parameters)


class TestConstants:
    @pytest.mark.parametrize(
        ("name", "constants"),
        [
            ("whisper", ["model.encoder.embed_positions.weight"]),
            ("roformer", ["roformer.encoder.embed_positions.weight"]),
            ("pegasus", ["model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"]),
            ("marian", ["model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"]),
            ("bert", []),
        ],
    )
    def test_positions_that_the_model_does_not_train_are_constant(self, name: str, constants: list[str]) -> None:
        assert [found.name for found in layout_of(name).parameters if found.constant] == constants

    def test_what_was_frozen_since_is_not_constant(self) -> None:
        model = ARCHITECTURES["whisper"].build().requires_grad_(False)
        constants = [found.name for found in find_layout(model).parameters if found.constant]
        assert constants == ["model.encoder.embed_positions.weight"]

    def test_looking_for_constants_draws_no_random_numbers(self) -> None:
        model = ARCHITECTURES["whisper"].build()
        before = torch.get_rng_state()
        find_layout(model)
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_class_that_asks_for_more_than_a_config_is_taken_as_it_is(self) -> None:
        class Demanding(BertModel):
            def __init__(self, config: Any, more: int) -> None:
                super().__init__(config)
                self.more = more

        model = Demanding(tiny.tiny_bert().config, 3)
        model.embeddings.position_embeddings.requires_grad_(False)
        constants = [found.name for found in find_layout(model).parameters if found.constant]
        assert constants == ["embeddings.position_embeddings.weight"]

    def test_a_plain_module_is_taken_as_it_is_first_seen(self) -> None:
        model = Plain()
        model.embed.requires_grad_(False)
        first = find_layout(model)
        model.requires_grad_(False)
        remembered = frozenset(found.name for found in first.parameters if found.constant)
        assert remembered == {"embed.weight"}
        assert find_layout(model, constants=remembered) == first


class TestQuantized:
    def test_integers_and_floats_of_one_byte_are_quantized(self) -> None:
        model = Plain(num_blocks=4)
        for layer, dtype in zip(
            model.layers, (torch.uint8, torch.int8, torch.float8_e4m3fn, torch.bfloat16), strict=True
        ):
            weight = torch.zeros(4, 4).to(dtype)
            layer.linear.weight = nn.Parameter(weight, requires_grad=False)
        layout = find_layout(model, constants=frozenset())
        weights = [parameter(layout, f"layers.{i}.linear.weight") for i in range(4)]
        assert [(found.dtype, found.num_bytes, found.quantized) for found in weights] == [
            ("uint8", 16, True),
            ("int8", 16, True),
            ("float8_e4m3fn", 16, True),
            ("bfloat16", 32, False),
        ]


class TestPlainModules:
    def test_a_module_that_nobody_has_heard_of_has_roles(self) -> None:
        layout = find_layout(Plain())
        assert {found.name: found.role for found in layout.parameters} == {
            "scale": "head",
            "classifier.weight": "head",
            "classifier.bias": "head",
            **{f"layers.{i}.linear.{name}": f"blocks[{i}]" for i in range(3) for name in ("weight", "bias")},
            "embed.weight": "embeddings",
        }
        assert [found.name for found in layout.parameters if found.outside_base] == [
            "scale",
            "classifier.weight",
            "classifier.bias",
        ]

    def test_one_block_is_a_stack_too(self) -> None:
        assert find_layout(Plain(num_blocks=1)).stacks == (Stack("", "layers", ("layers.0",)),)
        assert find_layout(tiny.tiny_bert(num_hidden_layers=1)).stacks[0].num_blocks == 1

    def test_the_order_of_registration_decides_where_the_source_does_not(self) -> None:
        model = nn.ModuleDict(
            {"embed": nn.Linear(4, 4), "layers": nn.ModuleList([Block(), Block()]), "classifier": nn.Linear(4, 2)}
        )
        layout = find_layout(model)
        assert (layout.modules[ROLE_EMBEDDINGS], layout.modules[ROLE_HEAD]) == (("embed",), ("classifier",))

    def test_blocks_path_names_the_stack(self) -> None:
        model = nn.ModuleDict({"a": nn.ModuleList([Block()]), "b": nn.ModuleList([Block(), Block()])})
        layout = find_layout(model, blocks_path="b")
        assert [stack.path for stack in layout.stacks] == ["b"]
        assert parameter(layout, "a.0.linear.weight").role == ROLE_EMBEDDINGS


class TestStacks:
    def test_convolutions_are_no_stack_even_when_they_are_as_many_as_the_blocks(self) -> None:
        layout = find_layout(tiny.tiny_wav2vec2(num_hidden_layers=2))
        assert [stack.path for stack in layout.stacks] == ["wav2vec2.encoder.layers"]

    def test_a_vision_language_model_has_two_named_stacks(self) -> None:
        sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
        model = built(
            AutoModelForImageTextToText,
            "llava",
            text_config={"model_type": "llama", **sizes, "vocab_size": 99},
            vision_config={"model_type": "clip_vision_model", **sizes, "image_size": 32, "patch_size": 8},
        )
        layout = find_layout(model)
        assert isinstance(model, LlavaForConditionalGeneration)
        assert [(stack.name, stack.path) for stack in layout.stacks] == [
            ("vision", "model.vision_tower.encoder.layers"),
            ("language", "model.language_model.layers"),
        ]
        assert parameter(layout, "model.language_model.embed_tokens.weight").role == ROLE_EMBEDDINGS
        assert parameter(layout, "model.multi_modal_projector.linear_1.weight").role == ROLE_HEAD

    def test_blocks_can_be_fewer_than_the_config_counts(self) -> None:
        model = tiny.tiny_bert()
        del model.bert.encoder.layer[2:]
        assert find_layout(model).stacks[0].num_blocks == 2


class TestErrors:
    def raises(self, model: nn.Module, message: str, **options: Any) -> None:
        with pytest.raises(LayoutError, match=f"^{re.escape(message)}$"):
            find_layout(model, **options)

    def albert(self) -> PreTrainedModel:
        sizes = {"num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
        with torch.device("meta"):
            config = AlbertConfig(**sizes, vocab_size=99)
            model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
        return model

    def test_shared_blocks_are_refused(self) -> None:
        self.raises(
            self.albert(),
            "AlbertForSequenceClassification: its blocks are shared; got config.num_hidden_layers=4 and 1 in "
            "'albert.encoder.albert_layer_groups'. A block that runs several times cannot be frozen in one place and "
            "trained in another. Set model.blocks_path to 'albert.encoder.albert_layer_groups' to treat what is there "
            "as the blocks, or choose a model whose blocks have weights of their own.",
        )

    def test_shared_blocks_can_be_treated_as_one(self) -> None:
        layout = find_layout(self.albert(), blocks_path="albert.encoder.albert_layer_groups")
        assert parameter(layout, "albert.encoder.embedding_hidden_mapping_in.weight").role == ROLE_EMBEDDINGS
        assert layout.stacks[0].num_blocks == 1

    def test_one_module_in_several_places_is_refused(self) -> None:
        model = Plain(num_blocks=2)
        model.layers.append(model.layers[0])
        self.raises(
            model,
            "Plain: its blocks are shared; got 3 entries in 'layers', of which 2 are distinct. A block that runs "
            "several times cannot be frozen in one place and trained in another. Choose a model whose blocks have "
            "weights of their own.",
        )

    def test_a_model_without_a_stack_is_refused(self) -> None:
        self.raises(
            nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)),
            "Sequential: no stack of repeated blocks was found. There is no ModuleList in it. "
            "Keep its blocks in a torch.nn.ModuleList.",
        )

    def test_a_model_with_lists_of_different_things_is_told_what_it_has(self) -> None:
        self.raises(
            nn.ModuleDict({"parts": nn.ModuleList([nn.Linear(4, 4), nn.ReLU()])}),
            "ModuleDict: no stack of repeated blocks was found. ModuleLists that exist: 'parts' (2 elements). "
            "Set model.blocks_path to the one that holds the blocks.",
        )

    def test_weight_norms_are_no_stack(self) -> None:
        self.raises(
            nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            "ParametrizedLinear: no stack of repeated blocks was found. There is no ModuleList in it. "
            "Keep its blocks in a torch.nn.ModuleList.",
        )

    def test_parts_of_blocks_in_several_lists_are_refused(self) -> None:
        model = built(AutoModelForCausalLM, "xlm", emb_dim=32, n_layers=2, n_heads=4, n_words=99)
        self.raises(
            model,
            "XLMWithLMHeadModel: which ModuleList holds the blocks cannot be told, as several stand side by side. "
            "ModuleLists that exist: 'transformer.attentions' (2 elements), 'transformer.ffns' (2 elements), "
            "'transformer.layer_norm1' (2 elements), 'transformer.layer_norm2' (2 elements). "
            "Set model.blocks_path to the one that holds the blocks.",
        )

    def test_a_blocks_path_that_names_nothing_is_refused(self) -> None:
        self.raises(
            tiny.tiny_bert(),
            "model.blocks_path: BertForSequenceClassification has no such ModuleList; got 'bert.encoder.layers'. "
            "Did you mean 'bert.encoder.layer'? ModuleLists that exist: 'bert.encoder.layer' (4 elements). "
            "Set model.blocks_path to the one that holds the blocks.",
            blocks_path="bert.encoder.layers",
        )


def test_parameters_are_yielded_once_in_the_order_of_the_model() -> None:
    model = tiny.tiny_t5()
    expected = [(name, id(parameter)) for name, parameter in model.named_parameters()]
    assert [(name, id(parameter)) for name, parameter in named_parameters(model)] == expected
