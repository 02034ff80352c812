"""A whole search with a tiny model: what its trials are, what it writes, and what it refuses."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from typer.testing import CliRunner, Result

from hf_freeze.cli import app
from hf_freeze.config import FreezeConfig, RunConfig, Selection, load_config, override
from hf_freeze.insight import study as study_module
from hf_freeze.insight.answer import BEST, FULL, RECOMMENDED, Answer
from hf_freeze.insight.outcomes import TrialOutcome
from hf_freeze.insight.search import Progress
from hf_freeze.run import Run
from hf_freeze.run.searching import search
from hf_freeze.run.trials import PeakMemory, TrialRunner
from tests import tiny_run
from tests.tiny import tiny_bert, tiny_tokenizer
from tests.unit.config.test_loading import NUM_ARGUMENTS

LORA = {"peft_type": "LORA", "r": 2, "target_modules": ["query"]}


def write_config(folder: Path, section: dict[str, Any] | None, *, splits: str = "train validation test") -> Path:
    model = folder.parent / "model"
    rows = tiny_run.write_rows(folder / "rows", splits=splits)
    sections = tiny_run.sections(model, rows, folder / "out", max_steps=-1, num_train_epochs=2)
    sections["activation_cache"] = {"dir": str(folder / "cache")}
    if section is not None:
        sections["search"] = {"metric": "accuracy", "direction": "maximize", **section}
    path = folder / "config.yaml"
    YAML().dump(sections, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    tiny_run.write_model(folder / "model")
    return folder


@pytest.fixture(scope="module")
def config(folder: Path) -> Path:
    """A config of three plans: with and without LoRA at depth 3, and the head alone."""
    (folder / "whole").mkdir()
    section = {"depths": [3, 4], "adapters": ["none", LORA], "confirm": {"seeds": 2}, "pruner": "none"}
    return write_config(folder / "whole", section)


@pytest.fixture(scope="module")
def answer(config: Path) -> Answer:
    return search(load_config(config))


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="hf-freeze")


class TestAnswer:
    def test_every_plan_is_a_trial(self, answer: Answer) -> None:
        plans = sorted((trial.point["depth"], trial.point["adapter"], trial.state) for trial in answer.trials)
        assert plans == [
            (3, 'LORA r=2 target_modules=["query"]', "complete"),
            (3, "none", "complete"),
            (4, "none", "complete"),
        ]
        trained = {trial.point["depth"]: trial.outcome.num_trainable for trial in answer.trials if trial.outcome}
        assert trained[4] == 1122  # pooler and classifier

    def test_a_trial_is_what_training_its_config_gives(self, answer: Answer, config: Path) -> None:
        trial = next(found for found in answer.trials if found.point == {"depth": 4, "adapter": "none"})
        plain = override(
            load_config(config),
            {
                "search": None,
                "freeze.blocks": {"first": 4},
                "training.eval_strategy": "epoch",
                "training.output_dir": str(config.parent / "plain"),
                "activation_cache.enabled": False,
            },
            source="test",
        )
        trained = Run(plain).train()
        assert trial.outcome is not None
        loss = trained.metrics["eval_loss"]
        assert trial.outcome.metrics["eval_loss"] == pytest.approx(loss, abs=1e-6)

    def test_the_plan_to_take_is_a_config_that_trains(self, answer: Answer) -> None:
        assert answer.recommendation is not None
        path = next(file for file in answer.files if file.endswith("recommended.yaml"))
        made = load_config(path)
        assert made.search is None
        assert made.freeze is not None
        assert made.freeze.blocks.value == answer.recommendation.chosen.point["depth"]  # type: ignore[union-attr]
        assert set(Run(made).train().metrics) >= {"eval_accuracy", "test_accuracy"}

    def test_it_is_confirmed_beside_full_fine_tuning_with_the_same_seeds(self, answer: Answer) -> None:
        assert [found.name for found in answer.confirmations] == [
            "recommended",
            "best of the search",
            "full fine-tuning",
        ]
        assert [len(found.scores("eval_accuracy")) for found in answer.confirmations] == [2, 2, 2]
        assert answer.confirmations[2].outcomes[0].num_trainable == 40_642
        assert any("ull fine-tuning" in sentence and "2 seeds" in sentence for sentence in answer.sentences)

    def test_the_report_and_the_picture_are_written_and_nothing_else(self, answer: Answer, config: Path) -> None:
        out = config.parent / "out"
        written = {path.name for path in out.iterdir()} - {"recommended"}
        assert written == {"study.db", "study.db.lock", "search.md", "search.png", "recommended.yaml"}
        assert (out / "search.png").read_bytes().startswith(b"\x89PNG\r\n")
        report = (out / "search.md").read_text()
        assert all(sentence in report for sentence in answer.sentences)
        assert report.count("| complete |") == 3
        assert "| peak MiB | trainable | evaluations |" in report
        assert (
            "peak MiB: the most memory that the process held while a plan trained, measured; Python and its libraries "
            "are in it, mapped files are not.\n"
        ) in report

    def test_the_cache_is_deepened_and_not_built_anew(self, answer: Answer, config: Path) -> None:
        from hf_freeze.activation_cache.housekeeping import list_stores

        stores = sorted((store.depth, store.rows) for store in list_stores(config.parent / "cache"))
        assert [depth for depth, _ in stores] == [3, 4]  # One for each depth, with and without adapters.
        assert stores[0][1] == stores[1][1]

    def test_a_search_that_is_over_trains_nothing_more(self, answer: Answer, config: Path) -> None:
        result = call("search", config)
        assert result.exit_code == 0, result.output
        assert "3 trials: 3 complete." in result.stdout
        assert "Recommended: trial" in result.stdout
        assert f"Written: {config.parent / 'out' / 'recommended.yaml'}" in result.stdout
        again = search(load_config(config))
        assert again.trials == answer.trials
        assert again.confirmations == answer.confirmations


class TestRefusals:
    @pytest.mark.parametrize(
        ("section", "expected"),
        [
            (
                None,
                (
                    "search: the config has no such section; got null. It says what is varied, such as "
                    "{depths: [2, 3, 4], learning_rates: [1e-4, 3e-4]}. Add it.\n"
                ),
            ),
            (
                {"depths": [3, 9]},
                (
                    "search.depths: freeze.blocks: cannot select the first 9 blocks; bert.encoder.layer has 4. "
                    "Select at most 4.\n"
                ),
            ),
            (
                {"depths": [3], "confirm": {"full": {"training.learning_rat": 1e-4}}},
                (
                    "search.confirm.full: training.learning_rat: unknown key; got 0.0001. Known keys: the "
                    f"{NUM_ARGUMENTS} keys of TrainingArguments. Did you mean 'learning_rate'?\n"
                ),
            ),
            (
                {"depths": [3], "metric": "acuracy"},
                (
                    "search.metric: no evaluation logs it; got 'eval_acuracy'. Evaluations log eval_accuracy, eval_f1, "
                    "eval_loss. Name one of them. Did you mean 'eval_accuracy'?\n"
                ),
            ),
        ],
    )
    def test_a_request_that_cannot_be_carried_out_ends_with_2(
        self, folder: Path, tmp_path: Path, section: dict[str, Any] | None, expected: str
    ) -> None:
        (tmp_path / "model").symlink_to(folder / "model")
        (tmp_path / "x").mkdir()
        result = call("search", write_config(tmp_path / "x", section))
        assert result.exit_code == 2
        assert result.stderr.endswith(expected)

    @pytest.mark.parametrize(
        ("splits", "expected"),
        [
            (
                "train",
                (
                    "search.metric: there are no rows to evaluate on; got 'eval_accuracy'. The data set has the splits "
                    "train. Name a split in data.splits.validation.\n"
                ),
            ),
            (
                "train validation",
                (
                    "search.confirm.seeds: there are no test rows to confirm the answer on; got 5. The data set has "
                    "the splits train, validation. Name one in data.splits.test, or set search.confirm.seeds to 0.\n"
                ),
            ),
        ],
    )
    def test_rows_are_needed(self, folder: Path, tmp_path: Path, splits: str, expected: str) -> None:
        (tmp_path / "model").symlink_to(folder / "model")
        (tmp_path / "x").mkdir()
        result = call("search", write_config(tmp_path / "x", {"depths": [3]}, splits=splits))
        assert (result.exit_code, result.stderr.splitlines(keepends=True)[-1]) == (2, expected)

    def test_where_every_trial_fails_the_first_error_is_told_and_the_command_ends_with_2(self, tmp_path: Path) -> None:
        """A model whose pooler is broken, in a process of its own; also where nothing is left to try."""
        broken = tiny_bert()
        torch.nn.init.constant_(broken.bert.pooler.dense.weight, math.nan)
        broken.save_pretrained(tmp_path / "model")
        tiny_tokenizer(tiny_run.TEXTS).save_pretrained(tmp_path / "model")
        (tmp_path / "x").mkdir()
        section = {"depths": [3, 4], "metric": "loss", "direction": "minimize"}
        path = write_config(tmp_path / "x", section)
        command = [sys.executable, "-c", "from hf_freeze.cli import main; main()", "search", str(path)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        first, second = [line for line in result.stderr.splitlines() if line.startswith("trial ")]
        plan = first.removeprefix("trial 0: ").partition(": ")[0]
        assert first == f"trial 0: {plan}: failed: eval_loss is nan after evaluation 1"
        assert second.endswith(": failed, as trial 0 did")
        expected = (
            f"search: every one of the 2 trials failed; got first, with {plan}: eval_loss is nan after evaluation 1\n"
            "There is nothing to choose from. Mend what it says, and name a new file in search.study.\n"
        )
        assert result.returncode == 2
        assert result.stderr.endswith(expected)
        assert "Traceback" not in result.stderr
        again = call("search", path)
        assert (again.exit_code, again.stdout) == (2, "")
        assert again.stderr.endswith(expected)
        assert not (tmp_path / "x" / "out" / "search.md").exists()

    def test_a_missing_package_is_told_with_the_extra(
        self, config: Path, answer: Answer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "optuna", None)
        result = call("search", config)
        assert (result.exit_code, result.stderr) == (
            2,
            (
                "search: needs a package that is not installed; got no optuna. It comes with an extra of hf_freeze. "
                "Install it: pip install 'hf-freeze[search]'.\n"
            ),
        )

    def test_a_launcher_of_several_processes_is_refused(self, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        result = call("search", config)
        assert (result.exit_code, result.stderr) == (
            2,
            (
                "search: each process trains trials of its own; got a launcher that started 2 for one run. Processes "
                "that are started by themselves share a study. Run `hf-freeze search` once for each device, without "
                "`accelerate launch`.\n"
            ),
        )

    def test_a_locked_study_ends_the_command_with_2(
        self, config: Path, answer: Answer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(study_module, "LOCK_TIMEOUT", 0.1)
        study = config.parent / "out" / "study.db"
        with contextlib.closing(sqlite3.connect(study)) as holder:
            holder.execute("BEGIN EXCLUSIVE")
            result = call("search", config)
        assert result.exit_code == 2
        assert result.stderr.endswith(
            f"search.study: another process kept this study locked for 0.1 seconds; got {str(study)!r}. Processes "
            "share a study, but one at a time writes. End the process that holds it open, and start again: nothing is "
            "lost.\n"
        )

    def test_a_study_of_another_config_is_refused(self, config: Path, answer: Answer) -> None:
        result = call("search", config, "training.num_train_epochs=3")
        study = config.parent / "out" / "study.db"
        assert result.exit_code == 2
        assert result.stderr.endswith(
            f"search.study: was made for another config or other rows; got {str(study)!r}, in which "
            "training.num_train_epochs was 2 and is 3 here. The trials of a study have one config and the same rows. "
            "Restore what differs, or name another file.\n"
        )


@pytest.mark.slow
def test_commands_with_folders_of_their_own_share_a_study_that_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(folder / "model")
    study = tmp_path / "shared.db"
    section = {"depths": [1, 2, 3, 4], "learning_rates": [1e-3, 1e-2], "study": str(study)}
    path = tiny(tmp_path, "x", section)
    command = [sys.executable, "-c", "from hf_freeze.cli import main; main()", "search", str(path)]
    outs = [tmp_path / name for name in ("one", "other")]
    processes = [subprocess.Popen([*command, f"training.output_dir={out}"], stdout=subprocess.DEVNULL) for out in outs]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    known = search(load_config(path, [f"training.output_dir={tmp_path / 'third'}"])).trials
    assert [(trial.number, trial.state) for trial in known] == [(number, "complete") for number in range(8)]
    assert len({tuple(trial.point.items()) for trial in known}) == 8
    assert all(not (out / "study.db").exists() for out in outs)


@pytest.mark.slow
def test_a_command_that_is_killed_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(folder / "model")
    (tmp_path / "x").mkdir()
    section = {"depths": [1, 2, 3, 4], "learning_rates": [1e-3, 1e-2], "pruner": "none", "confirm": {"seeds": 0}}
    path = write_config(tmp_path / "x", section)
    command = [sys.executable, "-c", "from hf_freeze.cli import main; main()", "search", str(path)]
    errors = tmp_path / "errors"
    with errors.open("w") as file:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file, env=os.environ)
        deadline = time.monotonic() + 120
        while "trial 1:" not in errors.read_text():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    found = search(load_config(path))
    assert [trial.state for trial in found.trials] == ["complete"] * 8
    assert len({tuple(trial.point.items()) for trial in found.trials}) == 8


def test_a_trial_has_a_peak_of_memory_of_its_own() -> None:
    with PeakMemory(torch.device("cpu")) as before:
        pass
    wanted = before.peak + (48 << 20)
    with PeakMemory(torch.device("cpu")) as dear:
        held = torch.ones(64 << 20, dtype=torch.uint8)
        for _ in range(1000):  # The thread that looks may have to wait for a processor.
            if dear.peak < wanted:
                time.sleep(0.01)
        del held
    with PeakMemory(torch.device("cpu")) as after:
        pass
    assert dear.peak >= wanted > after.peak


def test_schedules_are_searched_and_one_is_recommended(folder: Path) -> None:
    own = folder / "schedules"
    own.mkdir()
    schedules = ["static", {"type": "progressive", "ceiling": 2}]
    path = write_config(own, {"schedules": schedules, "confirm": {"seeds": 0}, "pruner": "none"})
    answer = search(load_config(path))
    found = {trial.point["schedule"]: trial for trial in answer.trials}
    assert {name: trial.state for name, trial in found.items()} == {
        "static": "complete",
        "progressive ceiling=2": "complete",
    }
    trained = {trial.outcome.num_trainable for trial in answer.trials if trial.outcome}
    assert len(trained) == 1  # all that may ever train counts, not what trained last
    report = (own / "out" / "search.md").read_text()
    assert "progressive ceiling=2" in report
    recommended = load_config(own / "out" / "recommended.yaml")
    assert answer.recommendation is not None
    assert recommended.schedule.type == str(answer.recommendation.chosen.point["schedule"]).split()[0]


def test_a_range_of_learning_rates_is_searched_and_a_study_of_another_range_refused(folder: Path) -> None:
    own = folder / "range"
    own.mkdir()
    rates = {"low": 1e-4, "high": 1e-1, "log": True}
    path = write_config(own, {"learning_rates": rates, "trials": 3, "confirm": {"seeds": 0}, "pruner": "none"})
    answer = search(load_config(path))
    tried = [float(str(trial.point["learning_rate"])) for trial in answer.trials]
    assert [trial.state for trial in answer.trials] == ["complete"] * 3
    assert len(set(tried)) == 3
    assert all(1e-4 <= rate <= 1e-1 for rate in tried)
    report = (own / "out" / "search.md").read_text()
    assert all(f"| {rate} |" in report for rate in tried)
    recommended = load_config(own / "out" / "recommended.yaml").training["learning_rate"]
    assert answer.recommendation is not None
    assert recommended == answer.recommendation.chosen.point["learning_rate"]
    result = call("search", path, "search.learning_rates.high=0.5")
    assert result.exit_code == 2
    assert "in which search.learning_rates.high was 0.1 and is 0.5 here. The trials" in result.stderr


def test_the_config_of_a_trial_has_its_schedule(folder: Path) -> None:
    own = folder / "one_schedule"
    own.mkdir()
    section = {"schedules": [{"type": "progressive", "ceiling": 2}], "confirm": {"seeds": 0}}
    search(load_config(write_config(own, section)))
    written = load_config(own / "out" / "recommended.yaml").schedule
    assert (written.type, written.options) == ("progressive", {"ceiling": 2})


def tiny(folder: Path, name: str, section: dict[str, Any]) -> Path:
    """A config in a folder of its own, of a search that is not confirmed unless its section says so."""
    (folder / name).mkdir()
    return write_config(folder / name, {"confirm": {"seeds": 0}, "pruner": "none", **section})


def broken_model(folder: Path) -> Path:
    """A model whose folder has no weights."""
    tiny_run.write_model(folder)
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("lacks", ["model", "weights"])
def test_a_plan_that_cannot_be_trained_fails_alone_wherever_it_is_listed(
    folder: Path, tmp_path: Path, lacks: str, is_first: bool
) -> None:
    (tmp_path / "model").symlink_to(folder / "model")
    bad = str(tmp_path / "nothing" if lacks == "model" else broken_model(tmp_path / "bad"))
    models = [bad, str(folder / "model")]
    section = {"axes": {"model.name_or_path": models if is_first else models[::-1]}, "adapters": ["none", LORA]}
    answer = search(load_config(tiny(tmp_path, "x", section)))
    states = sorted((trial.point["model.name_or_path"] == bad, trial.state) for trial in answer.trials)
    assert states == [(False, "complete"), (False, "complete"), (True, "failed"), (True, "failed")]


@pytest.mark.parametrize("is_first", [True, False])
def test_an_adapter_that_fits_no_module_fails_alone(folder: Path, tmp_path: Path, is_first: bool) -> None:
    (tmp_path / "model").symlink_to(folder / "model")
    bad = {**LORA, "target_modules": ["quary"]}
    adapters = [bad, LORA] if is_first else [LORA, bad]
    answer = search(load_config(tiny(tmp_path, "x", {"depths": [3], "adapters": adapters})))
    assert sorted(("quary" in str(trial.point["adapter"]), trial.state) for trial in answer.trials) == [
        (False, "complete"),
        (True, "failed"),
    ]


def test_where_no_plan_can_be_trained_the_first_error_is_told_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(folder / "model")
    bad = str(tmp_path / "nothing")
    result = call("search", tiny(tmp_path, "x", {"axes": {"model.name_or_path": [bad]}}))
    assert result.exit_code == 2
    start = f"search: the only trial failed; got first, with model.name_or_path {bad}: model.name_or_path: "
    assert start in result.stderr
    assert result.stderr.endswith(
        "There is nothing to choose from. Mend what it says, and name a new file in search.study.\n"
    )


def test_a_plan_of_the_head_alone_names_no_adapter(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(folder / "model")
    result = call("search", tiny(tmp_path, "x", {"depths": [4], "adapters": [LORA]}))
    assert result.exit_code == 0
    assert "trial 0: depth 4, adapter none: complete" in result.stderr
    assert "Recommended: trial 0 (depth 4, adapter none). It is the only complete trial; its" in result.stdout
    report = (tmp_path / "x" / "out" / "search.md").read_text()
    assert "| 4 | none | complete |" in report
    assert "LORA" not in report


def test_a_plan_whose_loss_is_no_number_is_not_recommended(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(folder / "model")
    section = {"depths": [2], "learning_rates": [1e30, 1e-3], "confirm": {"seeds": 1}}
    answer = search(load_config(tiny(tmp_path, "x", section)))
    found = {trial.point["learning_rate"]: (trial.state, trial.error) for trial in answer.trials}
    assert found == {1e30: ("failed", "eval_loss is nan after evaluation 1"), 1e-3: ("complete", None)}
    assert answer.recommendation is not None
    assert answer.recommendation.chosen.point["learning_rate"] == 1e-3


def test_a_plan_that_fails_with_another_seed_makes_way_for_the_next(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").symlink_to(folder / "model")
    train = TrialRunner.train
    failing: list[FreezeConfig] = []

    def train_all_but_one(self: TrialRunner, config: RunConfig, report: Any = None, **how: Any) -> TrialOutcome:
        """The plan that is confirmed first fails."""
        if report is None and config.freeze is not None:
            failing.append(config.freeze)
            if config.freeze == failing[0]:
                raise RuntimeError("out of memory")
        return train(self, config, report, **how)

    monkeypatch.setattr(TrialRunner, "train", train_all_but_one)
    section = {"depths": [3, 4], "tolerance": 1.0, "confirm": {"seeds": 2}}
    told: list[Progress] = []
    answer = search(load_config(tiny(tmp_path, "x", section)), told.append)
    failed = next(
        trial.number
        for trial in answer.trials
        if failing[0].blocks == Selection("first", int(str(trial.point["depth"])))
    )
    assert answer.recommendation is not None
    assert answer.recommendation.chosen.number != failed
    assert f"Trial {failed} could not be confirmed; with seed 42 it gave: RuntimeError: out of memory." in (
        answer.sentences
    )
    assert {each.name: len(each.outcomes) for each in answer.confirmations} == {RECOMMENDED: 2, BEST: 2, FULL: 2}
    assert (len(told[-1].runs), told[-1].num_runs_left, told[-1].seconds_left) == (5, 0, 0)


def test_a_search_that_its_time_ended_is_confirmed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").symlink_to(folder / "model")
    section = {"depths": [2, 3, 4], "seconds": 1000, "confirm": {"seeds": 1}}
    path = tiny(tmp_path, "x", section)
    now = iter(range(0, 10_000, 400))
    monkeypatch.setattr("hf_freeze.insight.search.time", SimpleNamespace(monotonic=lambda: next(now)))
    answer = search(load_config(path))
    monkeypatch.undo()
    assert [trial.state for trial in answer.trials] == ["complete"]
    assert {each.name for each in answer.confirmations} == {RECOMMENDED, BEST, FULL}
    assert "The time was up before 2 more trials could begin; run the same command again to go on." in answer.sentences
    again = search(load_config(path))
    assert [trial.state for trial in again.trials] == ["complete"] * 3


def test_a_study_of_other_rows_is_refused_with_the_difference(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(folder / "model")
    path = tiny(tmp_path, "x", {"depths": [4]})
    first = call("search", path)
    assert first.exit_code == 0
    assert call("search", path).exit_code == 0
    rows = tmp_path / "x" / "rows" / "validation.csv"
    rows.write_text("\n".join(rows.read_text().splitlines()[:13]) + "\n")
    result = call("search", path)
    assert result.exit_code == 2
    line = result.stderr.splitlines()[-1]
    study, digest = str(tmp_path / "x" / "out" / "study.db"), "[0-9a-f]{16}"
    assert re.fullmatch(
        f"search.study: was made for another config or other rows; got {study!r}, in "
        f"which rows.validation was '24 rows, digest {digest}' and is '12 rows, digest {digest}' here. The trials of a "
        "study have one config and the same rows. Restore what differs, or name another file.",
        line,
    )


def test_a_search_begins_with_the_data_check(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(folder / "model")
    path = tiny(tmp_path, "x", {"depths": [4]})
    result = call("search", path)
    assert result.stdout.startswith("Data: 24 rows to train on, 24 rows to validate on, 24 rows to test on.\n")
    assert "rows of the split 'validation' are" in result.stdout
    assert "Data:" not in call("search", path).stdout  # Nothing is trained any more.
