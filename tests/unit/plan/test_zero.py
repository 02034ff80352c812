"""What DeepSpeed wraps and splits is seen as it was, by stand-ins of its classes: it is no dependency."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_freeze.plan.audit import tensor_digest
from hf_freeze.plan.layout import find_layout, named_parameters, unwrap_model
from tests.tiny import tiny_bert


class Engine(nn.Module):
    """Holds a model as `deepspeed.DeepSpeedEngine` does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


@pytest.fixture(autouse=True)
def deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(DeepSpeedEngine=Engine))
    zero = SimpleNamespace(is_zero_param=lambda parameter: "ds_tensor" in vars(parameter))
    monkeypatch.setitem(sys.modules, "deepspeed.runtime.zero.utils", zero)


def split(model: nn.Module) -> None:
    """Splits every parameter over two processes, of which this is the first, as ZeRO stage 3 does."""
    for parameter in model.parameters():
        parameter.ds_shape = parameter.shape
        parameter.ds_tensor = parameter.detach().flatten()[: (parameter.numel() + 1) // 2].clone()
        parameter.data = torch.empty(0)


def test_a_model_in_an_engine_has_its_own_names() -> None:
    model = tiny_bert()
    assert unwrap_model(Engine(model)) is model
    assert [name for name, _ in named_parameters(Engine(model))] == [name for name, _ in model.named_parameters()]
    assert find_layout(Engine(model)) == find_layout(model)


def test_the_layout_of_a_split_model_is_that_of_the_whole_one() -> None:
    model = tiny_bert()
    whole = find_layout(model)
    split(model)
    assert sum(parameter.numel() for parameter in model.parameters()) == 0
    assert find_layout(model) == whole


def test_the_digest_of_a_split_parameter_is_that_of_its_shard() -> None:
    model = tiny_bert()
    parameter = model.bert.encoder.layer[0].output.dense.weight
    whole = parameter.detach().clone()
    split(model)
    digest = tensor_digest(parameter)
    assert digest == tensor_digest(whole.flatten()[: whole.numel() // 2])
    parameter.data = whole  # As while its block runs.
    assert tensor_digest(parameter) == digest
    parameter.ds_tensor += 1
    assert tensor_digest(parameter) != digest
