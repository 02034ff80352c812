"""Frozen tensors are compared with the base to the bit; what moved is measured."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM, BertForSequenceClassification, PreTrainedModel

from hf_freeze.errors import ConfigError, PlanError, ShareError
from hf_freeze.sharing.loading import load_model
from hf_freeze.sharing.verify import Verification, verify_model
from hf_freeze.training import FreezeTrainer
from hf_freeze.training.record import PLAN_FILE
from tests.tiny import tiny_bert, tiny_gpt2
from tests.unit.sharing.trained import KINDS, Trained, logits, tiny_mixtral, train, train_gpt2
from tests.unit.training.runs import arguments, rows

FROZEN_NAME = "bert.encoder.layer.1.output.dense.weight"


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("plain"), "plain")


@pytest.fixture
def copy_of_plain(plain: Trained, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain.folder, tmp_path / "copy"))


def by_role(found: Verification) -> dict[str, int]:
    return {change.role: change.num_moved for change in found.roles}


def change_tensor(folder: Path, name: str, change: Callable[[torch.Tensor], None]) -> None:
    """Changes one tensor in the saved weights."""
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    change(tensors[name])
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})


def flip_a_bit(tensor: torch.Tensor) -> None:
    tensor.view(torch.int32)[3, 5] ^= 1


def test_what_was_frozen_holds_in_every_kind(trained: Trained) -> None:
    found = verify_model(trained.folder)
    assert found.holds
    assert found.base == str(trained.base)
    assert found.num_frozen > 30


def test_what_trained_has_moved(plain: Trained) -> None:
    roles = by_role(verify_model(plain.folder))
    assert [roles[role] for role in ("embeddings", "blocks[0]", "blocks[1]")] == [0, 0, 0]
    assert (roles["blocks[2]"], roles["blocks[3]"], roles["head"]) == (16, 16, 2)  # the pooler; the classifier is fresh


def test_norms_are_those_of_the_difference(plain: Trained) -> None:
    change = next(change for change in verify_model(plain.folder).roles if change.role == "blocks[2]")
    before = BertForSequenceClassification.from_pretrained(plain.base).bert.encoder.layer[2].parameters()
    after = plain.model.get_submodule("bert.encoder.layer.2").parameters()
    pairs = list(zip(before, after, strict=True))
    difference = torch.cat([(b - a).flatten() for a, b in pairs]).norm().item()
    size = torch.cat([a.flatten() for a, _ in pairs]).norm().item()
    assert change.norm == pytest.approx(difference, rel=1e-5)
    assert change.base_norm == pytest.approx(size, rel=1e-5)
    assert change.relative_norm == pytest.approx(difference / size, rel=1e-5)


def test_one_bit_of_a_frozen_tensor_is_found(copy_of_plain: Path) -> None:
    change_tensor(copy_of_plain, FROZEN_NAME, flip_a_bit)
    found = verify_model(copy_of_plain)
    assert not found.holds
    assert found.moved == (FROZEN_NAME,)
    assert by_role(found)["blocks[1]"] == 1


def test_the_sign_of_a_zero_is_found(copy_of_plain: Path) -> None:
    """Equality of numbers would not see it."""
    name = "bert.encoder.layer.1.output.dense.bias"
    change_tensor(copy_of_plain, name, lambda tensor: tensor[0].fill_(-0.0))
    assert verify_model(copy_of_plain).moved == (name,)


def test_another_base_is_found_in_every_frozen_role(plain: Trained, tmp_path: Path) -> None:
    tiny_bert(seed=1).base_model.save_pretrained(tmp_path / "other")
    found = verify_model(plain.folder, base=tmp_path / "other")
    assert not found.holds
    assert all(by_role(found)[role] > 0 for role in ("embeddings", "blocks[0]", "blocks[1]"))


@pytest.mark.parametrize("kind", ["plain", "delta"])
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: tiny_gpt2(), "'bert.embeddings.word_embeddings.weight', .* and 34 more"),  # nothing to compare
        (lambda: tiny_bert(hidden_size=64), "'bert.embeddings.word_embeddings.weight', .* and 32 more"),
    ],
)
def test_a_base_that_lacks_what_was_frozen_is_refused(
    tmp_path: Path, kind: str, make: Callable[[], PreTrainedModel], what: str
) -> None:
    trained = train(tmp_path, kind)
    make().save_pretrained(tmp_path / "other")
    with pytest.raises((ShareError, PlanError)) as caught:
        verify_model(trained.folder, base=tmp_path / "other")
    if kind == "delta":  # It knows the digest of its base.
        assert "this delta was made from another base model; got" in str(caught.value)
        return
    assert re.fullmatch(
        rf"{re.escape(str(trained.folder))}: what was frozen cannot be compared with this base; got "
        rf"'{re.escape(str(tmp_path / 'other'))}', in which {what} are missing or have another shape\. Pass the model "
        r"that it was trained from as base, which is --base of a command\.",
        str(caught.value),
    )


def test_a_base_that_lacks_one_frozen_tensor_of_a_block_is_refused(plain: Trained, tmp_path: Path) -> None:
    base = Path(shutil.copytree(plain.base, tmp_path / "base"))
    tensors = safetensors.torch.load_file(base / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    safetensors.torch.save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ShareError, match=rf"got '{base}', in which '{FROZEN_NAME}' and 0 more are missing or have"):
        verify_model(plain.folder, base=base)


def test_where_only_a_fresh_head_was_frozen_there_is_nothing_to_compare(tmp_path: Path) -> None:
    freeze = {"blocks": "none", "head": "frozen", "always_train": ["*.pooler.*"]}
    trained = train(tmp_path, "plain", freeze=freeze)
    with pytest.raises(ShareError, match=r"in which 'classifier\.weight', 'classifier\.bias' and 0 more are missing"):
        verify_model(trained.folder)


def test_a_frozen_fresh_head_is_no_other_base(tmp_path: Path) -> None:
    trained = train(tmp_path, "plain", freeze={"blocks": {"first": 2}, "head": "frozen"})
    found = verify_model(trained.folder)
    assert (found.holds, found.num_frozen) == (True, 39)


def test_a_frozen_tensor_that_a_delta_holds_is_compared(tmp_path: Path) -> None:
    """A frozen weight was moved behind the trainer's back: the delta holds it, and it is found."""
    tiny_bert().save_pretrained(tmp_path / "base")
    model = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    args = arguments(tmp_path / "out")
    trainer = FreezeTrainer(model, args, freeze={"blocks": {"first": 2}}, save={"format": "delta"})
    with torch.no_grad():
        model.get_parameter(FROZEN_NAME).add_(1)
    trainer.save_model()
    assert verify_model(tmp_path / "out").moved == (FROZEN_NAME,)


