"""`hf-freeze cache`: what the activation cache holds, whether it is intact, and how it is emptied."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from hf_freeze.cli.terminal import errors_on_stderr, new_console, new_grid, print_grid, print_lines
from hf_freeze.config import ActivationCacheConfig, parse_overrides, parse_section
from hf_freeze.config.sizes import spell_size
from hf_freeze.errors import CacheError, ConfigError, did_you_mean

if TYPE_CHECKING:
    from hf_freeze.activation_cache.housekeeping import StoreInfo

_EXIT_DAMAGED = 1  # something was found, as grep and diff report it
_DAY = 86_400.0  # seconds

app = typer.Typer(
    help="Show, check and remove what the activation cache holds.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

DirOption = Annotated[
    str | None,
    typer.Option("--dir", metavar="FOLDER", help="Folder of the cache, where it is not the default one."),
]


@app.command("list")
def list_stores(
    folder: DirOption = None, as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False
) -> None:
    """Show what is stored, of which model, and when it was last used."""
    with errors_on_stderr(), _cache_folder(folder) as root:
        from hf_freeze.activation_cache import housekeeping

        stores = housekeeping.list_stores(root)
        if as_json:
            entries = [{**asdict(store), "folder": str(store.folder)} for store in stores]
            sys.stdout.write(json.dumps(entries, indent=2) + "\n")
        else:
            _print_stores(root, stores)


@app.command("verify")
def verify_stores(
    fingerprints: Annotated[
        list[str] | None,
        typer.Argument(metavar="FINGERPRINT", help="How those begin that are read; all where none is named."),
    ] = None,
    folder: DirOption = None,
) -> None:
    """Read all that is stored; exit with 1 where some is damaged."""
    with errors_on_stderr(), _cache_folder(folder) as root:
        from hf_freeze.activation_cache import housekeeping
        from hf_freeze.activation_cache.table import is_readable, short_name
        from hf_freeze.activation_cache.verifying import verify  # takes seconds

        stores = _named(root, housekeeping.list_stores(root), fingerprints or ())
        grid = new_grid(None, "fingerprint", "model", "intact", "damaged", numbers=2)
        is_sound = True
        for store in stores:
            if is_readable(store):
                verdict = verify(store.folder)
                is_sound = is_sound and verdict.is_sound
                damaged = "all" if verdict.is_discarded else f"{verdict.damaged:,}"
                grid.add_row(short_name(store), Text(store.model), f"{verdict.intact:,}", damaged)
            else:
                grid.add_row(short_name(store), Text(store.model), f"format {store.format_version}", "not read")
        _print_verdict(root, grid, is_sound=is_sound)
    if not is_sound:
        raise typer.Exit(_EXIT_DAMAGED)


@app.command("prune")
def prune_stores(
    max_size: Annotated[
        str,
        typer.Option(
            "--max-size",
            metavar="SIZE",
            help="What may stay together, such as 50GB; null: 20 % of the free disk, at most 50 GB.",
        ),
    ] = "null",
    expire_after: Annotated[
        str,
        typer.Option(
            "--expire-after", metavar="DAYS", help="How long what stays may have been unused; null: for ever."
        ),
    ] = f"{ActivationCacheConfig().expire_after:g}",
    folder: DirOption = None,
) -> None:
    """Remove what is unused for long, and what is too much."""
    with errors_on_stderr(), _cache_folder(folder) as root:
        from hf_freeze.activation_cache import folders, housekeeping

        with _naming_options():
            given = parse_overrides([f"max_size={max_size}", f"expire_after={expire_after}"])
            limits = parse_section(ActivationCacheConfig, given, key="")
        stored = sum(store.num_bytes for store in housekeeping.list_stores(root))
        default = folders.default_max_size(root, num_stored=stored)
        size = default if limits.max_size is None else limits.max_size
        seconds = None if limits.expire_after is None else limits.expire_after * _DAY
        _print_removed(root, housekeeping.prune(root, max_size=size, expire_after=seconds))
        left = housekeeping.list_stores(root)
        is_too_much = sum(store.num_bytes for store in left) > size
        oldest = -math.inf if seconds is None else time.time() - seconds
        _print_left(store for store in left if is_too_much or store.last_used < oldest)


@app.command("clear")
def clear_stores(
    folder: DirOption = None, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False
) -> None:
    """Remove all that is stored and not in use."""
    with errors_on_stderr(), _cache_folder(folder) as root:
        from hf_freeze.activation_cache import housekeeping

        stores = housekeeping.list_stores(root)
        if stores and not yes and not _is_confirmed(root, stores):
            print_lines(new_console(), "Nothing was removed.")
            return
        _print_removed(root, housekeeping.clear(root))
        _print_left(housekeeping.list_stores(root))


@contextlib.contextmanager
def _cache_folder(folder: str | None) -> Iterator[Path]:
    """Yields the folder of the cache, and turns what the system refuses there into an error in words."""
    from hf_freeze.activation_cache.folders import default_folder

    root = default_folder() if folder is None else Path(folder).expanduser()
    try:
        yield root
    except OSError as error:
        raise CacheError(
            f"--dir: the cache in this folder cannot be used; got {str(root)!r}. The system says: {error.strerror}. "
            "Name a folder that you may read and write."
        ) from error


@contextlib.contextmanager
def _naming_options() -> Iterator[None]:
    """Has messages about keys of the section name the options that stand for them."""
    try:
        yield
    except ConfigError as error:
        keys = re.compile(r"^(?:command line: )?(max_size|expire_after)\b", re.MULTILINE)
        raise ConfigError(keys.sub(lambda key: f"--{key[1].replace('_', '-')}", str(error))) from error


def _named(root: Path, stores: Sequence[StoreInfo], beginnings: Sequence[str]) -> list[StoreInfo]:
    """Returns the stores whose fingerprints begin so, or all where there are no beginnings."""
    from hf_freeze.activation_cache.table import short_name

    known = sorted(map(short_name, stores))
    exist = f"{root} holds {', '.join(known)}." if known else _nothing_in(root)
    problems = [
        f"FINGERPRINT: no store's begins so; got {name!r}. {exist} Name one that exists.{did_you_mean(name, known)}"
        for name in beginnings
        if not any(store.fingerprint.startswith(name) for store in stores)
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    return [store for store in stores if not beginnings or store.fingerprint.startswith(tuple(beginnings))]


def _is_confirmed(root: Path, stores: Sequence[StoreInfo]) -> bool:
    from hf_freeze.activation_cache.table import spell_stores

    if not sys.stdin.isatty():
        raise ConfigError(
            f"--yes: is needed where there is no terminal to ask on; got none. {root} holds {spell_stores(stores)}. "
            "Add --yes to remove them."
        )
    return typer.confirm(f"Remove {spell_stores(stores)} from {root}?")


def _print_stores(root: Path, stores: Sequence[StoreInfo]) -> None:
    from hf_freeze.activation_cache.table import is_readable, store_row, total_row

    console = new_console()
    if not stores:
        print_lines(console, _nothing_in(root))
        return
    grid = new_grid(str(root), "fingerprint", "model", "depth", "dtype", "rows", "size", "last use", numbers=5)
    now = time.time()
    for store in stores:
        grid.add_row(*map(Text, astuple(store_row(store, now))))
    grid.add_section()
    grid.add_row(*astuple(total_row(stores)))
    print_grid(console, grid)
    if not all(map(is_readable, stores)):
        print_lines(console, "Stores of another format are not read; `hf-freeze cache clear` removes them, too.")


def _nothing_in(root: Path) -> str:
    return f"{root} holds no stores." if root.exists() else f"{root} does not exist, so it holds no stores."


def _print_verdict(root: Path, grid: Table, *, is_sound: bool) -> None:
    console = new_console()
    if not grid.row_count:
        print_lines(console, _nothing_in(root))
        return
    print_grid(console, grid)
    damaged = "What is damaged is computed again when it is next needed."
    print_lines(console, "All rows that were read are intact." if is_sound else damaged)


def _print_removed(root: Path, stores: Sequence[StoreInfo]) -> None:
    from hf_freeze.activation_cache.table import spell_stores

    console = new_console()
    if not stores:
        print_lines(console, f"Nothing was removed from {root}." if root.exists() else _nothing_in(root))
        return
    print_lines(console, *(f"Removed {_described(store)}." for store in stores))
    print_lines(console, f"{spell_stores(stores)} removed from {root}.")


def _print_left(stores: Iterable[StoreInfo]) -> None:
    """Says which stores stay although they were to go."""
    from hf_freeze.activation_cache.descriptions import is_in_use

    used = [store for store in stores if is_in_use(store.folder)]
    print_lines(new_console(), *(f"Left {_described(store)}: a process is using it." for store in used))


def _described(store: StoreInfo) -> str:
    from hf_freeze.activation_cache.table import short_name

    return f"{short_name(store)} ({store.model or 'unnamed model'}, {spell_size(store.num_bytes)})"
