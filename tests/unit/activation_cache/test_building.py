"""Building before training: the shortest rows first, each once, from any data set, and nothing else changes."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import BatchEncoding

from hf_freeze import ActivationCache, CacheError
from hf_freeze.activation_cache import building
from hf_freeze.activation_cache import rows as rows_module
from hf_freeze.activation_cache.rows import Rows, Survey, token_lengths
from tests.unit.activation_cache.examples import (
    Batch,
    cache_of,
    collate,
    evaluate,
    frozen_bert,
    hits_and_misses,
    loader_of,
    rows_of,
)

ROWS = rows_of(70, longest=30)
LENGTHS = [len(row["input_ids"]) for row in ROWS]
ALL_HIT = (len(ROWS), 0)


class Listed(Dataset[Batch]):
    """Rows as tensors, by their number."""

    def __init__(self, rows: Sequence[Batch] = ROWS) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        return {name: torch.tensor(value) for name, value in self.rows[index].items()}


class Encoded(Listed):
    """Rows as a tokenizer returns them."""

    def __getitem__(self, index: int) -> Any:
        return BatchEncoding(self.rows[index])


class Epochs(Listed):
    """Rows that are told of epochs, and whose first word is another one in each where `moves` is set."""

    def __init__(self, *, moves: bool) -> None:
        super().__init__()
        self.moves, self.epoch = moves, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> Batch:
        row = super().__getitem__(index)
        row["input_ids"][0] = 5 + self.epoch * self.moves
        return row


class Pairs(Listed):
    """Rows that are no mappings, whose length nobody can tell."""

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]["input_ids"], self.rows[index]["labels"]


class Drawing(Listed):
    """Rows that come with numbers which nobody reads, drawn from all generators."""

    def __getitem__(self, index: int) -> Batch:
        random.random()
        np.random.rand()
        torch.rand(())
        return super().__getitem__(index)


def collate_tensors(rows: Sequence[Batch]) -> Batch:
    return collate([{name: value.tolist() for name, value in row.items()} for row in rows])


def collate_pairs(rows: Sequence[Any]) -> Batch:
    return collate([{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": label} for ids, label in rows])


def table() -> datasets.Dataset:
    return datasets.Dataset.from_list(ROWS)


def add_one(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Turns text into rows, as tokenizing on the fly does."""
    ids = [[int(word) for word in text.split()] for text in rows["text"]]
    return {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids], "labels": rows["labels"]}


def tokenized_on_the_fly() -> datasets.Dataset:
    text = [" ".join(map(str, row["input_ids"])) for row in ROWS]
    return datasets.Dataset.from_dict({"text": text, "labels": [r["labels"] for r in ROWS]}).with_transform(add_one)


def built(root: Path, loader: DataLoader[Any], **section: Any) -> ActivationCache:
    cache = cache_of(frozen_bert(), root, enabled=True, **section)
    cache.build(loader, show_progress=False)
    return cache


class TestOrder:
    def test_the_shortest_rows_come_first_in_large_batches(self, tmp_path: Path) -> None:
        cache = cache_of(frozen_bert(), tmp_path, enabled=True)
        cache.prepare_from(loader_of(ROWS))
        shapes: list[tuple[int, int]] = []
        cache.model.bert.encoder.layer[1].register_forward_hook(lambda *given: shapes.append(given[2].shape[:2]))
        cache.build(loader_of(ROWS), show_progress=False)
        ordered = sorted(LENGTHS)
        assert shapes == [(32, ordered[31]), (32, ordered[63]), (6, ordered[69])]
        cache.close()

    @pytest.mark.parametrize("batch_size", [5, 40])
    def test_batches_are_as_large_as_those_of_training_or_larger(self, tmp_path: Path, batch_size: int) -> None:
        cache = cache_of(frozen_bert(), tmp_path, enabled=True)
        loader = loader_of(ROWS, batch_size)
        cache.prepare_from(loader)
        sizes: list[int] = []
        cache.model.bert.encoder.layer[1].register_forward_hook(lambda *given: sizes.append(len(given[2])))
        cache.build(loader, show_progress=False)
        assert sizes == ([32, 32, 6] if batch_size == 5 else [40, 30])
        cache.close()

    def test_rows_whose_length_only_fetching_tells_are_sorted_some_batches_at_a_time(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rows_module, "_BATCHES_AT_ONCE", 2)
        cache = cache_of(frozen_bert(), tmp_path, enabled=True)
        loader = loader_of(Listed(), collate_fn=collate_tensors)
        cache.prepare_from(loader)
        shapes: list[tuple[int, int]] = []
        cache.model.bert.encoder.layer[1].register_forward_hook(lambda *given: shapes.append(given[2].shape[:2]))
        cache.build(loader, show_progress=False)
        first, last = sorted(LENGTHS[:64]), max(LENGTHS[64:])
        assert shapes == [(32, first[31]), (32, first[63]), (6, last)]
        cache.close()


