"""Training and evaluation from the cache without a Trainer, and what a model may be asked for meanwhile."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from hf_freeze import ActivationCache, CacheError, freeze_model
from hf_freeze.activation_cache.collator import KeyCollator
from hf_freeze.activation_cache.keys import KEYS
from hf_freeze.activation_cache.stand_ins import EmbeddingStandIn, StandIn
from tests.tiny import tiny_bart, tiny_batch, tiny_gpt2, tiny_llama, tiny_t5
from tests.unit.activation_cache.examples import cache_of, collate, evaluate, frozen_bert, loader_of, rows_of, train
from tests.zoo import ZOO

DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
ROWS = rows_of()


def stand_ins(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, StandIn | EmbeddingStandIn)]


def same(first: Any, second: Any, atol: float = 1e-6) -> bool:
    """Whether two outputs have the same entries, tensors and tuples of tensors."""
    if isinstance(first, torch.Tensor):
        return first.shape == second.shape and torch.allclose(first, second, atol=atol)
    return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_a_raw_loop_trains_the_same_with_dropout_behind_the_prefix(depth: int, tmp_path: Path) -> None:
    expected = train(frozen_bert(depth, **DROPOUT), loader_of(ROWS, shuffle=True), passes=3)
    cache = cache_of(frozen_bert(depth, **DROPOUT), tmp_path)
    losses = train(cache.model, cache.wrap(loader_of(ROWS, shuffle=True)), cache.serve, passes=3)
    assert losses == pytest.approx(expected, abs=1e-5)
    assert (cache.stats.hits, cache.stats.misses) == (24, 12)
    assert losses[0] != losses[-1]
    assert stand_ins(cache.model) == []
    cache.close()


def test_frozen_parameters_do_not_move_and_all_others_do(tmp_path: Path) -> None:
    cache = cache_of(frozen_bert(), tmp_path)
    before = {name: value.clone() for name, value in cache.model.named_parameters()}
    train(cache.model, cache.wrap(loader_of(ROWS)), cache.serve)
    moved = {name for name, value in cache.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name, value in cache.model.named_parameters() if value.requires_grad}
    cache.close()


def test_the_frozen_blocks_run_once_for_each_row(tmp_path: Path) -> None:
    cache = cache_of(frozen_bert(), tmp_path)
    cache.build(loader_of(ROWS), show_progress=False)
    calls: list[int] = []
    layers = cache.model.bert.encoder.layer
    for index, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
    cache.model.bert.embeddings.register_forward_hook(lambda *_: calls.append(-1))
    train(cache.model, cache.wrap(loader_of(ROWS)), cache.serve)
    assert calls == [2, 3] * 6
    cache.close()


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_compute_the_keys(context: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_workers": 2, "multiprocessing_context": context}
    expected = evaluate(frozen_bert(), loader_of(ROWS))
    cache = cache_of(frozen_bert(), tmp_path)
    loader = cache.wrap(loader_of(ROWS, **options))
    for _ in range(2):
        assert same(evaluate(cache.model, loader, cache.serve), expected)
    assert (cache.stats.hits, cache.stats.misses) == (12, 12)
    assert all(KEYS in batch for batch in loader)
    cache.close()


def test_persistent_workers_that_ran_before_are_served_too(tmp_path: Path) -> None:
    loader = loader_of(ROWS, num_workers=1, persistent_workers=True)
    expected = evaluate(frozen_bert(), loader)
    cache = cache_of(frozen_bert(), tmp_path)
    wrapped = cache.wrap(loader)
    assert all(same(evaluate(cache.model, wrapped, cache.serve), expected) for _ in range(2))
    assert (cache.stats.hits, cache.stats.misses) == (12, 12)
    cache.close()


def test_the_loader_that_is_wrapped_stays_as_it_was(tmp_path: Path) -> None:
    cache = cache_of(frozen_bert(), tmp_path)
    loader = loader_of(ROWS)
    wrapped = cache.wrap(loader)
    assert loader.collate_fn is collate
    assert wrapped.dataset is loader.dataset
    assert [len(batch["labels"]) for batch in wrapped] == [4, 4, 4]
    assert not any(KEYS in batch for batch in loader)
    cache.close()


@pytest.mark.parametrize("make", [list, tuple, iter, lambda loader: (batch for batch in loader)])
def test_any_other_iterable_is_served(make: Callable[[Any], Any], tmp_path: Path) -> None:
    expected = evaluate(frozen_bert(), loader_of(ROWS))
    cache = cache_of(frozen_bert(), tmp_path)
    for _ in range(2):
        batches = make(loader_of(ROWS))
        assert cache.wrap(batches) is batches
        assert same(evaluate(cache.model, cache.wrap(batches), cache.serve), expected)
    assert (cache.stats.hits, cache.stats.misses) == (12, 12)
    cache.close()


@pytest.mark.parametrize("batch_size", [1, 5, 11, 12, 99])
def test_batches_of_one_and_short_last_batches_are_served(batch_size: int, tmp_path: Path) -> None:
    expected = train(frozen_bert(**DROPOUT), loader_of(ROWS, batch_size))
    cache = cache_of(frozen_bert(**DROPOUT), tmp_path)
    assert train(cache.model, cache.wrap(loader_of(ROWS, batch_size)), cache.serve) == pytest.approx(expected, abs=1e-5)
    assert cache.stats.hits == cache.stats.misses == 12
    cache.close()


def test_a_row_that_is_longer_than_any_before_is_served(tmp_path: Path) -> None:
    cache = cache_of(frozen_bert(), tmp_path)
    cache.build(loader_of(ROWS), show_progress=False)
    batches = [
        collate([*ROWS[:3], *rows_of(2, seed=9, longest=60)]),
        collate([*rows_of(2, seed=9, longest=60), ROWS[0]]),
    ]
    assert same(evaluate(cache.model, batches, cache.serve), evaluate(cache.model, batches))
    assert (cache.stats.hits, cache.stats.misses) == (3 + 3, 2)
    cache.close()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_no_stand_in_stays_behind_when_the_body_raises(error: type[BaseException], tmp_path: Path) -> None:
    cache = cache_of(frozen_bert(), tmp_path)
    batch = collate(ROWS)
    modules = dict(cache.model.named_modules())

    def body() -> None:
        with cache.serve(batch) as inputs:
            assert len(stand_ins(cache.model)) == 3
            cache.model(**inputs)
            raise error("mine")

    with pytest.raises(error, match=r"^mine$"):
        body()
    assert dict(cache.model.named_modules()) == modules
    assert not any(module._forward_pre_hooks for module in (cache.model, cache.model.bert))
    cache.close()


@pytest.mark.parametrize("wrong", [{"labels": torch.tensor([7] * 12)}, {"input_ids": "text"}])
def test_no_stand_in_stays_behind_when_the_model_raises(wrong: dict[str, Any], tmp_path: Path) -> None:
    cache = cache_of(frozen_bert(), tmp_path)
    batch = collate(ROWS)

    def body() -> None:
        with cache.serve(batch):
            cache.model(**{**batch, **wrong})

    with pytest.raises((AttributeError, IndexError)):
        body()
    assert stand_ins(cache.model) == []
    assert same(evaluate(cache.model, [batch], cache.serve), evaluate(cache.model, [batch]))
    cache.close()


def other_rows(batch: dict[str, Any]) -> dict[str, Any]:
    return tiny_batch(rows=12, length=12, seed=3)


def fewer_rows(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value[:5] for name, value in batch.items()}


def without_mask(batch: dict[str, Any]) -> dict[str, Any]:
    return {"input_ids": batch["input_ids"]}


def other_mask(batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}


@pytest.mark.parametrize("change", [other_rows, fewer_rows, without_mask, other_mask])
def test_calls_with_other_inputs_run_in_full(change: Callable[[Any], Any], tmp_path: Path) -> None:
    cache = cache_of(frozen_bert(), tmp_path)
    model, batch = cache.model.eval(), collate(ROWS)
    other = change(batch)
    expected, served = model(**other).logits, model(**batch).logits
    with cache.serve(batch) as inputs:
        assert same(model(**inputs).logits, served)
        assert torch.equal(model(**other).logits, expected)
        assert same(model(**inputs).logits, served)
        assert len(stand_ins(model)) == 3
    cache.close()


@pytest.mark.parametrize("name", ["token_type_ids", "position_ids", "inputs_embeds"])
def test_calls_with_inputs_that_the_batch_does_not_have_run_in_full(name: str, tmp_path: Path) -> None:
    cache = cache_of(frozen_bert(), tmp_path)
    model, batch = cache.model.eval(), collate(ROWS)
    more = {name: torch.ones_like(batch["input_ids"]) if name != "inputs_embeds" else torch.rand(12, 12, 32)}
    given = {"attention_mask": batch["attention_mask"], **more}
    if name != "inputs_embeds":
        given["input_ids"] = batch["input_ids"]
    expected, inside = model(**given).logits, model.bert(**given).last_hidden_state
    with cache.serve(batch):
        assert torch.equal(model(**given).logits, expected)
        assert torch.equal(model.bert(**given).last_hidden_state, inside)
    cache.close()


def test_inputs_by_position_and_equal_copies_are_served(tmp_path: Path) -> None:
    cache = cache_of(frozen_bert(), tmp_path)
    model, batch = cache.model.eval(), collate(ROWS)
    expected = model(**batch).logits
    ran: list[int] = []
    model.bert.encoder.layer[0].register_forward_hook(lambda *_: ran.append(0))
    with cache.serve(batch):
        ran.clear()
        assert same(model(batch["input_ids"].clone(), batch["attention_mask"]).logits, expected)
        assert ran == []
    cache.close()


@pytest.mark.parametrize("asked", ["output_hidden_states", "output_attentions"])
def test_what_the_blocks_compute_is_real_when_a_call_asks_for_it(asked: str, tmp_path: Path) -> None:
    for attention in ("eager", "sdpa") if asked == "output_hidden_states" else ("eager",):
        cache = cache_of(frozen_bert(attn_implementation=attention), tmp_path)
        model, batch = cache.model.eval(), collate(ROWS)
        with torch.no_grad(), cache.serve(batch) as inputs:
            first, asking, last = model(**inputs), model(**inputs, **{asked: True}), model(**inputs)
        again = frozen_bert(attn_implementation=attention).eval()
        with torch.no_grad():
            expected = again(**batch, **{asked: True})
        found = asking[asked.removeprefix("output_")]
        assert len(found) == (5 if asked == "output_hidden_states" else 4)
        assert all(map(torch.equal, found, expected[asked.removeprefix("output_")]))
        assert torch.equal(asking.logits, expected.logits)
        assert same(first.logits, expected.logits)
        assert same(last.logits, expected.logits)
        assert asked.removeprefix("output_") not in first
        cache.close()


def test_router_logits_are_those_of_all_blocks_when_a_call_asks_for_them(tmp_path: Path) -> None:
    """Mixtral adds a loss to its own that they make."""
    architecture = ZOO["mixtral"]
    cache = cache_of(freeze_model(architecture.build(), {"blocks": {"first": 2}}), tmp_path)
    model, batch = cache.model.eval(), architecture.batch()
    with torch.no_grad():
        expected, asked = model(**batch), model(**batch, output_router_logits=True)
        for _ in range(2):
            with cache.serve(batch) as inputs:
                first, found, last = model(**inputs), model(**inputs, output_router_logits=True), model(**inputs)
            assert len(found.router_logits) == 3
            assert all(map(torch.equal, found.router_logits, asked.router_logits))
            assert torch.equal(found.loss, asked.loss)
            assert same(first.loss, expected.loss)
            assert same(last.loss, expected.loss)
    assert not same(asked.loss, expected.loss)
    assert cache.stats.hits == 4
    cache.close()


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_a_call_that_continues_from_a_key_value_cache_runs_in_full(
    make: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    cache = cache_of(freeze_model(make(), {"blocks": {"first": 2}}), tmp_path, enabled=True)
    model = cache.model.eval()
    batch = tiny_batch()
    with torch.no_grad():
        known = model(**tiny_batch(seed=5), use_cache=True).past_key_values
        mask = torch.cat([tiny_batch(seed=5)["attention_mask"], batch["attention_mask"]], dim=1)
        expected = model(input_ids=batch["input_ids"], attention_mask=mask, past_key_values=known).logits
        with cache.serve(batch):
            known = model(**tiny_batch(seed=5), use_cache=True).past_key_values
            found = model(input_ids=batch["input_ids"], attention_mask=mask, past_key_values=known).logits
    assert torch.equal(found, expected)
    cache.close()


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}, {"do_sample": True}])
def test_causal_models_generate_the_same(
    make: Callable[[], PreTrainedModel], options: dict[str, Any], tmp_path: Path
) -> None:
    cache = cache_of(freeze_model(make(), {"blocks": {"first": 2}}), tmp_path, enabled=True)
    left = {name: value.flip(1) for name, value in tiny_batch().items()}
    for batch in (tiny_batch(), left):
        generate(cache, batch, max_new_tokens=5, min_new_tokens=5, **options)


@pytest.mark.parametrize("make", [tiny_t5, tiny_bart])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_encoder_decoders_generate_the_same_and_skip_the_frozen_blocks(
    make: Callable[[], PreTrainedModel], options: dict[str, Any], tmp_path: Path
) -> None:
    model = freeze_model(make(), {"blocks": {"encoder": {"first": 3}}})
    cache = cache_of(model, tmp_path, enabled=True)
    batch = {**tiny_batch(), "labels": tiny_batch(seed=4)["input_ids"]}
    ran: list[int] = []
    encoder = model.get_encoder()
    blocks = encoder.block if "block" in dict(encoder.named_children()) else encoder.layers
    for index, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    assert cache.prepare(batch)
    generate(cache, batch, max_new_tokens=6, min_new_tokens=6, **options)
    ran.clear()
    with cache.serve(batch) as inputs:
        model.generate(**{n: v for n, v in inputs.items() if n != "labels"}, max_new_tokens=6, **options)
    # T5 computes the bias of all its blocks in the first one.
    assert ran == ([0, 3] if make is tiny_t5 else [3])
    cache.close()


def generate(cache: ActivationCache, batch: dict[str, Any], **options: Any) -> None:
    """Generates with and without the cache, twice each, and compares."""
    model = cache.model.eval()
    prompt = {name: value for name, value in batch.items() if name != "labels"}
    torch.manual_seed(0)
    expected = model.generate(**prompt, **options)
    for _ in range(2):
        torch.manual_seed(0)
        with cache.serve(batch):
            assert torch.equal(model.generate(**prompt, **options), expected)
    assert stand_ins(model) == []
    cache.close()


def test_a_call_that_goes_past_the_blocks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_of(frozen_bert(), tmp_path)
    batch = collate(ROWS)
    cache.build(loader_of(ROWS), show_progress=False)
    monkeypatch.setattr(
        cache.model.bert.encoder,
        "forward",
        lambda hidden, *_, **__: BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden),
    )
    message = (
        "activation_cache: BertForSequenceClassification went past its frozen blocks; got an output that stored rows "
        "have no part in. Set activation_cache.enabled to false for this model."
    )
    with pytest.raises(CacheError, match=f"^{re.escape(message)}$"), cache.serve(batch) as inputs:
        cache.model(**inputs)
    assert stand_ins(cache.model) == []
    cache.close()


def test_a_batch_with_keys_of_other_rows_runs_in_full(tmp_path: Path) -> None:
    cache = cache_of(frozen_bert(), tmp_path)
    model = cache.model.eval()
    batch = KeyCollator(collate)(ROWS)
    keys = batch[KEYS]
    half = {**{name: value[:6] for name, value in batch.items()}, KEYS: keys}
    with cache.serve(half) as inputs:
        assert KEYS not in inputs
        assert stand_ins(model) == []
    assert cache.stats.misses == 0
    cache.close()


def test_serve_leaves_the_batch_alone_and_yields_it_without_keys(tmp_path: Path) -> None:
    cache = cache_of(frozen_bert(), tmp_path)
    batch = KeyCollator(collate)(ROWS)
    before = dict(batch)
    with cache.serve(batch) as inputs:
        assert list(inputs) == ["input_ids", "attention_mask", "labels"]
        assert all(inputs[name] is batch[name] for name in inputs)
    assert list(batch) == list(before)
    cache.close()


@pytest.mark.parametrize("name", ["prepare", "serve"])
def test_a_batch_that_is_no_mapping_is_refused_in_words(tmp_path: Path, name: str) -> None:
    cache = cache_of(frozen_bert(), tmp_path)
    message = (
        f"{name}: a batch maps the names of the model's inputs to tensors; got a list. Pass what the model is called "
        'with, such as {"input_ids": input_ids}.'
    )
    batch: Any = [1, 2]
    with pytest.raises(CacheError, match=f"^{re.escape(message)}$"), contextlib.ExitStack() as stack:
        cache.prepare(batch) if name == "prepare" else stack.enter_context(cache.serve(batch))


def test_a_cache_that_is_off_yields_the_batch_without_keys(tmp_path: Path) -> None:
    cache = cache_of(frozen_bert(), tmp_path, enabled=False)
    batch = KeyCollator(collate)(ROWS)
    with cache.serve(batch) as inputs:
        assert list(inputs) == ["input_ids", "attention_mask", "labels"]
    loader = loader_of(ROWS)
    assert cache.wrap(loader) is loader
    cache.build(loader)
    assert list(tmp_path.iterdir()) == []


class MeanOfAll(nn.Module):
    """A pooler that takes padding for tokens."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.mean(dim=1)


