"""Evaluating and predicting from the cache, and what happens when weights change, are loaded, or are made anew."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForMaskedLM, TrainerCallback, default_data_collator, set_seed

from hf_freeze import CacheError
from hf_freeze.activation_cache.keys import KEYS
from hf_freeze.training import FreezeTrainer
from tests import tiny
from tests.tiny import tiny_llama
from tests.unit.training.cached import (
    FROZEN,
    assert_agree,
    assert_caching_changes_nothing,
    dropping_bert,
    sentences,
    stored_files,
    trained,
    trainer_of,
)
from tests.unit.training.runs import assert_same, logged, state

NOTHING_STORED = "nothing is stored yet, and rows are needed once"


def section(folder: Path, enabled: object = True) -> dict[str, object]:
    return {"enabled": enabled, "dir": str(folder / "cache")}


class TestPrediction:
    @pytest.mark.parametrize("has_labels", [True, False])
    def test_is_the_same_and_hits(self, tmp_path: Path, has_labels: bool) -> None:
        rows = sentences(14, seed=1) if has_labels else sentences(14, seed=1).remove_columns("labels")
        found = []
        for cache in ({"enabled": False}, section(tmp_path)):
            run = trained(tmp_path, cache)
            before = run.cache.stats.hits
            found.append(run.trainer.predict(rows))
        assert run.cache.stats.hits == before + len(rows)
        np.testing.assert_allclose(found[1].predictions, found[0].predictions, rtol=0, atol=1e-5)
        assert (found[1].label_ids is not None) is has_labels

    def test_rows_that_are_new_are_stored_on_first_sight(self, tmp_path: Path) -> None:
        run = trained(tmp_path, section(tmp_path))
        rows = sentences(9, seed=77)
        counts = []
        for _ in range(2):
            before = run.cache.stats.misses
            run.trainer.predict(rows)
            counts.append(run.cache.stats.misses - before)
        assert counts == [9, 0]

    def test_leaves_the_store_closed(self, tmp_path: Path) -> None:
        """Outside of training nobody else would close it: others could not make room, and the files stay open."""
        run = trained(tmp_path, section(tmp_path))
        for _ in range(2):
            run.trainer.predict(sentences(9, seed=1))
            assert run.cache._outputs.store._shared is None
        assert run.cache.stats.num_bytes > 0


class TestEvaluation:
    def test_several_datasets(self, tmp_path: Path) -> None:
        datasets = {"near": sentences(9, seed=1), "far": sentences(7, seed=2)}
        found = []
        for cache in ({"enabled": False}, section(tmp_path), section(tmp_path)):
            run = trained(tmp_path, cache, eval_dataset=datasets)
            found.append([logged(run.trainer, f"eval_{name}_loss") for name in datasets])
        assert len(found[0][0]) == len(found[0][1]) == 2
        np.testing.assert_allclose(found[1:], [found[0]] * 2, rtol=0, atol=1e-5)
        assert run.cache.stats.misses == run.cache.stats.built == 0

    def test_before_training_nothing_is_stored_under_auto(self, tmp_path: Path) -> None:
        trainer = trainer_of(tmp_path, section(tmp_path, "auto"))
        loss = trainer.evaluate()["eval_loss"]
        assert not trainer.activation_cache.is_on
        assert trainer.activation_cache.reason == NOTHING_STORED
        assert loss == trainer_of(tmp_path, {"enabled": False}).evaluate()["eval_loss"]

    def test_before_training_it_is_used_where_it_is_asked_for(self, tmp_path: Path) -> None:
        trainer = trainer_of(tmp_path, section(tmp_path))
        losses = [trainer.evaluate()["eval_loss"] for _ in range(2)]
        assert trainer.activation_cache.is_on
        assert (trainer.activation_cache.stats.misses, trainer.activation_cache.stats.hits) == (14, 14)
        assert losses[0] == losses[1]
        assert losses[0] == pytest.approx(trainer_of(tmp_path, {"enabled": False}).evaluate()["eval_loss"], abs=1e-6)

    def test_under_auto_another_trainer_uses_what_a_run_has_stored(self, tmp_path: Path) -> None:
        trained(tmp_path, section(tmp_path))
        trainer = trainer_of(tmp_path, section(tmp_path, "auto"))
        trainer.evaluate()
        assert trainer.activation_cache.is_on
        assert trainer.activation_cache.stats.misses == 0
        assert trainer.activation_cache.stats.hits == 14

    def test_training_decides_anew_after_an_evaluation(self, tmp_path: Path) -> None:
        trainer = trainer_of(tmp_path, section(tmp_path, "auto"), options={"max_steps": -1, "num_train_epochs": 2})
        trainer.evaluate()
        assert not trainer.activation_cache.is_on
        trainer.train()
        assert trainer.activation_cache.is_on
        assert trainer.activation_cache.stats.hits > 0

    def test_language_models_that_keep_keys_and_values(self, tmp_path: Path) -> None:
        def build() -> nn.Module:
            return tiny_llama(use_cache=True)

        cold, _ = assert_caching_changes_nothing(tmp_path, build=build, labels="words")
        batch = {name: torch.tensor([[7, 8, 9, 10]]) for name in ("input_ids",)}
        whole = trained(tmp_path, {"enabled": False}, build=build, labels="words")
        made = [run.trainer.model.generate(**batch, max_new_tokens=4, do_sample=False) for run in (cold, whole)]
        assert torch.equal(*made)


class TestChangedWeights:
    """The suffix may change at any time; a value of another prefix is never served."""

    @pytest.mark.parametrize("parameter", ["embeddings.word_embeddings.weight", "encoder.layer.1.output.dense.bias"])
    def test_a_changed_weight_of_the_prefix_misses(self, tmp_path: Path, parameter: str) -> None:
        trainer, plain = (trainer_of(tmp_path, cache) for cache in (section(tmp_path), {"enabled": False}))
        first = trainer.evaluate()["eval_loss"]
        for each in (trainer, plain):
            with torch.no_grad():
                each.model.get_parameter(f"bert.{parameter}").view(-1)[::2] += 1
        second = trainer.evaluate()["eval_loss"]
        assert second != first
        assert second == pytest.approx(plain.evaluate()["eval_loss"], abs=1e-6)
        assert trainer.activation_cache.stats.misses == 28

    def test_a_weight_that_is_written_through_data_misses(self, tmp_path: Path) -> None:
        def build() -> nn.Module:
            return dropping_bert(hidden_size=256, intermediate_size=1024)

        trainer, plain = (trainer_of(tmp_path, cache, build=build) for cache in (section(tmp_path), {"enabled": False}))
        first = trainer.evaluate()["eval_loss"]
        for each in (trainer, plain):
            each.model.get_parameter("bert.encoder.layer.1.output.dense.bias").data[::2] += 1
        second = trainer.evaluate()["eval_loss"]
        assert second != first
        assert second == pytest.approx(plain.evaluate()["eval_loss"], abs=1e-6)
        assert trainer.activation_cache.stats.misses == 28

    def test_a_weight_that_is_written_through_data_in_an_epoch_misses_in_the_next(self, tmp_path: Path) -> None:
        class Disturb(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
                # The audit at the end of the run finds frozen parameters as they were.
                if state.global_step in (7, 14):
                    bias = model.get_parameter("bert.encoder.layer.1.output.dense.bias")
                    bias.data.copy_(torch.ones(256) if state.global_step == 7 else kept[0])
                    kept.append(bias.clone())

        def build() -> nn.Module:
            model = dropping_bert(hidden_size=256, intermediate_size=1024)
            kept[:] = [model.get_parameter("bert.encoder.layer.1.output.dense.bias").clone()]
            return model

        kept: list[torch.Tensor] = []
        options = {"max_steps": -1, "num_train_epochs": 3, "eval_strategy": "no"}
        plain, cached = (
            trained(tmp_path, cache, build=build, options=options, callbacks=[Disturb()])
            for cache in ({"enabled": False}, section(tmp_path))
        )
        assert len(plain.losses) == 21
        assert_agree(cached, plain)

    def test_loaded_weights_miss(self, tmp_path: Path) -> None:
        trainer, plain = (trainer_of(tmp_path, cache) for cache in (section(tmp_path), {"enabled": False}))
        trainer.evaluate()
        for each in (trainer, plain):
            each.model.load_state_dict(dropping_bert(seed=4).state_dict())
        assert trainer.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], abs=1e-6)
        assert trainer.activation_cache.stats.misses == 28

    def test_weights_that_change_in_training_miss(self, tmp_path: Path) -> None:
        class Disturb(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
                # The audit at the end of the run finds frozen parameters as they were.
                moved = {4: 1.0, 8: 0.0}.get(state.global_step)
                if moved is not None:
                    with torch.no_grad():
                        model.get_parameter("bert.embeddings.LayerNorm.bias")[::2].fill_(moved)

        plain, cached = (
            trained(tmp_path, cache, callbacks=[Disturb()]) for cache in ({"enabled": False}, section(tmp_path))
        )
        undisturbed = trained(tmp_path, {"enabled": False})
        assert_agree(cached, plain)
        assert cached.cache.is_on
        assert np.abs(np.subtract(plain.losses, undisturbed.losses)).max() > 1e-4

    def test_evaluating_in_full_precision_after_training_under_autocast(self, tmp_path: Path) -> None:
        losses = []
        for cache in ({"enabled": False}, section(tmp_path), section(tmp_path)):
            run = trained(tmp_path, cache, options={"bf16": True, "bf16_full_eval": True, "eval_strategy": "no"})
            losses.append(run.trainer.evaluate()["eval_loss"])
        assert losses[1:] == pytest.approx([losses[0]] * 2, abs=2e-2)

    def test_the_head_may_change(self, tmp_path: Path) -> None:
        trainer = trainer_of(tmp_path, section(tmp_path))
        first = trainer.evaluate()["eval_loss"]
        with torch.no_grad():
            trainer.model.classifier.bias.add_(torch.tensor([2.0, 0.0]))
        assert trainer.evaluate()["eval_loss"] != first
        assert trainer.activation_cache.stats.misses == 14

    def test_the_best_model_at_the_end(self, tmp_path: Path) -> None:
        options = {"save_strategy": "steps", "save_steps": 5, "load_best_model_at_end": True, "learning_rate": 3e-2}
        found = []
        for cache in ({"enabled": False}, section(tmp_path)):
            run = trained(tmp_path, cache, options=options)
            loss = run.trainer.evaluate()["eval_loss"]
            assert loss == pytest.approx(run.trainer.state.best_metric, abs=1e-6)
            found.append(loss)
        assert found[1] == pytest.approx(found[0], abs=1e-5)
        assert run.cache.is_on


class TestResuming:
    @pytest.mark.parametrize("build", ["eager", "lazy"])
    def test_equals_a_run_that_was_not_stopped_to_the_bit(self, tmp_path: Path, build: str) -> None:
        options = {"save_strategy": "steps", "save_steps": 3}
        cache = {**section(tmp_path), "build": build}
        whole = trained(tmp_path, cache, options=options)
        resumed = trainer_of(tmp_path, cache, options=options)
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-6"))
        assert logged(resumed, "loss") == whole.losses
        assert logged(resumed, "eval_loss") == whole.evaluations
        assert_same(state(resumed.model), state(whole.trainer.model))
        assert resumed.activation_cache.stats.misses == 0

    def test_with_the_cache_what_began_without(self, tmp_path: Path) -> None:
        options = {"save_strategy": "steps", "save_steps": 3}
        whole = trained(tmp_path, {"enabled": False}, options=options)
        resumed = trainer_of(tmp_path, section(tmp_path), options=options)
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
        np.testing.assert_allclose(logged(resumed, "loss"), whole.losses, rtol=0, atol=1e-5)


def next_bert(seeds: Iterator[int]) -> nn.Module:
    return dropping_bert(seed=next(seeds))


class TestNewModels:
    def test_train_twice_with_model_init(self, tmp_path: Path) -> None:
        runs = []
        for cache in ({"enabled": False}, section(tmp_path)):
            trainer = trainer_of(tmp_path, cache, model_init=lambda: dropping_bert())
            losses = []
            for _ in range(2):
                trainer.train()
                losses.append(logged(trainer, "loss"))
            runs.append(losses)
        assert runs[1][0] == runs[1][1]
        np.testing.assert_allclose(runs[1], runs[0], rtol=0, atol=1e-5)
        assert trainer.activation_cache.is_on
        assert trainer.activation_cache.stats.misses == trainer.activation_cache.stats.built == 0

    def test_other_weights_on_the_second_call(self, tmp_path: Path) -> None:
        runs = []
        for cache in ({"enabled": False}, section(tmp_path)):
            seeds = iter(range(3))
            trainer = trainer_of(tmp_path, cache, model_init=partial(next_bert, seeds))
            for _ in range(2):
                trainer.train()
            runs.append(logged(trainer, "loss"))
        np.testing.assert_allclose(runs[1], runs[0], rtol=0, atol=1e-5)
        assert trainer.activation_cache.stats.built > 0

    def test_training_goes_on_with_the_same_model(self, tmp_path: Path) -> None:
        runs = []
        for cache in ({"enabled": False}, section(tmp_path)):
            trainer = trainer_of(tmp_path, cache)
            for _ in range(2):
                trainer.train()
            runs.append(logged(trainer, "loss"))
        np.testing.assert_allclose(runs[1], runs[0], rtol=0, atol=1e-5)
        assert trainer.activation_cache.stats.built == 0


class TwiceTrainer(FreezeTrainer):
    """Calls the model twice for each loss, as R-Drop does."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **keywords: Any) -> Any:
        assert KEYS not in inputs
        one = model(**inputs)
        other = model(**self.other(inputs))
        loss = one.loss + (one.logits - other.logits).square().mean()
        return (loss, one) if return_outputs else loss

    def other(self, inputs: Any) -> Any:
        return inputs


