"""What a kill, damage or want of room does to the activation cache: it costs time, and never changes a result."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from hf_freeze.activation_cache.descriptions import FORMAT_VERSION
from hf_freeze.activation_cache.housekeeping import StoreInfo, list_stores
from hf_freeze.activation_cache.verifying import verify
from hf_freeze.errors import CacheError
from tests.conftest import REPOSITORY
from tests.integration.cached_training import NUM_EVALUATED, NUM_ROWS, Result, Task, carry_out

pytestmark = pytest.mark.distributed

# Rows that a run of ten steps is served, in training and in two evaluations.
SERVED = 80 + 2 * NUM_EVALUATED
NUM_DISTINCT = NUM_ROWS + NUM_EVALUATED
Start = Callable[..., list[int]]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Carries tasks out at once, each in a process of its own, and returns their exit codes."""
    command = [sys.executable, "-m", "tests.integration.cached_training"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        command, env=environment, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:

        def carry_out_at_once(*tasks: Task) -> list[int]:
            assert server.stdin is not None
            assert server.stdout is not None
            print(json.dumps([dataclasses.asdict(task) for task in tasks]), file=server.stdin, flush=True)
            codes: list[int] = json.loads(server.stdout.readline())
            return codes

        yield carry_out_at_once
        server.communicate(timeout=60)


@pytest.fixture(scope="module")
def uncached(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The run without the cache."""
    task = Task(str(tmp_path_factory.mktemp("uncached")), {"enabled": False})
    assert start(task) == [0]
    return result_of(task)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return Task(str(tmp_path / "first"), {"enabled": True, "build": "eager", "dir": str(tmp_path / "cache")})


@pytest.fixture
def filled(start: Start, task: Task) -> StoreInfo:
    """The store that a whole run has filled."""
    assert start(task) == [0]
    assert result_of(task).built == NUM_DISTINCT
    return sound_store(task)


def result_of(task: Task) -> Result:
    return Result(**json.loads((Path(task.output) / "result.json").read_text()))


def said_by(task: Task) -> list[str]:
    """What a run said about the cache; the summary at its end, which says how much was cached, is left out."""
    lines = (Path(task.output) / "said").read_text().splitlines()
    return [line for line in lines if line.startswith("activation_cache: ")]


def sound_store(task: Task) -> StoreInfo:
    """The only store of a cache, of which every row is intact."""
    (store,) = list_stores(Path(task.cache["dir"]))
    verdict = verify(store.folder)
    assert verdict.is_sound
    assert verdict.intact == store.rows
    return store


def again(task: Task, name: str = "second", **changes: object) -> Task:
    return dataclasses.replace(task, output=str(Path(task.output).with_name(name)), **changes)  # type: ignore[arg-type]


def assert_same(result: Result, expected: Result) -> None:
    assert len(result.losses) == len(expected.losses) == 10
    np.testing.assert_allclose(result.losses, expected.losses, rtol=0, atol=1e-5)
    assert len(result.evaluations) == len(expected.evaluations) == 2
    np.testing.assert_allclose(result.evaluations, expected.evaluations, rtol=0, atol=1e-5)


@pytest.mark.parametrize("build", ["eager", "lazy"])
def test_killed_at_random_moments_and_run_to_the_end(start: Start, uncached: Result, task: Task, build: str) -> None:
    draw, root = random.Random(build), Path(task.cache["dir"])
    task = again(task, cache={**task.cache, "build": build})
    num_rows = [0]
    for trial in range(5):
        # Every run finds rows that none before it has seen, stores them bit by bit, and would train for hours.
        killed = again(task, f"killed-{trial}", num_rows=1000 * (trial + 1), num_steps=10**6, bytes_at_once=1 << 19)
        assert start(dataclasses.replace(killed, killed_after=draw.uniform(0.0, 1.0))) == [-9]
        stores = list_stores(root)
        assert [verify(store.folder).is_sound for store in stores] == [True] * len(stores)
        num_rows.append(sum(store.rows for store in stores))
    assert num_rows == sorted(num_rows)
    assert num_rows[-1] > 0
    assert start(task) == [0]
    assert_same(result_of(task), uncached)
    assert said_by(task) == []
    assert sound_store(task).rows >= num_rows[-1]


@pytest.mark.parametrize("build", ["eager", "lazy"])
def test_two_processes_fill_one_cache_at_once(start: Start, uncached: Result, task: Task, build: str) -> None:
    both = [again(task, name, cache={**task.cache, "build": build}) for name in ("one", "other")]
    assert start(*both) == [0, 0]
    for each in both:
        assert_same(result_of(each), uncached)
        assert said_by(each) == []
    assert sound_store(task).rows == NUM_DISTINCT


def test_a_second_run_computes_nothing(start: Start, uncached: Result, task: Task, filled: StoreInfo) -> None:
    assert start(again(task)) == [0]
    result = result_of(again(task))
    assert_same(result, uncached)
    assert (result.hits, result.misses, result.built) == (SERVED, 0, 0)


def test_a_flipped_bit_is_found_and_its_row_computed_again(
    start: Start, uncached: Result, task: Task, filled: StoreInfo
) -> None:
    data = filled.folder / "data.mdb"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    verdict = verify(filled.folder)
    assert (verdict.intact, verdict.damaged) == (NUM_DISTINCT - 1, 1)
    assert start(again(task)) == [0]
    assert_same(result_of(again(task)), uncached)
    assert result_of(again(task)).misses == 1
    assert said_by(again(task)) == [f"activation_cache: {filled.folder} has damaged rows. They are computed again."]
    assert verify(filled.folder).is_sound
    third = again(task, "third")
    assert start(third) == [0]
    assert_same(result_of(third), uncached)
    assert (result_of(third).misses, said_by(third)) == (0, [])


def test_a_file_that_was_cut_off_is_found_before_it_is_read(
    start: Start, uncached: Result, task: Task, filled: StoreInfo
) -> None:
    data = filled.folder / "data.mdb"
    size = data.stat().st_size
    os.truncate(data, size // 2)
    assert start(again(task)) == [0]  # and not -7, the SIGBUS that reading would be answered with
    result = result_of(again(task))
    assert_same(result, uncached)
    assert result.built == NUM_DISTINCT
    problem = f"{data} is damaged ({size - size // 2} bytes are missing at its end)"
    assert said_by(again(task)) == [f"activation_cache: {problem}. Its rows are discarded and computed again."]
    assert sound_store(task).rows == NUM_DISTINCT


def test_a_store_of_another_format_is_built_anew(start: Start, uncached: Result, task: Task, filled: StoreInfo) -> None:
    meta = filled.folder / "meta.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "format_version": FORMAT_VERSION + 1}))
    (filled.folder / "data.mdb").write_bytes(b"what another version wrote")
    assert start(again(task)) == [0]
    result = result_of(again(task))
    assert_same(result, uncached)
    assert result.built == NUM_DISTINCT
    assert said_by(again(task)) == []
    assert sound_store(task).format_version == FORMAT_VERSION


@pytest.mark.parametrize("build", ["eager", "lazy"])
def test_training_goes_on_where_no_space_is_left(start: Start, uncached: Result, task: Task, build: str) -> None:
    limited = again(task, cache={**task.cache, "build": build}, max_file_size=400_000)
    assert start(limited) == [0]
    result = result_of(limited)
    assert_same(result, uncached)
    assert result.misses > 0
    (line,) = said_by(limited)
    assert line.startswith(f"activation_cache: {sound_store(task).folder} takes no more rows (")
    assert line.endswith("). Training goes on without storing more rows.")
    assert start(again(task, "third")) == [0]
    assert_same(result_of(again(task, "third")), uncached)
    assert sound_store(task).rows == NUM_DISTINCT


def refusal(folder: Path, *, on_network: bool) -> str:
    """Why a network filesystem is no place for the cache, or a folder below a file."""
    if on_network:
        return (
            "activation_cache.dir: a filesystem that may be on a network cannot hold the cache safely; got "
            f"{str(folder)!r}, which is on nfs4. Set activation_cache.dir to a folder on a local disk."
        )
    return (
        f"activation_cache.dir: cannot write to this folder; got {str(folder)!r} (Not a directory). "
        "Set activation_cache.dir to a folder on a local disk that can be written."
    )


@pytest.mark.parametrize("on_network", [False, True], ids=["a file", "a network filesystem"])
@pytest.mark.parametrize("enabled", ["auto", True])
def test_a_folder_that_cannot_hold_the_cache(
    uncached: Result,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    on_network: bool,
    enabled: object,
) -> None:
    folder = tmp_path / "place" / "cache"
    if on_network:
        folder.parent.mkdir()
        mounts = [("/", "ext4"), (str(folder.parent), "nfs4")]
        partitions = [SimpleNamespace(mountpoint=mountpoint, fstype=kind) for mountpoint, kind in mounts]
        monkeypatch.setattr(psutil, "disk_partitions", lambda **_: partitions)
    else:
        folder.parent.touch()
    reason = refusal(folder, on_network=on_network)
    task = Task(str(tmp_path / "out"), {"enabled": enabled, "dir": str(folder), "build": "eager"})
    if enabled is True:
        with pytest.raises(CacheError) as raised:
            carry_out(task)
        assert str(raised.value) == reason
    else:
        result = carry_out(task)
        assert_same(result, uncached)
        assert not result.is_on
        assert [record.message for record in caplog.records if record.name.startswith("hf_freeze.")].count(
            f"activation_cache: off. {reason}"
        ) == 1
    assert not folder.exists()