def test_models_that_are_converted_on_load_are_compared_in_memory(tmp_path: Path) -> None:
    trained = train(tmp_path, "plain", make=tiny_mixtral, auto_class=AutoModelForCausalLM, labels="words")
    assert verify_model(trained.folder).holds


def test_tied_weights_are_compared_once(tmp_path: Path) -> None:
    found = verify_model(train_gpt2(tmp_path, "plain", freeze={"blocks": "all"}).folder)
    assert found.holds
    assert by_role(found)["embeddings"] == 0


def test_a_folder_that_says_nothing_of_its_training_is_refused(copy_of_plain: Path) -> None:
    (copy_of_plain / "hf_freeze_plan.json").unlink()
    with pytest.raises(ConfigError) as caught:
        verify_model(copy_of_plain)
    assert str(caught.value) == (
        f"{copy_of_plain}: this folder does not say what was frozen; it has neither hf_freeze_plan.json nor "
        "hf_freeze_delta.json. hf_freeze writes them when it saves a model. Name the folder that a run has written."
    )


def test_a_base_that_is_gone_is_said(copy_of_plain: Path, plain: Trained) -> None:
    record = json.loads((copy_of_plain / "hf_freeze_plan.json").read_text())
    (copy_of_plain / "hf_freeze_plan.json").write_text(json.dumps({**record, "base": "/nowhere"}))
    with pytest.raises(PlanError) as caught:
        verify_model(copy_of_plain)
    assert re.fullmatch(
        rf"{re.escape(str(copy_of_plain))}: its base model '/nowhere' cannot be loaded; got the error \".*\"\. There "
        r"is no such folder here\. Pass the model that it was trained from as base, which is --base of a command\.",
        str(caught.value),
    )
    assert verify_model(copy_of_plain, base=plain.base).holds


def test_weights_that_adapters_were_merged_into_count_as_trained(tmp_path: Path) -> None:
    """PEFT has no place for the tied embeddings that trained: the merged model is saved."""
    lora = {"peft_type": "LORA", "target_modules": ["c_attn"], "blocks": {"last": 1}}
    freeze = {"embeddings": "full", "blocks": {"first": 2}}
    found = verify_model(train_gpt2(tmp_path, "plain", freeze=freeze, adapters=(lora,)).folder)
    assert found.holds
    moved = by_role(found)
    assert (moved["blocks[0]"], moved["blocks[1]"], moved["blocks[3]"]) == (0, 0, 1)


