"""What trains after the cache was made is trained, whoever thawed it; what can still be cached is."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from hf_freeze import ActivationCache, CacheError, freeze_model
from hf_freeze.activation_cache.housekeeping import list_stores
from hf_freeze.plan.apply import plan_of
from tests.tiny import tiny_bert
from tests.unit.activation_cache.examples import cache_of, frozen_bert, hits_and_misses, loader_of, rows_of, train

ROWS = rows_of()
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
ASKS = "bert.encoder.layer.1.attention.self.query.weight asks for a gradient, though the plan freezes it"


def used_cache(folder: Path, **section: object) -> ActivationCache:
    """A cache that has served all rows at depth 3."""
    cache = cache_of(frozen_bert(3, **DROPOUT), folder, **section)
    assert hits_and_misses(cache, loader_of(ROWS)) == (0, 12)
    return cache


def by_another_plan(model: PreTrainedModel) -> None:
    freeze_model(model, {"blocks": {"first": 1}})


def by_hand(model: PreTrainedModel) -> None:
    model.bert.encoder.layer[1].requires_grad_(True)
    model.bert.encoder.layer[2].requires_grad_(True)


@pytest.mark.parametrize("thaw", [by_another_plan, by_hand])
def test_blocks_that_are_thawed_train_as_without_a_cache(
    thaw: Callable[[PreTrainedModel], None], tmp_path: Path
) -> None:
    plain = frozen_bert(3, **DROPOUT)
    thaw(plain)
    expected = train(plain, loader_of(ROWS))
    cache = used_cache(tmp_path)
    thaw(cache.model)
    before = {name: value.clone() for name, value in cache.model.named_parameters()}
    assert train(cache.model, loader_of(ROWS), cache.serve) == pytest.approx(expected, abs=1e-5)
    moved = {name for name, value in cache.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name, value in cache.model.named_parameters() if value.requires_grad}
    assert any("layer.1." in name for name in moved)
    cache.close()


def test_the_cache_follows_the_plan_of_the_model(tmp_path: Path) -> None:
    cache = used_cache(tmp_path)
    for depth, found in ((1, (0, 12)), (4, (0, 12)), (3, (12, 0)), (1, (12, 0))):
        freeze_model(cache.model, {"blocks": {"first": depth}})
        assert hits_and_misses(cache, loader_of(ROWS)) == found
        assert cache.is_on
        assert cache.plan is plan_of(cache.model)
        assert cache.plan.depth == depth
    assert sorted(info.depth for info in list_stores(tmp_path)) == [1, 3, 4]


def test_a_plan_that_is_applied_before_the_first_batch_counts(tmp_path: Path) -> None:
    cache = cache_of(frozen_bert(3), tmp_path)
    by_another_plan(cache.model)
    assert hits_and_misses(cache, loader_of(ROWS)) == (0, 12)
    assert [info.depth for info in list_stores(tmp_path)] == [1]


def test_a_plan_that_keeps_dropout_ends_the_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = used_cache(tmp_path)
    freeze_model(cache.model, {"blocks": {"first": 3}, "keep_dropout": True})
    assert hits_and_misses(cache, loader_of(ROWS)) == (0, 0)
    assert [record.getMessage() for record in caplog.records] == [
        "activation_cache: off. freeze.keep_dropout is true: what the frozen blocks return is random."
    ]


def test_what_is_thawed_by_hand_ends_the_cache_and_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = used_cache(tmp_path)
    by_hand(cache.model)
    assert hits_and_misses(cache, loader_of(ROWS)) == (0, 0)
    assert not cache.is_on
    assert cache.reason == ASKS
    assert [record.getMessage() for record in caplog.records] == [f"activation_cache: off. {ASKS}."]


def test_a_cache_that_is_asked_for_refuses_what_is_thawed_by_hand(tmp_path: Path) -> None:
    cache = used_cache(tmp_path, enabled=True)
    by_hand(cache.model)
    message = (
        f"activation_cache.enabled: the cache cannot be used here; got True. {ASKS}. Set activation_cache.enabled to "
        "auto or false, or change what stands in its way."
    )
    with pytest.raises(CacheError, match=f"^{re.escape(message)}$"):
        hits_and_misses(cache, loader_of(ROWS))


def test_a_plan_that_was_given_is_not_replaced(tmp_path: Path) -> None:
    model = frozen_bert(3)
    cache = ActivationCache(model, plan_of(model), {"dir": str(tmp_path)})
    assert hits_and_misses(cache, loader_of(ROWS)) == (0, 12)
    freeze_model(model, {"blocks": {"first": 4}})
    assert hits_and_misses(cache, loader_of(ROWS)) == (12, 0)
    by_another_plan(model)
    assert hits_and_misses(cache, loader_of(ROWS)) == (0, 0)
    assert cache.reason == ASKS


@pytest.mark.parametrize(
    ("freeze", "end"),
    [
        ({"blocks": {"indices": [1, 2]}}, "bert.embeddings.word_embeddings.weight"),
        ({"blocks": {"first": 2}, "always_train": ["*.bias"]}, "bert.embeddings.LayerNorm.bias"),
        ({"blocks": "none", "embeddings": "frozen"}, None),
    ],
)
def test_blocks_that_are_frozen_in_vain_are_worth_a_word(
    freeze: dict[str, object], end: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = cache_of(freeze_model(tiny_bert(), freeze), tmp_path)
    assert hits_and_misses(cache, loader_of(ROWS)) == (0, 0)
    ends = (
        "blocks[0], where bert.encoder.layer.0.attention.self.query.weight"
        if end is None
        else f"embeddings, where {end}"
    )
    said = f"activation_cache: off. No block is frozen from the input on: the frozen prefix ends at {ends} trains."
    assert [record.getMessage() for record in caplog.records] == [said]


@pytest.mark.parametrize("freeze", [{"blocks": "none"}, {"blocks": "none", "head": "frozen"}])
def test_a_plan_that_freezes_no_block_is_not(
    freeze: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = cache_of(freeze_model(tiny_bert(), freeze), tmp_path)
    assert hits_and_misses(cache, loader_of(ROWS)) == (0, 0)
    assert caplog.records == []
