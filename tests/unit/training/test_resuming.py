"""A run that was stopped and resumed is, to the bit, the run that was not; incomplete checkpoints are never used."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer

from hf_freeze.errors import PlanError
from hf_freeze.plan.wrappers import named_parameters
from hf_freeze.training import FreezeTrainer, checkpoint, manifest
from tests.tiny import build, tiny_bert, tiny_gpt2
from tests.unit.training.runs import arguments, assert_same, logged, rows, state

DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
LORA = {"peft_type": "LORA", "target_modules": ["query", "value"], "r": 4}
FROZEN = {"freeze": {"blocks": {"first": 2}}}


def dropping_bert(seed: int = 0) -> PreTrainedModel:
    return tiny_bert(seed=seed, **DROPOUT)


def tiny_mixtral() -> PreTrainedModel:
    """A mixture of experts, whose weights are renamed and stacked when they are loaded."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    experts = {"num_key_value_heads": 2, "num_local_experts": 4, "vocab_size": 99, "pad_token_id": 0}
    return build(AutoModelForCausalLM, "mixtral", **sizes, **experts)


def run(folder: Path, model: PreTrainedModel, *, resume: str | bool | None = None, **options: Any) -> FreezeTrainer:
    keywords = {
        key: options.pop(key)
        for key in ("freeze", "adapters", "lr_multipliers", "save", "allow_changed_plan")
        if key in options
    }
    labels = options.pop("labels", "classes")
    settings = {"max_steps": 12, "save_strategy": "steps", "save_steps": 1, **options}
    data = rows(labels=labels)
    trainer = FreezeTrainer(model, arguments(folder, **settings), train_dataset=data, eval_dataset=data, **keywords)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


