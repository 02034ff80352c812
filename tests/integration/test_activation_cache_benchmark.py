"""The benchmarks of the activation cache run, and compare what they say they compare; no timing is asserted."""

from __future__ import annotations

import re
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import DataCollatorWithPadding

from benchmarks.activation_cache import main, parse_arguments
from benchmarks.cached_precision import ROUNDING, difference, jobs_of, perturbed
from benchmarks.contenders import Features, Reviews, Suffix, freeze_by_hand
from benchmarks.pacing import Estimate
from benchmarks.reviews import load_minilm, review_rows
from benchmarks.store_reading import evict, key_of, read
from benchmarks.whole_runs import SAMPLE_INTERVAL, MemoryWatch, anonymous_memory
from hf_freeze.activation_cache.store import ActivationStore

SMALL = ["--threads", "1", "--max-length", "16"]
SMALL_RUN = [*SMALL, "--rows", "8", "--evaluation-rows", "8", "--batch-size", "4", "--depths", "6"]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Puts back the number of threads, which the benchmark sets for the whole process."""
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


@pytest.fixture(scope="module")
def reviews() -> Reviews:
    model, tokenizer = load_minilm(seed=0)
    return Reviews(model.eval(), tokenizer, review_rows(tokenizer, "train", num_rows=6, max_length=24, seed=0))


def report_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    main(arguments)
    return capsys.readouterr().out


@pytest.mark.parametrize("depth", [2, 6])
def test_the_oracle_computes_what_the_model_does(reviews: Reviews, depth: int) -> None:
    rows = [reviews.train[row] for row in range(4)]
    batch = Features(reviews, depth).collate(range(4))
    with torch.no_grad():
        expected = reviews.model(**DataCollatorWithPadding(reviews.tokenizer)(rows))
        found = Suffix(reviews.model, depth)(**batch)
    torch.testing.assert_close(found["logits"], expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["loss"], expected.loss, atol=1e-5, rtol=0)


def test_features_are_trimmed_to_their_rows(reviews: Reviews) -> None:
    features = Features(reviews, 3)
    assert [len(row) for row in features.outputs] == [len(row) for row in reviews.train["input_ids"]]


def test_the_frozen_loop_trains_what_the_oracle_trains(reviews: Reviews) -> None:
    model, _ = load_minilm(seed=0)
    freeze_by_hand(model, 4)
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert trained == {id(parameter) for parameter in Suffix(model, 4).parameters()}


def test_the_frozen_loop_comes_first() -> None:
    for command in ("steps", "runs", "sweep", "memory"):
        assert parse_arguments([command]).contenders[0] == "frozen loop"
    chosen: Namespace = parse_arguments(["steps", "--contenders", "oracle", "full", "frozen loop"])
    assert chosen.contenders == ["frozen loop", "full", "oracle"]


def test_steps_are_measured_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "report.md"
    options = ["--depths", "6", "--batch-sizes", "2", "--rounds", "2", "--dropped", "1", "--output", str(output)]
    report = report_of(["steps", *SMALL, *options, "--folder", str(tmp_path)], capsys)
    assert output.read_text() == report
    times, ratios = r"(?: [\d.]+ \|){6}", r"(?: [\d.]+ \[[\d.]+, [\d.]+\] \|){6}"
    assert re.search(rf"^\| 2 \| 6 \|{times}{ratios}$", report, re.MULTILINE)
    assert list(tmp_path.iterdir()) == [output]


def test_runs_are_measured_and_reported(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--epochs", "1", "2", "--repeats", "1", "--contenders", "frozen loop", "cached"]
    report = report_of(["runs", *SMALL_RUN, *options], capsys)
    ratio = r"[\d.]+ \([\d.]+ to [\d.]+\)"
    row = rf"^\| [12] \| 6 \| [\d.]+ \| [\d.]+ \| {ratio} \| [\d.]+ \| [\d.]+ \|$"
    assert len(re.findall(row, report, re.MULTILINE)) == 2


def test_a_sweep_is_measured_and_reported(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--epochs", "1", "--learning-rates", "1e-4", "2e-4", "--contenders", "cached"]
    report = report_of(["sweep", *SMALL_RUN, *options], capsys)
    assert re.search(r"^\| 6 \| 2 \| [\d.]+ \|$", report, re.MULTILINE)
    assert re.search(r"^\| 6 \| 0.0002 \| [\d.]+ \|$", report, re.MULTILINE)


@pytest.mark.slow
def test_memory_is_measured_and_reported(capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(["memory", *SMALL_RUN, "--epochs", "1", "--repeats", "1"], capsys)
    assert re.search(r"^\| 6 \| \d+ \| \d+ \| \d+ \| [\d.]+ \|$", report, re.MULTILINE)


def test_the_profile_names_the_functions_of_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(["profile", *SMALL, "--rounds", "2", "--batch-size", "2", "--functions", "400"], capsys)
    assert re.search(r"^\| `hf_freeze/training/caching.py:\d+ training_step` \| 1.0 \| ", report, re.MULTILINE)


def test_precision_is_compared_in_several_calls_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--rows", "8", "--evaluation-rows", "8", "--batch-size", "4", "--depth", "5", "--epochs", "1"]
    options += ["--seeds", "0", "--storages", "float16", "autocast", "--results", str(tmp_path / "results.json")]
    assert len(jobs_of(0, ["float16", "autocast"])) == 6
    row = r"^\| [\w, ]+ \| [\w ]+ \|(?: [\de.-]+ \|){3} [\d.]+ \| [\d.]+ % \|$"
    found = [
        re.findall(row, report_of(["precision", *SMALL, *options, *jobs], capsys), re.MULTILINE)
        for jobs in (["--jobs", "2"], [])
    ]
    assert [len(rows) for rows in found] == [2, 7]
    assert found[1][0].startswith("| float16 | trained | ")
    # The same weights under the same autocast: nothing is rounded on its way to the store and back.
    assert "| auto, autocast | same weights | 0 | 0 | 0 | 100.0 | 100.00 % |" in found[1]


def test_differences_are_counted_in_standard_deviations() -> None:
    other = {"logits": [[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]], "loss": 0.5}
    one = {"logits": [[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [0.5, 0.0]], "loss": 0.25}
    found = difference(one, other)
    assert (found.largest, found.mean, found.loss, found.same) == (1.5, 0.3125, 0.25, 0.75)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_perturbation_is_as_large_as_rounding(dtype: str) -> None:
    block, values = torch.nn.Identity(), torch.randn(4096)
    rounded = ((values.to(getattr(torch, dtype)) - values) / values).abs().max()
    with perturbed(block, ROUNDING[dtype], seed=0):
        moved = ((block(values) - values) / values).abs().max()
    assert rounded <= 1.01 * ROUNDING[dtype]
    assert 0.9 < moved / ROUNDING[dtype] < 1.01
    assert 0.9 < moved / rounded < 1.1
    assert torch.equal(block(values), values)


def test_the_rows_to_evaluate_on_follow_the_rows_to_train_on() -> None:
    assert parse_arguments(["runs", "--rows", "7500"]).evaluation_rows == 1500


def test_growth_is_measured_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--parts", "growth", "--rows", "300", "600", "--reads", "5", "--batch-size", "4"]
    report = report_of(["reading", *SMALL, *options, "--hidden", "8", "--folder", str(tmp_path)], capsys)
    assert len(re.findall(r"^\| (?:300|600) \| [\d.]+ \| \d+ \| ", report, re.MULTILINE)) == 2
    assert not list(tmp_path.iterdir())


def test_an_evicted_store_still_has_its_rows(tmp_path: Path) -> None:
    base = torch.randn(256, 3, 5)
    store = ActivationStore(tmp_path, "rows")
    store.put([(key_of(row), base[row]) for row in range(10)])
    evict(store)
    assert len(read(store, [[1, 2], [9, 0]], [(2, 3, 5)] * 2, base).seconds) == 2
    with pytest.raises(SystemExit, match=r"^1 of 2 rows were not found\.$"):
        read(store, [[1, 10]], [(2, 3, 5)])
    store.put([(key_of(11), base[12])])
    with pytest.raises(SystemExit, match=r"^Row 11 is not what was written\.$"):
        read(store, [[11]], [(1, 3, 5)], base)
    store.close()


@pytest.mark.slow
def test_the_watch_keeps_the_peak_of_memory_that_was_given_back() -> None:
    with MemoryWatch() as before:
        pass
    wanted = before.peak + (60 << 20)
    with MemoryWatch() as watch:
        block = torch.ones(64 << 20, dtype=torch.uint8)
        for _ in range(1000):  # the other thread may have to wait for a processor
            if watch.peak < wanted:
                time.sleep(SAMPLE_INTERVAL)
        del block
    assert watch.peak >= wanted > anonymous_memory()


def test_an_estimate_is_written_with_its_interval() -> None:
    assert f"{Estimate(1.5, 1.25, 2):.1f}" == "1.5 [1.2, 2.0]"
