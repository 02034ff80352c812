"""What `hf-freeze plan` says about the activation cache before any weights are read is what training does."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from hf_freeze import run
from hf_freeze.activation_cache.housekeeping import list_stores
from hf_freeze.config import load_config
from hf_freeze.config.sizes import spell_size
from hf_freeze.errors import CacheError
from hf_freeze.plan.cost import PlanCost
from hf_freeze.run.costing import priced_plan
from tests import tiny_run

WORDS = ("good", "bad", "film", "end", "what")
NUM_ROWS = 125
DEPTH = (
    "The activation cache holds the output of the embeddings and 2 blocks; the frozen prefix ends at blocks[2], where "
    "bert.encoder.layer.2.attention.self.query.weight trains."
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Rows of some pages each, as those of real models: smaller ones share pages, which are not full.
    return tiny_run.write_model(tmp_path_factory.mktemp("model"), hidden_size=256)


@pytest.fixture
def config(model: Path, tmp_path: Path) -> Path:
    """Two epochs over distinct rows of 4 to 13 tokens, with the cache in `cache` beside the config."""
    rows = tmp_path / "rows"
    rows.mkdir()
    with (rows / "train.csv").open("w", newline="") as file:
        texts = [" ".join(words) + " a" * (row % 8) for row, words in enumerate(itertools.product(WORDS, repeat=3))]
        csv.writer(file).writerows([["text", "label"], *((text, row % 2) for row, text in enumerate(texts))])
    sections = tiny_run.sections(model, rows, tmp_path / "out", max_steps=-1, num_train_epochs=2)
    sections |= {"freeze": {"blocks": {"first": 2}}, "activation_cache": {"dir": str(tmp_path / "cache")}}
    path = tmp_path / "config.yaml"
    YAML().dump(sections, path)
    return path


def told(config: Path, *overrides: str) -> tuple[Sequence[str], PlanCost]:
    table, cost = priced_plan(str(config), overrides)
    assert not (config.parent / "cache").exists()
    return table.cache, cost


def is_promised(cost: PlanCost) -> bool:
    promises = [cost.cache, cost.cached_over_full, cost.cached_over_loop, cost.peak_cached]
    assert promises.count(None) in (0, len(promises))
    return cost.cache is not None


def test_the_size_is_that_of_the_store_after_a_run(config: Path) -> None:
    lines, cost = told(config)
    assert cost.cache is not None
    assert is_promised(cost)
    run.train(load_config(str(config)))
    (store,) = list_stores(config.parent / "cache")
    assert store.rows == cost.cache.num_rows == NUM_ROWS
    assert cost.cache.num_bytes == pytest.approx(store.num_bytes, rel=0.25)
    size = spell_size(cost.cache.num_bytes)
    told_of_it = f"For {NUM_ROWS} rows of 1,055 tokens it takes about {size} of the disk, as float32"
    assert lines == (DEPTH, f"{told_of_it}, unless padding changes real tokens.")


def test_dropout_that_is_kept_leaves_nothing_to_hold(config: Path) -> None:
    lines, cost = told(config, "freeze.keep_dropout=true")
    reason = "freeze.keep_dropout is true: what the frozen blocks return is random"
    assert lines == (f"The activation cache has nothing to hold: {reason}.",)
    assert not is_promised(cost)


@pytest.mark.parametrize(("enabled", "verdict"), [("auto", "leaves it off"), ("true", "refuses it")])
def test_what_max_size_does_not_allow_is_not_promised(config: Path, enabled: str, verdict: str) -> None:
    overrides = [f"activation_cache.enabled={enabled}", "activation_cache.max_size=9kB"]
    lines, cost = told(config, *overrides)
    reason = "The rows need about 1.4 MB, and activation_cache.max_size allows 0.0 MB."
    assert lines[2:] == (f"Training {verdict}. {reason}",)
    assert not is_promised(cost)
    if enabled == "true":
        with pytest.raises(CacheError, match=rf"^activation_cache\.enabled: .* got True\. {reason} "):
            run.train(load_config(str(config), overrides))


def test_rows_that_are_met_as_training_goes_need_no_room_before(config: Path) -> None:
    lines, cost = told(config, "activation_cache.max_size=9kB", "activation_cache.build=lazy")
    assert len(lines) == 2
    assert is_promised(cost)


def test_what_does_not_pay_is_not_promised(config: Path) -> None:
    lines, cost = told(config, "training.num_train_epochs=0.1")
    reason = "Each row is needed once, and there is no padding to save: storing would take longer than it saves"
    assert lines[2:] == (f"Training leaves it off. {reason}, unless rows are stored already.",)
    assert not is_promised(cost)
    assert is_promised(told(config, "training.num_train_epochs=0.1", "activation_cache.enabled=true")[1])


def test_a_folder_that_cannot_be_written_is_not_promised(config: Path) -> None:
    lines, cost = told(config, f"activation_cache.dir={config}/cache")
    reason = f"activation_cache.dir: cannot write to this folder; got '{config}/cache' (Not a directory)."
    remedy = "Set activation_cache.dir to a folder on a local disk that can be written."
    assert lines[2:] == (f"Training leaves it off. {reason} {remedy}",)
    assert not is_promised(cost)


def test_a_model_that_is_to_return_what_blocks_compute_is_told(config: Path) -> None:
    lines, cost = told(config, "model.output_hidden_states=true")
    reason = "output_hidden_states is true in the model's config: the frozen blocks have to run for it"
    assert lines[2:] == (f"Training leaves it off. {reason}.",)
    assert not is_promised(cost)