CASES: dict[str, tuple[Callable[[], PreTrainedModel], dict[str, Any]]] = {
    "frozen": (dropping_bert, FROZEN),
    "empty plan": (dropping_bert, {}),
    "adafactor": (dropping_bert, {**FROZEN, "optim": "adafactor"}),
    "sgd": (dropping_bert, {**FROZEN, "optim": "sgd"}),
    "accumulation": (dropping_bert, {**FROZEN, "gradient_accumulation_steps": 2}),
    "multipliers": (dropping_bert, {**FROZEN, "lr_multipliers": {"block_decay": 0.8}}),
    "lora": (dropping_bert, {"adapters": [LORA]}),
    "mixed": (dropping_bert, {**FROZEN, "adapters": [{**LORA, "blocks": {"indices": [2]}}]}),
    "prompt": (dropping_bert, {"adapters": [{"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}]}),
    "tied": (tiny_gpt2, {**FROZEN, "labels": "words"}),
    "converted on load": (tiny_mixtral, {"freeze": {"blocks": {"first": 1}}, "labels": "words"}),
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_equals_uninterrupted(tmp_path: Path, case: str) -> None:
    build_model, options = CASES[case]
    whole = run(tmp_path, build_model(), **options)
    step = random.Random(case).randint(1, 11)
    resumed = run(tmp_path, build_model(), resume=str(tmp_path / f"checkpoint-{step}"), **options)
    assert logged(resumed, "loss") == logged(whole, "loss")
    assert logged(resumed, "grad_norm") == logged(whole, "grad_norm")
    assert_same(state(resumed.model), state(whole.model))
    assert_optimizers_equal(resumed.optimizer, whole.optimizer)
    assert resumed.lr_scheduler.state_dict() == whole.lr_scheduler.state_dict()


def assert_optimizers_equal(one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for index, entries in ours["state"].items():
        for name, value in entries.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs["state"][index][name]))


def test_plain_trainer_loads_nothing_of_a_model_that_is_converted_on_load(tmp_path: Path) -> None:
    """The upstream behaviour that makes hf_freeze write weights under the names that they have in memory."""
    settings = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
    data = rows(labels="words")
    whole = Trainer(tiny_mixtral(), arguments(tmp_path, **settings), train_dataset=data)
    whole.train()
    resumed = Trainer(tiny_mixtral(), arguments(tmp_path, **settings), train_dataset=data)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert not torch.equal(whole.model.lm_head.weight, resumed.model.lm_head.weight)


def test_the_best_model_of_a_converted_model_is_loaded(tmp_path: Path) -> None:
    settings = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "learning_rate": 5e-2}
    arguments_ = arguments(tmp_path, save_strategy="steps", save_steps=1, max_steps=6, **settings)
    data = rows(labels="words")
    trainer = FreezeTrainer(
        tiny_mixtral(), arguments_, train_dataset=data, eval_dataset=data, freeze={"blocks": {"first": 1}}
    )
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, abs=1e-6)


class TestContents:
    def test_a_checkpoint_holds_what_can_change_and_no_more(self, tmp_path: Path) -> None:
        trainer = run(tmp_path, dropping_bert(), max_steps=1, **FROZEN)
        held = safetensors.torch.load_file(tmp_path / "checkpoint-1" / checkpoint.WEIGHTS_FILE)
        buffers = {name for name, _ in trainer.model.named_buffers() if name in trainer.model.state_dict()}
        assert set(held) == {*trainer.plan.trainable_names, *buffers}

    def test_a_frozen_fresh_head_is_held(self, tmp_path: Path) -> None:
        run(tmp_path, dropping_bert(), max_steps=1, freeze={"blocks": {"first": 2}, "head": "frozen"})
        held = safetensors.torch.load_file(tmp_path / "checkpoint-1" / checkpoint.WEIGHTS_FILE)
        assert {"classifier.weight", "classifier.bias"} <= set(held)
        assert "bert.pooler.dense.weight" not in held

    def test_a_frozen_fresh_head_comes_back_from_the_checkpoint(self, tmp_path: Path) -> None:
        options = {"freeze": {"blocks": {"first": 2}, "head": "frozen"}, "max_steps": 4}
        whole = run(tmp_path, dropping_bert(), **options)
        other = dropping_bert()
        torch.nn.init.normal_(other.classifier.weight)
        resumed = run(tmp_path, other, resume=str(tmp_path / "checkpoint-2"), **options)
        assert_same(state(resumed.model), state(whole.model))

    def test_weights_are_smaller_than_the_model(self, tmp_path: Path) -> None:
        trainer = run(tmp_path, dropping_bert(), max_steps=1, freeze={"blocks": "all"})
        held = (tmp_path / "checkpoint-1" / checkpoint.WEIGHTS_FILE).stat().st_size
        assert held < 0.2 * sum(p.numel() * p.element_size() for p in trainer.model.parameters())


class TestChangedPlans:
    def test_they_are_refused_in_words(self, tmp_path: Path) -> None:
        run(tmp_path, dropping_bert(), max_steps=2, **FROZEN)
        message = (
            f"{tmp_path}/checkpoint-2: this checkpoint was written under another plan; got one in which blocks[2] was "
            "full and is frozen now. Restore the freeze and adapters sections of that run, or set allow_changed_plan "
            "to true (the weights are kept, the optimizer starts anew)."
        )
        with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
            run(tmp_path, dropping_bert(), resume=True, freeze={"blocks": {"first": 3}})

    def test_fewer_trained_parameters_of_a_role_are_a_change(self, tmp_path: Path) -> None:
        biases = {"blocks": "all", "always_train": ["*.layer.3.*.bias"]}
        run(tmp_path, dropping_bert(), max_steps=2, freeze=biases)
        with pytest.raises(PlanError, match=re.escape("blocks[3] trained 8 parameters and trains 0 now")):
            run(tmp_path, dropping_bert(), resume=True, freeze={"blocks": "all"})

    def test_a_flag_allows_them(self, tmp_path: Path) -> None:
        settings = {"lr_scheduler_type": "linear"}
        first = run(tmp_path, dropping_bert(), max_steps=12, **FROZEN, **settings)
        saved = safetensors.torch.load_file(tmp_path / "checkpoint-6" / checkpoint.WEIGHTS_FILE)
        resumed = run(
            tmp_path,
            dropping_bert(),
            resume=str(tmp_path / "checkpoint-6"),
            freeze={"blocks": {"first": 3}},
            allow_changed_plan=True,
            **settings,
        )
        after = dict(named_parameters(resumed.model))
        block = [name for name in saved if ".layer.2." in name]
        assert block
        assert all(torch.equal(after[name], saved[name]) for name in block)
        assert resumed.state.global_step == 12
        assert logged(resumed, "learning_rate")[-6:] == pytest.approx(logged(first, "learning_rate")[-6:])

    def test_what_trained_under_an_earlier_plan_is_kept_by_later_checkpoints(self, tmp_path: Path) -> None:
        run(tmp_path, dropping_bert(), max_steps=2, freeze={"blocks": {"first": 1}})
        changed = {"freeze": {"blocks": {"first": 3}}, "allow_changed_plan": True}
        whole = run(tmp_path, dropping_bert(), max_steps=6, resume=str(tmp_path / "checkpoint-2"), **changed)
        resumed = run(tmp_path, dropping_bert(), max_steps=6, resume=str(tmp_path / "checkpoint-4"), **changed)
        assert_same(state(resumed.model), state(whole.model))
        assert set(resumed.trained_plan.frozen_names) < set(resumed.plan.frozen_names)
        held = safetensors.torch.load_file(tmp_path / "checkpoint-6" / checkpoint.WEIGHTS_FILE)
        layers = {name.split(".")[3] for name in held if ".layer." in name}
        assert layers == {"1", "2", "3"}

    def test_the_best_model_may_be_one_of_the_earlier_plan(self, tmp_path: Path) -> None:
        best = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "learning_rate": 5e-2}
        first = run(tmp_path, dropping_bert(), max_steps=3, freeze={"blocks": {"first": 1}}, **best)
        changed = {"freeze": {"blocks": {"first": 3}}, "allow_changed_plan": True}
        worse = {**best, "learning_rate": 5.0}
        last = run(tmp_path, dropping_bert(), max_steps=6, resume=str(tmp_path / "checkpoint-3"), **changed, **worse)
        assert last.state.best_model_checkpoint == first.state.best_model_checkpoint
        assert_same(state(last.model), state(first.model))

    def test_a_best_model_over_other_frozen_weights_costs_nothing(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        best = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "learning_rate": 5e-2}
        run(tmp_path, dropping_bert(), max_steps=3, freeze={"blocks": {"first": 3}}, **best)
        changed = {"freeze": {"blocks": {"first": 1}}, "allow_changed_plan": True}
        worse = {**best, "learning_rate": 5.0}
        last = run(tmp_path, dropping_bert(), max_steps=6, resume=str(tmp_path / "checkpoint-3"), **changed, **worse)
        assert last.state.global_step == 6
        kept = safetensors.torch.load_file(tmp_path / "checkpoint-6" / checkpoint.WEIGHTS_FILE)
        assert all(torch.equal(tensor, last.model.state_dict()[name]) for name, tensor in kept.items())
        assert caplog.text.count("The best checkpoint is not loaded, and the last weights are kept.") == 1

    def test_weights_of_other_shapes_are_refused(self, tmp_path: Path) -> None:
        run(tmp_path, dropping_bert(), max_steps=2, **FROZEN)
        message = (
            f"{tmp_path}/checkpoint-2: this checkpoint holds weights of other shapes; got 'classifier.bias' of shape "
            "(2,) and 1 more. The model, a BertForSequenceClassification, has (3,) there. Load the model, with as many "
            "labels, that the checkpoint was written from."
        )
        with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
            run(tmp_path, tiny_bert(num_labels=3, **DROPOUT), resume=True, allow_changed_plan=True, **FROZEN)

    def test_another_base_model_is_refused(self, tmp_path: Path) -> None:
        run(tmp_path, dropping_bert(), max_steps=2, **FROZEN)
        message = (
            f"{tmp_path}/checkpoint-2: the frozen weights of the model are not those that this checkpoint was trained "
            "on; got another bert.embeddings.word_embeddings.weight and 14 more. The model is ''. Load the same base "
            "model, revision and dtype as in that run."
        )
        with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
            run(tmp_path, dropping_bert(seed=1), resume=True, **FROZEN)

    def test_weights_that_the_model_lacks_are_refused(self, tmp_path: Path) -> None:
        run(tmp_path, dropping_bert(), max_steps=2, **FROZEN)
        message = (
            f"{tmp_path}/checkpoint-2: this checkpoint holds weights that the model lacks; got "
            "'bert.encoder.layer.3.attention.output.LayerNorm.bias' and 15 more. The model is a "
            "BertForSequenceClassification. Load the model, adapters included, that the checkpoint was written from."
        )
        with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
            run(tmp_path, tiny_bert(num_hidden_layers=3), resume=True, allow_changed_plan=True, **FROZEN)

    def test_another_format_is_refused(self, tmp_path: Path) -> None:
        run(tmp_path, dropping_bert(), max_steps=1, **FROZEN)
        file = tmp_path / "checkpoint-1" / checkpoint.STATE_FILE
        file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": 9}))
        manifest.write_manifest(file.parent)
        message = (
            f"{file}: this checkpoint has another format; got version 9. This hf_freeze reads version 1. Resume with "
            "the release that wrote it."
        )
        with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
            run(tmp_path, dropping_bert(), resume=True, **FROZEN)


class TestCompleteness:
    def test_resuming_takes_the_newest_complete_checkpoint(self, tmp_path: Path) -> None:
        run(tmp_path, dropping_bert(), max_steps=3, **FROZEN)
        (tmp_path / "checkpoint-3" / manifest.MANIFEST_FILE).unlink()
        assert manifest.newest_complete(tmp_path) == tmp_path / "checkpoint-2"
        assert run(tmp_path, dropping_bert(), resume=True, **FROZEN).state.global_step == 12
        assert manifest.is_complete(tmp_path / "checkpoint-3")

    @pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
    def test_a_damaged_file_makes_it_incomplete(self, tmp_path: Path, damage: str) -> None:
        run(tmp_path, dropping_bert(), max_steps=2, **FROZEN)
        file = tmp_path / "checkpoint-2" / checkpoint.WEIGHTS_FILE
        content = file.read_bytes()
        if damage == "missing":
            file.unlink()
        else:
            file.write_bytes(content[:-8] if damage == "truncated" else content[:-1] + bytes([content[-1] ^ 1]))
        assert not manifest.is_complete(file.parent)
        assert manifest.newest_complete(tmp_path) == tmp_path / "checkpoint-1"

    def test_an_incomplete_checkpoint_is_refused_by_name(self, tmp_path: Path) -> None:
        run(tmp_path, dropping_bert(), max_steps=2, **FROZEN)
        folder = tmp_path / "checkpoint-2"
        (folder / manifest.MANIFEST_FILE).unlink()
        message = (
            f"resume_from_checkpoint: this checkpoint is not complete; got '{folder}', in which these files are "
            f"missing or damaged: manifest.json. The newest complete one is {tmp_path}/checkpoint-1. Resume from that "
            "one."
        )
        with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
            run(tmp_path, dropping_bert(), resume=str(folder), **FROZEN)

    @pytest.mark.parametrize(
        ("checkpoints", "lost", "named"),
        [
            ("small", [checkpoint.STATE_FILE, manifest.MANIFEST_FILE], ["manifest.json"]),
            ("small", ["trainer_state.json"], ["trainer_state.json"]),
            ("small", ["trainer_state.json", manifest.MANIFEST_FILE], ["manifest.json", "trainer_state.json"]),
            ("full", [manifest.MANIFEST_FILE], ["manifest.json"]),
            ("full", ["optimizer.pt", "scheduler.pt"], ["optimizer.pt", "scheduler.pt"]),
            ("full", [checkpoint.STATE_FILE, manifest.MANIFEST_FILE, "optimizer.pt"], ["optimizer.pt"]),
            ("full", ["trainer_state.json", checkpoint.STATE_FILE, manifest.MANIFEST_FILE], ["trainer_state.json"]),
        ],
    )
    def test_one_that_was_cut_short_is_refused_with_the_names_of_what_it_lacks(
        self, checkpoints: str, lost: list[str], named: list[str], tmp_path: Path
    ) -> None:
        run(tmp_path, dropping_bert(), max_steps=2, save={"checkpoints": checkpoints}, **FROZEN)
        folder = tmp_path / "checkpoint-2"
        for name in lost:
            (folder / name).unlink()
        message = (
            f"resume_from_checkpoint: this checkpoint is not complete; got '{folder}', in which these files are "
            f"missing or damaged: {', '.join(named)}. The newest complete one is {tmp_path}/checkpoint-1. Resume from "
            "that one."
        )
        with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
            run(tmp_path, dropping_bert(), resume=str(folder), save={"checkpoints": checkpoints}, **FROZEN)

    def test_a_folder_that_does_not_exist_is_refused(self, tmp_path: Path) -> None:
        message = (
            f"resume_from_checkpoint: there is no such folder; got '{tmp_path}/checkpoint-7'. There is no complete "
            "one beside it. Train without resume_from_checkpoint."
        )
        with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
            run(tmp_path, dropping_bert(), resume=str(tmp_path / "checkpoint-7"), **FROZEN)

    def test_nothing_to_resume_from_is_said(self, tmp_path: Path) -> None:
        message = (
            f"resume_from_checkpoint: no complete checkpoint to resume from; got the folder '{tmp_path}'. A complete "
            "checkpoint holds manifest.json. Train without resume_from_checkpoint, or name a checkpoint folder."
        )
        with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
            run(tmp_path, dropping_bert(), resume=True, **FROZEN)

    def test_rotation_keeps_the_limit(self, tmp_path: Path) -> None:
        run(tmp_path, dropping_bert(), max_steps=5, save_total_limit=2, **FROZEN)
        assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]
        assert all(manifest.is_complete(path) for path in tmp_path.glob("checkpoint-*"))


