"""A deeper prefix is made from what is stored of a shallower one: the same values, and none of its blocks runs again.

Shapes: `L` sequence length, `H` hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, PreTrainedModel

from hf_freeze import ActivationCache, freeze_model
from hf_freeze.activation_cache import building
from hf_freeze.activation_cache.housekeeping import list_stores
from hf_freeze.activation_cache.store import ActivationStore
from tests.tiny import tiny_batch, tiny_llama, tiny_t5
from tests.unit.activation_cache.examples import (
    cache_of,
    collate,
    evaluate,
    frozen_bert,
    hits_and_misses,
    loader_of,
    rows_of,
    train,
)

ROWS = rows_of(40, longest=20)
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


def fill(cache: ActivationCache, loader: DataLoader[Any]) -> ActivationCache:
    """Builds from a loader, and closes the store."""
    cache.build(loader, show_progress=False)
    cache.close()
    return cache


def called_blocks(model: PreTrainedModel) -> list[int]:
    """The numbers of the blocks that have run so far, in a list that grows."""
    called: list[int] = []
    for index, layer in enumerate(model.bert.encoder.layer):
        layer.register_forward_hook(lambda *_, index=index: called.append(index))
    return called


def stored_rows(cache: ActivationCache, batch: dict[str, Any]) -> list[torch.Tensor]:
    """What the store holds for the rows of a batch, each of shape (l, H)."""
    outputs = cache._outputs
    assert outputs is not None
    keyed = {name: value for name, value in batch.items() if name != "labels"}
    rows = outputs.store.get(outputs.names(keyed, None))
    cache.close()
    assert all(row is not None for row in rows)
    return [row for row in rows if row is not None]


def assert_grows_as_afresh(
    folder: Path,
    model_of: Callable[[int], PreTrainedModel],
    loader: DataLoader[Any],
    *,
    atol: float = 0.0,
    **section: Any,
) -> None:
    """Asserts that 4 blocks from 2 that are stored give what 4 blocks afresh do, without running the first two.

    Args:
        folder: Where the stores may be.
        model_of: Makes the model with so many blocks frozen.
        loader: The rows.
        atol: How far values may be apart.
        **section: Of the cache.
    """
    afresh = fill(cache_of(model_of(4), folder / "afresh", enabled=True, **section), loader)
    fill(cache_of(model_of(2), folder / "grown", enabled=True, **section), loader)
    grown = cache_of(model_of(4), folder / "grown", enabled=True, **section)
    grown.prepare_from(loader)
    called = called_blocks(grown.model)
    fill(grown, loader)
    assert grown.stats.built == afresh.stats.built == len(loader.dataset)  # type: ignore[arg-type]
    assert {*called} == {2, 3}
    assert hits_and_misses(grown, loader) == (grown.stats.built, 0)
    batch = next(iter(DataLoader(loader.dataset, len(loader.dataset), collate_fn=loader.collate_fn)))  # type: ignore[arg-type]
    pairs = list(zip(stored_rows(grown, batch), stored_rows(afresh, batch), strict=True))
    assert len({row.shape for row, _ in pairs}) > 1
    for one, other in pairs:
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


def test_values_are_those_of_a_fresh_build_to_the_bit(tmp_path: Path) -> None:
    assert_grows_as_afresh(tmp_path, frozen_bert, loader_of(ROWS))


@pytest.mark.parametrize(("dtype", "atol"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_values_from_half_precision_are_rounded_twice(tmp_path: Path, dtype: str, atol: float) -> None:
    """By no more than a step of the dtype at 2, which is what hidden states reach here."""
    assert_grows_as_afresh(tmp_path, frozen_bert, loader_of(ROWS), dtype=dtype, atol=atol)


def test_the_real_model(tmp_path: Path, minilm_path: Path) -> None:
    """To rounding in float32: how the processor sums depends on where rows lie in memory."""
    tokenizer = AutoTokenizer.from_pretrained(minilm_path)
    texts = [" ".join(["a film that never ends"] * (1 + number % 5)) + f" {number}" for number in range(12)]
    rows = [{**tokenizer(text), "labels": number % 2} for number, text in enumerate(texts)]
    loader = DataLoader(rows, batch_size=4, collate_fn=DataCollatorWithPadding(tokenizer))  # type: ignore[arg-type]

    def model_of(depth: int) -> PreTrainedModel:
        model = AutoModelForSequenceClassification.from_pretrained(minilm_path, num_labels=2)
        return freeze_model(model, {"blocks": {"first": depth}})

    assert_grows_as_afresh(tmp_path / "float32", model_of, loader, atol=1e-5)
    assert_grows_as_afresh(tmp_path / "float16", model_of, loader, dtype="float16", atol=1e-2)


def test_rows_are_grown_when_they_are_needed(tmp_path: Path) -> None:
    loader = loader_of(ROWS, shuffle=True)
    expected = train(frozen_bert(4, **DROPOUT), loader)
    fill(cache_of(frozen_bert(2, **DROPOUT), tmp_path), loader)
    cache = cache_of(frozen_bert(4, **DROPOUT), tmp_path, build="lazy")
    cache.prepare_from(loader)
    called = called_blocks(cache.model)
    assert train(cache.model, loader, cache.serve) == pytest.approx(expected, abs=1e-5)
    assert called == [2, 3] * 10
    assert (cache.stats.hits, cache.stats.misses) == (40, 40)
    cache.close()


def test_the_deepest_of_several_is_grown_from(tmp_path: Path) -> None:
    for depth in (1, 3):
        fill(cache_of(frozen_bert(depth), tmp_path), loader_of(ROWS))
    cache = cache_of(frozen_bert(4), tmp_path)
    cache.prepare_from(loader_of(ROWS))
    called = called_blocks(cache.model)
    fill(cache, loader_of(ROWS))
    assert {*called} == {3}


def test_a_growth_that_was_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was stored by then is not computed again, and the rest is grown."""
    expected = evaluate(frozen_bert(4), loader_of(ROWS))
    fill(cache_of(frozen_bert(2), tmp_path), loader_of(ROWS))
    put, calls = ActivationStore.put, []

    def interrupt(store: ActivationStore, rows: Any) -> int:
        calls.append(True)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return put(store, rows)

    monkeypatch.setattr(building, "_BYTES_AT_ONCE", 1)
    monkeypatch.setattr(ActivationStore, "put", interrupt)
    cache = cache_of(frozen_bert(4), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cache.build(loader_of(ROWS), show_progress=False)
    cache.close()
    monkeypatch.undo()
    again = cache_of(frozen_bert(4), tmp_path)
    again.prepare_from(loader_of(ROWS))
    assert again.num_rows == 32
    called = called_blocks(again.model)
    fill(again, loader_of(ROWS))
    assert again.stats.built == 8
    assert called == [2, 3]
    torch.testing.assert_close(evaluate(again.model, loader_of(ROWS), again.serve), expected, rtol=0, atol=1e-6)
    assert again.stats.misses == 0
    again.close()


def test_a_batch_of_which_a_row_is_not_stored_is_computed_from_the_words(tmp_path: Path) -> None:
    fill(cache_of(frozen_bert(2), tmp_path), loader_of(ROWS[:39]))
    cache = cache_of(frozen_bert(4), tmp_path)
    batches = [collate(ROWS[:4]), collate(ROWS[36:])]
    cache.prepare(batches[0])
    called = called_blocks(cache.model)
    served = evaluate(cache.model, batches, cache.serve)
    assert called == [2, 3, 0, 1, 2, 3]
    torch.testing.assert_close(served, evaluate(frozen_bert(4), batches), rtol=0, atol=1e-6)
    cache.close()


def test_a_shallower_store_that_went_to_make_room_is_not_grown_from(tmp_path: Path) -> None:
    """Nor does an empty one take its place."""
    shallow = fill(cache_of(frozen_bert(2), tmp_path), loader_of(ROWS))
    size = list_stores(tmp_path)[0].num_bytes
    cache = fill(cache_of(frozen_bert(4), tmp_path, max_size=size), loader_of(ROWS))
    assert cache.stats.built == shallow.stats.built == len(ROWS)
    assert [(info.depth, info.rows) for info in list_stores(tmp_path)] == [(4, len(ROWS))]
    assert hits_and_misses(cache, loader_of(ROWS)) == (len(ROWS), 0)


@pytest.mark.parametrize("make", [tiny_llama, tiny_t5])
def test_other_architectures(tmp_path: Path, make: Callable[[], PreTrainedModel]) -> None:
    """T5 computes the bias of all its blocks in the first one, which runs for it."""

    def model_of(depth: int) -> PreTrainedModel:
        blocks = {"encoder": {"first": depth}} if make is tiny_t5 else {"first": depth}
        return freeze_model(make(), {"blocks": blocks})

    batch = {**tiny_batch(rows=4), "labels": tiny_batch(rows=4)["input_ids"]}
    expected = evaluate(model_of(3), [batch])
    shallow = cache_of(model_of(2), tmp_path, enabled=True)
    evaluate(shallow.model, [batch], shallow.serve)
    shallow.close()
    deeper = cache_of(model_of(3), tmp_path, enabled=True)
    assert deeper.prepare(batch)
    assert [*deeper._outputs.shallower] == [2]  # type: ignore[union-attr]
    for _ in range(2):
        torch.testing.assert_close(evaluate(deeper.model, [batch], deeper.serve), expected, rtol=0, atol=1e-5)
    assert (deeper.stats.hits, deeper.stats.misses) == (4, 4)
    deeper.close()
