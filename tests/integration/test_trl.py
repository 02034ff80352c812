"""`class T(FreezeMixin, SFTTrainer)` is TRL's SFTTrainer with a plan: real data preparation, loss and checkpointing."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from datasets import Dataset
from torch import nn
from trl import SFTConfig, SFTTrainer

from hf_freeze.errors import PlanError
from hf_freeze.training import FreezeMixin
from tests.integration.reached import Reached
from tests.tiny import tiny_llama, tiny_tokenizer
from tests.unit.training.runs import assert_followed, logged, values

# TRL 1.16 switches activation checkpointing on by the name that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")

WORDS = ["the", "plot", "was", "thin", "and", "long", "but", "never", "dull", "film"]
FREEZE = {"blocks": {"first": 2}}
LORA = {"peft_type": "LORA", "target_modules": ["q_proj", "v_proj"], "r": 4, "blocks": {"last": 2}}
PEFT_LORA = peft.LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=[2, 3])


class FreezeSFTTrainer(FreezeMixin, SFTTrainer):
    """SFTTrainer with a plan."""


def prepared(
    folder: Path,
    trainer_class: type[SFTTrainer],
    *,
    options: dict[str, Any] | None = None,
    evaluated: bool = False,
    **keywords: Any,
) -> Any:
    """A trainer of a tiny Llama on texts of four to twelve words."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(4, 12))) for _ in range(40)]
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "seed": 3,
    }
    args = SFTConfig(**{**defaults, **(options or {})})
    dataset = Dataset.from_dict({"text": texts})
    if evaluated:
        keywords["eval_dataset"] = dataset.select(range(12))
    return trainer_class(tiny_llama(), args, train_dataset=dataset, processing_class=tiny_tokenizer(texts), **keywords)


def test_an_empty_plan_equals_sft_to_the_bit(tmp_path: Path) -> None:
    runs = [prepared(tmp_path, trainer_class) for trainer_class in (SFTTrainer, FreezeSFTTrainer)]
    for trainer in runs:
        trainer.train()
    plain, planned = runs
    assert planned.plan.frozen_names == ()
    assert len(logged(plain, "loss")) == 3
    for key in ("loss", "grad_norm", "mean_token_accuracy"):
        assert logged(planned, key) == logged(plain, key)
    after = [dict(trainer.model.named_parameters()) for trainer in runs]
    assert [name for name in after[0] if not torch.equal(after[0][name], after[1][name])] == []


@pytest.mark.parametrize(
    "keywords",
    [{"freeze": FREEZE}, {"freeze": FREEZE, "adapters": [LORA]}, {"adapters": [PEFT_LORA]}],
    ids=["frozen", "frozen and adapted", "PEFT object"],
)
class TestPlan:
    def test_what_trains_moves_and_nothing_else(self, tmp_path: Path, keywords: dict[str, Any]) -> None:
        trainer = prepared(tmp_path, FreezeSFTTrainer, **keywords)
        before = values(trainer.model)
        trainer.train()
        assert trainer.plan.frozen_names
        assert trainer.plan.trainable_names
        assert_followed(trainer.model, before)

    def test_activation_checkpointing_is_on_and_reaches_trained_blocks_only(
        self, tmp_path: Path, keywords: dict[str, Any]
    ) -> None:
        trainer = prepared(tmp_path, FreezeSFTTrainer, activation_cache={"enabled": False}, **keywords)
        assert trainer.args.activation_checkpointing
        layers = next(m for m in trainer.model.modules() if isinstance(m, nn.ModuleList) and len(m) == 4)
        reached = Reached(layers)
        trainer.train()
        calls = trainer.args.max_steps * trainer.args.gradient_accumulation_steps
        assert reached.forwards == [calls, calls, 2 * calls, 2 * calls]
        assert reached.backwards == [0, 0, calls, calls]

    def test_the_loss_keeps_the_scale_of_sft(self, tmp_path: Path, keywords: dict[str, Any]) -> None:
        """SFTTrainer divides by the tokens of all micro-batches itself; the first loss is that of the plain trainer."""
        plain, planned = prepared(tmp_path, SFTTrainer), prepared(tmp_path, FreezeSFTTrainer, **keywords)
        for trainer in (plain, planned):
            trainer.train()
        assert planned._loss_responds is None
        assert logged(planned, "loss")[0] == logged(plain, "loss")[0]


