"""What the tests of caching in the trainer share: rows of many lengths, and one run told apart from the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding, Trainer

from hf_freeze.training import FreezeTrainer
from tests.tiny import VOCAB_SIZE, tiny_bert, tiny_tokenizer
from tests.unit.training.runs import arguments, logged

DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
FROZEN = {"blocks": {"first": 2}}
NUM_STEPS = 10


def dropping_bert(**config: Any) -> nn.Module:
    """Builds a BERT that drops out."""
    return tiny_bert(**{**DROPOUT, **config})


def sentences(number: int = 40, *, labels: str = "classes", longest: int = 12, seed: int = 0) -> Dataset:
    """Rows of 3 to `longest` random words: with a class each, or with themselves as labels of a language model."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, longest + 1, (number,), generator=generator).tolist()
    words = [torch.randint(5, VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]
    columns = {"input_ids": words, "attention_mask": [[1] * length for length in lengths]}
    classes = torch.randint(0, 2, (number,), generator=generator).tolist()
    return Dataset.from_dict({**columns, "labels": classes if labels == "classes" else words})


def padding(labels: str = "classes", **options: Any) -> Any:
    """A collator that pads a batch to its longest row.

    Args:
        labels: `classes`, or `words` for labels that are padded too.
        **options: Options of the collator.
    """
    collator = DataCollatorWithPadding if labels == "classes" else DataCollatorForSeq2Seq
    return collator(tiny_tokenizer(), **options)


@dataclass(frozen=True)
class Result:
    """What a run logged, and what its trainer is."""

    trainer: Any
    losses: list[float]
    norms: list[float]
    evaluations: list[float]

    @property
    def cache(self) -> Any:
        """The cache of the run."""
        return self.trainer.activation_cache


def trainer_of(
    folder: Path,
    cache: Mapping[str, object] | None,
    *,
    build: Callable[[], nn.Module] = dropping_bert,
    labels: str = "classes",
    trainer_class: type[Trainer] = FreezeTrainer,
    options: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> Any:
    """A trainer that takes ten steps over 40 rows padded on the right, two epochs of 32 rows, and evaluates twice.

    Args:
        folder: Where it may write.
        cache: The `activation_cache` section.
        build: Makes the model.
        labels: `classes` or `words`.
        trainer_class: Its class.
        options: Further training arguments.
        **keywords: Further arguments of the trainer.
    """
    defaults = {"max_steps": NUM_STEPS, "per_device_train_batch_size": 6, "eval_strategy": "steps", "eval_steps": 5}
    defaults["save_strategy"] = "no"
    datasets = {"train_dataset": sentences(labels=labels), "eval_dataset": sentences(14, labels=labels, seed=1)}
    keywords = {"freeze": FROZEN, "data_collator": padding(labels), **datasets, **keywords}
    if keywords["eval_dataset"] is None:
        defaults["eval_strategy"] = "no"
    args = keywords.pop("args", None) or arguments(folder / "run", **{**defaults, **(options or {})})
    model = None if "model_init" in keywords else build()
    return trainer_class(model, args, activation_cache=cache, **keywords)


def trained(folder: Path, cache: Mapping[str, object] | None, **keywords: Any) -> Result:
    """Trains and returns what was logged; see `trainer_of`."""
    trainer = trainer_of(folder, cache, **keywords)
    trainer.train()
    return Result(trainer, logged(trainer, "loss"), logged(trainer, "grad_norm"), logged(trainer, "eval_loss"))


def assert_agree(one: Result, other: Result, *, atol: float = 1e-5) -> None:
    """Asserts that two runs logged the same losses, gradient norms and evaluation losses."""
    assert len(one.losses) == len(other.losses) > 0
    np.testing.assert_allclose(one.losses, other.losses, rtol=0, atol=atol)
    np.testing.assert_allclose(one.norms, other.norms, rtol=1e-3, atol=10 * atol)
    assert len(one.evaluations) == len(other.evaluations)
    np.testing.assert_allclose(one.evaluations, other.evaluations, rtol=0, atol=max(atol, 1e-5))


def assert_caching_changes_nothing(
    folder: Path, *, atol: float = 1e-5, is_served: bool = True, **keywords: Any
) -> tuple[Result, Result]:
    """Trains without the cache, with an empty one, and with a full one, and asserts that all three agree.

    Args:
        folder: Where the runs may write.
        atol: How far losses may be apart.
        is_served: Whether the calls of the model can be answered from the cache.
        **keywords: See `trainer_of`.

    Returns:
        The run that filled the cache, and the one that found it full.
    """
    section = {"enabled": True, "dir": str(folder / "cache"), **keywords.pop("section", {})}
    plain = trained(folder, {"enabled": False}, **keywords)
    cold = trained(folder, section, **keywords)
    warm = trained(folder, section, **keywords)
    assert not plain.cache.is_on
    assert cold.cache.is_on
    assert warm.cache.is_on
    assert cold.cache.stats.built + cold.cache.stats.misses > 0
    assert warm.cache.stats.built == warm.cache.stats.misses == 0
    assert (warm.cache.stats.hits > 0) is is_served
    for cached in (cold, warm):
        assert_agree(cached, plain, atol=atol)
    return cold, warm


def stored_files(folder: Path) -> list[Path]:
    """The databases below a folder."""
    return sorted(folder.rglob("data.mdb"))
