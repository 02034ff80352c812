"""A model that replaces its own modules gives with the cache what it gives without, whatever the cache looks at first.

BigBird gives up its sparse attention for good in the first batch of 14 tokens or fewer.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from hf_freeze import freeze_model
from hf_freeze.activation_cache.housekeeping import list_stores
from tests.tiny import build
from tests.unit.activation_cache.examples import Batch, cache_of, collate, evaluate, hits_and_misses, loader_of

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
WORDS = {"vocab_size": 99, "pad_token_id": 0, "max_position_embeddings": 128}
SPARSE = {"attention_type": "block_sparse", "block_size": 2, "num_random_blocks": 1}
REASON = (
    "calling the model replaces modules of bert.encoder.layer.0.attention, so what becomes of a row depends on the "
    "batches before it"
)


def big_bird() -> PreTrainedModel:
    """Builds a BigBird whose attention is sparse, and whose weights are large enough to tell."""
    model = build(AutoModelForSequenceClassification, "big_bird", **SIZES, **WORDS, **SPARSE)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3, generator=generator)
    return freeze_model(model, {"blocks": {"first": 2}})


def rows_of_length(length: int, count: int = 8) -> list[Batch]:
    words = torch.randint(5, 99, (count, length), generator=torch.Generator().manual_seed(length)).tolist()
    return [{"input_ids": row, "attention_mask": [1] * length, "labels": 0} for row in words]


LONG, SHORT = rows_of_length(40), rows_of_length(6)
LONG_FIRST = [collate(LONG), collate(SHORT), collate(LONG)]


def attention_of(model: PreTrainedModel) -> list[str]:
    return [type(block.attention.self).__name__ for block in model.bert.encoder.layer]


def test_the_first_and_the_last_batch_differ_without_a_cache() -> None:
    """Else the tests below could not see anything."""
    first, _, last = evaluate(big_bird(), LONG_FIRST)
    assert (first - last).abs().max() > 0.1


def test_other_classes_of_modules_miss(tmp_path: Path) -> None:
    cache = cache_of(big_bird(), tmp_path)
    assert hits_and_misses(cache, [collate(LONG)]) == (0, 8)
    cache.model.bert.set_attention_type("original_full")
    assert hits_and_misses(cache, [collate(LONG)]) == (0, 8)
    expected = evaluate(cache.model, [collate(LONG)])
    torch.testing.assert_close(evaluate(cache.model, [collate(LONG)], cache.serve), expected, rtol=0, atol=1e-5)
    cache.close()
    assert hits_and_misses(cache_of(big_bird(), tmp_path), [collate(LONG)]) == (8, 0)


def test_looking_at_rows_leaves_the_model_as_it_was(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = evaluate(big_bird(), LONG_FIRST)
    cache = cache_of(big_bird(), tmp_path)
    caplog.clear()
    assert not cache.prepare(collate(SHORT))
    assert cache.reason == REASON
    assert caplog.messages[-1] == f"activation_cache: off. C{REASON[1:]}."
    assert attention_of(cache.model) == ["BigBirdBlockSparseAttention"] * 4
    torch.testing.assert_close(evaluate(cache.model, LONG_FIRST, cache.serve), expected, rtol=0, atol=0)


def test_building_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    expected = evaluate(big_bird(), LONG_FIRST)
    cache = cache_of(big_bird(), tmp_path)
    assert cache.prepare(collate(LONG))
    cache.build(loader_of(LONG), loader_of(SHORT), show_progress=False)
    assert cache.reason == REASON
    torch.testing.assert_close(evaluate(cache.model, LONG_FIRST, cache.serve), expected, rtol=0, atol=0)
    assert attention_of(cache.model) == ["BigBirdSelfAttention"] * 4


def test_a_batch_that_replaces_modules_runs_in_full_and_those_behind_it_too(tmp_path: Path) -> None:
    expected = evaluate(big_bird(), LONG_FIRST)
    for found in ((0, 8), (8, 0)):
        cache = cache_of(big_bird(), tmp_path)
        assert cache.prepare(collate(LONG))
        torch.testing.assert_close(evaluate(cache.model, LONG_FIRST, cache.serve), expected, rtol=0, atol=1e-5)
        assert cache.reason == REASON
        assert (cache.stats.hits, cache.stats.misses - len(SHORT)) == found
    assert [info.rows for info in list_stores(tmp_path)] == [len(LONG)]
