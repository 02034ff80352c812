"""`make quickstart` on a few reviews: its two commands, as the Makefile has them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.integration import reviews

SENTENCES = (
    "A warm, funny and moving film.",
    "Two hours that I will never get back.",
    "The plot is thin, but the actors make it a joy to watch.",
)


def start(*arguments: object) -> str:
    """Runs a command of the quickstart in the repository and returns what it printed."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, env={**os.environ}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_quickstart_trains_and_classifies(minilm_path: Path, reviews_path: Path, tmp_path: Path) -> None:
    rows = reviews.write_few(reviews_path, tmp_path / "reviews", train=64)
    launch = ["-m", "accelerate.commands.accelerate_cli", "launch"]
    output = start(
        *launch,
        "--config_file",
        "accelerate_configs/single_cpu.yaml",
        "scripts/finetune.py",
        "configs/quickstart.yaml",
        f"model.name_or_path={minilm_path}",
        f"data.load_dataset.path={rows}",
        f"training.output_dir={tmp_path / 'run'}",
    )
    assert (
        "The backward pass stops in blocks[4]; the frozen prefix before it holds the embeddings and 4 blocks." in output
    )
    assert re.search(r"^ test_accuracy +\d\.\d{4}$", output, re.MULTILINE)
    assert f"The model is saved in {tmp_path / 'run'}. To load it:" in output
    lines = start("scripts/classify.py", tmp_path / "run", *SENTENCES).splitlines()
    assert [line.split("  ", 1)[1] for line in lines] == [*SENTENCES]
    assert all(re.fullmatch(r"(negative|positive) \([01]\.\d\d\)", line.split("  ", 1)[0]) for line in lines)


def test_the_makefile_runs_these_commands() -> None:
    recipe = (REPOSITORY / "Makefile").read_text().split("\nquickstart:")[1].split("\n\n")[0]
    launch = "accelerate launch --config_file accelerate_configs/single_cpu.yaml"
    commands = " ".join(recipe.replace("\\\n", " ").split())
    assert f"{launch} scripts/finetune.py configs/quickstart.yaml model.name_or_path=" in commands
    assert "scripts/classify.py runs/quickstart " + " ".join(f'"{sentence}"' for sentence in SENTENCES) in commands
