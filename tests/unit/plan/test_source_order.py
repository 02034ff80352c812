"""The order in which a forward uses what is inside it, one way of writing it at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel

from hf_freeze.plan.source_order import uses
from hf_freeze.plan.wrappers import canonical_tree
from tests import tiny


class Model(nn.Module):
    """Registers in an order in which nothing runs."""

    prefix = "embed"

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.scale = nn.Parameter(torch.ones(4))
        self.embed = nn.Linear(4, 4)
        self.flag = False

    def embedded(self, x: torch.Tensor) -> torch.Tensor:
        return self.embed(x)

    @property
    def first(self) -> nn.Module:
        return self.embed


class ArgumentsRunBeforeTheCall(Model):
    def forward(self, x: Any) -> Any:
        return self.norm(self.embed(x))


class MethodsAreFollowed(Model):
    def forward(self, x: Any) -> Any:
        x = self.embedded(x)
        return self.norm(x)


class PropertiesAreFollowed(Model):
    def forward(self, x: Any) -> Any:
        return self.norm(self.first(x))


class ParentsAreFollowed(MethodsAreFollowed):
    def forward(self, x: Any) -> Any:
        return super().forward(x) * self.scale


class NamesOfAttributesAreRead(Model):
    def forward(self, x: Any) -> Any:
        return getattr(self, "norm", None)(getattr(self, self.prefix)(x))


class LookingIsNoUse(Model):
    def forward(self, x: Any) -> Any:
        if self.norm is None or len(self.layers) == 0 or not isinstance(self.norm, nn.LayerNorm):
            return x
        x = x.to(self.norm.weight.dtype)
        return self.norm(self.embed(x).to(self.layers[0].in_features))


class LoopsUseWhatTheyCall(Model):
    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            layer.flag = self.flag
        x = self.embed(x)
        for index, (layer, _) in enumerate(zip(self.layers[:2], range(2), strict=False)):
            x = layer(x) + index
        return self.norm(x)


class LoopsUseWhatTheyCallInside(Model):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"inner": nn.ModuleDict({"linear": nn.Linear(4, 4)})})])

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            self.rescale(layer.inner.linear, layer.inner.linear.weight)
        x = self.embed(x)
        for layer in self.layers.children():
            x = layer.inner.linear(self.norm(x))
        return x

    def rescale(self, module: nn.Module, weight: nn.Parameter) -> None: ...


class LoopsUseWhatTheyPassOn(Model):
    def forward(self, x: Any) -> Any:
        x = self.embed(x)
        for layer in self.layers:
            x = torch.utils.checkpoint.checkpoint(layer.__call__, x)
        return x


class OtherNamesAreNoUse(Model):
    def forward(self, x: Any) -> Any:
        layers, norm = self.layers, self.norm
        run = self.embedded
        last = self.norm
        x = run(x)
        return last(x), layers, norm


class VariablesStandForParts(Model):
    def forward(self, x: Any) -> Any:
        layers = self.layers
        if (last := self.norm) is None:
            return x
        x = self.embed(x)
        for layer in layers:
            x = layer(x)
        layers = x
        return last(layers)


class ComprehensionsRunWhatTheyComeFromFirst(Model):
    def forward(self, x: Any) -> Any:
        return [self.norm(layer(x)) for layer in self.layers if self.embed(x)]


class ParametersAreUsed(Model):
    def forward(self, x: Any) -> Any:
        return self.norm(x * self.scale.to(x.device))


class ElementsAreUsed(Model):
    def forward(self, x: Any) -> Any:
        return self.layers[1](self.layers[0](x))


class BothBranchesAreWalked(Model):
    def forward(self, x: Any) -> Any:
        return self.embed(x) if self.flag else self.norm(x)


class ForwardIsFollowed(Model):
    def forward(self, x: Any) -> Any:
        run: Any = self.layers[1].forward
        return run(self.embed.forward(x))


CASES = [
    (ArgumentsRunBeforeTheCall, ["embed", "norm"]),
    (MethodsAreFollowed, ["embed", "norm"]),
    (PropertiesAreFollowed, ["embed", "norm"]),
    (ParentsAreFollowed, ["embed", "norm", "scale"]),
    (NamesOfAttributesAreRead, ["embed", "norm"]),
    (LookingIsNoUse, ["embed", "norm"]),
    (LoopsUseWhatTheyCall, ["embed", "layers", "norm"]),
    (LoopsUseWhatTheyCallInside, ["embed", "norm", "layers.0.inner.linear"]),
    (LoopsUseWhatTheyPassOn, ["embed", "layers"]),
    (OtherNamesAreNoUse, ["embed", "norm", "layers"]),
    (VariablesStandForParts, ["embed", "layers", "norm"]),
    (ComprehensionsRunWhatTheyComeFromFirst, ["embed", "layers", "norm"]),
    (ParametersAreUsed, ["scale", "norm"]),
    (ElementsAreUsed, ["layers.0", "layers.1"]),
    (BothBranchesAreWalked, ["embed", "norm"]),
    (ForwardIsFollowed, ["embed.weight", "embed.bias", "layers.1.weight", "layers.1.bias"]),
]


@pytest.mark.parametrize(("model", "expected"), CASES)
def test_uses_come_in_the_order_in_which_python_runs_them(model: type[Model], expected: list[str]) -> None:
    assert list(uses(canonical_tree(model()))) == expected


def test_input_embeddings_are_found_as_transformers_finds_them() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.llama = tiny.tiny_llama(num_hidden_layers=1).model

        def forward(self, x: Any) -> Any:
            return self.llama(inputs_embeds=self.llama.get_input_embeddings()(x))

    assert list(uses(canonical_tree(Wrapper()))) == ["llama.embed_tokens", "llama"]


def test_a_model_without_input_embeddings_is_walked_all_the_same() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = tiny.tiny_wav2vec2().config
            self.audio = AutoModel.from_config(config)
            self.norm = nn.LayerNorm(4)

        def forward(self, x: Any) -> Any:
            return self.norm(self.audio(self.audio.get_input_embeddings()(x)))

    assert list(uses(canonical_tree(Wrapper()))) == ["audio", "norm"]


def test_without_source_nothing_is_known() -> None:
    namespace: dict[str, Any] = {"Model": Model}
    exec("class Made(Model):\n    def forward(self, x):\n        return self.norm(self.embed(x))", namespace)
    assert uses(canonical_tree(namespace["Made"]())) == ()


def test_without_a_forward_nothing_is_known() -> None:
    assert uses(canonical_tree(nn.ModuleDict({"a": nn.Linear(4, 4)}))) == ()