class TestFoldersOfOtherRuns:
    def test_one_with_checkpoints_of_another_plan_is_refused_before_training(self, tmp_path: Path) -> None:
        run(tmp_path, dropping_bert(), max_steps=2, **FROZEN)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        with pytest.raises(PlanError) as caught:
            run(tmp_path, dropping_bert(), max_steps=4, save_total_limit=1, freeze={"blocks": {"first": 3}})
        assert str(caught.value) == (
            f"args.output_dir: this folder holds checkpoints of another run; got '{tmp_path}' with checkpoint-1, "
            "checkpoint-2. save_total_limit and load_best_model_at_end would take them for those of this run. Name "
            "another folder, resume that run under its plan with resume_from_checkpoint=True, or remove them with "
            "save={'overwrite': True}."
        )
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before

    def test_one_of_plain_trainer_is_refused_as_well(self, plain_checkpoint: Path, tmp_path: Path) -> None:
        shutil.copytree(plain_checkpoint, tmp_path / "checkpoint-7")
        with pytest.raises(PlanError, match=r"checkpoints of another run; got .* with checkpoint-7\."):
            run(
                tmp_path, dropping_bert(), max_steps=1, load_best_model_at_end=True, eval_strategy="steps", eval_steps=1
            )
        elsewhere = str(shutil.copytree(plain_checkpoint, tmp_path / "elsewhere" / "checkpoint-1"))
        with pytest.raises(PlanError, match=r"checkpoints of another run; got .* with checkpoint-7\."):
            run(tmp_path, dropping_bert(), resume=elsewhere, max_steps=2, save_total_limit=2)

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"format_version": 9}'])
    def test_one_whose_state_is_damaged_counts_as_cut_short(self, tmp_path: Path, content: str) -> None:
        run(tmp_path, dropping_bert(), max_steps=2, **FROZEN)
        (tmp_path / "checkpoint-2" / checkpoint.STATE_FILE).write_text(content)
        run(tmp_path, dropping_bert(), max_steps=1, save_total_limit=1, **FROZEN)
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]

    def test_they_are_removed_where_that_is_asked_for(self, tmp_path: Path) -> None:
        run(tmp_path, dropping_bert(), max_steps=2, **FROZEN)
        options = {"freeze": {"blocks": {"first": 3}}, "save": {"overwrite": True}}
        run(tmp_path, dropping_bert(), max_steps=1, **options)
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
        assert run(tmp_path, dropping_bert(), resume=True, max_steps=2, **options).state.global_step == 2
        assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]

    def test_the_same_plan_may_train_again_in_its_folder(self, tmp_path: Path) -> None:
        run(tmp_path, dropping_bert(), max_steps=2, **FROZEN)
        run(tmp_path, dropping_bert(), max_steps=1, save_total_limit=1, **FROZEN)
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]

    def test_where_nothing_touches_them_a_folder_may_be_used_again_as_with_the_trainer(self, tmp_path: Path) -> None:
        run(tmp_path, dropping_bert(), max_steps=2, **FROZEN)
        before = (tmp_path / "checkpoint-2" / checkpoint.WEIGHTS_FILE).read_bytes()
        other = {"freeze": {"blocks": {"first": 3}}}
        assert run(tmp_path, dropping_bert(), max_steps=1, **other).state.global_step == 1
        assert (tmp_path / "checkpoint-2" / checkpoint.WEIGHTS_FILE).read_bytes() == before
        with pytest.raises(PlanError, match="checkpoint-2: this checkpoint was written under another plan"):
            run(tmp_path, dropping_bert(), resume=str(tmp_path / "checkpoint-2"), **other)
        assert run(tmp_path, dropping_bert(), resume=True, max_steps=2, **other).resumed_folder == (
            tmp_path / "checkpoint-1"
        )


