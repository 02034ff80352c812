"""`hf-freeze check`: what the rows of a config look like, and what in them would make a result wrong."""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.text import Text

from hf_freeze.cli.terminal import errors_on_stderr, new_console, new_grid, print_grid, print_lines
from hf_freeze.config import load_config
from hf_freeze.errors import ConfigError

if TYPE_CHECKING:
    from hf_freeze.insight.check import DataReport

_NUM_LABELS: Final = 20  # labels that a table shows at most
_NUM_NOTES: Final = 2  # lines of the short form that are no warning
_PURPOSES: Final = {"train": "train", "validation": "validate", "test": "test"}


def check(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="Config file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as data.max_length=128."),
    ] = None,
    is_strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 2 where something would make a result wrong.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Show what is in the data of CONFIG, and what would make a result wrong; reads no weights."""
    with errors_on_stderr(), quiet_about_one_class():
        loaded = load_config(config, overrides or ())
        from hf_freeze import run  # takes seconds: not before the config is sound

        report = run.check(loaded)
        if as_json:
            sys.stdout.write(json.dumps(asdict(report), indent=2) + "\n")
        else:
            _print_report(report, with_warnings=not is_strict)
        if is_strict and report.warnings:
            raise ConfigError("\n".join(report.warnings))


@contextlib.contextmanager
def quiet_about_one_class() -> Iterator[None]:
    """Keeps the warning about rows of one class from coming twice: the report has it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"data\.label_column: all rows of the split", category=UserWarning)
        yield


def print_short_report(report: DataReport) -> None:
    """Prints how many rows there are, every warning, and at most two lines on what else deserves attention.

    Args:
        report: What the data holds.
    """
    console = new_console()
    rows = ", ".join(f"{split.num_rows:,} rows to {_PURPOSES[split.role]} on" for split in report.splits)
    notes = list(report.notes)
    if len(notes) > _NUM_NOTES:
        left = len(notes) - _NUM_NOTES + 1
        more = f"There is more to say of the data, {left} times: run hf-freeze check."
        notes = [*notes[: _NUM_NOTES - 1], more]
    print_lines(console, f"Data: {rows}.", *(Text(warning, style="bold") for warning in report.warnings), *notes, "")


def _print_report(report: DataReport, *, with_warnings: bool) -> None:
    _print_splits(report)
    _print_labels(report)
    _print_histogram(report)
    console = new_console()
    if with_warnings:
        print_lines(console, *(Text(warning, style="bold") for warning in report.warnings))
    print_lines(console, *report.notes)
    if not report.warnings and not report.notes:
        print_lines(console, "Nothing in the data deserves attention.")


def _print_splits(report: DataReport) -> None:
    cut = "cut" if report.max_length is None else f"cut at {report.max_length}"
    columns = ("rows", "blank", "repeated", "in train", "median", "95 %", "longest", cut, "padding")
    grid = new_grid("rows and tokens", "split", *columns, numbers=len(columns))
    shared = {pair.second: pair.num_rows for pair in report.shared if pair.first == "train"}
    for split in report.splits:
        lengths = split.lengths
        counts = (split.num_rows, len(split.blank_rows), split.num_repeated)
        tokens = (lengths.median, lengths.percentile_95, lengths.longest)
        grid.add_row(
            _named(split.role, split.name),
            *(f"{number:,}" for number in counts),
            "" if split.role == "train" else f"{shared.get(split.role, 0):,}",
            *(f"{number:,}" for number in tokens),
            f"{lengths.num_cut / split.num_rows:.1%}",
            "" if lengths.padding is None else f"{lengths.padding:.1%}",
        )
    print_grid(new_console(), grid)


def _print_labels(report: DataReport) -> None:
    roles = [split.role for split in report.splits]
    if report.splits[0].quantiles:
        grid = new_grid("labels", "quantile", *roles, numbers=len(roles))
        for name in report.splits[0].quantiles:
            grid.add_row(name, *(f"{split.quantiles[name]:.4g}" for split in report.splits))
    else:
        grid = new_grid("labels", "label", *roles, numbers=len(roles))
        names = sorted(report.splits[0].counts, key=lambda name: -report.splits[0].counts[name])
        left = len(names) - _NUM_LABELS
        for name in names if left <= 0 else names[: _NUM_LABELS // 2] + names[-_NUM_LABELS // 2 :]:
            if left > 0 and name == names[-_NUM_LABELS // 2]:
                grid.add_row(f"({left} more)", *([""] * len(roles)))
            grid.add_row(Text(name), *(_share(split.counts[name], split.num_rows) for split in report.splits))
    print_grid(new_console(), grid)


def _print_histogram(report: DataReport) -> None:
    roles = [split.role for split in report.splits]
    grid = new_grid("rows by tokens", "tokens", *roles, numbers=len(roles))
    edges = max((split.lengths.histogram for split in report.splits), key=len)
    least = 1
    for edge in edges:
        grid.add_row(
            f"{least}-{edge}",
            *(_share(split.lengths.histogram.get(edge, 0), split.num_rows) for split in report.splits),
        )
        least = edge + 1
    print_grid(new_console(), grid)


def _named(role: str, name: str) -> Text:
    """Returns the role of a split, with its name in the dataset where that is another."""
    return Text(role if role == name else f"{role} ({name})")


def _share(count: int, whole: int) -> str:
    return f"{count:,} ({count / whole:.1%})"
