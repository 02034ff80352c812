"""Rows lose their padding only where nothing reads it, and a row whose value depends on the width keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from hf_freeze import ActivationCache, freeze_model
from tests.tiny import build, tiny_llama
from tests.unit.activation_cache.examples import cache_of, collate, evaluate, frozen_bert, rows_of

ROWS = rows_of()
# From 8 positions on, `longrope` and `dynamic` rescale the positions of all rows of a batch.
_LONG = {"rope_type": "longrope", "rope_theta": 100.0, "factor": 8.0, "original_max_position_embeddings": 8}
LONGROPE = {**_LONG, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0}


def loud(model: PreTrainedModel) -> PreTrainedModel:
    """Gives a model weights so large that a wrong position shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3, generator=generator)
    return model


def language_model(rope: dict[str, Any]) -> PreTrainedModel:
    model = loud(tiny_llama(rope_parameters=rope, max_position_embeddings=8 if rope is DYNAMIC else 64))
    return freeze_model(model, {"blocks": {"first": 3}})


def words(rows: list[dict[str, Any]]) -> dict[str, Any]:
    batch = collate(rows)
    return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def rows_of_lengths(*lengths: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(2)
    return [
        {
            "input_ids": torch.randint(5, 99, (length,), generator=generator).tolist(),
            "attention_mask": [1] * length,
            "labels": 0,
        }
        for length in lengths
    ]


def real(logits: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
    return logits[batch["attention_mask"].bool()]


class TestWidths:
    def test_a_row_beside_one_beyond_the_threshold_of_longrope_has_another_value(self, tmp_path: Path) -> None:
        """The rows that are looked at are all beyond it."""
        cache = cache_of(language_model(LONGROPE), tmp_path, enabled=True)
        assert cache.prepare(words(rows_of_lengths(40, 36, 32, 28)))
        short, long = rows_of_lengths(6, 40)
        alone, beside = words([short]), words([short, long])
        expected = evaluate(cache.model, [alone, beside])
        assert (expected[0][0] - expected[1][0, :6]).abs().max() > 1
        for _ in range(2):
            found = evaluate(cache.model, [alone, beside], cache.serve)
            for batch, one, other in zip((alone, beside), found, expected, strict=True):
                torch.testing.assert_close(real(one, batch), real(other, batch), rtol=0, atol=1e-5)
        assert cache.stats.hits == 3
        cache.close()

    def test_longrope_turns_the_cache_off_where_widths_vary(self, tmp_path: Path) -> None:
        cache = cache_of(language_model(LONGROPE), tmp_path)
        assert not cache.prepare(words(rows_of_lengths(40, 36, 32, 28)))
        assert cache.reason == (
            "hidden states cannot be cut to the real tokens of a row, since padding changes them or they have other "
            "positions, and batches are padded to different lengths; rows padded to one length can be cached"
        )

    def test_positions_of_other_rows_count_under_longrope(self, tmp_path: Path) -> None:
        cache = cache_of(language_model(LONGROPE), tmp_path)
        batch = words(rows_of_lengths(12, 12))
        batch["position_ids"] = torch.arange(12).expand(2, -1).contiguous()
        assert not cache.prepare(batch)
        assert cache.reason == "what the frozen blocks make of a row depends on the rows beside it"

    def test_dynamic_positions_turn_the_cache_off(self, tmp_path: Path) -> None:
        """A batch that is longer than any before rescales the positions of later ones, too."""
        cache = cache_of(language_model(DYNAMIC), tmp_path)
        assert not cache.prepare(words(rows_of_lengths(5, 5)))
        assert cache.reason == (
            "rope_type is dynamic in the model's config: the longest batch so far decides what positions mean"
        )

    def test_a_short_row_shows_what_half_of_a_long_one_does_not(self, tmp_path: Path) -> None:
        """Positions change from eight on, and half of the longest row has more."""
        model = freeze_model(loud(tiny_llama()), {"blocks": {"first": 3}})
        rotary = model.model.rotary_emb
        rotary.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, "position_ids": _stretched(kwargs["position_ids"])}),
            with_kwargs=True,
        )
        cache = cache_of(model, tmp_path, enabled=True)
        assert cache.prepare(words(rows_of_lengths(40, 36, 32, 28)))
        assert cache._outputs is not None
        assert not cache._outputs.trims


def _stretched(positions: torch.Tensor) -> torch.Tensor:
    return positions if positions.shape[1] <= 8 else 4 * positions


