"""Tokenizers, padding, and how long a text may be."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from hf_freeze.errors import ConfigError
from hf_freeze.tasks.tokenizers import load_tokenizer, max_positions, resolve_max_length, share_pad_token
from tests.tiny import build, tiny_bert, tiny_tokenizer

GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 99, "n_positions": 48}
ROBERTA = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
XLNET = {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16, "vocab_size": 99}


def classifier(model_type: str, **config: Any) -> PreTrainedModel:
    return build(AutoModelForSequenceClassification, model_type, **config)


class TestLoading:
    def test_a_saved_tokenizer_is_loaded(self, tmp_path: Path) -> None:
        tiny_tokenizer(["a film"]).save_pretrained(tmp_path)
        assert load_tokenizer(str(tmp_path), from_pretrained={"dtype": "bfloat16"})("a film")["input_ids"] == [
            2,
            5,
            6,
            3,
        ]

    @pytest.mark.parametrize("has_config", [True, False])
    def test_a_model_without_a_tokenizer_is_an_error(self, tmp_path: Path, has_config: bool) -> None:
        if has_config:  # from a config alone, transformers makes a tokenizer that knows no words
            tiny_bert().config.save_pretrained(tmp_path)
        message = (
            f"model.name_or_path: {str(tmp_path)!r} has no tokenizer that can be read. Save one beside the model with "
            "tokenizer.save_pretrained, or name a checkpoint that has one."
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            load_tokenizer(str(tmp_path))


class TestPadding:
    def test_the_end_of_text_pads_where_nothing_else_does(self, caplog: pytest.LogCaptureFixture) -> None:
        model, tokenizer = classifier("gpt2", **GPT2), tiny_tokenizer()
        tokenizer.pad_token = None
        with caplog.at_level(logging.INFO):
            share_pad_token(model, tokenizer)
        assert (tokenizer.pad_token, model.config.pad_token_id) == ("[SEP]", 3)
        assert caplog.messages == ["The tokenizer has no padding token: it pads with its end-of-text token, [SEP]."]

    def test_the_model_learns_what_the_tokenizer_pads_with(self) -> None:
        model = classifier("gpt2", **GPT2)
        share_pad_token(model, tiny_tokenizer())
        assert model.config.pad_token_id == 0

    def test_a_tokenizer_that_cannot_pad_is_an_error(self) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.pad_token = tokenizer.eos_token = None
        message = (
            "model.name_or_path: the tokenizer has neither a padding nor an end-of-text token, so rows of different "
            "lengths cannot form a batch. Set tokenizer.pad_token and save it with the model."
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            share_pad_token(classifier("gpt2", **GPT2), tokenizer)


class TestLength:
    @pytest.mark.parametrize(
        ("model", "expected"),
        [
            (tiny_bert(), 64),
            (classifier("gpt2", **GPT2), 48),
            (classifier("roberta", **ROBERTA, vocab_size=99, max_position_embeddings=50, pad_token_id=1), 48),
            (classifier("xlnet", **XLNET), None),
        ],
        ids=["bert", "gpt2", "roberta counts from its padding", "xlnet"],
    )
    def test_it_is_what_the_model_has_positions_for(self, model: PreTrainedModel, expected: int | None) -> None:
        assert max_positions(model) == expected

    @pytest.mark.parametrize(
        ("limit", "max_length", "expected"),
        [(64, None, 64), (32, None, 32), (10**30, None, 64), (64, 16, 16), (32, 64, 64)],
    )
    def test_texts_are_cut_at_the_smallest_limit_unless_the_user_says_where(
        self, limit: int, max_length: int | None, expected: int
    ) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.model_max_length = limit
        found = resolve_max_length(max_length, model=tiny_bert(), tokenizer=tokenizer, is_pair=False)
        assert found == expected

    def test_nothing_is_cut_where_nothing_limits_it(self) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.model_max_length = 10**30
        model = classifier("xlnet", **XLNET)
        assert resolve_max_length(None, model=model, tokenizer=tokenizer, is_pair=False) is None

    @pytest.mark.parametrize(
        ("max_length", "is_pair", "message"),
        [
            (
                65,
                False,
                (
                    "data.max_length: the model reads at most 64 tokens; got 65. "
                    "Set data.max_length to that or less, or leave it out."
                ),
            ),
            (
                3,
                True,
                (
                    "data.max_length: the tokenizer adds 3 tokens of its own, which leaves no room for text; got 3. "
                    "Set data.max_length to more."
                ),
            ),
        ],
    )
    def test_a_length_that_cannot_be_is_an_error(self, max_length: int, is_pair: bool, message: str) -> None:
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            resolve_max_length(max_length, model=tiny_bert(), tokenizer=tiny_tokenizer(), is_pair=is_pair)
