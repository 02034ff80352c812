"""Final models load with nothing but Transformers and PEFT, in an environment without hf_freeze, to the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, Trainer

from hf_freeze import load_model
from hf_freeze.sharing.merging import write_merged
from hf_freeze.sharing.verify import verify_model
from hf_freeze.training import FreezeTrainer
from tests.unit.training.runs import arguments

TEXTS = ["A warm and funny film.", "The plot is thin and the jokes are old.", "I would gladly see it again.", "No."]
FREEZE = {"blocks": {"first": 4}}
LORA = {"peft_type": "LORA", "target_modules": ["query", "value"], "blocks": {"indices": [4]}}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"freeze": FREEZE},
    "peft": {"freeze": FREEZE, "adapters": (LORA,)},
    "delta": {"freeze": FREEZE, "save": {"format": "delta"}},
}
# What runs in the environment without hf_freeze. It prints the logits as exact numbers.
LOADING = """
import importlib.util, json, sys
assert importlib.util.find_spec("hf_freeze") is None
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
base, texts, folders = json.loads(sys.argv[1])
logits = {}
for name, folder in folders.items():
    if name == "peft":
        start = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
        model = PeftModel.from_pretrained(start, folder)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        output = model.eval()(**AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt"))
    logits[name] = [value.hex() for value in output.logits.flatten().tolist()]
print(json.dumps(logits))
"""


@pytest.fixture(scope="module")
def saved(minilm_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, nn.Module]]:
    """Folder and model of one run of each kind."""
    root = tmp_path_factory.mktemp("saved")
    tokenizer = AutoTokenizer.from_pretrained(minilm_path)
    data = Dataset.from_dict({**tokenizer(TEXTS, padding=True), "labels": [1, 0, 1, 0]})
    made = {}
    for name, options in KINDS.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForSequenceClassification.from_pretrained(minilm_path, num_labels=2)
        args = arguments(root / name, max_steps=2, save_strategy="steps", save_steps=2)
        trainer = FreezeTrainer(model, args, train_dataset=data, processing_class=tokenizer, **options)
        trainer.train()
        trainer.save_model()
        made[name] = (root / name, trainer.model.eval())
    return made


@pytest.fixture(scope="module")
def other_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment with the packages of this one, hf_freeze left out.

    hf_freeze is installed here by files that lead to its sources. Files of this kind are read in the site-packages of
    an environment alone, not in folders that are added to its path.
    """
    folder = tmp_path_factory.mktemp("other")
    venv.create(folder, with_pip=False)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    (packages / "packages.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
    return folder / "bin" / "python"


def logits_of(model: nn.Module, folder: Path) -> torch.Tensor:
    with torch.no_grad():
        batch = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
        output: torch.Tensor = model(**batch).logits
    return output


def test_they_load_without_hf_freeze_to_the_same_bits(
    saved: dict[str, tuple[Path, nn.Module]], other_python: Path, minilm_path: Path, tmp_path: Path
) -> None:
    folders = {"plain": saved["plain"][0], "peft": saved["peft"][0]}
    expected = {name: logits_of(saved[name][1], folder) for name, folder in folders.items()}
    for name in KINDS:
        folders[f"merged {name}"] = tmp_path / name
        expected[f"merged {name}"] = logits_of(write_merged(saved[name][0], tmp_path / name), tmp_path / name)
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    request = json.dumps([str(minilm_path), TEXTS, {name: str(folder) for name, folder in folders.items()}])
    done = subprocess.run(
        [str(other_python), "-c", LOADING, request],
        env={**environment, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    loaded = {name: [float.fromhex(value) for value in values] for name, values in json.loads(done.stdout).items()}
    assert loaded == {name: output.flatten().tolist() for name, output in expected.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_load_model_gives_the_trained_model_back_to_the_bit(
    saved: dict[str, tuple[Path, nn.Module]], kind: str
) -> None:
    folder, trained = saved[kind]
    model = load_model(folder)
    assert isinstance(model, PeftModel if kind == "peft" else PreTrainedModel)
    assert torch.equal(logits_of(model, folder), logits_of(trained, folder))


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_frozen_is_that_of_the_base_to_the_bit(
    saved: dict[str, tuple[Path, nn.Module]], kind: str, minilm_path: Path
) -> None:
    found = verify_model(saved[kind][0], base=minilm_path)
    assert found.holds
    assert [change.num_moved for change in found.roles[:5]] == [0] * 5


def test_a_delta_is_as_small_as_what_trained(saved: dict[str, tuple[Path, nn.Module]]) -> None:
    sizes = {
        name: sum(path.stat().st_size for path in saved[name][0].glob("*.safetensors")) for name in ("plain", "delta")
    }
    assert sizes["delta"] < 0.17 * sizes["plain"]


class TestBytesOfCheckpoints:
    """Embeddings and 4 of 6 blocks frozen: what one checkpoint takes, weights and optimizer."""

    @staticmethod
    def held(folder: Path) -> int:
        names = ("*.safetensors", "optimizer.pt")
        return sum(path.stat().st_size for name in names for path in folder.glob(name))

    def test_they_are_small(self, saved: dict[str, tuple[Path, nn.Module]], minilm_path: Path, tmp_path: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(minilm_path)
        data = Dataset.from_dict({**tokenizer(TEXTS, padding=True), "labels": [1, 0, 1, 0]})
        theirs = {}
        for name in ("full", "frozen"):
            model = AutoModelForSequenceClassification.from_pretrained(minilm_path, num_labels=2)
            for parameter in (*model.bert.embeddings.parameters(), *model.bert.encoder.layer[:4].parameters()):
                parameter.requires_grad_(name == "full")
            args = arguments(tmp_path / name, max_steps=1, save_strategy="steps", save_steps=1)
            Trainer(model, args, train_dataset=data).train()
            theirs[name] = self.held(tmp_path / name / "checkpoint-1")
        ours = self.held(saved["plain"][0] / "checkpoint-2")
        assert ours <= 0.20 * theirs["full"]
        assert ours <= 0.40 * theirs["frozen"]