class OtherTrainer(TwiceTrainer):
    """Calls the model a second time with the words in another order."""

    def other(self, inputs: Any) -> Any:
        return {**inputs, "input_ids": inputs["input_ids"].flip(0), "attention_mask": inputs["attention_mask"].flip(0)}


class ShiftedTrainer(TwiceTrainer):
    """Calls the model a second time with other words in the same memory."""

    def other(self, inputs: Any) -> Any:
        inputs["input_ids"].add_(1).remainder_(90)
        return inputs


@pytest.mark.parametrize("trainer_class", [TwiceTrainer, OtherTrainer, ShiftedTrainer])
def test_losses_that_call_the_model_twice(tmp_path: Path, trainer_class: type[FreezeTrainer]) -> None:
    assert_caching_changes_nothing(tmp_path, trainer_class=trainer_class)


@pytest.mark.parametrize("asked", ["output_hidden_states", "output_attentions"])
def test_losses_that_read_what_frozen_blocks_return(tmp_path: Path, asked: str) -> None:
    """A call that asks for it runs in full."""

    class Reading(FreezeTrainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **keywords: Any) -> Any:
            outputs = model(**inputs, **{asked: True})
            values: Sequence[torch.Tensor] = outputs[asked.removeprefix("output_")]
            loss = outputs.loss + sum(value.square().mean() for value in values)
            return (loss, outputs.logits) if return_outputs else loss

    def build() -> nn.Module:
        return dropping_bert(attn_implementation="eager")

    assert_caching_changes_nothing(tmp_path, is_served=False, trainer_class=Reading, build=build)


