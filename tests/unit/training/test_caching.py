"""Training, evaluation and prediction from the activation cache give what they give without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import Dataset
from transformers import PreTrainedModel, default_data_collator

from tests import tiny
from tests.unit.training.cached import assert_caching_changes_nothing
from tests.zoo import ZOO, Architecture

# What these models draw at random lies outside of their blocks, or depends on the mode of a parent of the blocks.
ARCHITECTURES = ["gpt2", "t5", "bart", "mbart", "m2m_100", "pegasus", "xlnet", "wav2vec2", "hubert", "wavlm"]
# Masking of hidden states in front of the blocks is random too, and has a test of its own.
NO_MASKING = {"apply_spec_augment": False, "mask_time_prob": 0.0}


def rows_of(architecture: Architecture, copies: int = 5) -> Dataset[dict[str, Any]]:
    """The rows of an architecture's batch, with other words or louder waves in each copy."""
    rows: list[dict[str, Any]] = []
    for copy in range(copies):
        batch = architecture.batch()
        if "input_ids" in batch:
            other = (batch["input_ids"] - 5 + 7 * copy) % (tiny.VOCAB_SIZE - 5) + 5
            batch["input_ids"] = other * batch["attention_mask"]
        else:
            batch["input_values"] = batch["input_values"] * (1 + copy / 10)
        rows += [{name: value[row] for name, value in batch.items()} for row in range(4)]
    return rows  # type: ignore[return-value]


def assert_cached(tmp_path: Path, architecture: Architecture, build: Callable[[], PreTrainedModel]) -> None:
    """Asserts that a model which draws random numbers trains the same with the cache, behind two frozen blocks."""
    probe = build().train()
    assert probe(**architecture.batch()).loss != probe(**architecture.batch()).loss
    stack = {"encoder": {"first": 2}} if probe.config.is_encoder_decoder else {"first": 2}
    rows = rows_of(architecture)
    cold, _ = assert_caching_changes_nothing(
        tmp_path,
        build=build,
        freeze={"blocks": stack},
        train_dataset=rows,
        eval_dataset=rows[:8],
        data_collator=default_data_collator,
        options={"per_device_train_batch_size": 4},
    )
    assert len(cold.losses) == 10
    assert len(cold.evaluations) == 2


@pytest.mark.parametrize("name", ARCHITECTURES)
# WavLM hands torch a mask of booleans and a bias of floats.
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")
def test_architectures_that_drop_out_around_their_blocks(tmp_path: Path, name: str) -> None:
    architecture = ZOO[name]

    def build() -> PreTrainedModel:
        config = {**architecture.config, **(NO_MASKING if "apply_spec_augment" in architecture.config else {})}
        return tiny.build(architecture.auto_class, architecture.model_type, **config)

    assert_cached(tmp_path, architecture, build)


@pytest.mark.parametrize("name", ["wav2vec2", "hubert", "wavlm"])
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")
def test_architectures_that_mask_hidden_states_at_random_in_front_of_their_blocks(tmp_path: Path, name: str) -> None:
    """SpecAugment masks while the speech model trains, whose own mode is that of its frozen embeddings."""
    architecture = ZOO[name]
    assert architecture.config["apply_spec_augment"]

    def build() -> PreTrainedModel:
        return tiny.build(architecture.auto_class, architecture.model_type, **architecture.config)

    assert_cached(tmp_path, architecture, build)
