"""Two processes of DistributedDataParallel train from the cache as one process does without it.

Every process stores its own rows, and all of them use the cache, or none does.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hf_freeze.activation_cache.housekeeping import list_stores
from hf_freeze.activation_cache.verifying import verify
from tests.distributed.cached_launching import Records, launch
from tests.distributed.cached_run import NUM_EVALUATED, NUM_ROWS, NUM_STEPS, CachedRun, carry_out
from tests.distributed.launching import session_folder

pytestmark = pytest.mark.distributed

LAZY = {"enabled": True, "build": "lazy"}
# What two processes are served in a run: the rows of 20 batches of eight, and of two evaluations.
SERVED = 8 * NUM_STEPS + 2 * NUM_EVALUATED
BUILT = CachedRun("built")
BUILT_AGAIN = CachedRun("built, again")
LAZILY = CachedRun("lazily", ("lazily",), LAZY)
LAZILY_AGAIN = CachedRun("lazily, again", ("lazily",), LAZY)
APART = CachedRun("apart", ("apart-0", "apart-1"), LAZY)
STREAM = CachedRun("stream", ("stream",), streams=True)
STREAM_AGAIN = CachedRun("stream, again", ("stream",), streams=True)
ACCUMULATED = CachedRun("accumulated", options={"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2})
HALF_FILLED = CachedRun("half filled", ("apart-0", "empty"), {"enabled": "auto"})
CACHED = [BUILT, BUILT_AGAIN, LAZILY, LAZILY_AGAIN, APART, STREAM, STREAM_AGAIN, ACCUMULATED, HALF_FILLED]
FALLEN_BACK = CachedRun("fallen back", ("good", "blocked/folder"), {"enabled": "auto"})
REFUSED = CachedRun("refused", ("good", "blocked/folder"))
# Three batches, each row once: that pays only where rows are stored already, which they are for one of the two.
PAYS_FOR_ONE = CachedRun(
    "pays for one", ("lazily", "new"), {"enabled": "auto"}, options={"max_steps": 3, "eval_strategy": "no"}
)
RUNS = [*CACHED, FALLEN_BACK, REFUSED, PAYS_FOR_ONE]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = session_folder(tmp_path_factory.getbasetemp()) / "cache-ddp"
    folder.mkdir(exist_ok=True)
    (folder / "blocked").touch()  # A file: no folder can be made below it, not even by root.
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> Records:
    return launch(RUNS, folder, backend="ddp")


@pytest.mark.parametrize("run", [*CACHED, FALLEN_BACK], ids=lambda run: run.name)
def test_cached_equals_one_process_without_the_cache(seen: Records, tmp_path: Path, run: CachedRun) -> None:
    options = {} if run is ACCUMULATED else run.options
    one = carry_out(CachedRun(run.name, section={"enabled": False}, options=options, streams=run.streams), tmp_path)
    for two in seen[run.name]:
        assert two.error == ""
        assert len(two.losses) == len(two.gradient_norms) == NUM_STEPS
        np.testing.assert_allclose(two.losses, one.losses, rtol=0, atol=1e-4)
        np.testing.assert_allclose(two.gradient_norms, one.gradient_norms, rtol=0, atol=1e-3)
        assert len(two.evaluations) == 2
        np.testing.assert_allclose(two.evaluations, one.evaluations, rtol=0, atol=1e-4)


@pytest.mark.parametrize("run", CACHED, ids=lambda run: run.name)
def test_the_cache_serves_every_row_on_every_rank(seen: Records, run: CachedRun) -> None:
    for record in seen[run.name]:
        assert (record.is_on, record.reason) == (True, None)
        assert record.hits + record.misses == SERVED / 2


def test_ranks_share_the_building_before_training(seen: Records) -> None:
    # Whoever is done with its half of the rows for training goes on with those for evaluation, which are among them.
    assert sum(record.built for record in seen["built"]) == NUM_ROWS
    assert min(record.built for record in seen["built"]) > NUM_ROWS / 4
    assert [record.misses for record in seen["built"]] == [0, 0]


@pytest.mark.parametrize("run", [BUILT_AGAIN, LAZILY_AGAIN, STREAM_AGAIN, ACCUMULATED], ids=lambda run: run.name)
def test_a_second_run_computes_nothing(seen: Records, run: CachedRun) -> None:
    for record in seen[run.name]:
        assert (record.built, record.misses, record.hits) == (0, 0, SERVED / 2)


@pytest.mark.parametrize("run", [LAZILY, STREAM], ids=lambda run: run.name)
def test_rows_are_stored_once_as_they_come(seen: Records, run: CachedRun) -> None:
    # The rows to evaluate on have a length in any case, and are built before training where nothing else is asked for.
    built = sum(record.built for record in seen[run.name])
    assert built == (NUM_EVALUATED if run.streams else 0)
    assert built + sum(record.misses for record in seen[run.name]) == NUM_ROWS
    assert [record.num_rows for record in seen[run.name]] == [NUM_ROWS, NUM_ROWS]


def test_ranks_write_their_own_rows(seen: Records) -> None:
    for record in seen["apart"]:
        assert record.num_rows == record.misses
        assert NUM_ROWS / 2 <= record.num_rows < NUM_ROWS


@pytest.mark.parametrize("name", ["shared", "lazily", "apart-0", "apart-1", "stream", "empty"])
def test_every_stored_row_is_intact(seen: Records, folder: Path, name: str) -> None:
    (store,) = list_stores(folder / name)
    verdict = verify(store.folder)
    assert verdict.is_sound
    assert verdict.intact == store.rows > 0


def test_a_folder_that_one_rank_cannot_use_turns_the_cache_off_on_all(seen: Records, folder: Path) -> None:
    for record in seen["fallen back"]:
        assert not record.is_on
        assert record.reason == problem(folder)
        assert record.hits == record.misses == record.built == 0


def test_a_cache_that_does_not_pay_for_one_rank_is_off_on_all(seen: Records) -> None:
    for record in seen["pays for one"]:
        assert len(record.losses) == 3
        assert record.reason == (
            "each row is needed once, and there is no padding to save: storing would take longer than it saves"
        )


def test_it_is_said_once(seen: Records, folder: Path) -> None:
    said = (folder / "output").read_text()
    assert said.count("activation_cache: off.") == 2
    assert said.count("activation_cache: off. activation_cache.dir: cannot write to this folder;") == 1
    assert said.count("activation_cache: off. Each row is needed once,") == 1


def test_where_the_cache_has_to_be_on_all_ranks_raise(seen: Records, folder: Path) -> None:
    for record in seen["refused"]:
        assert record.error == problem(folder)
        assert record.losses == []


def problem(folder: Path) -> str:
    return (
        "activation_cache.dir: cannot write to this folder; got "
        f"{str(folder / 'blocked' / 'folder')!r} (Not a directory). "
        "Set activation_cache.dir to a folder on a local disk that can be written."
    )
