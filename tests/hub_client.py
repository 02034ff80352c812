"""What tests do in a process whose Hub is on this machine: `python -m tests.hub_client FUNCTION ARGUMENTS`.

The arguments of a function are JSON, and so is what it returns, as the last line of standard output.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.hub_server import TOKEN, Hub

REPOSITORY = Path(__file__).resolve().parent.parent  # not from conftest, which keeps processes off the Hub
SENTENCES = ["a good film", "what a bad end of a film"]


def ask(hub: Hub, home: Path, function: str, *arguments: Any, token: str | None = TOKEN) -> tuple[Any, str]:
    """Calls a function of this module in a process of its own, and returns its result and all that it wrote."""
    process = start(hub, home, function, *arguments, token=token)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    *printed, result = stdout.splitlines()
    return json.loads(result), "\n".join([*printed, stderr])


def start(hub: Hub, home: Path, function: str, *arguments: Any, token: str | None = TOKEN) -> subprocess.Popen[str]:
    """Starts a process that calls a function of this module."""
    command = [sys.executable, "-m", "tests.hub_client", function, json.dumps(arguments, default=str)]
    environment = {**hub.environment(home, token=token), "PYTHONPATH": str(REPOSITORY)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=home.parent)


def command(hub: Hub, home: Path, *arguments: object, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
    """Runs `hf-freeze` in a process of its own."""
    line = [sys.executable, "-c", "from hf_freeze.cli import main; main()", *map(str, arguments)]
    environment = {**hub.environment(home, token=token), "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=300, check=False)


def push(calls: list[dict[str, Any]]) -> list[Any]:
    """Pushes runs one after the other: the files that were pushed, or the error. A `token` replaces the usual one."""
    from hf_freeze.errors import FreezeError
    from hf_freeze.sharing.hub import push_run

    results: list[Any] = []
    for call in calls:
        os.environ["HF_TOKEN"] = call.pop("token", TOKEN)
        try:
            results.append(list(push_run(**call).files))
        except FreezeError as error:
            results.append([type(error).__name__, str(error)])
    return results


def train(model: str, cases: list[dict[str, Any]]) -> list[Any]:
    """Trains with each of the arguments, and pushes in the end: the logits, or the error."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from hf_freeze import FreezeError, FreezeTrainer
    from tests.unit.training.runs import arguments, rows

    results: list[Any] = []
    for case in cases:
        sections = {name: case.pop(name) for name in ("freeze", "adapters", "save") if name in case}
        try:
            trainer = FreezeTrainer(
                model=AutoModelForSequenceClassification.from_pretrained(model),
                args=arguments(Path(case.pop("output_dir")), **{"max_steps": 2, "push_to_hub": True, **case}),
                train_dataset=rows(),
                processing_class=AutoTokenizer.from_pretrained(model),
                **sections,
            )
            trainer.train()
            results.append(logits(trainer.model.eval(), trainer.processing_class))
            trainer.push_to_hub()
        except FreezeError as error:
            results.append([type(error).__name__, str(error)])
    return results


def load(repos: list[list[Any]]) -> list[Any]:
    """Loads models from the Hub with nothing but Transformers and PEFT: their logits."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    results = []
    for repo, options in repos:
        model = AutoModelForSequenceClassification.from_pretrained(repo, **options).eval()
        tokenizer_options = {name: value for name, value in options.items() if name == "revision"}
        results.append(logits(model, AutoTokenizer.from_pretrained(repo, **tokenizer_options)))
    assert "hf_freeze" not in sys.modules
    return results


def pull(calls: list[dict[str, Any]]) -> list[Any]:
    """Loads models with hf_freeze: their logits, or the error. A `token` replaces the usual one."""
    from transformers import AutoTokenizer

    from hf_freeze import FreezeError, load_model

    results: list[Any] = []
    for call in calls:
        os.environ["HF_TOKEN"] = call.pop("token", TOKEN)
        try:
            model = load_model(call["repo"], revision=call.get("revision"), base=call.get("base"))
            tokenizer = AutoTokenizer.from_pretrained(call["repo"], revision=call.get("revision", "main"))
            results.append(logits(model, tokenizer))
        except FreezeError as error:
            results.append([type(error).__name__, str(error)])
    return results


def logits(model: Any, tokenizer: Any) -> list[list[float]]:
    """What a model answers to two sentences."""
    import torch

    with torch.no_grad():
        answer: list[list[float]] = model(**tokenizer(SENTENCES, padding=True, return_tensors="pt")).logits.tolist()
    return answer


if __name__ == "__main__":
    called, given = sys.argv[1:]
    result = {"push": push, "train": train, "load": load, "pull": pull}[called](*json.loads(given))
    sys.stdout.write("\n" + json.dumps(result) + "\n")