@pytest.fixture(scope="module")
def plain_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    Trainer(dropping_bert(), arguments(folder, **settings), train_dataset=rows()).train()
    return folder / "checkpoint-1"


class TestForeignCheckpoints:
    def test_one_of_plain_trainer_is_resumed(self, tmp_path: Path) -> None:
        settings = {"save_strategy": "steps", "save_steps": 2}
        whole = Trainer(dropping_bert(), arguments(tmp_path, **settings), train_dataset=rows())
        whole.train()
        resumed = run(tmp_path, dropping_bert(), resume=str(tmp_path / "checkpoint-2"), max_steps=4)
        assert_same(state(resumed.model), state(whole.model))

    @pytest.mark.parametrize(
        "lost",
        ["config.json", "model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"],
    )
    def test_one_of_plain_trainer_that_lacks_a_file_is_refused_with_its_name(
        self, plain_checkpoint: Path, tmp_path: Path, lost: str
    ) -> None:
        folder = Path(shutil.copytree(plain_checkpoint, tmp_path / "checkpoint-1"))
        (folder / lost).unlink()
        message = (
            f"resume_from_checkpoint: this checkpoint is not complete; got '{folder}', in which these files are "
            f"missing or damaged: {lost}. There is no complete one beside it. Train without resume_from_checkpoint."
        )
        with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
            run(tmp_path / "out", dropping_bert(), resume=str(folder))

    @pytest.mark.parametrize("named", [True, False])
    def test_pickled_weights_are_refused(self, tmp_path: Path, named: bool) -> None:
        run(tmp_path, dropping_bert(), max_steps=1, **FROZEN)
        folder = tmp_path / "checkpoint-1"
        weights = folder / checkpoint.WEIGHTS_FILE
        torch.save(safetensors.torch.load_file(weights), folder / "pytorch_model.bin")
        for file in (weights, folder / checkpoint.STATE_FILE, folder / manifest.MANIFEST_FILE):
            file.unlink()
        message = (
            f"{folder}: the weights of this checkpoint are pickled, and loading a pickle runs code from the file; got "
            "'pytorch_model.bin'. hf_freeze reads safetensors only. Load the weights in a place that you trust and "
            "save them with save_pretrained."
        )
        with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
            run(tmp_path, dropping_bert(), resume=str(folder) if named else True, **FROZEN)


def test_a_leftover_folder_is_written_anew(tmp_path: Path) -> None:
    leftover = tmp_path / "checkpoint-1"
    leftover.mkdir()
    (leftover / "junk.bin").write_bytes(b"half")
    run(tmp_path, dropping_bert(), max_steps=1, **FROZEN)
    assert not (leftover / "junk.bin").exists()
    assert manifest.is_complete(leftover)
    shutil.rmtree(leftover)
