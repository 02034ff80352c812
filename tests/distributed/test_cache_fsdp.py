"""The activation cache is off where FSDP2 shards the frozen blocks: two processes train as one does, or refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.distributed.cached_launching import Records, launch
from tests.distributed.cached_run import NUM_STEPS, CachedRun, carry_out
from tests.distributed.launching import session_folder

pytestmark = pytest.mark.distributed

FALLEN_BACK = CachedRun("fallen back", section={"enabled": "auto"})
REFUSED = CachedRun("refused")
REASON = "FSDP shards the frozen blocks, and gathers them for calls of its own only"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return session_folder(tmp_path_factory.getbasetemp()) / "cache-fsdp"


@pytest.fixture(scope="module")
def seen(folder: Path) -> Records:
    return launch([FALLEN_BACK, REFUSED], folder, backend="fsdp2")


def test_training_falls_back_and_equals_one_process(seen: Records, folder: Path, tmp_path: Path) -> None:
    one = carry_out(CachedRun("one", section={"enabled": False}), tmp_path)
    for two in seen["fallen back"]:
        assert (two.is_on, two.reason, two.error) == (False, REASON, "")
        assert two.hits == two.misses == two.built == 0
        assert two.gathered > NUM_STEPS
        np.testing.assert_allclose(two.losses, one.losses, rtol=0, atol=1e-4)
        np.testing.assert_allclose(two.gradient_norms, one.gradient_norms, rtol=0, atol=1e-3)
        np.testing.assert_allclose(two.evaluations, one.evaluations, rtol=0, atol=1e-4)
    assert (folder / "output").read_text().count(f"activation_cache: off. {REASON}.") == 1


def test_where_the_cache_has_to_be_on_all_ranks_raise(seen: Records) -> None:
    for record in seen["refused"]:
        assert record.error == (
            f"activation_cache.enabled: the cache cannot be used here; got True. {REASON}. "
            "Set activation_cache.enabled to auto or false, or change what stands in its way."
        )
        assert record.losses == []