@pytest.mark.parametrize("first", [[ROWS[0]] * 8, ROWS], ids=["no row of the first batch is padded", "rows are padded"])
def test_padding_is_kept_where_the_head_reads_it(first: list[dict[str, Any]], tmp_path: Path) -> None:
    model = frozen_bert(2)
    model.bert.pooler = MeanOfAll()
    cache = cache_of(model, tmp_path, enabled=True)
    assert cache.prepare(collate(first))
    for batch in (collate(ROWS[:4]), collate(ROWS[:4]), collate(ROWS[2:4])):
        expected = model(**batch).logits
        with cache.serve(batch) as inputs:
            assert torch.equal(model(**inputs).logits, expected)
    assert cache.stats.hits >= 4
    cache.close()


@pytest.mark.parametrize(("num_calls", "is_on"), [(1, True), (100, False)], ids=["first call", "every call"])
def test_a_model_that_rounds_otherwise_in_its_first_call_alone_is_served(
    num_calls: int, is_on: bool, tmp_path: Path
) -> None:
    model = frozen_bert(2)
    disturbances = iter([1e-3] * num_calls)
    model.classifier.register_forward_hook(lambda module, args, output: output + next(disturbances, 0) * torch.rand(1))
    cache = cache_of(model, tmp_path)
    assert cache.prepare(collate(ROWS)) is is_on
    assert (cache.reason is None) is is_on
    cache.close()