SCHEDULED: dict[str, tuple[dict[str, Any], dict[str, bool]]] = {
    # Two steps in an epoch: one block is thawed at the second epoch and one at the third; there is no fourth.
    "gradual_unfreeze": (
        {"schedule": {"type": "gradual_unfreeze", "warmup": 0}, "freeze": {"blocks": "all"}},
        {"embeddings": False, "blocks[0]": False, "blocks[1]": False, "blocks[2]": True, "blocks[3]": True},
    ),
    # Blocks are frozen after they have trained; what the freeze section freezes never trains.
    "progressive": (
        {"schedule": {"type": "progressive", "t0": 0.3}, "freeze": {"blocks": {"first": 1}}},
        {"embeddings": False, "blocks[0]": False, "blocks[1]": True, "blocks[2]": True, "blocks[3]": True},
    ),
}


@pytest.mark.parametrize("kind", ["plain", "delta", "mixed"])
@pytest.mark.parametrize("name", SCHEDULED)
def test_under_a_schedule_only_what_never_trained_counts_as_frozen(tmp_path: Path, name: str, kind: str) -> None:
    options, expected = SCHEDULED[name]
    if kind == "mixed":
        adapters = ({"peft_type": "LORA", "target_modules": ["query"], "r": 2, "blocks": {"last": 1}},)
        options = {**options, "adapters": adapters}
        # The base of the adapter never trains, and its block is none of those that are thawed.
        expected = {**expected, "blocks[1]": True, "blocks[3]": False}
    trained = train(tmp_path, kind, training={"max_steps": 6}, **{**options, "train_dataset": rows(8)})
    found = verify_model(trained.folder)
    assert found.holds
    changes = {change.role: change for change in found.roles}
    assert {role: changes[role].num_moved > 0 for role in expected} == expected
    assert all(changes[role].num_trained == 16 * moved for role, moved in expected.items() if role != "blocks[3]")
    assert torch.equal(logits(load_model(trained.folder)), logits(trained.model))


def test_a_record_that_leaves_out_a_role_is_refused(copy_of_plain: Path) -> None:
    file = copy_of_plain / PLAN_FILE
    record = json.loads(file.read_text())
    del record["plan"]["roles"]["blocks[2]"]
    file.write_text(json.dumps(record))
    with pytest.raises(ConfigError) as caught:
        verify_model(copy_of_plain)
    assert str(caught.value) == (
        f"{copy_of_plain}: its record does not say what was frozen in blocks[2]; got blocks[0], blocks[1], blocks[3], "
        "embeddings, head. hf_freeze_plan.json or hf_freeze_delta.json was changed, or is that of another model. Name "
        "the folder as the run has written it."
    )


def test_what_a_schedule_never_thawed_and_has_moved_is_found(tmp_path: Path) -> None:
    options, _ = SCHEDULED["gradual_unfreeze"]
    trained = train(tmp_path, "plain", training={"max_steps": 6}, **{**options, "train_dataset": rows(8)})
    change_tensor(trained.folder, FROZEN_NAME, flip_a_bit)
    assert verify_model(trained.folder).moved == (FROZEN_NAME,)


@pytest.mark.parametrize("kind", ["plain", "mixed"])
def test_what_trained_under_an_earlier_plan_is_saved_and_counts_as_trained(tmp_path: Path, kind: str) -> None:
    lora = ({"peft_type": "LORA", "target_modules": ["query"], "r": 2, "blocks": {"last": 1}},)
    saving = {"save_strategy": "steps", "save_steps": 2}
    base = {"adapters": lora if kind == "mixed" else (), "allow_changed_plan": True}
    train(tmp_path, kind, training=saving, **base, freeze={"blocks": {"first": 1}})
    resumed = {"max_steps": 4, **saving, "resume_from_checkpoint": True}
    trained = train(tmp_path, kind, training=resumed, **base, freeze={"blocks": {"first": 3}})
    found = verify_model(trained.folder)
    assert found.holds
    moved = by_role(found)
    assert [moved[role] for role in ("blocks[0]", "blocks[1]", "blocks[2]")] == [0, 16, 16]
    assert torch.equal(logits(load_model(trained.folder)), logits(trained.model))
