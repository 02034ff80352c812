"""What no key and no fingerprint tells turns the cache off, or a call runs in full: no wrong value is served."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from hf_freeze import ActivationCache, freeze_model
from hf_freeze.activation_cache.descriptions import one_at_a_time
from hf_freeze.activation_cache.keys import KEYS
from tests.tiny import build, tiny_batch, tiny_gpt2, tiny_t5
from tests.unit.activation_cache.examples import (
    cache_of,
    collate,
    evaluate,
    frozen_bert,
    hits_and_misses,
    loader_of,
    rows_of,
)

ROWS = rows_of()


def assert_served(cache: ActivationCache, batches: list[dict[str, Any]]) -> None:
    """Asserts that the model gives the same with the cache as without, twice."""
    expected = evaluate(cache.model, batches)
    for _ in range(2):
        torch.testing.assert_close(evaluate(cache.model, batches, cache.serve), expected, rtol=0, atol=1e-5)
    cache.close()


def test_all_blocks_of_t5_are_not_made_from_fewer(tmp_path: Path) -> None:
    """Its later blocks need the bias of the first, which does not run where nothing behind the prefix asks for it."""

    def model_of(depth: int) -> PreTrainedModel:
        return freeze_model(tiny_t5(), {"blocks": {"encoder": {"first": depth}}})

    batch = {**tiny_batch(rows=4), "labels": tiny_batch(rows=4)["input_ids"]}
    shallow = cache_of(model_of(2), tmp_path, enabled=True)
    assert_served(shallow, [batch])
    deepest = cache_of(model_of(4), tmp_path, enabled=True)
    assert_served(deepest, [batch])
    assert deepest._outputs is not None
    assert not deepest._outputs.shallower


def test_a_frozen_part_of_the_head_among_the_blocks_turns_the_cache_off(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    convolution = {"conv_kernel_size": 3, "relative_attention": True, "norm_rel_ebd": "layer_norm"}
    sizes |= {"vocab_size": 99, "max_position_embeddings": 64, "position_buckets": 8}
    model = build(AutoModelForSequenceClassification, "deberta-v2", seed=0, **sizes, **convolution)
    cache = cache_of(freeze_model(model, {"blocks": {"first": 2}, "head": "frozen"}), tmp_path)
    assert not cache.prepare(collate(ROWS[:4]))
    name = "deberta.encoder.conv.conv.weight"
    assert cache.reason == f"{name} is no part of a block, and runs among the frozen blocks all the same"
    assert not dict(model.named_parameters())[name].requires_grad


@pytest.mark.parametrize("how", ["hook", "forward"])
def test_rows_that_were_stored_without_a_hook_are_not_served_with_it(tmp_path: Path, how: str) -> None:
    batch = collate(ROWS[:4])
    assert_served(cache_of(frozen_bert(), tmp_path), [batch])
    model = frozen_bert()
    block = model.bert.encoder.layer[1]
    if how == "hook":
        block.register_forward_hook(lambda _, __, output: output + 0.1)
    else:
        forward = block.forward
        block.forward = lambda *args, **kwargs: forward(*args, **kwargs) + 0.1
    cache = cache_of(model, tmp_path)
    assert_served(cache, [batch])
    assert cache.stats.hits == 0
    assert cache.reason is not None
    start, _, end = cache.reason.partition(str(tmp_path))
    assert start == "what is stored in "
    assert end.partition(" ")[2] == (
        "is not what the frozen blocks compute; something in them, such as a hook, is in no fingerprint, and another "
        "activation_cache.dir would start anew"
    )


def test_the_precision_of_products_is_in_the_fingerprint(tmp_path: Path) -> None:
    cache = cache_of(frozen_bert(), tmp_path)
    batches = [collate(ROWS[:4])]
    assert hits_and_misses(cache, batches) == (0, 4)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert hits_and_misses(cache, batches) == (0, 4)
    finally:
        torch.set_float32_matmul_precision(before)
    assert hits_and_misses(cache, batches) == (4, 0)


@pytest.mark.parametrize("left_out", ["attention_mask", "token_type_ids"])
def test_a_model_inside_that_gets_fewer_inputs_runs_in_full(tmp_path: Path, left_out: str) -> None:
    batch = collate([{**row, "token_type_ids": [1] * len(row["input_ids"])} for row in ROWS[:4]])
    cache = cache_of(frozen_bert(), tmp_path)
    inner = cache.model.get_submodule("bert")
    inputs = {name: value for name, value in batch.items() if name not in {left_out, "labels"}}
    cache.model.eval()
    with torch.no_grad():
        expected = inner(**inputs).last_hidden_state
        with cache.serve(batch):
            found = inner(**inputs).last_hidden_state
    assert torch.equal(found, expected)
    cache.close()


def test_inputs_that_ask_for_gradients_get_them(tmp_path: Path) -> None:
    model = frozen_bert()
    embedded = model.get_input_embeddings()(collate(ROWS[:4])["input_ids"]).detach()
    gradients = []
    for serve in (None, cache_of(model, tmp_path).serve):
        soft = embedded.clone().requires_grad_()
        batch = {"inputs_embeds": soft, "labels": torch.tensor([0, 1, 0, 1])}
        if serve is None:
            model(**batch).loss.backward()
        else:
            with serve(batch) as inputs:
                model(**inputs).loss.backward()
        gradients.append(soft.grad)
    assert gradients[0] is not None
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-7)
    cache = cache_of(model, tmp_path)
    assert not cache.prepare(batch)
    assert cache.reason == "inputs_embeds asks for a gradient, which does not come through stored hidden states"


def as_tuple(rows: Any) -> Any:
    batch = collate(rows)
    return batch["input_ids"], batch["labels"]


def at_least_two(rows: Any) -> Any:
    if len(rows) < 2:
        raise ValueError("two rows at least")
    return collate(rows)


def as_output(rows: Any) -> Any:
    return BaseModelOutput(last_hidden_state=torch.zeros(len(rows), 3, 8))


_FETCHED = "rows cannot be fetched outside of training "


@pytest.mark.parametrize(
    ("collate_fn", "reason"),
    [
        (as_tuple, f"{_FETCHED}(TypeError: the collator makes a tuple of its rows in place of a mapping)"),
        (at_least_two, f"{_FETCHED}(ValueError: two rows at least)"),
        (as_output, "the collator does not make one row of the batch from each row of the dataset"),
    ],
)
def test_a_collator_that_suits_training_alone_turns_the_cache_off(
    tmp_path: Path, collate_fn: Callable[[Any], Any], reason: str
) -> None:
    loader = loader_of(ROWS, collate_fn=collate_fn)
    cache = cache_of(frozen_bert(), tmp_path)
    assert cache.wrap(loader) is loader
    assert cache.reason == reason
    assert len(list(loader)) == 3


def test_rows_that_no_call_used_do_not_count_as_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As where the loss takes a column out of the batch: the model is called without it, and runs in full."""
    model = frozen_bert()
    cache = cache_of(model, tmp_path)
    batch = collate(ROWS[:4])
    batch["position_ids"] = torch.arange(12).expand_as(batch["input_ids"])
    evaluate(model, [batch], cache.serve)
    called: list[int] = []
    model.bert.encoder.layer[0].register_forward_hook(lambda *_: called.append(1))
    hits = cache.stats.hits
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with cache.serve(batch) as inputs:
                inputs.pop("position_ids")
                model(**inputs)
    assert (len(called), cache.stats.hits - hits) == (2, 0)
    (record,) = caplog.records
    assert record.getMessage() == (
        "activation_cache: the model runs in full, as it is called without position_ids, which the batch holds. Name "
        "what only the loss reads among the label_names, and leave out what nothing reads."
    )
    cache.close()