def test_another_plan_has_a_store_of_its_own_and_grows_from_the_first(tmp_path: Path) -> None:
    trained(tmp_path, section(tmp_path), freeze=FROZEN)
    assert len(stored_files(tmp_path)) == 1
    deeper = {"blocks": {"first": 3}}
    plain, cached = (trained(tmp_path, cache, freeze=deeper) for cache in ({"enabled": False}, section(tmp_path)))
    assert_agree(cached, plain)
    assert len(stored_files(tmp_path)) == 2
    assert cached.cache.stats.built > 0


def test_the_random_state_after_a_run_is_that_of_a_run_without(tmp_path: Path) -> None:
    drawn = []
    for cache in ({"enabled": False}, section(tmp_path), section(tmp_path)):
        set_seed(1)
        trained(tmp_path, cache)
        drawn.append((float(torch.rand(())), float(np.random.rand())))
    assert drawn[0] == drawn[1] == drawn[2]


def test_what_a_run_took_tells_what_the_cache_did(tmp_path: Path) -> None:
    section = {"enabled": True, "dir": str(tmp_path / "cache"), "build": "eager"}
    trainer = trained(tmp_path, section, train_dataset=sentences(2000)).trainer
    costs = trainer.costs(12.34)
    stats = trainer.activation_cache.stats
    assert costs.cache is stats
    assert stats.hits > 0
    assert stats.num_bytes > 1e6
    served = f"{stats.hits:,} rows were served and {stats.misses:,} were not there"
    built = f"{stats.num_bytes / 1e6:,.0f} MB, built in {stats.build_seconds:.1f} seconds"
    way = "saved" if stats.seconds_saved >= 0 else "spent beyond what it saved"
    saved = f"about {abs(stats.seconds_saved):.1f} seconds were {way}"
    assert costs.sentences[0].startswith("Training took 12.3 seconds. Peak memory of the process: ")
    assert costs.sentences[1:] == (f"Activation cache: {served}; {built}; {saved}.",)


