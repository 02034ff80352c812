"""LayerDrop leaves blocks out at random. Over a frozen prefix it is off, so that stored rows stand for its blocks."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, default_data_collator

from hf_freeze import CacheError, freeze_model
from tests.tiny import tiny_bart, tiny_batch, tiny_wav2vec2
from tests.unit.activation_cache.examples import cache_of
from tests.unit.training.cached import assert_agree, trained

BART = {"blocks": {"encoder": {"first": 2}}}
WAV2VEC2 = {"blocks": {"first": 2}}
STEPS = {"max_steps": 14, "eval_steps": 14}


def bart() -> PreTrainedModel:
    return tiny_bart(encoder_layerdrop=0.5, decoder_layerdrop=0.5, dropout=0.1)


def wav2vec2() -> PreTrainedModel:
    return tiny_wav2vec2(layerdrop=0.5, hidden_dropout=0.1)


def stacks(model: nn.Module) -> dict[str, nn.ModuleList]:
    found = {name: each for name, each in model.named_modules() if isinstance(each, nn.ModuleList) and len(each) == 4}
    return {name.removeprefix("model.").removeprefix("wav2vec2."): each for name, each in found.items()}


def count_calls(model: nn.Module) -> Counter[str]:
    """How often each block has run so far, in a counter that grows."""
    calls: Counter[str] = Counter()
    for stack, blocks in stacks(model).items():
        for index, block in enumerate(blocks):
            block.register_forward_hook(lambda *_, name=f"{stack}.{index}": calls.update([name]))
    return calls


def waves() -> dict[str, Any]:
    recorded = torch.randn(24, 400, generator=torch.Generator().manual_seed(0))
    rows = [{"input_values": wave, "labels": place % 2} for place, wave in enumerate(recorded)]
    return {"train_dataset": rows, "eval_dataset": rows[:8], "data_collator": default_data_collator}


CASES = [
    pytest.param(bart, BART, {"labels": "words"}, id="bart"),
    pytest.param(wav2vec2, WAV2VEC2, waves(), id="wav2vec2"),
]


def test_blocks_are_left_out_where_nothing_is_frozen() -> None:
    model = bart().train()
    calls = count_calls(model)
    for _ in range(20):
        model(**tiny_batch(), labels=tiny_batch()["input_ids"])
    assert 0 < calls["encoder.layers.0"] < 20
    assert 0 < calls["decoder.layers.0"] < 20


@pytest.mark.parametrize("enabled", ["auto", True])
@pytest.mark.parametrize(("build", "freeze", "keywords"), CASES)
def test_the_cache_is_on_and_no_block_is_left_out(
    tmp_path: Path, build: Any, freeze: dict[str, Any], keywords: dict[str, Any], enabled: object
) -> None:
    """With the cache or without it, and the blocks that train are not left out either."""
    counts: list[Counter[str]] = []

    def counted() -> nn.Module:
        model = build()
        counts.append(count_calls(model))
        return model

    cache = {"enabled": enabled, "dir": str(tmp_path / "cache")}
    runs = [
        trained(tmp_path, section, build=counted, freeze=freeze, options=STEPS, **keywords)
        for section in ({"enabled": False}, cache, cache)
    ]
    plain, cold, warm = runs
    for run in (cold, warm):
        assert (run.cache.is_on, run.cache.reason) == (True, None)
        assert_agree(run, plain)
    assert warm.cache.stats.misses == warm.cache.stats.built == 0
    (passes,) = {*counts[0].values()}
    assert passes > 14
    # Beyond what looking at eight rows takes, which is the same for all blocks behind the prefix.
    behind = [name for name in counts[0] if name.startswith("decoder") or name[-1] in "23"]
    assert len({counts[2][name] for name in behind}) == 1


@pytest.mark.parametrize(("build", "freeze"), [(bart, BART), (wav2vec2, WAV2VEC2)])
def test_blocks_that_are_left_out_after_all_are_found_out(tmp_path: Path, build: Any, freeze: dict[str, Any]) -> None:
    """As where somebody switches the stack to train mode by hand: embeddings never take the place of hidden states."""
    model = freeze_model(build(), freeze)
    batch = {"input_values": torch.randn(4, 400), "labels": torch.tensor([0, 1, 0, 1])}
    if build is bart:
        batch = {**tiny_batch(rows=4), "labels": tiny_batch(rows=4, seed=4)["input_ids"]}
    cache = cache_of(model, tmp_path, enabled=True)
    with cache.serve(batch) as inputs:
        model(**inputs)
        encoder = model.get_encoder() if build is bart else model.wav2vec2.encoder
        encoder.training = True
        encoder.layerdrop = 1.0
        if build is wav2vec2:
            model.config.layerdrop = 1.0
        message = (
            f"activation_cache: {type(model).__name__} went past its frozen blocks; got an output that stored rows "
            "have no part in. Set activation_cache.enabled to false for this model."
        )
        with pytest.raises(CacheError, match=f"^{re.escape(message)}$"):
            model(**inputs)
    cache.close()