def test_a_row_without_a_token_has_one_value(tmp_path: Path) -> None:
    """GPT-2 with a head for sequences reads a position of it all the same."""
    config = tiny_gpt2().config.to_dict() | {"num_labels": 2}
    model = AutoModelForSequenceClassification.from_config(type(tiny_gpt2().config).from_dict(config))
    batch = collate([*ROWS[:3], {"input_ids": [], "attention_mask": [], "labels": 0}])
    cache = cache_of(freeze_model(model, {"blocks": {"first": 2}}), tmp_path)
    assert cache.prepare(collate(ROWS[:4]))
    assert_served(cache, [batch])
    assert cache.stats.hits == 4


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.zeros(7, 3), "extra does not have one row for each example"),
        ([torch.zeros(40, 40)], "extra is a list, which does not say what belongs to which row"),
        ({"a": 1}, "extra is a dict, which does not say what belongs to which row"),
    ],
)
def test_an_input_without_a_row_for_each_example_turns_the_cache_off(tmp_path: Path, value: Any, reason: str) -> None:
    cache = cache_of(frozen_bert(), tmp_path)
    assert not cache.prepare({**collate(ROWS[:4]), "extra": value})
    assert cache.reason == reason


def test_a_model_whose_rows_depend_on_each_other_is_not_cached(tmp_path: Path) -> None:
    """Experts that take a share of the tokens of a batch leave out others in another company."""
    sizes = {"d_model": 32, "encoder_layers": 4, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    sizes |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 99, "num_experts": 2}
    sizes |= {"encoder_sparse_step": 2, "decoder_sparse_step": 2, "expert_capacity": 4}
    model = build(AutoModelForSeq2SeqLM, "nllb-moe", seed=0, **sizes, moe_eval_capacity_token_fraction=0.3)
    cache = cache_of(freeze_model(model, {"blocks": {"encoder": {"first": 3}}}), tmp_path)
    batch = {**tiny_batch(rows=8), "labels": tiny_batch(rows=8)["input_ids"]}
    assert not cache.prepare(batch)
    assert cache.reason == "what the frozen blocks make of a row depends on the rows beside it"