class Counting(Listed):
    """Rows that count how often they are fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched = [0] * len(ROWS)

    def __getitem__(self, index: int) -> Batch:
        self.fetched[index] += 1
        return super().__getitem__(index)


class TestFetching:
    """Fetching may be what takes longest: rows are decoded, or tokenized, on the fly."""

    def test_building_fetches_each_row_once(self, tmp_path: Path) -> None:
        data = Counting()
        cache = cache_of(frozen_bert(), tmp_path, enabled=True)
        cache.prepare_from(loader_of(data, collate_fn=collate_tensors))
        assert sum(data.fetched) == 24  # eight rows twice, and by themselves
        assert sum(count > 0 for count in data.fetched) == 8
        found = cache.survey(loader_of(data, collate_fn=collate_tensors))
        assert found is not None
        assert sum(data.fetched) == 24 + 64
        data.fetched = [0] * len(ROWS)
        cache.build_surveyed([found], show_progress=False)
        assert cache.stats.built == len(ROWS)
        assert data.fetched == [2] + [1] * (len(ROWS) - 1)  # the first one tells whether rows have tokens
        cache.close()

    def test_lengths_of_a_table_are_read_without_running_its_transform(self, tmp_path: Path) -> None:
        ran: list[int] = []

        def transform(rows: dict[str, Any]) -> dict[str, Any]:
            ran.append(len(rows["input_ids"]))
            return rows

        data = table().select(range(69, -1, -1))
        data.set_transform(transform, columns=["labels", "input_ids", "attention_mask"])
        assert token_lengths(data) == LENGTHS[::-1]
        assert ran == []

    def test_the_survey_tells_how_long_fetching_takes(self, tmp_path: Path) -> None:
        class Slow(Listed):
            def __getitem__(self, index: int) -> Batch:
                time.sleep(0.01)
                return super().__getitem__(index)

        cache = cache_of(frozen_bert(), tmp_path, enabled=True)
        cache.prepare_from(loader_of(ROWS))
        for num_workers, least in ((0, 0.01), (2, 0.005)):
            found = cache.survey(loader_of(Slow(ROWS[:16]), collate_fn=collate_tensors, num_workers=num_workers))
            assert found is not None
            assert found.fetch_seconds >= least
        cache.close()


class TestCost:
    """A position takes a second; 10 rows of 6 positions, padded to 9 while training."""

    NOTHING_SAVED = "each row is needed once, and there is no padding to save: storing would take longer than it saves"
    FETCHED_AGAIN = "each row is needed once, and fetching it once more would take longer than it saves"

    @pytest.mark.parametrize(
        ("passes", "padded", "fetching", "stored", "reason", "before"),
        [
            (1, 9, 0.0, 0.0, None, True),
            (1, 9, 2.3, 0.0, None, True),
            (1, 9, 2.5, 0.0, FETCHED_AGAIN, True),
            (1, 9, 2.5, 0.5, None, True),
            (1, 6, 0.0, 0.0, NOTHING_SAVED, True),
            (1, 6, 0.0, 1.0, None, True),
            (1, 6, 9.0, 0.0, NOTHING_SAVED, False),
            (2, 9, 99.0, 0.0, None, False),
            (2, 6, 2.0, 0.0, None, True),
            (2, 6, 3.0, 0.0, None, False),
            (0.5, 9, 0.0, 0.0, NOTHING_SAVED, True),
        ],
    )
    def test_rows_are_stored_where_that_takes_less_time(
        self, passes: float, padded: float, fetching: float, stored: float, reason: str | None, before: bool
    ) -> None:
        found = Survey(
            rows=Rows(loader_of(ROWS), ()),
            num_rows=10,
            stored_share=stored,
            row_bytes=1.0,
            positions=6,
            padded_positions=padded,
            fetch_seconds=fetching,
        )
        assert building.reason_of_cost([(found, passes)], 1.0) == reason
        assert building.is_quicker_before(found, 1.0) is before


class TestRowsThatAreStored:
    def test_a_sample_that_is_stored_ends_it_before_it_begins(self, tmp_path: Path) -> None:
        built(tmp_path, loader_of(ROWS)).close()
        cache = cache_of(frozen_bert(), tmp_path, enabled=True)
        cache.prepare_from(loader_of(ROWS))
        ran: list[int] = []
        cache.model.bert.register_forward_hook(lambda *given: ran.append(1))
        cache.build(loader_of(ROWS), show_progress=False)
        assert ran == []
        assert (cache.stats.built, cache.stats.build_seconds) == (0, 0.0)
        cache.close()

    def test_only_what_is_missing_is_computed(self, tmp_path: Path) -> None:
        built(tmp_path, loader_of(ROWS[::2])).close()
        cache = cache_of(frozen_bert(), tmp_path, enabled=True)
        cache.prepare_from(loader_of(ROWS))
        sizes: list[int] = []
        cache.model.bert.encoder.layer[1].register_forward_hook(lambda *given: sizes.append(len(given[2])))
        cache.build(loader_of(ROWS), show_progress=False)
        assert sum(sizes) == cache.stats.built == 35
        assert hits_and_misses(cache, loader_of(ROWS)) == ALL_HIT

    def test_a_row_that_comes_several_times_is_stored_once(self, tmp_path: Path) -> None:
        cache = built(tmp_path, loader_of([*ROWS, *ROWS]))
        assert cache.num_rows == len(ROWS)
        assert cache.stats.built == len(ROWS)
        cache.close()


class TestRandomState:
    @pytest.mark.parametrize("workers", [0, 1])
    def test_it_is_as_before(self, tmp_path: Path, workers: int) -> None:
        for generator in (random.seed, np.random.seed, torch.manual_seed):
            generator(5)
        expected = random.random(), np.random.rand(), torch.rand(()).item()
        for generator in (random.seed, np.random.seed, torch.manual_seed):
            generator(5)
        loader = loader_of(Drawing(), collate_fn=collate_tensors, shuffle=True, num_workers=workers)
        cache = built(tmp_path, loader)
        assert cache.stats.built == len(ROWS)
        assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected
        cache.close()

    def test_the_loader_draws_the_same_order(self, tmp_path: Path) -> None:
        def order(loader: DataLoader[Any]) -> list[Any]:
            return [batch["input_ids"].tolist() for batch in loader]

        loader = loader_of(ROWS, shuffle=True, generator=torch.Generator().manual_seed(3))
        expected = order(loader)
        loader = loader_of(ROWS, shuffle=True, generator=torch.Generator().manual_seed(3))
        built(tmp_path, loader).close()
        assert order(loader) == expected


class TestProgress:
    def test_it_shows_rows_tokens_a_second_bytes_and_the_time_left(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(building, "_BYTES_AT_ONCE", 1)
        cache = cache_of(frozen_bert(), tmp_path, enabled=True)
        cache.build(loader_of(ROWS))
        _, first, *shown = capsys.readouterr().err.split("\r")  # those in between come at most ten times a second
        line = (
            r"Building the activation cache: +(\d+)%\|.*\| (\d+)/70 \[00:\d\d<(?:00:\d\d|\?), +[\d.]+"
            r"(?: rows/s|s/ rows), [\d,]+ tokens/s, (\d+) MB\] *\n?"
        )
        assert re.fullmatch(r"Building the activation cache: +0%\|.*\| 0/70 \[00:00<\?, \? rows/s\]", first)
        last = re.fullmatch(line, shown[-1])
        assert last is not None, shown[-1]
        assert last.groups() == ("100", "70", f"{cache.stats.num_bytes / 1e6:,.0f}")
        cache.close()

    def test_it_can_be_left_out(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        built(tmp_path, loader_of(ROWS)).close()
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("data", "collator", "is_sorted"),
    [
        (lambda: ROWS, collate, True),
        (table, collate, True),
        (lambda: table().with_format("torch"), collate_tensors, True),
        (lambda: table().select(range(69, -1, -1)), collate, True),
        (lambda: table().with_transform(dict), collate, True),
        (tokenized_on_the_fly, collate, True),
        (Listed, collate_tensors, True),
        (Encoded, collate, True),
        (Pairs, collate_pairs, False),
        (lambda: torch.utils.data.Subset(Listed(), range(70)), collate_tensors, True),  # type: ignore[arg-type]
        (lambda: torch.utils.data.ConcatDataset([Listed(ROWS[:9]), Listed(ROWS[9:])]), collate_tensors, True),
    ],
    ids=[
        "list",
        "datasets",
        "tensors",
        "selected",
        "transform",
        "tokenized on the fly",
        "torch",
        "encodings",
        "pairs",
        "subset",
        "concatenated",
    ],
)
def test_kinds_of_data_sets(tmp_path: Path, data: Any, collator: Any, is_sorted: bool) -> None:
    loader = loader_of(data(), collate_fn=collator)
    cache = cache_of(frozen_bert(), tmp_path, enabled=True)
    cache.prepare_from(loader)
    widths: list[int] = []
    cache.model.bert.encoder.layer[1].register_forward_hook(lambda *given: widths.append(given[2].shape[1]))
    cache.build(loader, show_progress=False)
    assert cache.stats.built == cache.num_rows == len(ROWS)
    assert (widths == sorted(widths)) is is_sorted
    expected = evaluate(frozen_bert(), loader)
    torch.testing.assert_close(evaluate(cache.model, loader, cache.serve), expected, rtol=0, atol=1e-6)
    assert cache.stats.misses == 0
    cache.close()


def test_a_stream_is_stored_when_it_is_seen(tmp_path: Path) -> None:
    """Nothing is known of its rows before they come, so there is nothing to build."""
    loader = loader_of(table().to_iterable_dataset())
    cache = built(tmp_path, loader)
    assert (cache.is_on, cache.num_rows, cache.stats.built) == (True, 0, 0)
    wrapped = cache.wrap(loader)
    assert hits_and_misses(cache, wrapped) == (0, len(ROWS))
    assert hits_and_misses(cache, wrapped) == ALL_HIT


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_fetch_the_rows(tmp_path: Path, context: str) -> None:
    loader = loader_of(Listed(), collate_fn=collate_tensors, num_workers=1, multiprocessing_context=context)
    cache = built(tmp_path, loader)
    assert cache.stats.built == cache.num_rows == len(ROWS)
    assert hits_and_misses(cache, loader_of(ROWS)) == ALL_HIT


def first_of(rows: Sequence[Batch]) -> Batch:
    return collate(rows[:1])


@pytest.mark.parametrize("enabled", ["auto", True])
@pytest.mark.parametrize(
    ("data", "collator", "reason"),
    [
        ([], collate, "there are no rows"),
        (ROWS, first_of, "the collator does not make one row of the batch from each row of the dataset"),
        (
            table().with_transform(
                lambda rows: {
                    **rows,
                    "input_ids": [[int(torch.randint(5, 99, ()))] * len(r) for r in rows["input_ids"]],
                }
            ),
            collate,
            "the same rows give other inputs each time they are fetched (augmentation, masking)",
        ),
        (
            Epochs(moves=True),
            collate_tensors,
            "the same rows give other inputs each time they are fetched (augmentation, masking)",
        ),
    ],
    ids=["no rows", "a batch of other rows", "augmentation", "augmentation in each epoch"],
)
def test_rows_that_cannot_be_stored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, data: Any, collator: Any, reason: str, enabled: object
) -> None:
    sentence = f"{reason[0].upper()}{reason[1:]}."
    cache = cache_of(frozen_bert(), tmp_path, enabled=enabled)
    loader = loader_of(data, collate_fn=collator)
    if enabled is True:
        message = (
            f"activation_cache.enabled: the cache cannot be used here; got True. {sentence} Set "
            "activation_cache.enabled to auto or false, or change what stands in its way."
        )
        with pytest.raises(CacheError, match=f"^{re.escape(message)}$"):
            cache.build(loader, show_progress=False)
    else:
        cache.build(loader, show_progress=False)
        assert caplog.messages == [f"activation_cache: off. {sentence}"]
    assert (cache.is_on, cache.reason) == (False, reason)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("moves", [True, False])
def test_a_data_set_that_is_told_of_epochs_is_in_the_first_one_afterwards(tmp_path: Path, moves: bool) -> None:
    rows = Epochs(moves=moves)
    cache = cache_of(frozen_bert(), tmp_path)
    assert cache.prepare_from(loader_of(rows, collate_fn=collate_tensors)) is not moves
    assert rows.epoch == 0
    cache.close()


def test_a_survey_needs_a_cache_that_is_on(tmp_path: Path) -> None:
    message = (
        "activation_cache: the cache is off; got a call that needs it. prepare() was not called. Call prepare() first "
        "and look at is_on."
    )
    with pytest.raises(CacheError, match=f"^{re.escape(message)}$"):
        cache_of(frozen_bert(), tmp_path).survey(loader_of(ROWS))
