"""The card of a run: its metadata are valid, it names no place, and its code runs."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from ruamel.yaml import YAML
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer

from hf_freeze import run
from hf_freeze.config import parse_section
from hf_freeze.config.schema import Adapters, FreezeConfig
from hf_freeze.config.section import Section
from hf_freeze.training import FreezeMixin, FreezeTrainer
from hf_freeze.training.card import TIMELINE_FILE, is_hub_id, shown_place
from hf_freeze.training.describing import task_of
from tests import hub_server, tiny_run
from tests.tiny import tiny_bert, tiny_gpt2
from tests.unit.training.runs import arguments, rows

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
    assert data.datasets is None, "nor is one of rows"
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
        ("bert-base-uncased", True, "bert-base-uncased"),
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


def rectangles(folder: Path) -> list[tuple[str | None, float, float]]:
    """The fill, the left edge and the width of every bar of the picture, without the ground and the legend."""
    root = ET.fromstring((folder / TIMELINE_FILE).read_text())
    found = [element.attrib for element in root.iter() if element.tag.endswith("rect")]
    bars = [bar for bar in found if bar["width"] not in ("100%", "12")]
    return [(bar["fill"], float(bar["x"]), float(bar["width"])) for bar in bars]


def test_the_picture_and_the_plan_show_what_a_schedule_did(train: Callable[..., Path]) -> None:
    phases = [{"until": {"step": 1}, "freeze": {"blocks": "all"}}, {"freeze": {"blocks": {"first": 3}}}]
    folder = train(schedule={"type": "phases", "phases": phases, "warmup": 0})
    frozen, full = "#9db8d2", "#d9603b"
    whole, half = (150.0, 560.0), [(150.0, 280.0), (430.0, 280.0)]
    assert rectangles(folder) == [
        (frozen, *whole),  # the embeddings
        (frozen, *whole),  # blocks[0-2]
        *((fill, *place) for fill, place in zip((frozen, full), half, strict=True)),  # blocks[3]
        (full, *whole),  # the head
    ]
    text = (folder / "README.md").read_text()
    assert "\n- step 1: thawed blocks[3]; depth 3; phase 1 begins\n" in text
    assert re.search(r"^\| `blocks\[3\]` \| full \| ", text, re.MULTILINE)
    assert re.search(r"^\| `blocks\[0-2\]` \| frozen \| .* \| 0 \|$", text, re.MULTILINE)
    (plan,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert YAML(typ="safe", pure=True).load(plan)["schedule"]["phases"] == phases


class TestCardOfATrainer:
    """The card that a trainer writes by itself, without a run."""

    @staticmethod
    def trainer(folder: Path, **options: Any) -> FreezeTrainer:
        tiny_run.write_model(folder / "tiny")
        model = AutoModelForSequenceClassification.from_pretrained(folder / "tiny")
        evaluated = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 2}
        tokenizer = AutoTokenizer.from_pretrained(folder / "tiny")
        defaults: dict[str, Any] = {"eval_dataset": rows(8), "processing_class": tokenizer, "freeze": {"blocks": "all"}}
        args = arguments(folder / "out", **{**evaluated, **options.pop("training", {})})
        trainer = FreezeTrainer(model, args, train_dataset=rows(), **{**defaults, **options})
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        trainer.save_model()
        return trainer

    @pytest.mark.parametrize("adapters", [(), (LORA,)], ids=["plain", "adapters"])
    def test_it_is_valid_and_its_code_runs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapters: tuple[Any, ...]
    ) -> None:
        self.trainer(tmp_path, adapters=adapters).create_model_card()
        text = (tmp_path / "out" / "README.md").read_text()
        assert hub_server.metadata_problems(text) == []
        assert str(tmp_path) not in text
        data = ModelCard.load(tmp_path / "out" / "README.md").data
        assert (data.pipeline_tag, data.library_name) == ("text-classification", "peft" if adapters else "transformers")
        assert data.eval_results is None, "the trainer does not know what the rows are called"
        for heading in ("Load it", "Results", "Plan", "Freeze timeline", "Cost", "Versions"):
            assert f"\n## {heading}\n" in text
        assert re.search(r"^\| validation \| 2 \| \d\.\d{4} \|$", text, re.MULTILINE)
        assert re.search(r"^- Training took \d+\.\d seconds\.", text, re.MULTILINE)
        monkeypatch.chdir(tmp_path)
        namespace: dict[str, Any] = {"__name__": "card"}
        for block in PYTHON.findall(text):
            exec(block, namespace)
        assert not namespace["model"].training

    def test_what_the_trainers_arguments_say_is_on_it(self, tmp_path: Path) -> None:
        trainer = self.trainer(tmp_path)
        trainer.create_model_card(
            language="en",
            license="mit",
            tags="films",
            model_name="Reviews",
            finetuned_from="reader/tiny",
            tasks=["text-classification", "other"],
            dataset_tags="reader/films",
            dataset_args="short",
        )
        text = (tmp_path / "out" / "README.md").read_text()
        assert hub_server.metadata_problems(text) == []
        data = ModelCard.load(tmp_path / "out" / "README.md").data
        assert (data.language, data.license, data.base_model, data.datasets) == (
            "en",
            "mit",
            "reader/tiny",
            ["reader/films"],
        )
        assert data.tags == ["hf_freeze", "frozen-blocks", "films"]
        assert "\n# Reviews\n\n`reader/tiny` fine-tuned for text-classification on `reader/films`" in text
        (loss,) = data.eval_results
        assert (loss.dataset_type, loss.dataset_config, loss.metric_type) == ("reader/films", "short", "loss")
        with pytest.raises(TypeError, match="got an unexpected keyword argument 'colour'"):
            trainer.create_model_card(colour="red")

    def test_what_trained_under_an_earlier_plan_is_told(self, tmp_path: Path) -> None:
        saving = {"save_strategy": "steps", "save_steps": 1}
        self.trainer(tmp_path, training={**saving, "max_steps": 1}, freeze={"blocks": {"first": 3}})
        resumed = {**saving, "resume_from_checkpoint": True}
        trainer = self.trainer(tmp_path, training=resumed, allow_changed_plan=True)
        assert trainer.describe().changes == ("before the run was resumed under this plan: blocks[3] trained",)

    def test_another_class_keeps_a_card_of_its_own(self, tmp_path: Path) -> None:
        class Other(Trainer):
            def create_model_card(self, *positional: Any, **keywords: Any) -> None:
                (tmp_path / "told.json").write_text(json.dumps(keywords))

        class Freezing(FreezeMixin, Other):
            pass

        model = AutoModelForSequenceClassification.from_pretrained(tiny_run.write_model(tmp_path / "tiny"))
        trainer = Freezing(model, arguments(tmp_path / "out"), freeze={"blocks": "all"})
        trainer.create_model_card(dataset_name="films")
        assert json.loads((tmp_path / "told.json").read_text()) == {"dataset_name": "films"}


@pytest.mark.parametrize(
    ("make", "task"),
    [(tiny_gpt2, "text-generation"), (tiny_bert, "text-classification"), (lambda: nn.Linear(1, 1), None)],
)
def test_the_task_of_a_model_is_found(make: Callable[[], nn.Module], task: str | None) -> None:
    assert task_of(make()) == task
