"""`save.checkpoints: full` gives the Trainer's own checkpoints, `save.format: delta` a delta, each where it can be."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel, Trainer

from hf_freeze.errors import PlanError
from hf_freeze.plan import freeze_model
from hf_freeze.training import FreezeTrainer, checkpoint, manifest
from tests.tiny import tiny_bert, tiny_gpt2
from tests.unit.training.runs import arguments, assert_same, logged, rows, state
from tests.unit.training.test_resuming import CASES, run, tiny_mixtral

FULL = {"save": {"checkpoints": "full"}}
FROZEN = {"freeze": {"blocks": {"first": 2}}}
LORA = {"peft_type": "LORA", "target_modules": ["query", "value"], "r": 4}
DELTA = {"save": {"format": "delta"}}


def run_full(folder: Path, model: PreTrainedModel, *, resume: str | None = None, **options: Any) -> FreezeTrainer:
    keywords = {key: options.pop(key) for key in ("freeze", "adapters") if key in options}
    data = rows(labels=options.pop("labels", "classes"))
    args = arguments(folder, **{"save_strategy": "steps", "save_steps": 1, "max_steps": 6, **options})
    trainer = FreezeTrainer(model, args, train_dataset=data, eval_dataset=data, **keywords, **FULL)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


class TestFullCheckpoints:
    @pytest.mark.parametrize("case", ["frozen", "lora", "mixed", "tied", "converted on load"])
    def test_resumed_equals_uninterrupted(self, tmp_path: Path, case: str) -> None:
        build_model, options = CASES[case]
        whole = run_full(tmp_path, build_model(), **options)
        resumed = run_full(tmp_path, build_model(), resume=str(tmp_path / "checkpoint-3"), **options)
        assert logged(resumed, "loss") == logged(whole, "loss")
        assert_same(state(resumed.model), state(whole.model))

    @pytest.mark.parametrize("case", ["frozen", "mixed", "converted on load"])
    def test_the_best_model_is_loaded(self, tmp_path: Path, case: str) -> None:
        build_model, options = CASES[case]
        settings = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "learning_rate": 5e-2}
        trainer = run_full(tmp_path, build_model(), **options, **settings)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, abs=1e-6)
        trainable = trainer.plan.is_trainable()
        named = {name: p.requires_grad for name, p in checkpoint.named_parameters(trainer.model) if name in trainable}
        assert named == trainable

    def test_they_hold_what_those_of_the_trainer_hold(self, tmp_path: Path) -> None:
        run_full(tmp_path / "ours", tiny_bert(), **FROZEN)
        args = arguments(tmp_path / "theirs", save_strategy="steps", save_steps=1, max_steps=6)
        Trainer(freeze_model(tiny_bert(), FROZEN["freeze"]), args, train_dataset=rows()).train()
        ours, theirs = (
            {path.name for path in (tmp_path / name / "checkpoint-3").iterdir()} for name in ("ours", "theirs")
        )
        assert ours - theirs == {checkpoint.STATE_FILE, manifest.MANIFEST_FILE}
        assert theirs - ours == {"training_args.bin"}  # a pickle, which nothing reads
        assert_same(
            *(
                safetensors.torch.load_file(tmp_path / name / "checkpoint-3" / "model.safetensors")
                for name in ("ours", "theirs")
            )
        )

    def test_the_trainer_resumes_from_them(self, tmp_path: Path) -> None:
        whole = run_full(tmp_path, tiny_bert(), **FROZEN)
        args = arguments(tmp_path / "theirs", max_steps=6)
        resumed = Trainer(freeze_model(tiny_bert(), FROZEN["freeze"]), args, train_dataset=rows())
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
        assert_same(state(resumed.model), state(whole.model))

    def test_small_checkpoints_are_resumed_under_full_and_the_other_way_round(self, tmp_path: Path) -> None:
        whole = run(tmp_path / "small", tiny_bert(), max_steps=6, **FROZEN)
        run_full(tmp_path / "full", tiny_bert(), **FROZEN)
        small, full = (str(tmp_path / name / "checkpoint-3") for name in ("small", "full"))
        assert_same(state(run_full(tmp_path / "a", tiny_bert(), resume=small, **FROZEN).model), state(whole.model))
        resumed = run(tmp_path / "b", tiny_bert(), resume=full, max_steps=6, **FROZEN)
        assert_same(state(resumed.model), state(whole.model))

    def test_an_incomplete_one_is_refused(self, tmp_path: Path) -> None:
        run_full(tmp_path, tiny_bert(), **FROZEN)
        weights = tmp_path / "checkpoint-6" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-8])
        with pytest.raises(PlanError) as caught:
            run_full(tmp_path, tiny_bert(), resume=str(tmp_path / "checkpoint-6"), **FROZEN)
        assert str(caught.value) == (
            f"resume_from_checkpoint: this checkpoint is not complete; got {str(tmp_path / 'checkpoint-6')!r}, in "
            "which these files are missing or damaged: model.safetensors. "
            f"The newest complete one is {tmp_path / 'checkpoint-5'}. Resume from that one."
        )

    def test_one_that_lacks_weights_is_refused(self, tmp_path: Path) -> None:
        run_full(tmp_path, tiny_bert(), **FROZEN)
        folder = tmp_path / "checkpoint-3"
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        del tensors["bert.encoder.layer.3.output.dense.bias"]
        safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        manifest.write_manifest(folder)
        with pytest.raises(PlanError) as caught:
            run_full(tmp_path, tiny_bert(), resume=str(folder), **FROZEN)
        assert str(caught.value) == (
            f"{folder}: this checkpoint does not hold all weights of a BertForSequenceClassification; it lacks "
            "'bert.encoder.layer.3.output.dense.bias' and 0 more. Resume from another checkpoint."
        )

    def test_what_peft_cannot_hold_is_refused_before_training(self, tmp_path: Path) -> None:
        freeze = {"embeddings": "full", "blocks": {"first": 2}}
        lora = {"peft_type": "LORA", "target_modules": ["c_attn"], "blocks": {"last": 1}}
        with pytest.raises(PlanError) as caught:
            FreezeTrainer(tiny_gpt2(), arguments(tmp_path), freeze=freeze, adapters=(lora,), **FULL)
        assert str(caught.value) == (
            "save.checkpoints: PEFT, in whose format the Trainer writes checkpoints, has no place for "
            "transformer.wte.weight, which trains in full (it is tied, or shares a module with adapters); got 'full'. "
            "Small checkpoints hold it. Leave save.checkpoints out."
        )


class TestDeltas:
    def test_adapters_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(PlanError) as caught:
            FreezeTrainer(tiny_bert(), arguments(tmp_path), adapters=(LORA,), **DELTA)
        assert str(caught.value) == (
            "save.format: a model with adapters is saved as a PEFT folder, which holds what trained and no more; got "
            "'delta'. A delta is for models without adapters. Leave save.format out."
        )

    def test_a_model_without_a_base_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(PlanError) as caught:
            FreezeTrainer(tiny_bert(), arguments(tmp_path), **FROZEN, **DELTA)
        assert str(caught.value) == (
            "save.format: a delta needs a base model that can be loaded again; got 'delta' for a "
            "BertForSequenceClassification that was not loaded with from_pretrained. Leave save.format out."
        )

    def test_the_whole_model_is_written_where_the_base_is_gone(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Training took long: what came of it is never lost for its format."""
        tiny_bert().save_pretrained(tmp_path / "base")
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
        trainer = FreezeTrainer(model, arguments(tmp_path / "out"), **FROZEN, **DELTA)
        shutil.rmtree(tmp_path / "base")
        with caplog.at_level(logging.WARNING, logger="hf_freeze"):
            trainer.save_model()
        assert re.fullmatch(
            rf"{tmp_path / 'out'}: the model is written whole instead of as a delta\. {tmp_path / 'base'}: no "
            r"BertForSequenceClassification can be loaded from it; got the error ['\"].*['\"]\. hf_freeze reads "
            r"safetensors only\. Name a folder, or a model on the Hub, that has a model\.safetensors\.",
            caplog.messages[-1],
        )
        reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
        assert_same(state(reloaded), state(trainer.model))

    def test_the_random_state_is_left_as_it_was(self, tmp_path: Path) -> None:
        """The base lacks the head, which starts anew when the base is loaded once more."""
        tiny_bert().base_model.save_pretrained(tmp_path / "base")
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
        trainer = FreezeTrainer(model, arguments(tmp_path / "out"), **FROZEN, **DELTA)
        before = torch.random.get_rng_state()
        trainer.save_model()
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_saving_in_another_format_leaves_no_old_description(self, tmp_path: Path) -> None:
        tiny_bert().save_pretrained(tmp_path / "base")
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
        FreezeTrainer(model, arguments(tmp_path / "out"), **FROZEN, **DELTA).save_model()
        assert (tmp_path / "out" / "hf_freeze_delta.json").exists()
        FreezeTrainer(model, arguments(tmp_path / "out"), **FROZEN).save_model()
        assert {path.name for path in (tmp_path / "out").iterdir() if path.name.startswith("hf_freeze")} == {
            "hf_freeze_plan.json"
        }

    def test_one_beside_its_base_would_be_loaded_as_the_base(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        tiny_bert().save_pretrained(tmp_path)
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        trainer = FreezeTrainer(model, arguments(tmp_path), train_dataset=rows(), **FROZEN, **DELTA)
        trainer.train()
        with caplog.at_level(logging.WARNING, logger="hf_freeze"):
            trainer.save_model()
        assert caplog.messages[-1] == (
            f"{tmp_path}: the model is written whole instead of as a delta. {tmp_path}: a delta cannot lie beside its "
            f"base model, which would be loaded in its place; got '{tmp_path}' as the base. Save the delta in another "
            "folder."
        )
        reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert_same(state(reloaded), state(trainer.model))

    def test_generation_settings_are_kept(self, tmp_path: Path) -> None:
        tiny_gpt2().save_pretrained(tmp_path / "base")
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        model.generation_config.max_new_tokens = 7
        FreezeTrainer(model, arguments(tmp_path / "out"), **FROZEN, **DELTA).save_model()
        assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["max_new_tokens"] == 7


def test_best_models_of_mixtures_are_whole(tmp_path: Path) -> None:
    """The final model of a run with full checkpoints is that of one with small ones."""
    options = {"freeze": {"blocks": {"first": 1}}, "labels": "words"}
    full = run_full(tmp_path / "full", tiny_mixtral(), **options)
    small = run(tmp_path / "small", tiny_mixtral(), max_steps=6, **options)
    assert_same(state(full.model), state(small.model))
