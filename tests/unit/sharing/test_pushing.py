"""What would not load once it is pushed is refused before the Hub is asked for anything."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

from hf_freeze.errors import ConfigError
from hf_freeze.sharing.hub import push_run
from hf_freeze.training import FreezeTrainer
from hf_freeze.training.uploading import pushed_files
from tests.unit.sharing.trained import KINDS, LORA, encoder_of_bert, train
from tests.unit.training.runs import arguments


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: train(tmp_path_factory.mktemp(kind), kind).folder for kind in ("plain", "delta", "adapters")}


@pytest.fixture
def copy_of(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda kind: Path(shutil.copytree(folders[kind], tmp_path / kind))


def message_of(folder: Path) -> str:
    """Pushing asks no Hub here: it would say that it is kept off it."""
    with pytest.raises(ConfigError) as caught:
        push_run(str(folder), "reader/model")
    return str(caught.value)


@pytest.mark.parametrize("kind", ["plain", "delta", "adapters"])
def test_truncated_weights_are_not_pushed(copy_of: Callable[[str], Path], kind: str) -> None:
    (file,) = copy_of(kind).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    assert re.fullmatch(
        rf"{re.escape(str(file))}: this file is no sound safetensors file; got the error '.*'\. Save or download it "
        r"again\.",
        message_of(file.parent),
    )


@pytest.mark.parametrize(("kind", "config"), [("delta", "hf_freeze_delta.json"), ("adapters", "adapter_config.json")])
def test_weights_without_what_says_how_they_load_are_not_pushed(
    copy_of: Callable[[str], Path], kind: str, config: str
) -> None:
    folder = copy_of(kind)
    (folder / config).unlink()
    assert re.match(
        rf"{re.escape(str(folder))}: (the weights are missing|there is no model here); got a folder with ",
        message_of(folder),
    )


@pytest.mark.parametrize(
    ("content", "says"), [("{}", "does not say where the weights are"), (None, "safetensors files beside")]
)
def test_an_index_that_would_not_load_is_not_pushed(
    copy_of: Callable[[str], Path], content: str | None, says: str
) -> None:
    folder = copy_of("plain")
    (folder / "model.safetensors").unlink()
    named = json.dumps({"metadata": {}, "weight_map": {"classifier.bias": "pytorch_model.bin"}})
    (folder / "model.safetensors.index.json").write_text(named if content is None else content)
    assert says in message_of(folder)


def test_a_config_that_is_no_object_is_not_pushed(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("plain")
    (folder / "config.json").write_text("[]")
    assert message_of(folder) == (
        f"{folder / 'config.json'}: this file is read before it is pushed, and it is damaged; got the error "
        "\"'list' object has no attribute 'get'\". Nothing was pushed. Save the model again, or mend the file."
    )


def test_a_base_in_a_relative_folder_is_not_named_as_one_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    encoder_of_bert().save_pretrained("models/tiny")
    for kind, sections in {"adapters": {"adapters": (LORA,)}, "delta": KINDS["delta"]}.items():
        model = AutoModelForSequenceClassification.from_pretrained("models/tiny")
        trainer = FreezeTrainer(model, arguments(tmp_path / kind), **sections)
        trainer.save_model()
        files = {
            name: content
            for name, content in pushed_files(tmp_path / kind, "reader/model").items()
            if isinstance(content, bytes)
        }
        assert not any(b"models/tiny" in content for content in files.values())
        described = json.loads(files["hf_freeze_delta.json" if kind == "delta" else "hf_freeze_plan.json"])
        assert described["base"] == "tiny"
    (tmp_path / "delta" / "hf_freeze.yaml").write_text(
        "model: {name_or_path: models/tiny}\ntraining: {output_dir: runs/x}\n"
    )
    written = pushed_files(tmp_path / "delta", "reader/model")["hf_freeze.yaml"]
    assert written == b"model:\n  name_or_path: tiny\ntraining:\n  output_dir: runs/x\n"


def test_the_name_of_a_base_on_the_hub_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    card = "---\nbase_model: models/tiny\ntags:\n- base_model:adapter:models/tiny\n- lora\n---\n"
    (tmp_path / "README.md").write_text(card)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "models/tiny"}')
    there = pushed_files(tmp_path, "reader/model")
    assert there["README.md"] == card.encode()
    assert json.loads(bytes(there["adapter_config.json"])) == {"base_model_name_or_path": "models/tiny"}
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    assert pushed_files(tmp_path, "reader/model")["README.md"] == b"---\ntags:\n- lora\n---\n"
