"""Canonical names are those of the model before anything wrapped it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import peft
import pytest
import torch
from torch import nn
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import AutoModelForCausalLM

from hf_freeze.plan.layout import (
    ROLE_EMBEDDINGS,
    Layout,
    Parameter,
    canonical_name,
    find_layout,
    named_parameters,
    resolve_module,
    unwrap_model,
)
from tests import tiny

pytestmark = [
    # PEFT's LN tuning counts the features of each module it adapts, and has no rule for the only sort it is made for.
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
    # torch.compile imports a part of torch that still uses what torch has deprecated.
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]

QUERY = "bert.encoder.layer.1.attention.self.query"


def adapted(peft_type: str, **options: Any) -> peft.PeftModel:
    config = peft.get_peft_config({"peft_type": peft_type, "task_type": "SEQ_CLS", **options})
    return peft.get_peft_model(tiny.tiny_bert(), config)


def base_parameters(layout: Layout) -> dict[str, str]:
    return {found.name: found.role for found in layout.parameters if found.kind == "base" and not found.constant}


def adapter_parameters(layout: Layout) -> list[Parameter]:
    return [found for found in layout.parameters if found.kind == "adapter"]


METHODS: dict[str, dict[str, Any]] = {
    "LORA": {"target_modules": ["query"]},
    "LORA all linear": {"target_modules": "all-linear"},
    "LORA embedding": {"target_modules": ["query", "word_embeddings"]},
    "LORA dora": {"target_modules": ["query"], "use_dora": True},
    "LORA whole block": {"target_modules": ["query"], "modules_to_save": ["classifier", "bert.encoder.layer.3"]},
    "LORA tokens": {"target_modules": ["query"], "trainable_token_indices": [1, 2]},
    "IA3": {"target_modules": ["key", "value", "output.dense"], "feedforward_modules": ["output.dense"]},
    "LN_TUNING": {"target_modules": ["LayerNorm"]},
    "LOHA": {"target_modules": ["query"]},
    "OFT": {"target_modules": ["query"], "r": 0, "oft_block_size": 8},
    "ADALORA": {"target_modules": ["query"], "total_step": 10},
    "VERA": {"target_modules": ["query"], "r": 4},
    "VBLORA": {"target_modules": ["query"], "num_vectors": 8, "vector_length": 8},
    "PROMPT_TUNING": {"num_virtual_tokens": 4},
    "P_TUNING": {"num_virtual_tokens": 4, "encoder_hidden_size": 8},
    "PREFIX_TUNING": {"num_virtual_tokens": 4},
}


@pytest.mark.parametrize("method", METHODS)
class TestAdapters:
    def test_base_parameters_keep_names_and_roles(self, method: str) -> None:
        layout = find_layout(adapted(method.split()[0], **METHODS[method]))
        assert base_parameters(layout) == base_parameters(find_layout(tiny.tiny_bert()))

    def test_adapters_are_what_peft_trains_and_the_base_lacks(self, method: str) -> None:
        model = adapted(method.split()[0], **METHODS[method])
        layout = find_layout(model)
        base = set(base_parameters(layout))
        trained = {name for name, parameter in named_parameters(model) if parameter.requires_grad}
        adapters = adapter_parameters(layout)
        assert {found.name for found in adapters if not found.constant} == trained - base
        assert all("default" not in found.name.split(".") for found in layout.parameters)

    def test_every_parameter_is_described_once(self, method: str) -> None:
        model = adapted(method.split()[0], **METHODS[method])
        layout = find_layout(model)
        names = [found.name for found in layout.parameters]
        assert len(set(names)) == len(names) == len(list(model.parameters()))
        assert [name for name, _ in named_parameters(model)] == names

    def test_modules_keep_paths(self, method: str) -> None:
        bare, wrapped = tiny.tiny_bert(), adapted(method.split()[0], **METHODS[method])
        for path, module in bare.named_modules():
            found = resolve_module(wrapped, path)
            assert any(type(inner) is type(module) for inner in found.modules()), path
        assert resolve_module(wrapped, "") is wrapped


@pytest.mark.parametrize(
    ("method", "name", "role"),
    [
        ("LORA", f"{QUERY}.lora_A.weight", "blocks[1]"),
        ("LORA embedding", "bert.embeddings.word_embeddings.lora_embedding_A", "embeddings"),
        ("LORA dora", f"{QUERY}.lora_magnitude_vector.weight", "blocks[1]"),
        ("LORA tokens", "bert.embeddings.word_embeddings.trainable_tokens_delta", "embeddings"),
        ("IA3", "bert.encoder.layer.3.output.dense.ia3_l", "blocks[3]"),
        ("LN_TUNING", "bert.encoder.layer.0.output.LayerNorm.ln_tuning_layers.bias", "blocks[0]"),
        ("LOHA", f"{QUERY}.hada_w1_a", "blocks[1]"),
        ("OFT", f"{QUERY}.oft_R.weight", "blocks[1]"),
        ("PROMPT_TUNING", "prompt_encoder.embedding.weight", "embeddings"),
        ("PREFIX_TUNING", "prompt_encoder.embedding.weight", "embeddings"),
        # One bank of vectors serves all blocks: it trains as soon as the first of them does.
        ("VBLORA", "bert.encoder.layer.0.attention.self.query.vblora_vector_bank", "blocks[0]"),
    ],
)
def test_an_adapter_has_the_role_of_the_place_it_stands_in(method: str, name: str, role: str) -> None:
    layout = find_layout(adapted(method.split()[0], **METHODS[method]))
    assert {found.name: found.role for found in adapter_parameters(layout)}[name] == role


def test_what_an_adapter_method_keeps_for_itself_is_constant() -> None:
    layout = find_layout(adapted("ADALORA", **METHODS["ADALORA"]))
    constants = {found.name for found in adapter_parameters(layout) if found.constant}
    assert constants == {f"bert.encoder.layer.{i}.attention.self.query.ranknum" for i in range(4)}


def test_the_copy_that_trains_has_the_name_and_the_original_is_constant() -> None:
    model = adapted("LORA", **METHODS["LORA whole block"])
    found = {found.name: found for found in find_layout(model).parameters}
    assert not found["classifier.weight"].constant
    assert found["classifier.original_module.weight"].constant
    assert found["bert.encoder.layer.3.original_module.output.dense.weight"].role == "blocks[3]"
    trained = dict(named_parameters(model))["classifier.weight"]
    assert trained is model.base_model.model.classifier.modules_to_save["default"].weight
    assert resolve_module(model, "classifier") is model.base_model.model.classifier


def test_an_adapter_that_is_not_active_is_constant() -> None:
    model = adapted("LORA", target_modules=["query"])
    model.add_adapter("second", peft.LoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
    found = {found.name: found.constant for found in find_layout(model).parameters}
    assert not found[f"{QUERY}.lora_A.default.weight"]
    assert found[f"{QUERY}.lora_A.second.weight"]
    assert not found["classifier.weight"]
    assert found["classifier.modules_to_save.second.weight"]


def test_two_adapted_parameters_of_one_module_keep_apart() -> None:
    model = tiny.build(
        AutoModelForCausalLM,
        "mixtral",
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        vocab_size=99,
        num_local_experts=2,
    )
    experts = "model.layers.0.mlp.experts"
    targets = [f"{experts}.gate_up_proj", f"{experts}.down_proj"]
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=[], target_parameters=targets))
    assert [found.name for found in adapter_parameters(find_layout(model))] == [
        f"{experts}.lora_A.weight",
        f"{experts}.lora_B.weight",
        f"{experts}.base_layer.lora_A.weight",
        f"{experts}.base_layer.lora_B.weight",
    ]


def test_adapters_around_a_plain_module_leave_nothing_constant() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    model = peft.get_peft_model(Plain(), peft.LoraConfig(target_modules=["0"]))
    layout = find_layout(model)
    assert not any(found.constant for found in layout.parameters)
    assert layout.stacks[0].path == "layers"


@pytest.fixture
def process_group() -> Iterator[None]:
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    destroy_process_group()


def in_ddp(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model)


def in_fsdp1(model: nn.Module) -> nn.Module:
    return FullyShardedDataParallel(
        model, use_orig_params=True, device_id=torch.device("cpu"), sharding_strategy=ShardingStrategy.NO_SHARD
    )


def in_fsdp2(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (1,))
    for layer in unwrap_model(model).bert.encoder.layer:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def with_checkpointed_blocks(model: nn.Module) -> nn.Module:
    layers = model.bert.encoder.layer
    layers[0] = checkpoint_wrapper(layers[0])
    layers[1] = torch.compile(layers[1])
    return model


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("wrap", [in_ddp, DataParallel, torch.compile, in_fsdp1, in_fsdp2, with_checkpointed_blocks])
class TestDistribution:
    def test_the_layout_is_that_of_the_model_inside(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        assert find_layout(wrap(tiny.tiny_bert())) == find_layout(tiny.tiny_bert())

    def test_the_model_inside_is_found(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        model = tiny.tiny_bert()
        wrapped = wrap(model)
        assert unwrap_model(wrapped) is model
        assert resolve_module(wrapped, "") is wrapped
        assert resolve_module(wrapped, "bert.embeddings") is model.bert.embeddings


def test_wrappers_of_both_sorts_can_stand_in_each_other() -> None:
    model = adapted("LORA", target_modules=["query"])
    wrapped = torch.compile(DataParallel(model))
    assert find_layout(wrapped) == find_layout(model)
    assert unwrap_model(wrapped) is model


def test_a_path_that_does_not_exist_is_a_key_error() -> None:
    with pytest.raises(KeyError, match=r"^'bert\.encoder\.layer\.9'$"):
        resolve_module(tiny.tiny_bert(), "bert.encoder.layer.9")


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("classifier.weight", "classifier.weight"),
        ("module.classifier.weight", "classifier.weight"),
        ("_orig_mod.module.bert.pooler.dense.bias", "bert.pooler.dense.bias"),
        ("bert._fsdp_wrapped_module.pooler._checkpoint_wrapped_module.dense.bias", "bert.pooler.dense.bias"),
        ("base_model.model.bert.pooler.dense.base_layer.weight", "bert.pooler.dense.weight"),
        ("base_model.model.bert.pooler.dense.lora_A.default.weight", "bert.pooler.dense.lora_A.weight"),
        ("base_model.model.classifier.modules_to_save.default.weight", "classifier.weight"),
        ("base_model.model.classifier.original_module.weight", "classifier.original_module.weight"),
    ],
)
def test_names_alone_can_be_made_canonical(name: str, canonical: str) -> None:
    assert canonical_name(name) == canonical


@pytest.mark.parametrize("method", ["LORA", "LORA dora", "LORA whole block", "IA3", "LN_TUNING", "OFT"])
def test_names_alone_tell_what_the_modules_tell(method: str) -> None:
    model = DataParallel(adapted(method.split()[0], **METHODS[method]))
    by_module = {id(parameter): name for name, parameter in named_parameters(model)}
    assert {canonical_name(name): by_module[id(parameter)] for name, parameter in model.named_parameters()} == {
        name: name for name in by_module.values()
    }


def test_prompts_come_first() -> None:
    layout = find_layout(adapted("PROMPT_TUNING", num_virtual_tokens=4))
    assert "prompt_encoder" in layout.modules[ROLE_EMBEDDINGS]
