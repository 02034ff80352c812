"""Models whose frozen blocks cannot be replayed as they are wrapped or configured, and what ends a prefix."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from hf_freeze import freeze_model
from hf_freeze.activation_cache.checks import prefix_end, reason_of_model
from hf_freeze.plan.apply import plan_of
from tests.tiny import tiny_bert


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class TestReasonOfModel:
    def test_a_plain_model_has_none(self) -> None:
        assert reason_of_model(tiny_bert()) is None

    @pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
    def test_compiled(self) -> None:
        model = torch.compile(tiny_bert())
        assert isinstance(model, nn.Module)
        assert reason_of_model(model) == (
            "the model is compiled with torch.compile, which would run the frozen blocks all the same"
        )

    def test_data_parallel(self) -> None:
        assert reason_of_model(nn.DataParallel(tiny_bert())) == (
            "torch.nn.DataParallel copies the model for every GPU; accelerate launch starts a process for each"
        )

    @pytest.mark.usefixtures("process_group")
    @pytest.mark.filterwarnings(
        "ignore:.*FSDP:FutureWarning", "ignore:.*NO_SHARD:FutureWarning", "ignore:FSDP:UserWarning"
    )
    def test_fsdp_version_1(self) -> None:
        model = FullyShardedDataParallel(tiny_bert(), device_id=torch.device("cpu"), use_orig_params=True)
        assert reason_of_model(model) == (
            "FSDP version 1 gathers the frozen blocks for calls of its own only; version 2 can be cached"
        )

    @pytest.mark.parametrize("name", ["output_hidden_states", "output_attentions", "output_router_logits"])
    def test_a_config_that_asks_for_what_the_blocks_compute(self, name: str) -> None:
        model = tiny_bert()
        model.set_attn_implementation("eager")  # the only one that can give attentions
        setattr(model.config, name, True)
        assert reason_of_model(model) == f"{name} is true in the model's config: the frozen blocks have to run for it"


@pytest.mark.parametrize(
    ("freeze", "end"),
    [
        ({"blocks": "all"}, "the last block"),
        ({"blocks": {"first": 2}}, "blocks[2], where bert.encoder.layer.2.attention.self.query.weight trains"),
        ({"blocks": {"last": 2}}, "embeddings, where bert.embeddings.word_embeddings.weight trains"),
        (
            {"blocks": {"first": 2}, "always_train": ["*layer.1.output.dense.bias"]},
            "blocks[1], where bert.encoder.layer.1.output.dense.bias trains",
        ),
    ],
)
def test_what_ends_the_prefix(freeze: dict[str, object], end: str) -> None:
    assert prefix_end(plan_of(freeze_model(tiny_bert(), freeze))) == end
