from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner, Result

from hf_freeze import run
from hf_freeze.cli import app
from hf_freeze.config import json_schema, load_config
from tests import tiny_run
from tests.conftest import REPOSITORY


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="hf-freeze")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def config(model: Path, tmp_path: Path) -> Path:
    """A config file of a quick run that writes to `out` beside it."""
    rows = tiny_run.write_rows(tmp_path / "rows", splits="train validation test")
    sections = {**tiny_run.sections(model, rows, tmp_path / "out"), "freeze": {"blocks": {"first": 2}}}
    path = tmp_path / "config.yaml"
    YAML().dump(sections, path)
    return path


PLAN = """\
BertForSequenceClassification

 role          treatment   parameters   trainable   lr multiplier
 ────────────────────────────────────────────────────────────────
 embeddings    frozen           5,344           0
 blocks[0-1]   frozen          17,088           0
 blocks[2-3]   full            17,088      17,088               1
 head          full             1,122       1,122               1

 all                           40,642      18,210

44.81% of the parameters train.
The backward pass stops in blocks[2]; the frozen prefix before it holds the embeddings and 2 blocks.
"""
DEPTH = (
    "The activation cache holds the output of the embeddings and 2 blocks; the frozen prefix ends at blocks[2], where "
    "bert.encoder.layer.2.attention.self.query.weight trains.\n"
)
SIZE = "For 72 rows of 468 tokens it takes about 62.2 kB of the disk, as float32, unless padding changes real tokens.\n"
TWO_LABELS = "The head is counted with 2 labels: data.labels does not say how many there are.\n"


def test_plan_shows_what_a_config_trains(config: Path) -> None:
    result = call("plan", config)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"{PLAN}{DEPTH}{SIZE}{TWO_LABELS}\nMB of each process, GFLOP of each batch\n")


def test_plan_shows_what_a_selection_would_train_of_a_model(model: Path) -> None:
    assert call("plan", model, "--freeze", "first=2").stdout.startswith(PLAN + DEPTH + TWO_LABELS)


def test_overrides_win_over_the_freeze_option_and_over_the_config(config: Path) -> None:
    assert call("plan", config, "freeze.blocks.first=1", "--freeze", "first=3").stdout == (
        call("plan", config, "freeze.blocks.first=1").stdout
    )
    labelled = call("plan", config, "data.labels=[negative, positive]").stdout
    assert labelled.startswith(PLAN + DEPTH + SIZE)
    assert TWO_LABELS not in labelled


@pytest.mark.parametrize(
    ("selection", "blocks"),
    [
        ("first=3", "{first: 3}"),
        ("last=2", "{last: 2}"),
        ("fraction=0.5", "{fraction: 0.5}"),
        ("indices=[0,1,-1]", "{indices: [0, 1, -1]}"),
        ("all", "all"),
        ("none", "none"),
    ],
)
def test_freeze_is_spelled_as_in_configs(model: Path, selection: str, blocks: str) -> None:
    shown = call("plan", model, "--freeze", selection)
    assert shown.exit_code == 0
    assert shown.stdout == call("plan", model, f"freeze.blocks={blocks}").stdout


def test_layout_shows_where_the_roles_are(model: Path) -> None:
    result = call("layout", model)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        """\
BertForSequenceClassification

 role          modules                   parameters
 ──────────────────────────────────────────────────
 embeddings    bert.embeddings                5,344
 blocks[0-3]   bert.encoder.layer[0-3]       34,176
 head          bert.pooler                    1,122
               dropout
               classifier

"""
        + TWO_LABELS
    )


def test_schema_prints_the_schema_of_configs() -> None:
    assert json.loads(call("schema").stdout) == json_schema()


def test_every_command_has_a_line_of_help() -> None:
    for command in ("train", "plan", "layout", "schema", "merge", "verify", "export"):
        assert call(command, "--help").exit_code == 0
        assert f"  {command} " in call("--help").stdout


