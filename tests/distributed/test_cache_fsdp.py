"""Two processes with weights sharded by FSDP2 train from the cache as one process does without it.

The frozen blocks are gathered to compute what is missing, by all ranks together, and never when all rows hit.
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
SERVED = 8 * NUM_STEPS + 2 * NUM_EVALUATED
BEST = {"save_strategy": "steps", "save_steps": 10, "load_best_model_at_end": True, "metric_for_best_model": "loss"}
BUILT = CachedRun("built")
BUILT_AGAIN = CachedRun("built, again")
LAZILY = CachedRun("lazily", ("lazily-0", "lazily-1"), LAZY)
ONE_MISSES = CachedRun("one misses", ("lazily-0", "empty-1"), LAZY)
ONE_BUILDS = CachedRun("one builds", ("shared", "empty-2"))
ONE_BUILDS_IF_IT_PAYS = CachedRun("one builds if it pays", ("shared", "empty-3"), {"enabled": "auto"})
BEST_RUN = CachedRun("best", options=BEST, evaluates=True)
RUNS = [BUILT, BUILT_AGAIN, LAZILY, ONE_MISSES, ONE_BUILDS, ONE_BUILDS_IF_IT_PAYS, BEST_RUN]
HITS = [BUILT, BUILT_AGAIN]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return session_folder(tmp_path_factory.getbasetemp()) / "cache-fsdp"


@pytest.fixture(scope="module")
def seen(folder: Path) -> Records:
    return launch(RUNS, folder, backend="fsdp2")


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_cached_equals_one_process_without_the_cache(seen: Records, tmp_path: Path, run: CachedRun) -> None:
    uncached = CachedRun(run.name, section={"enabled": False}, options=run.options, evaluates=run.evaluates)
    one = carry_out(uncached, tmp_path)
    for two in seen[run.name]:
        assert two.error == ""
        assert len(two.losses) == len(two.gradient_norms) == NUM_STEPS
        np.testing.assert_allclose(two.losses, one.losses, rtol=0, atol=1e-4)
        np.testing.assert_allclose(two.gradient_norms, one.gradient_norms, rtol=0, atol=1e-3)
        assert len(two.evaluations) == 2 + run.evaluates
        np.testing.assert_allclose(two.evaluations, one.evaluations, rtol=0, atol=1e-4)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_the_cache_is_on_for_all_ranks(seen: Records, run: CachedRun) -> None:
    for record in seen[run.name]:
        assert (record.is_on, record.reason) == (True, None)
        assert record.hits + record.misses == (SERVED + run.evaluates * NUM_EVALUATED) / 2


@pytest.mark.parametrize("run", HITS, ids=lambda run: run.name)
def test_frozen_blocks_are_never_gathered_where_all_rows_hit(seen: Records, run: CachedRun) -> None:
    for record in seen[run.name]:
        assert record.misses == 0
        assert record.gathered == 0
        assert record.gathered_others > 2 * NUM_STEPS


@pytest.mark.parametrize("run", [LAZILY, ONE_MISSES], ids=lambda run: run.name)
def test_frozen_blocks_are_gathered_on_all_ranks_where_a_row_misses_on_one(seen: Records, run: CachedRun) -> None:
    first, second = seen[run.name]
    assert first.gathered == second.gathered > 0


def test_one_rank_computes_its_rows_while_the_other_hits(seen: Records) -> None:
    first, second = seen["one misses"]
    assert first.misses == 0
    assert second.misses == second.num_rows > 0


def test_one_rank_builds_what_the_other_has(seen: Records) -> None:
    first, second = seen["one builds"]
    assert (first.built, first.num_rows) == (0, NUM_ROWS)
    # It builds its share, and computes the others as they come.
    assert second.built > 0
    assert second.built + second.misses == second.num_rows


def test_the_best_model_is_loaded_and_evaluated_from_the_cache(seen: Records) -> None:
    for record in seen["best"]:
        assert record.misses == 0
        assert record.evaluations[-1] == pytest.approx(min(record.evaluations[:-1]), abs=1e-6)


@pytest.mark.parametrize("name", ["shared", "lazily-0", "lazily-1", "empty-1", "empty-2", "empty-3"])
def test_every_stored_row_is_intact(seen: Records, folder: Path, name: str) -> None:
    (store,) = list_stores(folder / name)
    verdict = verify(store.folder)
    assert verdict.is_sound
    assert verdict.intact == store.rows > 0
