"""A final model that is written over one of another kind is loaded as it was trained, and nothing else is touched."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from hf_freeze.errors import ConfigError
from hf_freeze.sharing import load_model
from hf_freeze.training import FreezeTrainer
from hf_freeze.training.earlier import EARLIER_FILE
from tests.tiny import tiny_bert
from tests.unit.sharing.trained import KINDS, logits
from tests.unit.training.runs import arguments, rows

WRITES = {
    "plain": {"config.json", "model.safetensors", "hf_freeze_plan.json"},
    "delta": {"config.json", "hf_freeze_delta.json", "hf_freeze_delta.safetensors"},
    "adapters": {"adapter_config.json", "adapter_model.safetensors", "hf_freeze_plan.json", "README.md"},
}
OTHERS = {"notes.txt", "model_card.safetensors", "checkpoint-1/model.safetensors"}


def save(kind: str, base: Path, folder: Path, *, steps: int) -> FreezeTrainer:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = AutoModelForSequenceClassification.from_pretrained(base)
    args = arguments(folder, max_steps=steps, learning_rate=1e-2)
    trainer = FreezeTrainer(model, args, train_dataset=rows(), **KINDS[kind])
    trainer.train()
    trainer.save_model()
    trainer.model.eval()
    return trainer


@pytest.mark.parametrize(("first", "second"), list(permutations(WRITES, 2)))
def test_only_the_last_model_is_there(tmp_path: Path, first: str, second: str) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    tiny_bert().save_pretrained(base)
    save(first, base, out, steps=1)
    for name in OTHERS:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("another's")
    trainer = save(second, base, out, steps=2)
    loaded = load_model(out)
    assert isinstance(loaded, PeftModel) == (second == "adapters")
    assert torch.equal(logits(loaded), logits(trainer.model))
    assert all((out / name).read_text() == "another's" for name in OTHERS)
    left = {path.name for path in out.iterdir() if path.is_file()} - OTHERS
    # They hold no weights, and do not say of which kind the model is.
    harmless = {"config.json", "README.md", EARLIER_FILE}
    assert left - harmless == WRITES[second] - harmless


def test_shards_of_an_earlier_model_are_removed(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    tiny_bert().save_pretrained(base)
    tiny_bert(seed=1).save_pretrained(out, max_shard_size="20KB")
    assert (out / "model.safetensors.index.json").exists()
    save("delta", base, out, steps=1)
    assert not list(out.glob("model*"))


def test_adapters_leave_their_base_where_it_lies_in_the_same_folder(tmp_path: Path) -> None:
    tiny_bert().save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    save("adapters", tmp_path, tmp_path, steps=1)
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    assert (tmp_path / "adapter_model.safetensors").exists()


def test_a_save_that_fails_leaves_nothing_that_loads_as_another_model(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    tiny_bert().save_pretrained(base)
    save("adapters", base, out, steps=1)
    (out / "config.json").mkdir()  # Nothing can be written there.
    with pytest.raises(IsADirectoryError):
        save("plain", base, out, steps=2)
    assert not {"adapter_config.json", "adapter_model.safetensors"} & {path.name for path in out.iterdir()}
    with pytest.raises(ConfigError, match="there is no model here"):
        load_model(out)
