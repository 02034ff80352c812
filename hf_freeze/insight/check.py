"""What the rows of a dataset look like, and what in them would make a result wrong. Pure.

Rows are compared by a 64-bit hash (XXH3) of their texts without case, outer spaces and runs of spaces: tokenizers that
lower words read such rows alike, and others nearly so. Among a million rows, two different ones have the same hash with
a probability of 3e-8. Labels do not count: a text that is trained on tests nothing, whatever its label there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final, TypeAlias

import numpy as np
import xxhash

from hf_freeze.insight.lengths import Batching, LengthReport, length_report

Array: TypeAlias = np.ndarray[Any, Any]

_NUM_LISTED: Final = 5  # rows or labels that a message names at most
_MANY_CUT: Final = 0.05  # share of the rows to train on; below, what is lost hardly counts
_MUCH_PADDING: Final = 0.10  # share of what the model reads that grouping by length would save
_LOPSIDED: Final = 0.9  # share of one label from which accuracy alone says little


@dataclass(frozen=True)
class Split:
    """The rows of one split, as the check reads them.

    Attributes:
        role: What they are for: `train`, `validation` or `test`.
        name: What the split is called in the dataset.
        texts: The texts of every row, one or two; they are read once.
        labels: Numbers of shape (rows,): ids of classes, or values; or of shape (rows, labels): 0, 1, or between.
        lengths: The number of tokens of every row, of shape (rows,).
        batching: How its batches are made.
    """

    role: str
    name: str
    texts: Iterable[Sequence[str | None]]
    labels: Array
    lengths: Array
    batching: Batching


@dataclass(frozen=True)
class SplitReport:
    """What one split holds.

    Attributes:
        role: What its rows are for: `train`, `validation` or `test`.
        name: What it is called in the dataset.
        num_rows: How many rows it has.
        blank_rows: The numbers, from 0, of the rows with a missing or blank text.
        num_repeated: How many of the other rows have the texts of an earlier one.
        counts: How many rows have each label; empty for regression.
        quantiles: Minimum, quartiles and maximum of the labels of a regression; else empty.
        lengths: How long its rows are, in tokens.
    """

    role: str
    name: str
    num_rows: int
    blank_rows: tuple[int, ...]
    num_repeated: int
    counts: Mapping[str, int]
    quantiles: Mapping[str, float]
    lengths: LengthReport


@dataclass(frozen=True)
class SharedRows:
    """Rows that are in two splits.

    Attributes:
        first: The role of one split.
        second: The role of the other.
        num_rows: How many rows of the second have the texts of a row of the first.
    """

    first: str
    second: str
    num_rows: int


@dataclass(frozen=True)
class DataReport:
    """What the splits of a dataset hold, and what deserves attention.

    Attributes:
        problem_type: What transformers calls the problem.
        max_length: The number of tokens at which rows are cut; None where they are not.
        splits: One report per split.
        shared: Pairs of splits that have rows in common.
        warnings: What would make a result wrong.
        notes: What else deserves attention.
    """

    problem_type: str
    max_length: int | None
    splits: tuple[SplitReport, ...]
    shared: tuple[SharedRows, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def check_data(
    splits: Sequence[Split], *, labels: Sequence[str], problem_type: str, max_length: int | None, lengths_are_cut: bool
) -> DataReport:
    """Looks through the rows of all splits.

    Args:
        splits: The splits, the one to train on first.
        labels: The names of the labels in the order of their ids; empty for regression.
        problem_type: What transformers calls the problem.
        max_length: The number of tokens at which rows are cut; None where they are not.
        lengths_are_cut: Whether the lengths were taken after cutting; rows of exactly `max_length` tokens then count
            as cut.
    """
    rows: dict[str, Array] = {}
    reports: list[SplitReport] = []
    constant: dict[str, str] = {}
    for split in splits:
        digests, is_blank = row_digests(split.texts)
        rows[split.role] = digests[~is_blank]
        reports.append(_report(split, rows[split.role], np.flatnonzero(is_blank), labels, max_length, lengths_are_cut))
        if bool((split.labels == split.labels[0]).all()):
            constant[split.role] = _label_of(split.labels[0], labels)
    pairs = [
        SharedRows(first, second, int(np.isin(rows[second], rows[first]).sum()))
        for first, second in combinations(rows, 2)
    ]
    shared = [pair for pair in pairs if pair.num_rows]
    return DataReport(
        problem_type,
        max_length,
        tuple(reports),
        tuple(shared),
        warnings=tuple(_warnings(reports, shared, constant)),
        notes=tuple(_notes(reports, shared, max_length)),
    )


def row_digests(rows: Iterable[Sequence[str | None]]) -> tuple[Array, Array]:
    """Returns a hash of the texts of every row, and whether one of them is missing or blank, both of shape (rows,).

    Args:
        rows: The texts of every row.
    """
    digests: list[int] = []
    blank: list[bool] = []
    for texts in rows:
        words = [" ".join((text or "").casefold().split()) for text in texts]
        blank.append(not all(words))
        digests.append(xxhash.xxh3_64_intdigest("\0".join(words).encode()))
    return np.array(digests, dtype=np.uint64), np.array(blank, dtype=bool)


def _report(
    split: Split, digests: Array, blank: Array, labels: Sequence[str], max_length: int | None, lengths_are_cut: bool
) -> SplitReport:
    if labels:
        hits = np.bincount(split.labels, minlength=len(labels)) if split.labels.ndim == 1 else split.labels > 0.5
        totals = hits if split.labels.ndim == 1 else hits.sum(axis=0)
    return SplitReport(
        split.role,
        split.name,
        num_rows=len(split.labels),
        blank_rows=tuple(blank.tolist()),
        num_repeated=len(digests) - len(np.unique(digests)),
        counts=dict(zip(labels, totals.tolist(), strict=True)) if labels else {},
        quantiles={} if labels else _quantiles(split.labels),
        lengths=length_report(split.lengths, split.batching, max_length=max_length, lengths_are_cut=lengths_are_cut),
    )


def _quantiles(values: Array) -> dict[str, float]:
    names = ("least", "25 %", "50 %", "75 %", "greatest")
    return dict(zip(names, np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist(), strict=True))


def _label_of(value: Any, labels: Sequence[str]) -> str:
    """Returns how a message calls the label of a row."""
    if not labels:
        return f"{float(value):g}"
    if np.ndim(value) == 0:
        return repr(labels[int(value)])
    return repr([name for name, share in zip(labels, value, strict=True) if share > 0.5])


def _warnings(
    reports: Sequence[SplitReport], shared: Sequence[SharedRows], constant: Mapping[str, str]
) -> Iterator[str]:
    """Yields what would make a result wrong."""
    by_role = {report.role: report for report in reports}
    for report in reports:
        if report.blank_rows:
            yield (
                f"data.text_columns: texts are empty or blank in the split {report.name!r}; got "
                f"{_listed(report.blank_rows)} of {report.num_rows:,} rows, counted from 0. Training refuses them. "
                "Remove these rows or fill them in."
            )
    for pair in shared:
        if pair.first == "train":
            report = by_role[pair.second]
            yield (
                f"data.splits.{pair.second}: rows of the split {report.name!r} are trained on; got {pair.num_rows:,} "
                f"of {report.num_rows:,} rows ({pair.num_rows / report.num_rows:.1%}) that the split "
                f"{by_role['train'].name!r} has too. Evaluation on them measures memory. Remove them from one of "
                "the two splits."
            )
    for role, label in constant.items():
        report = by_role[role]
        effect = "A model learns from them to answer always the same" if role == "train" else "Any model can guess it"
        yield (
            f"data.label_column: all {report.num_rows:,} rows of the split {report.name!r} have the same label; got "
            f"{label}. {effect}. Shuffle the rows before they are split, or name another column or split."
        )


def _notes(reports: Sequence[SplitReport], shared: Sequence[SharedRows], max_length: int | None) -> Iterator[str]:
    """Yields what else deserves attention."""
    by_role = {report.role: report for report in reports}
    train = by_role["train"]
    for pair in shared:
        if pair.first != "train":
            yield (
                f"The split {by_role[pair.second].name!r} has {pair.num_rows:,} rows that the split "
                f"{by_role[pair.first].name!r} has too: what is chosen by the one does well on the other."
            )
    yield from _label_notes(reports)
    share = train.lengths.num_cut / train.num_rows
    if share >= _MANY_CUT:
        longest = train.lengths.longest
        what = f"; the longest has {longest:,}" if max_length is not None and longest > max_length else ""
        rows = f"{share:.1%} of the rows of the split {train.name!r}"
        yield f"{rows} are cut at {max_length} tokens (data.max_length){what}."
    padding, grouped = train.lengths.padding, train.lengths.grouped_padding
    if padding is not None and padding - grouped >= _MUCH_PADDING:
        yield (
            f"{padding:.0%} of what the model reads while training is padding; training.train_sampling_strategy: "
            f"group_by_length leaves {grouped:.0%}."
        )


def _label_notes(reports: Sequence[SplitReport]) -> Iterator[str]:
    """Yields what is odd about how often labels occur."""
    for report in reports:
        most = max(report.counts, key=lambda name: report.counts[name], default=None)
        if most is not None and len(report.counts) > 1 and report.counts[most] < report.num_rows:
            share = report.counts[most] / report.num_rows
            if share >= _LOPSIDED:
                rows = f"{share:.1%} of the rows of the split {report.name!r}"
                yield f"{rows} have the label {most!r}: accuracy says little."
    if len(reports) > 1:
        for report in reports:
            others = [other for other in reports if other is not report]
            alone = [n for n, count in report.counts.items() if count and not any(other.counts[n] for other in others)]
            if alone:
                more = f" and {len(alone) - _NUM_LISTED} more" if len(alone) > _NUM_LISTED else ""
                named = ", ".join(repr(name) for name in alone[:_NUM_LISTED])
                kind = "label" if len(alone) == 1 else "labels"
                yield f"Only the split {report.name!r} has the {kind} {named}{more}."


def _listed(rows: Sequence[int]) -> str:
    shown = ", ".join(str(row) for row in rows[:_NUM_LISTED])
    more = f" and {len(rows) - _NUM_LISTED} more" if len(rows) > _NUM_LISTED else ""
    return f"{len(rows):,} ({'row' if len(rows) == 1 else 'rows'} {shown}{more})"
