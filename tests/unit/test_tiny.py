"""The tiny models and the tiny tokenizer that the other tests are made of."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from tests import tiny

FACTORIES = [
    tiny.tiny_bart,
    tiny.tiny_bert,
    tiny.tiny_gpt2,
    tiny.tiny_llama,
    tiny.tiny_t5,
    tiny.tiny_vit,
    tiny.tiny_wav2vec2,
]


@pytest.fixture(params=FACTORIES, ids=lambda factory: factory.__name__)
def factory(request: pytest.FixtureRequest) -> Callable[..., PreTrainedModel]:
    return request.param


def test_a_seed_decides_the_weights(factory: Callable[..., PreTrainedModel]) -> None:
    first, again, other = factory(seed=1), factory(seed=1), factory(seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_building_a_model_leaves_the_random_state_alone(factory: Callable[..., PreTrainedModel]) -> None:
    before = torch.random.get_rng_state()
    factory()
    assert torch.equal(before, torch.random.get_rng_state())


def test_training_mode_adds_no_noise(factory: Callable[..., PreTrainedModel]) -> None:
    model = factory().train()
    inputs = {
        "pixel_values": {"pixel_values": torch.ones(2, 3, 32, 32)},
        "input_values": {"input_values": torch.linspace(-1, 1, 1600).reshape(2, 800)},
        "input_ids": tiny.tiny_batch(),
    }[model.main_input_name]
    if model.config.is_encoder_decoder:
        inputs = {**inputs, "decoder_input_ids": inputs["input_ids"]}
    assert torch.equal(model(**inputs).logits, model(**inputs).logits)


def test_the_tokenizer_has_as_many_entries_as_the_models_have_words() -> None:
    tokenizer = tiny.tiny_tokenizer(["A good film.", "A bad film."])
    assert len(tokenizer) == tiny.VOCAB_SIZE
    batch = tokenizer(["a GOOD film", "nothing"], padding=True)
    assert batch["input_ids"] == [[2, *tokenizer.convert_tokens_to_ids(["a", "good", "film"]), 3], [2, 1, 3, 0, 0]]
    assert batch["attention_mask"] == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
