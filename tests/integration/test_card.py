"""The card of a run: its metadata are valid, it names no place, and its code runs."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from ruamel.yaml import YAML

from hf_freeze import run
from hf_freeze.config import parse_section
from hf_freeze.config.schema import Adapters, FreezeConfig
from hf_freeze.config.section import Section
from hf_freeze.sharing.card import TIMELINE_FILE, is_hub_id, shown_place
from tests import hub_server, tiny_run

LORA = {"peft_type": "LORA", "target_modules": "all-linear", "r": 2, "blocks": {"last": 1}}
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Plan(Section):
    freeze: FreezeConfig | None = None
    adapters: Adapters = ()


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Path]:
    """Trains two steps with an evaluation after each, and returns the folder of the run."""
    model = tiny_run.write_model(tmp_path / "tiny")
    rows = tiny_run.write_rows(tmp_path / "reviews", splits="train validation test")

    def trained(**sections: Any) -> Path:
        training = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "hub_token": hub_server.TOKEN}
        output = tmp_path / "runs" / "trial"
        run.train(tiny_run.config(model, rows, output, training=training, **sections))
        return output

    return trained


@pytest.mark.parametrize(
    "sections",
    [
        {"freeze": {"blocks": {"first": 2}}},
        {"adapters": [LORA]},
        {"freeze": {"blocks": {"first": 2}}, "save": {"format": "delta"}},
        {},
    ],
    ids=["frozen blocks", "adapters", "delta", "nothing frozen"],
)
def test_a_card_is_valid_and_its_code_runs(
    train: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sections: dict[str, Any],
) -> None:
    folder = train(**sections)
    text = (folder / "README.md").read_text()
    assert hub_server.metadata_problems(text) == []
    everything = text + (folder / TIMELINE_FILE).read_text() + (folder / "hf_freeze.yaml").read_text()
    assert str(tmp_path) not in text
    assert hub_server.TOKEN not in everything

    data = ModelCard.load(folder / "README.md").data
    library = {"adapters": "peft", "save": "hf_freeze"}
    assert data.library_name == next((library[name] for name in sections if name in library), "transformers")
    assert data.base_model is None, "a folder is no name on the Hub"
    assert data.pipeline_tag == "text-classification"
    assert {"hf_freeze", "frozen-blocks"} <= set(data.tags)
    results = {(result.dataset_split, result.metric_type) for result in data.eval_results}
    assert results == {(split, name) for split in ("validation", "test") for name in ("loss", "accuracy", "f1")}
    assert data.metrics == ["accuracy", "f1"]

    (plan,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    read = YAML(typ="safe", pure=True).load(plan)
    assert read.keys() == (sections.keys() - {"save"} or {"freeze"})
    parse_section(Plan, read, key="")
    for heading in ("Load it", "Results", "Plan", "Freeze timeline", "Cost", "Versions"):
        assert f"\n## {heading}\n" in text
    assert re.search(r"^\| validation \| 1 \| \d\.\d{4} \| ", text, re.MULTILINE)
    assert re.search(
        r"^- Training took \d+\.\d seconds\. Peak memory of the process: \d+\.\d\d GiB\.$", text, re.MULTILINE
    )

    # The folder is known by its name beside it, and so is that of the base model.
    monkeypatch.chdir(folder.parent)
    (folder.parent / "tiny").symlink_to(tmp_path / "tiny")
    namespace: dict[str, Any] = {"__name__": "card"}
    for block in PYTHON.findall(text):
        exec(block, namespace)
    assert ("'score'" in capsys.readouterr().out) == ("save" not in sections)
    assert not namespace["model"].training


def test_the_picture_shows_what_each_role_did(train: Callable[..., Path]) -> None:
    folder = train(freeze={"blocks": {"first": 2}})
    root = ET.fromstring((folder / TIMELINE_FILE).read_text())
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert texts == ["embeddings", "blocks[0-1]", "blocks[2-3]", "head", "step 0", "step 2", "frozen", "full"]
    fills = [element.get("fill") for element in root.iter() if element.tag.endswith("rect")]
    assert len(fills) == 1 + 4 + 2, "the ground, a bar for each row, and the legend"


@pytest.mark.parametrize(
    ("written", "is_name", "shown"),
    [
        ("google-bert/bert-base-uncased", True, "google-bert/bert-base-uncased"),
        ("bert-base-uncased", False, "bert-base-uncased"),
        ("/home/alice/models/tiny", False, "tiny"),
        ("../models/tiny/", False, "tiny"),
        ("C:\\models\\tiny", False, "tiny"),
        ("./tiny", False, "tiny"),
    ],
)
def test_folders_are_shown_by_their_last_part(written: str, is_name: bool, shown: str) -> None:
    assert (is_hub_id(written), shown_place(written)) == (is_name, shown)


def test_a_relative_folder_that_exists_is_no_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    assert (is_hub_id("models/tiny"), shown_place("models/tiny")) == (False, "tiny")