class AllPositionsTrainer(FreezeTrainer):
    """Adds to the loss what stands at every position, padding included."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **keywords: Any) -> Any:
        outputs = model(**inputs)
        loss = outputs.loss + 0.1 * outputs.logits.logsumexp(-1).square().mean()
        return (loss, outputs) if return_outputs else loss


class CountingTrainer(FreezeTrainer):
    """Counts the losses that it has computed."""

    counted = 0

    def compute_loss(self, *positional: Any, **keywords: Any) -> Any:
        self.counted += 1
        return super().compute_loss(*positional, **keywords)


def test_losses_that_read_padding(tmp_path: Path) -> None:
    def build() -> nn.Module:
        sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
        return tiny.build(AutoModelForMaskedLM, "bert", vocab_size=99, pad_token_id=0, **sizes)

    keywords: dict[str, Any] = {"build": build, "labels": "words", "trainer_class": AllPositionsTrainer}
    plain, cached = (trained(tmp_path, cache, **keywords) for cache in ({"enabled": False}, section(tmp_path)))
    assert_agree(cached, plain)
    assert cached.cache.is_on
    assert trained(tmp_path, section(tmp_path, "auto"), **keywords).cache.reason == (
        "hidden states cannot be cut to the real tokens of a row, since the loss, or what the model makes of a row, "
        "depends on what stands at its padding, and batches are padded to different lengths; rows padded to one length "
        "can be cached"
    )


def test_a_trainer_does_not_count_the_losses_of_rows_that_are_looked_at(tmp_path: Path) -> None:
    counted = [
        trained(tmp_path, cache, trainer_class=CountingTrainer).trainer.counted
        for cache in ({"enabled": False}, section(tmp_path))
    ]
    assert counted[0] == counted[1] > 0


def test_rows_without_a_mask_are_predicted_after_training_with_masks(tmp_path: Path) -> None:
    predictions = []
    rows = sentences().remove_columns("attention_mask").select(range(14))
    width = max(map(len, rows["input_ids"]))
    rows = rows.map(lambda row: {"input_ids": row["input_ids"] + [0] * (width - len(row["input_ids"]))})
    for cache in ({"enabled": False}, section(tmp_path)):
        trainer = trained(tmp_path, cache).trainer
        trainer.data_collator.collate = default_data_collator
        predictions.append(trainer.predict(rows).predictions)
    np.testing.assert_allclose(predictions[1], predictions[0], rtol=0, atol=1e-5)


class TestAFolderThatCanNoLongerBeOpened:
    def replaced(self, tmp_path: Path, enabled: object) -> Any:
        """Returns a trainer that has trained from the cache, whose folder then became a file."""
        trainer = trained(tmp_path, section(tmp_path, enabled)).trainer
        assert trainer.activation_cache.is_on
        shutil.rmtree(tmp_path / "cache")
        (tmp_path / "cache").write_text("not a folder")
        return trainer

    def test_turns_the_cache_off(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        expected = trained(tmp_path, {"enabled": False}).trainer.evaluate()["eval_loss"]
        trainer = self.replaced(tmp_path, "auto")
        with caplog.at_level(logging.WARNING):
            assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-5)
        assert not trainer.activation_cache.is_on
        (record,) = (each for each in caplog.records if each.name.startswith("hf_freeze"))
        assert record.getMessage().startswith("activation_cache: off. activation_cache.dir: ")

    def test_is_an_error_where_the_cache_is_asked_for(self, tmp_path: Path) -> None:
        trainer = self.replaced(tmp_path, True)
        with pytest.raises(CacheError, match=r"^activation_cache\.dir: "):
            trainer.evaluate()
