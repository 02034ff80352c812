"""What is trained on when a row is missing is what is served later: to the bit, and as it is stored.

Shapes: `B` batch, `L` sequence length of the batch, `H` hidden.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.tiny import tiny_llama
from tests.unit.activation_cache.examples import cache_of, evaluate, frozen_bert, loader_of, rows_of
from tests.unit.training.cached import Result, trained

# One epoch of 40 rows in batches of six.
ONE_EPOCH = {"max_steps": -1, "num_train_epochs": 1, "eval_strategy": "no"}


def assert_hits_are_misses(folder: Path, section: dict[str, Any], **keywords: Any) -> tuple[Result, Result]:
    """Asserts that an epoch in which every row misses and one in which every row hits have the same losses."""
    section = {"enabled": True, "dir": str(folder / "cache"), "build": "lazy", **section}
    cold, warm = (trained(folder, section, **keywords) for _ in range(2))
    assert (cold.cache.stats.hits, cold.cache.stats.misses, cold.cache.stats.built) == (0, 40, 0)
    assert (warm.cache.stats.hits, warm.cache.stats.misses, warm.cache.stats.built) == (40, 0, 0)
    assert len(cold.losses) == 7
    assert cold.losses == warm.losses
    assert cold.norms == warm.norms
    return cold, warm


@pytest.mark.parametrize("dtype", ["auto", "float16", "bfloat16"])
def test_the_losses_of_a_first_epoch_are_those_of_a_second_run(tmp_path: Path, dtype: str) -> None:
    """With dropout behind the prefix."""
    cold, _ = assert_hits_are_misses(tmp_path, {"dtype": dtype}, options=ONE_EPOCH)
    plain = trained(tmp_path, {"enabled": False}, options=ONE_EPOCH)
    if dtype == "auto":
        assert cold.losses == plain.losses
    else:
        assert cold.losses != plain.losses
        assert cold.losses == pytest.approx(plain.losses, abs=2e-2)


def test_under_autocast(tmp_path: Path) -> None:
    assert_hits_are_misses(tmp_path, {}, options={**ONE_EPOCH, "bf16": True})


def test_a_language_model(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return tiny_llama(attention_dropout=0.1)

    assert_hits_are_misses(tmp_path, {"dtype": "float16"}, build=build, labels="words", options=ONE_EPOCH)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_the_first_trained_block_is_given(tmp_path: Path, dtype: torch.dtype) -> None:
    """The rounded values at a miss, at a hit, and where a batch has both."""
    rows = rows_of(8)
    given: list[torch.Tensor] = []

    def look(model: nn.Module) -> nn.Module:
        block = model.get_submodule("bert.encoder.layer.2")
        block.register_forward_pre_hook(lambda module, args: given.append(args[0].clone()))
        return model

    batch = next(iter(loader_of(rows, 8)))
    real = batch["attention_mask"].bool()
    evaluate(look(frozen_bert()), [batch])
    expected = given.pop()[real].to(dtype)
    half = next(iter(loader_of(rows[:4], 4)))
    for first in (batch, half):
        cache = cache_of(frozen_bert(), tmp_path / str(len(first["labels"])), dtype=str(dtype).removeprefix("torch."))
        cache.prepare(batch)
        look(cache.model)
        evaluate(cache.model, [first], cache.serve)
        given.clear()
        evaluate(cache.model, [batch, batch], cache.serve)
        assert [each.dtype for each in given] == [torch.float32] * 2
        for each in given:
            torch.testing.assert_close(each[real], expected.float(), rtol=0, atol=1e-6 if dtype == torch.float32 else 0)
        assert torch.equal(given[0][real], given[1][real])
        cache.close()