def test_a_terminal_that_is_narrow_loses_no_number(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    shown = call("plan", config).stdout
    for number in ("5,344", "17,088", "1,122", "40,642", "18,210"):
        assert number in shown


def test_train_prints_plan_metrics_cost_and_how_to_load(config: Path, tmp_path: Path) -> None:
    result = call("train", config, "training.max_steps=2")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("Data: 24 rows to train on, 24 rows to validate on, 24 rows to test on.\n")
    assert f"\n\n{PLAN}" in result.stdout
    report = result.stdout[result.stdout.index(" metric") :].splitlines()
    names = ["train_loss", *(f"{split}_{name}" for split in ("eval", "test") for name in ("loss", "accuracy", "f1"))]
    assert [line.split()[0] for line in report[2 : 2 + len(names)]] == names
    assert all(float(line.split()[1]) >= 0 for line in report[2 : 2 + len(names)])
    assert re.fullmatch(r"Training took \d+\.\d seconds. Peak memory of the process: \d+\.\d\d GiB\.", report[-8])
    assert report[-7].startswith("The activation cache was off: each row is needed once")
    folder = str(tmp_path / "out")
    assert report[-6:] == [
        f"The model is saved in {folder}. To load it:",
        "",
        "    from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "",
        f"    model = AutoModelForSequenceClassification.from_pretrained({folder!r})",
        f"    tokenizer = AutoTokenizer.from_pretrained({folder!r})",
    ]


WRONG = {
    "a config that does not exist": (
        ["train", "nowhere.yaml"],
        "config: no such file; got 'nowhere.yaml'. The folder . holds config.yaml.\n",
    ),
    "an unknown key": (
        ["train", "config.yaml", "freeze.bloks=all"],
        (
            "command line: freeze.bloks: unknown key; got 'all'. Known keys: always_train, blocks, embeddings, head, "
            "keep_dropout. Did you mean 'blocks'?\n"
        ),
    ),
    "an unknown task": (
        ["plan", "config.yaml", "model.task=classify"],
        "model.task: no task is called 'classify'; the tasks are text-classification.\n",
    ),
    "an output folder that is a file": (
        ["train", "config.yaml", "training.output_dir=config.yaml"],
        (
            "training.output_dir: this folder cannot be written; got 'config.yaml'. The system says: File exists. "
            "Name a folder that you may write.\n"
        ),
    ),
    "too many blocks": (
        ["plan", "config.yaml", "--freeze", "first=99"],
        "freeze.blocks: cannot select the first 99 blocks; bert.encoder.layer has 4. Select at most 4.\n",
    ),
    "an unknown selector": (
        ["plan", "config.yaml", "--freeze", "frist=2"],
        (
            "command line: freeze.blocks.frist: unknown key; got 2. Known keys: first, fraction, indices, last. "
            "Did you mean 'first'?\n"
        ),
    ),
    "a layout of no model": (
        ["layout", "./nowhere"],
        (
            "model.name_or_path: there is no folder './nowhere'. Give the folder of a saved model, or the name of a "
            "model on the Hugging Face hub.\n"
        ),
    ),
    "nothing to resume from": (
        ["train", "config.yaml", "training.resume_from_checkpoint=true", "training.output_dir=out"],
        (
            "resume_from_checkpoint: no complete checkpoint to resume from; got the folder 'out'. A complete "
            "checkpoint holds manifest.json. Train without resume_from_checkpoint, or name a checkpoint folder.\n"
        ),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_without_a_traceback(name: str, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(config.parent)
    arguments, message = WRONG[name]
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stderr.endswith(message)
    assert "Traceback" not in result.output


def test_three_mistakes_are_reported_together(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(config.parent)
    result = call("train", "config.yaml", "data.max_length=0", "training.lerning_rate=1", "freeze.head=cold")
    assert result.exit_code == 2
    assert [line.split(":")[1].strip() for line in result.stderr.splitlines()] == [
        "data.max_length",
        "freeze.head",
        "training.lerning_rate",
    ]


def test_other_processes_than_the_first_say_who_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert call("train", "nowhere.yaml").stderr.startswith("[process 1] config: no such file; got 'nowhere.yaml'.")


def start(*arguments: object) -> subprocess.Popen[str]:
    """Starts the file that `accelerate launch` starts; Ctrl-C reaches it though the tests may run in the background."""
    command = [sys.executable, str(REPOSITORY / "scripts" / "finetune.py"), *map(str, arguments)]
    hears_ctrl_c = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}, preexec_fn=hears_ctrl_c
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    assert path.exists(), process.communicate(timeout=10)


def test_ctrl_c_keeps_the_newest_complete_checkpoint(config: Path, tmp_path: Path) -> None:
    """It says how to go on, and going on works."""
    saving = ["training.save_strategy=steps", "training.save_steps=10", "training.save_total_limit=2"]
    process = start(config, *saving, "training.max_steps=1000000")
    wait_for(tmp_path / "out" / "checkpoint-10" / "manifest.json", process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    kept = run.newest_checkpoint(load_config(config))
    assert process.returncode == 130, stderr
    assert f"\n\n{PLAN}" in stdout
    assert kept is not None
    assert stderr.endswith(
        f"Interrupted. The newest complete checkpoint is kept: {kept}. To resume from it, add "
        "training.resume_from_checkpoint=true to the same command.\n"
    )
    assert "Traceback" not in stderr
    step = int(kept.rpartition("-")[2])
    resumed = run.Run(load_config(config, ["training.resume_from_checkpoint=true", f"training.max_steps={step + 2}"]))
    resumed.train()
    assert resumed.trainer.state.global_step == step + 2


def test_ctrl_c_before_a_checkpoint_says_that_there_is_none(config: Path, tmp_path: Path) -> None:
    process = start(config, "training.max_steps=1000000")
    wait_for(tmp_path / "out", process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.endswith("Interrupted. There is no complete checkpoint to resume from.\n")
    assert "Traceback" not in stderr


def test_train_ends_with_the_advice(config: Path) -> None:
    options = ("training.max_steps=60", "training.learning_rate=1e-9", "training.logging_steps=10")
    result = call("train", config, *options)
    assert result.exit_code == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("Advice: ")]
    assert line.startswith("Advice: The training loss stays high: it was 0.")
