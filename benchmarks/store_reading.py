"""Times the store of the activation cache by itself: a batch beside a training step, and at random as the store grows.

Warm means that the pages were read just before. Cold means that the file was closed, synchronised and dropped from the
page cache (`posix_fadvise` with `POSIX_FADV_DONTNEED`); how much then came from the disk is counted by the kernel
(`read_bytes` in `/proc/self/io`), so a page that was not dropped shows. The disk's own cache, and that of a machine
around this one, cannot be dropped. Shapes: `B` batch, `L` sequence, `H` hidden.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.contenders import Features, Oracle, Reviews
from benchmarks.pacing import Gate, estimate
from benchmarks.reviews import load_minilm, review_rows
from benchmarks.whole_runs import anonymous_memory, table_head, table_row
from hf_freeze.activation_cache.store import ActivationStore

NUM_DROPPED = 5
COLUMNS = (
    *("rows", "file, GB", "file, bytes a row", "writing, µs a row"),
    *("the same to a plain file, µs a row", "writing / plain file", "opening, s"),
    *("cold batch: median (mean), ms", "from the disk, MB a batch", "warm batch: median (mean), ms"),
    "anonymous memory since the start, MB",
)
# Rows that are put at once, about a batch of an eager build.
PUT_SIZE = 256
PAGE_SIZE = 4096
# What a record has beside its values, and a page run beside its record, in bytes.
RECORD_OVERHEAD = 64
# What is left free of the disk, in bytes.
SPARE_DISK = 10 * 10**9


@dataclass(frozen=True)
class Reads:
    """Reading several batches.

    Attributes:
        seconds: Of each batch.
        disk_bytes: Per batch, what came from the disk.
    """

    seconds: list[float]
    disk_bytes: float

    @property
    def milliseconds(self) -> str:
        """The median and the mean."""
        return f"{1e3 * statistics.median(self.seconds):.3f} ({1e3 * statistics.mean(self.seconds):.3f})"


def reading_lines(options: argparse.Namespace) -> list[str]:
    """Returns the tables of `reading`."""
    parts: dict[str, Callable[[argparse.Namespace], list[str]]] = {"step": step_lines, "growth": growth_lines}
    return [line for part in options.parts for line in (*parts[part](options), "")]


def step_lines(options: argparse.Namespace) -> list[str]:
    """Returns the table that compares reading a batch of reviews with a step of the oracle on the same batch."""
    model, tokenizer = load_minilm(seed=options.seed)
    num_rounds, size = NUM_DROPPED + options.rounds, options.batch_size
    rows = review_rows(tokenizer, "train", num_rows=num_rounds * size, max_length=options.max_length, seed=options.seed)
    reviews = Reviews(model, tokenizer, rows)
    features = Features(reviews, options.depth)
    outputs = features.outputs
    oracle = Oracle(reviews, features, depth=options.depth, batch_size=size, num_steps=num_rounds, gate=Gate())
    batches = [list(range(start, start + size)) for start in range(0, len(outputs), size)]
    shapes = [(size, max(len(outputs[row]) for row in batch), outputs[0].shape[1]) for batch in batches]
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        store = ActivationStore(Path(folder), "reviews", depth=options.depth)
        # The longest first, as a build does: the rows of a batch lie far apart.
        order = sorted(range(len(outputs)), key=lambda row: -len(outputs[row]))
        store.put((key_of(row), outputs[row]) for row in order)
        steps: list[float] = []
        warm: list[float] = []
        for index, (batch, shape) in enumerate(zip(batches, shapes, strict=True)):
            turns: list[tuple[list[float], Callable[[], object]]] = [
                (steps, partial(oracle.step, index)),
                (warm, partial(_read, store, batch, shape)),
            ]
            for seconds, work in draw.sample(turns, k=2):
                seconds.append(_time(work))
        evict(store)
        cold = read(store, batches, shapes)
        store.close()
    steps, warm = steps[NUM_DROPPED:], warm[NUM_DROPPED:]
    percent = estimate(100 * np.array(warm) / np.array(steps), np.median, seed=options.seed)
    cold_percent = 100 * statistics.mean(cold.seconds) / statistics.mean(steps)
    step = 1e3 * statistics.median(steps)
    return [
        f"Reading {size} reviews (`get_into` zeros, digests checked).",
        f"A step of the oracle at k = {options.depth} takes {step:.1f} ms, the median of {options.rounds}.",
        "",
        *table_head(["page cache", "a batch: median (mean), ms", "of a step, %", "from the disk, MB a batch"]),
        table_row(["warm", Reads(warm, 0).milliseconds, f"{percent:.2f}", ""]),
        table_row(["cold", cold.milliseconds, f"{cold_percent:.2f} (of means)", f"{cold.disk_bytes / 1e6:.2f}"]),
    ]


def growth_lines(options: argparse.Namespace) -> list[str]:
    """Returns the table of writing and reading made-up rows as the store grows."""
    dtype: torch.dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}[options.dtype]
    num_bytes = options.tokens * options.hidden * dtype.itemsize
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        free = shutil.disk_usage(folder).free
        page_bytes = -(-(num_bytes + RECORD_OVERHEAD) // PAGE_SIZE) * PAGE_SIZE
        sizes = [size for size in sorted(options.rows) if size * page_bytes <= free - SPARE_DISK]
        skipped = [size for size in options.rows if size not in sizes]
        lines = [
            f"Rows of {options.tokens} tokens x {options.hidden} {options.dtype}: {num_bytes} bytes.",
            f"They are put {PUT_SIZE} at once. {_total_memory() / 1e9:.0f} GB of memory.",
            f"At each size, {options.reads} batches of {options.batch_size} rows are read at random.",
            *[f"{size} rows did not fit in {free / 1e9:.0f} GB of free disk." for size in skipped],
            "",
            *table_head(COLUMNS),
        ]
        store = ActivationStore(Path(folder), "growth")
        torch.manual_seed(options.seed)
        base = torch.randn(PUT_SIZE, options.tokens, options.hidden).to(dtype)
        draw = random.Random(options.seed)
        start, written = anonymous_memory(), 0
        for size in sizes:
            print(f"growing to {size} rows", file=sys.stderr)
            seconds = _write(store, base, written, size)
            per_row = [1e6 * each / (size - written) for each in seconds]
            written = size
            lines.append(_growth_row(store, written, per_row, start, base, draw, options))
        store.close()
    return lines


def _growth_row(
    store: ActivationStore,
    num_rows: int,
    microseconds: Sequence[float],
    start: int,
    base: torch.Tensor,
    draw: random.Random,
    options: argparse.Namespace,
) -> str:
    batches = [[draw.randrange(num_rows) for _ in range(options.batch_size)] for _ in range(options.reads)]
    shapes = [(options.batch_size, *base.shape[1:])] * len(batches)
    evict(store)
    opening = _time(partial(store.has, [key_of(0)]))
    cold = read(store, batches, shapes, base)
    warm = read(store, batches, shapes, base)
    file = _data_file(store).stat().st_size
    return table_row(
        [
            *(num_rows, f"{file / 1e9:.2f}", f"{file / num_rows:.0f}"),
            *(*(f"{each:.1f}" for each in microseconds), f"{microseconds[0] / microseconds[1]:.2f}", f"{opening:.2f}"),
            *(cold.milliseconds, f"{cold.disk_bytes / 1e6:.2f}", warm.milliseconds),
            f"{(anonymous_memory() - start) / 1e6:.1f}",
        ]
    )


def _write(store: ActivationStore, base: torch.Tensor, first: int, end: int) -> tuple[float, float]:
    """Writes the rows from `first` to before `end` to a plain file, which is removed, and then puts them.

    One after the other: in turns, the one that waits for the disk waits for what the other has left to it.

    Returns:
        The seconds that putting and the plain file took.
    """
    path = store.folder.parent / "plain"
    begins = range(first, end, PUT_SIZE)
    plain = sum(_time(partial(_append, path, base[: end - begin])) for begin in begins)
    path.unlink()
    put = 0.0
    for begin in begins:
        rows = [(key_of(row), base[row % PUT_SIZE]) for row in range(begin, min(begin + PUT_SIZE, end))]
        put += _time(partial(store.put, rows))
        if not store.writable:
            sys.exit(f"The store took no more rows after {begin}: {store.reason}.")
    return put, plain


def _append(path: Path, rows: torch.Tensor) -> None:
    """Writes rows to the end of a file and waits until they are on the disk."""
    with path.open("ab") as file:
        file.write(rows.view(torch.uint8).numpy().data)
        file.flush()
        os.fdatasync(file.fileno())


def read(
    store: ActivationStore,
    batches: Sequence[Sequence[int]],
    shapes: Sequence[tuple[int, ...]],
    base: torch.Tensor | None = None,
) -> Reads:
    """Reads batches one after the other.

    Args:
        store: What to read from.
        batches: The numbers of the rows.
        shapes: (B, L, H) of each batch.
        base: What made-up rows were taken from, which they are compared with after the clock has stopped.
    """
    before = _disk_bytes()
    seconds = []
    for batch, shape in zip(batches, shapes, strict=True):
        start = time.perf_counter()
        out = _read(store, batch, shape, None if base is None else base.dtype)
        seconds.append(time.perf_counter() - start)
        if base is not None and not torch.equal(out[0], base[batch[0] % PUT_SIZE]):
            sys.exit(f"Row {batch[0]} is not what was written.")
    return Reads(seconds, (_disk_bytes() - before) / len(batches))


def evict(store: ActivationStore) -> None:
    """Closes a store and drops its file from the page cache.

    Args:
        store: The next use opens it again.
    """
    store.close()
    descriptor = os.open(_data_file(store), os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _read(
    store: ActivationStore, batch: Sequence[int], shape: tuple[int, ...], dtype: torch.dtype | None = None
) -> torch.Tensor:
    out = torch.zeros(shape, dtype=dtype)
    found = store.get_into([key_of(row) for row in batch], out)
    if not all(found):
        sys.exit(f"{found.count(False)} of {len(batch)} rows were not found.")
    return out


def key_of(row: int) -> bytes:
    """Returns the key of a row.

    Args:
        row: Its number.
    """
    return hashlib.blake2b(row.to_bytes(8, "little"), digest_size=16).digest()


def _time(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _data_file(store: ActivationStore) -> Path:
    return store.folder / "data.mdb"


def _disk_bytes() -> int:
    found = re.search(r"^read_bytes: (\d+)$", Path("/proc/self/io").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def _total_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