@pytest.mark.parametrize("path", ["bert.embeddings", "bert.encoder.layer.1"])
def test_a_module_that_was_replaced_stays_in_its_place(path: str, tmp_path: Path) -> None:
    cache = cache_of(frozen_bert(), tmp_path)
    model, batch = cache.model.eval(), collate(ROWS)
    evaluate(model, [batch], cache.serve)
    new = frozen_bert(seed=1).eval().get_submodule(path)
    model.set_submodule(path, new)
    expected = evaluate(model, [batch])
    for _ in range(2):
        assert same(evaluate(model, [batch], cache.serve), expected)
        assert model.get_submodule(path) is new
    assert (cache.stats.hits, cache.stats.misses) == (12, 24)
    cache.close()


def test_stand_ins_count_as_what_they_stand_in_for(tmp_path: Path) -> None:
    cache = cache_of(frozen_bert(), tmp_path)
    model, batch = cache.model.eval(), collate(ROWS)
    expected = evaluate(model, [batch], cache.serve)
    with cache.serve(batch) as inputs:
        cache.build(loader_of(ROWS), show_progress=False)
        with cache.serve(batch):
            assert cache.is_on
        assert same([model(**inputs).logits], expected)
    assert stand_ins(model) == []
    assert cache.stats.misses == 12
    cache.close()


def test_two_models_are_served_at_once(tmp_path: Path) -> None:
    caches = [cache_of(frozen_bert(depth, seed=depth), tmp_path) for depth in (2, 3)]
    batch = collate(ROWS)
    first, second = (cache.model.eval() for cache in caches)
    expected = [first(**batch).logits, second(**batch).logits]
    for _ in range(2):
        with caches[0].serve(batch) as one, caches[1].serve(batch) as two:
            assert same([first(**one).logits, second(**two).logits], expected)
    assert [(cache.stats.hits, cache.stats.misses) for cache in caches] == [(12, 12)] * 2
    for cache in caches:
        cache.close()


def test_the_real_model_trains_the_same(minilm_path: Path, tmp_path: Path) -> None:
    def model() -> PreTrainedModel:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made = AutoModelForSequenceClassification.from_pretrained(minilm_path)
        return freeze_model(made, {"blocks": {"first": 5}})

    rows = rows_of(8)
    cache = cache_of(model(), tmp_path, enabled=True)
    cached = train(cache.model, cache.wrap(loader_of(rows)), cache.serve)
    assert cached == pytest.approx(train(model(), loader_of(rows)), abs=1e-5)
    assert (cache.stats.hits, cache.stats.misses) == (8, 8)
    cache.close()
