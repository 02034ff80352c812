"""Two processes follow a schedule as one does: under DDP, with the activation cache, and under FSDP2."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import REPOSITORY
from tests.distributed.launching import NUM_PROCESSES, once, session_folder
from tests.distributed.scheduled_run import ScheduledRecord, ScheduledRun, carry_out

pytestmark = pytest.mark.distributed

HERE = "tests.distributed.scheduled_run"
WORKER = Path(__file__).with_name("scheduled_run.py")
AUTOFREEZE = {"type": "autofreeze", "intervals": 12, "blocks_per_decision": 1, "percentile": 70}
PHASES = [{"until": 0.5, "freeze": {"blocks": "none"}}, {"until": 0.8, "freeze": {"blocks": "all"}}, {"freeze": {}}]
TO_AND_FRO = [
    {"until": 0.3, "freeze": {"blocks": {"first": 2}}},
    {"until": 0.6, "freeze": {"blocks": "none"}},
    {"freeze": {"blocks": {"first": 3}}},
]
PLASTICITY = {"type": "plasticity", "every": 2, "threshold": 0.9}
RUNS = [
    ScheduledRun("progressive", {"type": "progressive"}, resumed_at=14),
    ScheduledRun("gradual", {"type": "gradual_unfreeze", "warmup": 3}, resumed_at=14),
    ScheduledRun("rotating", {"type": "rotating", "every": 3}, options={"gradient_accumulation_steps": 2}),
    ScheduledRun("rotating, unused searched", {"type": "rotating", "every": 3}, options={
        "ddp_find_unused_parameters": True
    }),
    ScheduledRun("phases", {"type": "phases", "phases": PHASES, "warmup": 0}),
    ScheduledRun("plateau", {"type": "plateau", "min_delta": 1.0, "warmup": 0}),
    ScheduledRun("random", {"type": "tests.unit.training.test_scheduling:RandomStates"}, options={
        "max_steps": 220, "eval_steps": 110, "learning_rate": 1e-4  # rows learned by heart make rounding grow
    }),
    ScheduledRun("autofreeze", AUTOFREEZE, resumed_at=14, options={"gradient_accumulation_steps": 2}),
    ScheduledRun("plasticity", PLASTICITY, caches=True, resumed_at=14),
    ScheduledRun("progressive, cached", {"type": "progressive"}, caches=True),
    ScheduledRun("gradual, cached", {"type": "gradual_unfreeze", "warmup": 3}, caches=True),
]  # fmt: skip
FAILING = [
    ScheduledRun("disagrees", {"type": f"{HERE}:Disagrees"}),
    ScheduledRun("scales otherwise", {"type": f"{HERE}:ScalesOtherwise"}),
    ScheduledRun("fails in one", {"type": f"{HERE}:FailsInOne"}),
    ScheduledRun("due in one", {"type": f"{HERE}:DueInOne"}),
    ScheduledRun("fails to begin in one", {"type": f"{HERE}:FailsBeginInOne"}),
    ScheduledRun("fails to need in one", {"type": f"{HERE}:FailsNeedsInOne"}),
    ScheduledRun(
        "fails to save in one", {"type": f"{HERE}:FailsStateInOne"}, options={"save_strategy": "steps", "save_steps": 2}
    ),
    ScheduledRun("needs in one", {"type": f"{HERE}:NeedsInOne"}),
    ScheduledRun("evaluates otherwise", {"type": f"{HERE}:FollowsMetric"}),
    ScheduledRun("no choice", {"type": "static"}, {"freeze": {"blocks": {"auto": {"by": "budget", "speedup": 1000}}}}),
]
AUTOMATIC = [
    ScheduledRun(f"chosen by {options['by']}", {"type": "static"}, {"freeze": {"blocks": {"auto": options}}})
    for options in ({"by": "snr"}, {"by": "gradient", "train_top": 0.6}, {"by": "budget", "seconds": 3600})
]
SHARDED = [
    *RUNS[:2],
    ScheduledRun("autofreeze", AUTOFREEZE, resumed_at=14),
    ScheduledRun("plasticity, cached", PLASTICITY, caches=True, resumed_at=14),
    ScheduledRun("gradual, cached", {"type": "gradual_unfreeze", "warmup": 3}, caches=True, resumed_at=14),
    ScheduledRun("to and fro, cached", {"type": "phases", "phases": TO_AND_FRO}, caches=True, resumed_at=14),
]
Records = dict[str, list[ScheduledRecord]]


def launch(runs: Sequence[ScheduledRun], folder: Path, *, backend: str) -> Records:
    with once(folder) as is_first:
        if is_first:
            task = {"backend": backend, "num_processes": NUM_PROCESSES, "folder": str(folder)}
            task["runs"] = [dataclasses.asdict(run) for run in runs]
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
            process = subprocess.run(
                [*command, str(NUM_PROCESSES), str(WORKER), json.dumps(task)],
                env={**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(REPOSITORY)},
                check=False,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            assert process.returncode == 0, process.stdout[-6000:]
    return {
        run.name: [
            ScheduledRecord(**json.loads((folder / f"{run.name} {rank}.json").read_text()))
            for rank in range(NUM_PROCESSES)
        ]
        for run in runs
    }


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Records:
    folder = session_folder(tmp_path_factory.getbasetemp()) / "schedules ddp"
    return launch([*RUNS, *FAILING, *AUTOMATIC], folder, backend="ddp")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Records:
    folder = session_folder(tmp_path_factory.getbasetemp()) / "schedules fsdp2"
    return launch([*SHARDED, *AUTOMATIC], folder, backend="fsdp2")


def by_name(runs: list[ScheduledRun]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("run", runs, ids=lambda run: run.name)


def assert_equals_one_process(two: list[ScheduledRecord], run: ScheduledRun, folder: Path) -> None:
    one = carry_out(dataclasses.replace(run, resumed_at=None, caches=False), folder)
    assert two[0].error == two[1].error == one.error == ""
    assert len(one.timeline) >= 2
    assert [line.split("; depth")[0] for line in two[0].timeline] == [line.split("; depth")[0] for line in one.timeline]
    assert two[0].timeline == two[1].timeline
    assert len(two[0].losses) == run.options.get("max_steps", 24)
    np.testing.assert_allclose(two[0].losses, one.losses, rtol=0, atol=1e-4)
    np.testing.assert_allclose(two[0].gradient_norms, one.gradient_norms, rtol=0, atol=1e-3)
    np.testing.assert_allclose(two[0].evaluations, one.evaluations, rtol=0, atol=1e-4)
    assert two[0].weights == two[1].weights


@by_name(RUNS)
def test_two_processes_equal_one(seen: Records, tmp_path: Path, run: ScheduledRun) -> None:
    assert_equals_one_process(seen[run.name], run, tmp_path)


@by_name([run for run in RUNS if run.resumed_at])
def test_resumed_equals_uninterrupted_to_the_bit(seen: Records, run: ScheduledRun) -> None:
    for record in seen[run.name]:
        assert len(record.resumed_losses) == 10
        assert record.resumed_losses == record.losses[14:]
        assert record.resumed_weights == record.weights


@by_name([run for run in RUNS if run.caches])
def test_both_processes_are_served_from_the_cache(seen: Records, run: ScheduledRun) -> None:
    assert min(record.hits for record in seen[run.name]) > 0


@by_name([run for run in SHARDED if run.caches])
def test_both_sharded_processes_are_served_from_the_cache(sharded: Records, run: ScheduledRun) -> None:
    assert min(record.hits for record in sharded[run.name]) > 0


@by_name(AUTOMATIC)
@pytest.mark.parametrize("backend", ["seen", "sharded"])
def test_all_processes_train_what_was_chosen_in_the_first(
    request: pytest.FixtureRequest, backend: str, run: ScheduledRun
) -> None:
    """Each process would choose from rows and timings of its own."""
    first, second = request.getfixturevalue(backend)[run.name]
    assert first.error == second.error == ""
    assert len(first.losses) == 24
    assert first.weights == second.weights


@pytest.mark.parametrize(
    ("name", "schedule", "decided"),
    [
        ("disagrees", "Disagrees", "['blocks[{rank}]', 'embeddings'], factors {{}}"),
        ("scales otherwise", "ScalesOtherwise", "[], factors {{'blocks[0]': {rank}.5}}"),
    ],
)
def test_processes_that_disagree_end_with_an_error_in_all(
    seen: Records, name: str, schedule: str, decided: str
) -> None:
    for rank, record in enumerate(seen[name]):
        assert record.error == (
            f"schedule: {HERE}:{schedule} decided otherwise in other processes before step 3; got "
            f"{decided.format(rank=rank)}, warmup 0, needs [] in process {rank}. A schedule must decide from what is "
            "equal everywhere: the moment, and its own state. There is no checkpoint yet."
        )


def test_statistics_are_read_in_all_processes_or_none(seen: Records) -> None:
    for rank, record in enumerate(seen["due in one"]):
        assert record.error == (
            f"schedule: {HERE}:DueInOne calls a moment due that it does not call due in other processes; got "
            f"{bool(rank)} before step 3 in process {rank}. is_due must follow from what is equal everywhere: the "
            "moment, and its own state. There is no checkpoint yet."
        )


def test_an_error_in_one_process_ends_all(seen: Records) -> None:
    first, second = seen["fails in one"]
    assert first.error == (
        f"schedule: {HERE}:FailsInOne failed before step 3; got an error in process 1. That process says which. There "
        "is no checkpoint yet."
    )
    assert second.error.startswith(f"schedule: {HERE}:FailsInOne failed in decide before step 3; got ValueError: no.")


@pytest.mark.parametrize(
    ("name", "schedule", "when", "where"),
    [
        ("fails to begin in one", "FailsBeginInOne", "before training begins", "begin"),
        ("fails to need in one", "FailsNeedsInOne", "before step 3", "needs"),
        ("fails to save in one", "FailsStateInOne", "at the checkpoint of step 2", "state_dict"),
    ],
)
def test_an_error_outside_decide_in_one_process_ends_all(
    seen: Records, name: str, schedule: str, when: str, where: str
) -> None:
    first, second = seen[name]
    assert first.error == (
        f"schedule: {HERE}:{schedule} failed {when}; got an error in process 1. That process says which. There is no "
        "checkpoint yet."
    )
    told = f"schedule: {HERE}:{schedule} failed in {where}; got ValueError: no. Correct it there."
    assert second.error.removesuffix(" There is no checkpoint yet.") == told


def test_processes_that_start_otherwise_end_with_an_error_in_all(seen: Records) -> None:
    for rank, record in enumerate(seen["needs in one"]):
        assert record.error == (
            f"schedule: {HERE}:NeedsInOne starts otherwise in other processes; got [] frozen and needs "
            f"{['gradients'] * rank} in process {rank}. A schedule must start from what is equal everywhere: its "
            "options and its course. There is no checkpoint yet."
        )


def test_all_processes_decide_from_what_the_first_evaluated(seen: Records) -> None:
    for record in seen["evaluates otherwise"]:
        assert record.error == ""
        assert record.timeline == ["step 4: froze blocks[0]; depth 0; evaluated"]


def test_all_processes_tell_why_the_first_could_not_choose(seen: Records) -> None:
    first, second = seen["no choice"]
    assert re.fullmatch(
        r"freeze\.blocks\.auto\.speedup: no number of frozen blocks meets it; got 1000\. At best, with [03] of 4 "
        r"blocks frozen, it is \d+\.\d\d times as fast as full fine-tuning\. Ask for that, or train the head alone "
        r"\(freeze\.blocks: all\)\.",
        first.error,
    )
    assert second.error == first.error


@by_name(SHARDED)
def test_sharded_processes_equal_one(sharded: Records, tmp_path: Path, run: ScheduledRun) -> None:
    assert_equals_one_process(sharded[run.name], run, tmp_path)
    for record in sharded[run.name]:
        assert record.resumed_losses == record.losses[14:]
        assert record.resumed_weights == record.weights
