"""Stores as rows for a reader. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from hf_freeze.activation_cache.descriptions import FORMAT_VERSION
from hf_freeze.activation_cache.housekeeping import StoreInfo
from hf_freeze.config.sizes import spell_size

_SHOWN = 12  # characters of a fingerprint that tell stores apart
_UNITS = (("day", 86_400), ("hour", 3_600), ("minute", 60))  # seconds


@dataclass(frozen=True)
class StoreRow:
    """A store in words, or all of them.

    Attributes:
        fingerprint: The beginning of what tells what its rows were made with.
        model: The model's name.
        depth: How many blocks the rows went through.
        dtype: What the rows are stored in.
        rows: How many rows there are, or which format they have where it is another one.
        size: How much of the disk it takes.
        last_use: How long ago it was last used.
    """

    fingerprint: str
    model: str
    depth: str
    dtype: str
    rows: str
    size: str
    last_use: str


def store_row(info: StoreInfo, now: float) -> StoreRow:
    """Returns a store in words.

    Args:
        info: What is known about it.
        now: Unix time, in seconds.
    """
    return StoreRow(
        fingerprint=short_name(info),
        model=info.model,
        depth=str(info.depth),
        dtype=info.dtype,
        rows=f"{info.rows:,}" if is_readable(info) else f"format {info.format_version}",
        size=spell_size(info.num_bytes),
        last_use=spell_age(now - info.last_used),
    )


def total_row(infos: Iterable[StoreInfo]) -> StoreRow:
    """Returns all stores together, in words.

    Args:
        infos: The stores.
    """
    infos = list(infos)
    rows = sum(info.rows for info in infos if is_readable(info))
    return StoreRow("all", "", "", "", f"{rows:,}", spell_size(sum(info.num_bytes for info in infos)), "")


def short_name(info: StoreInfo) -> str:
    """Returns the beginning of a store's fingerprint.

    Args:
        info: What is known about it.
    """
    return info.fingerprint[:_SHOWN]


def is_readable(info: StoreInfo) -> bool:
    """Says whether a store has this version's format.

    Args:
        info: What is known about it.
    """
    return info.format_version == FORMAT_VERSION


def spell_age(seconds: float) -> str:
    """Returns how long ago something was.

    >>> spell_age(3 * 86_400), spell_age(100), spell_age(5)
    ('3 days ago', '1 minute ago', 'just now')

    Args:
        seconds: How long ago it was, in seconds.
    """
    for unit, length in _UNITS:
        if seconds >= length:
            number = int(seconds // length)
            return f"{number} {unit}{'' if number == 1 else 's'} ago"
    return "just now"


def spell_stores(infos: Collection[StoreInfo]) -> str:
    """Returns how many stores there are and how much of the disk they take, such as `3 stores (1.5 GB)`.

    Args:
        infos: The stores.
    """
    size = spell_size(sum(info.num_bytes for info in infos))
    return f"{len(infos)} {'store' if len(infos) == 1 else 'stores'} ({size})"