class TestLosses:
    def test_a_loss_that_reads_padding_keeps_it(self, tmp_path: Path) -> None:
        def loss(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
            inputs.pop("labels")
            hidden: torch.Tensor = model(**inputs).last_hidden_state
            return hidden.mean(dim=1).square().sum()

        sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
        model = build(AutoModel, "bert", vocab_size=99, pad_token_id=0, **sizes)
        freeze_model(model, {"blocks": {"first": 2}})
        batch = {name: value for name, value in collate(ROWS[:4]).items() if name != "labels"}
        for section, how in (({}, None), ({"enabled": True}, loss), ({}, loss)):
            cache = ActivationCache(model, section={"dir": str(tmp_path / str(how)), **section}, loss=how)
            is_on = cache.prepare({**batch, "labels": torch.zeros(4)})
            if is_on:
                assert cache._outputs is not None
                assert cache._outputs.trims is (how is None)
            cache.close()
        assert cache.reason == (
            "hidden states cannot be cut to the real tokens of a row, since the loss, or what the model makes of a "
            "row, depends on what stands at its padding, and batches are padded to different lengths; rows padded to "
            "one length can be cached"
        )

    def test_a_loss_that_raises_turns_the_cache_off(self, tmp_path: Path) -> None:
        def loss(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
            raise ValueError("pairs only")

        cache = ActivationCache(frozen_bert(), section={"dir": str(tmp_path)}, loss=loss)
        assert not cache.prepare(collate(ROWS[:4]))
        assert cache.reason == "the loss of a few rows cannot be computed (ValueError: pairs only)"


@pytest.mark.parametrize("mask", ["none", "of four dimensions"])
def test_rows_without_a_padding_mask_are_whole_where_others_lose_their_padding(tmp_path: Path, mask: str) -> None:
    """So are they where they are computed from the output of fewer blocks."""

    def without(batch: dict[str, Any]) -> dict[str, Any]:
        found = dict(batch)
        if mask == "none":
            found.pop("attention_mask")
        else:
            width = batch["attention_mask"].shape[1]
            found["attention_mask"] = batch["attention_mask"][:, None, None, :].expand(-1, 1, width, -1).bool()
        return found

    batches = [without(collate(ROWS[:4])), without(collate(ROWS[4:8]))]
    for depth in (2, 3):
        cache = cache_of(frozen_bert(depth), tmp_path)
        assert cache.prepare(collate(ROWS[:4]))
        assert cache._outputs is not None
        assert cache._outputs.trims
        expected = evaluate(cache.model, batches)
        for _ in range(2):
            torch.testing.assert_close(evaluate(cache.model, batches, cache.serve), expected, rtol=0, atol=1e-6)
        assert (cache.stats.hits, cache.stats.misses) == (8, 8)
        cache.close()


class TestFloat16:
    def language_model(self, *, loud_word: int | None) -> PreTrainedModel:
        sizes = {"n_layer": 4, "n_embd": 32, "n_head": 4, "vocab_size": 99, "n_positions": 64}
        model = build(AutoModelForCausalLM, "gpt2", **sizes, pad_token_id=0, tie_word_embeddings=False)
        with torch.no_grad():
            rows = slice(None) if loud_word is None else loud_word
            model.get_input_embeddings().weight[rows].mul_(1e7)
        return freeze_model(model, {"blocks": {"first": 2}})

    def test_a_row_that_it_cannot_hold_is_computed_each_time(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        model = self.language_model(loud_word=98)
        rows = [{**row, "input_ids": [word % 98 for word in row["input_ids"]]} for row in ROWS]
        cache = cache_of(model, tmp_path, enabled=True, dtype="float16")
        assert cache.prepare(words(rows[:8]))
        batch = words([{**rows[0], "input_ids": [98, 5, 6], "attention_mask": [1] * 3}, rows[1]])
        expected = evaluate(model, [batch])[0]
        for _ in range(2):
            found = evaluate(model, [batch], cache.serve)[0]
            torch.testing.assert_close(real(found, batch), real(expected, batch), rtol=1e-2, atol=1e-2)
        assert (cache.stats.hits, cache.stats.misses) == (1, 3)
        assert cache.num_rows == 1
        (record,) = caplog.records
        assert record.getMessage() == (
            "activation_cache: rows with numbers that float16 cannot hold are not stored, and computed each time. Set "
            "activation_cache.dtype to auto or bfloat16 to store them."
        )
        cache.close()

    def test_a_model_whose_rows_it_cannot_hold_is_not_cached(self, tmp_path: Path) -> None:
        cache = cache_of(self.language_model(loud_word=None), tmp_path, dtype="float16")
        assert not cache.prepare(words(ROWS[:8]))
        assert cache.reason == (
            "the frozen blocks compute numbers beyond 65504, which float16 cannot hold; activation_cache.dtype auto "
            "and bfloat16 can"
        )