def test_accumulation_equals_one_large_batch(tmp_path: Path) -> None:
    runs = []
    for batch, accumulation in ((8, 1), (2, 4)):
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        trainer = prepared(tmp_path, FreezeSFTTrainer, freeze=FREEZE, options=options)
        trainer.train()
        runs.append((logged(trainer, "loss"), logged(trainer, "grad_norm")))
    np.testing.assert_allclose(runs[0], runs[1], rtol=0, atol=1e-5)


def test_checkpointing_changes_no_loss(tmp_path: Path) -> None:
    losses = []
    for checkpointing in (True, False):
        options = {"activation_checkpointing": checkpointing}
        trainer = prepared(tmp_path, FreezeSFTTrainer, freeze=FREEZE, adapters=[LORA], options=options)
        trainer.train()
        losses.append(logged(trainer, "loss"))
    assert losses[0] == losses[1]


def test_caching_changes_nothing(tmp_path: Path) -> None:
    """Losses, accuracies and evaluations of ten steps, with a cache that is filled and with one that is full."""
    options = {"max_steps": 10, "eval_strategy": "steps", "eval_steps": 5}
    section = {"enabled": True, "dir": str(tmp_path / "cache")}
    runs = []
    for cache in ({"enabled": False}, section, section):
        trainer = prepared(
            tmp_path, FreezeSFTTrainer, activation_cache=cache, evaluated=True, options=options, freeze=FREEZE
        )
        frozen = trainer.model.get_submodule(trainer.plan.layout.stacks[0].path)[0]
        called: list[bool] = []
        frozen.register_forward_hook(lambda *_, called=called: called.append(True))
        trainer.train()
        runs.append((trainer, len(called)))
    (plain, plain_calls), (cold, _), (warm, warm_calls) = runs
    for cached in (cold, warm):
        assert (cached.activation_cache.is_on, cached.activation_cache.reason) == (True, None)
        for key, size in (("loss", 10), ("eval_loss", 2), ("mean_token_accuracy", 10), ("entropy", 10)):
            assert len(logged(plain, key)) == size
            np.testing.assert_allclose(logged(cached, key), logged(plain, key), rtol=0, atol=1e-5)
    assert cold.activation_cache.stats.built == cold.activation_cache.num_rows == 40
    stats = warm.activation_cache.stats
    assert (stats.hits, stats.misses, stats.built) == (10 * 8 + 2 * 12, 0, 0)
    assert warm_calls < plain_calls == 10 * 2 + 2 * 2


def test_training_and_evaluation_are_told_apart(tmp_path: Path) -> None:
    """SFTTrainer logs by the mode of the model itself: even with all blocks frozen, the model's own flag is free."""
    options = {"eval_strategy": "steps", "eval_steps": 1}
    trainer = prepared(tmp_path, FreezeSFTTrainer, freeze={"blocks": "all"}, options=options, evaluated=True)
    trainer.train()
    for key in ("loss", "eval_loss", "mean_token_accuracy", "eval_mean_token_accuracy"):
        assert len(logged(trainer, key)) == 3


def test_the_saved_adapters_load_in_peft(tmp_path: Path) -> None:
    trainer = prepared(tmp_path, FreezeSFTTrainer, freeze=FREEZE, adapters=[LORA])
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    loaded = peft.PeftModel.from_pretrained(tiny_llama(), tmp_path / "model").eval()
    words = torch.arange(5, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(words).logits, trainer.model.eval()(words).logits, rtol=0, atol=1e-6)


def test_peft_config_beside_adapters_is_refused(tmp_path: Path) -> None:
    message = (
        "peft_config: adapters are given twice; got peft_config= beside adapters=. adapters= takes PEFT config "
        "objects. Move the object there."
    )
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        prepared(tmp_path, FreezeSFTTrainer, adapters=[LORA], peft_config=peft.LoraConfig())
