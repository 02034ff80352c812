"""What the commands print with: whole lines, tables that lose no number, and errors without a traceback."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hf_freeze.errors import FreezeError

_EXIT_WRONG = 2  # the request cannot be carried out
_WIDTH = 100  # characters of a line where no terminal says how many fit


@contextlib.contextmanager
def errors_on_stderr() -> Iterator[None]:
    """Turns an error that hf_freeze raises on purpose into its message and an exit status."""
    try:
        yield
    except FreezeError as error:
        say(str(error))
        raise typer.Exit(_EXIT_WRONG) from None


def say(message: str) -> None:
    """Prints to standard error, with the number of the process where it is not the first.

    Args:
        message: One line or several.
    """
    rank = os.environ.get("RANK", "0")
    sys.stderr.write(f"{message}\n" if rank == "0" else f"[process {rank}] {message}\n")


def new_console() -> Console:
    """Returns a console of a fixed width where there is no terminal, so that files and pipes get whole lines."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDTH
    return Console(width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)


def new_grid(title: str | None, *columns: str, numbers: int) -> Table:
    """Returns an empty table.

    Args:
        title: What stands above it.
        *columns: The names of its columns.
        numbers: How many of them, from the last one, hold numbers: those are never broken.
    """
    grid = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        is_number = index >= len(columns) - numbers
        grid.add_column(column, justify="right" if is_number else "left", overflow="fold", no_wrap=is_number)
    return grid


def print_grid(console: Console, grid: Table) -> None:
    """Prints a table without spaces at the ends of its lines.

    Args:
        console: Where it goes to.
        grid: The table.
    """
    with console.capture() as captured:
        console.print(grid)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    sys.stdout.write("\n".join(lines).strip("\n") + "\n\n")


def print_lines(console: Console, *lines: str | Text) -> None:
    """Prints lines that only a terminal breaks.

    Args:
        console: Where they go to.
        *lines: The lines.
    """
    for line in lines:
        console.print(line, soft_wrap=True)