def test_the_loader_of_accelerate_gets_keys(tmp_path: Path) -> None:
    loader = Accelerator(cpu=True).prepare(loader_of(ROWS))
    cache = cache_of(frozen_bert(), tmp_path)
    assert KEYS in next(iter(cache.wrap(loader)))
    assert KEYS not in next(iter(loader))


def test_a_child_that_was_forked_meanwhile_does_not_keep_the_lock(tmp_path: Path) -> None:
    read, write = os.pipe()
    with one_at_a_time(tmp_path):
        child = os.fork()
        if child == 0:
            os.read(read, 1)
            os._exit(0)
    other = os.fork()
    if other == 0:
        with one_at_a_time(tmp_path):
            os._exit(0)
    os.waitpid(other, 0)
    os.write(write, b"x")
    assert os.waitpid(child, 0) == (child, 0)
    os.close(read)
    os.close(write)


def test_a_folder_of_somebody_else_turns_the_cache_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / ".lock"))

    monkeypatch.setattr("hf_freeze.activation_cache.shelf.prune", refuse)
    cache = cache_of(frozen_bert(), tmp_path)
    assert not cache.prepare(collate(ROWS[:4]))
    assert cache.reason == (
        f"activation_cache.dir: the folder cannot be used; got {tmp_path} ([Errno 13] Permission denied: "
        f"'{tmp_path / '.lock'}'). Name one that you may write to."
    )


def test_storing_counts_against_what_was_saved(tmp_path: Path) -> None:
    cache = cache_of(frozen_bert(), tmp_path)
    evaluate(cache.model, loader_of(ROWS), cache.serve)
    stats = cache.stats
    assert stats.write_seconds > 0
    spent = stats.write_seconds + stats.read_seconds + stats.build_seconds
    assert stats.seconds_saved == pytest.approx(stats.served_positions * stats.position_seconds - spent)
    cache.close()
