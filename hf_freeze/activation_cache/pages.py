"""Whether LMDB can read and write a file without harm, told from the pages of its index before LMDB follows them.

LMDB and its bindings believe what these pages say. They look at a node that begins behind the end of its page, and at
3 GB of a row of 40 KB; behind the end of the file that is a SIGBUS. They write to a page that is said to be free, and
end the process over keys that are said to be ordered otherwise. The rows themselves are not read here, as each has a
digest. The layout is that of LMDB 0.9 (`mdb.c`: MDB_page, MDB_meta, MDB_db, MDB_node, MDB_IDL).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

_MAGIC, _VERSION = 0xBEEFC0DE, 1
# The first two pages say, in turns, where the trees of the newest transaction begin.
_META = struct.Struct("=16x II 16x")
_TREE = struct.Struct("=I HH 24x QQ")
_ROWS_TREE, _FREE_TREE = 88, 40
# How the keys of each are ordered: as bytes and, those of free pages, as whole numbers.
_FLAGS = {_ROWS_TREE: 0, _FREE_TREE: 8}
_META_END = struct.Struct("=QQ")
_META_SIZE = 136 + _META_END.size
_NO_PAGE = (1 << 64) - 1
_PAGE_SIZES = frozenset(1 << power for power in range(9, 16))
_PAGE_HEAD = struct.Struct("=Q 2x HHH")
_NODE_HEAD_SIZE = 8
_BRANCH, _LEAF = 1, 2
_IN_PAGE, _IN_OWN_PAGES = 0, 1

_Integers = NDArray[np.int64]


def find_damage(path: Path) -> str | None:
    """Says what is wrong with the index of a file, or returns None where LMDB can use it.

    Pages in use must not change meanwhile: the caller holds a read transaction. Files of other engines are not read.

    Args:
        path: The data file.
    """
    with path.open("rb", buffering=0) as file:
        return next(_problems(file, os.fstat(file.fileno()).st_size), None)


class _Nodes(NamedTuple):
    """The nodes of a page: where their data begin, how large they are, and whether they lie in pages of their own.

    In a branch, `sizes` are the numbers of the pages below.
    """

    begins: _Integers
    sizes: _Integers
    are_outside: NDArray[np.bool_]


class _Pages:
    """The pages of a file, each of which may be claimed once."""

    def __init__(self, file: BinaryIO, size: int, last: int) -> None:
        self.size = size
        self.last = last
        self._file = file
        self._claimed = np.zeros(last + 1, np.bool_)
        self._claimed[:2] = True

    def read(self, number: int, count: int = 1) -> bytes:
        return _read(self._file, number * self.size, count * self.size)

    def claim(self, first: NDArray[np.uint64], count: _Integers) -> bool:
        """Marks runs of pages, and says whether all of them exist and were unmarked."""
        if (first > self.last).any() or (first.astype(np.int64) + count - 1 > self.last).any():
            return False
        order = np.argsort(first)
        begins, count = first.astype(np.int64)[order], count[order]
        if (begins[1:] < (begins + count)[:-1]).any():
            return False
        numbers = np.repeat(begins - np.cumsum(count) + count, count) + np.arange(count.sum())
        is_new = not self._claimed[numbers].any()
        self._claimed[numbers] = True
        return is_new


def _problems(file: BinaryIO, size: int) -> Iterator[str]:
    first = _read(file, 0, _META_SIZE)
    magic, version = _META.unpack_from(first)
    if magic != _MAGIC:
        yield "the first page is not LMDB's"
    if version != _VERSION:
        return
    page_size, *_ = _TREE.unpack_from(first, _FREE_TREE)
    if page_size not in _PAGE_SIZES:
        yield f"{page_size} is no page size"
    # Like LMDB: the first where both are equally new.
    metas = (first, _read(file, page_size, _META_SIZE))
    meta = max(metas, key=lambda each: _META_END.unpack_from(each, _META_SIZE - _META_END.size)[1])
    last_page, _ = _META_END.unpack_from(meta, _META_SIZE - _META_END.size)
    if (missing := (last_page + 1) * page_size - size) > 0:
        yield f"{missing} bytes are missing at its end"
    pages = _Pages(file, page_size, last_page)
    for place in (_ROWS_TREE, _FREE_TREE):
        _, flags, depth, num_nodes, root = _TREE.unpack_from(meta, place)
        if flags != _FLAGS[place]:
            yield f"its keys are said to be of kind {flags}"
        yield from _tree_problems(pages, root, depth, num_nodes, lists_free_pages=place == _FREE_TREE)


def _tree_problems(pages: _Pages, root: int, depth: int, num_nodes: int, *, lists_free_pages: bool) -> Iterator[str]:
    """Walks through a B+ tree: all its leaves are `depth` pages deep, and have `num_nodes` nodes together."""
    pending = [] if root == _NO_PAGE else [(root, depth)]
    num_found = 0
    while pending:
        number, height = pending.pop()
        if height < 1 or not pages.claim(np.array([number], np.uint64), np.ones(1, np.int64)):
            yield f"its index leads to page {number}"
            return
        page = pages.read(number)
        nodes = _nodes(page, number, _LEAF if height == 1 else _BRANCH)
        if nodes is None or (height == 1 and not _claim_data(pages, page, nodes, lists_free_pages)):
            yield f"page {number} of its index is damaged"
            return
        if height == 1:
            num_found += len(nodes.begins)
        else:
            pending += [(int(child), height - 1) for child in nodes.sizes]
    if num_found != num_nodes:
        yield f"its index has {num_found} entries where {num_nodes} are said to be"


def _nodes(page: bytes, number: int, kind: int) -> _Nodes | None:
    """Returns the nodes of a page, or None where it is another page, or any of its nodes reaches behind its end."""
    own_number, flags, list_end, nodes_begin = _PAGE_HEAD.unpack_from(page)
    if own_number != number or flags != kind or not _PAGE_HEAD.size < list_end <= nodes_begin <= len(page):
        return None
    count = (list_end - _PAGE_HEAD.size) // 2
    places = np.frombuffer(page, "=u2", count, _PAGE_HEAD.size).astype(np.int64)
    if (places + _NODE_HEAD_SIZE > len(page)).any():
        return None
    low, high, flags, key_size = _gather(page, places, 4, "=u2").astype(np.int64).T
    begins = places + _NODE_HEAD_SIZE + key_size
    if kind == _BRANCH:
        sizes, ends, are_outside = low | high << 16 | flags << 32, begins, flags < 0
    else:
        sizes, are_outside = low | high << 16, flags == _IN_OWN_PAGES
        ends = begins + np.where(are_outside, 8, sizes)
        if not (are_outside | (flags == _IN_PAGE)).all():
            return None
    return None if (ends > len(page)).any() else _Nodes(begins, sizes, are_outside)


def _claim_data(pages: _Pages, page: bytes, nodes: _Nodes, lists_free_pages: bool) -> bool:
    """Claims the pages of the data of a leaf, and those that are said to be free there."""
    first = _gather(page, nodes.begins[nodes.are_outside], 1, "=u8")[:, 0].astype(np.uint64)
    count = 1 + (_PAGE_HEAD.size + nodes.sizes[nodes.are_outside] - 1) // pages.size
    if not pages.claim(first, count):
        return False
    if not lists_free_pages:
        return True
    outside = (pages.read(int(f), int(c))[_PAGE_HEAD.size :] for f, c in zip(first, count, strict=True))
    for begin, size, is_outside in zip(*nodes, strict=True):
        data = next(outside)[:size] if is_outside else page[begin : begin + size]
        numbers = np.frombuffer(data, "=u8", len(data) // 8).astype(np.uint64)
        free = numbers[1:][: int(numbers[0])] if len(numbers) else numbers
        if not len(numbers) or len(free) != numbers[0] or not pages.claim(free, np.ones(len(free), np.int64)):
            return False
    return True


def _gather(page: bytes, places: _Integers, count: int, dtype: str) -> NDArray[np.unsignedinteger]:
    """Returns, for each place in a page, the numbers that stand there; shape (places, count)."""
    width = count * np.dtype(dtype).itemsize
    numbers: NDArray[np.unsignedinteger] = np.frombuffer(page, np.uint8)[places[:, None] + np.arange(width)].view(dtype)
    return numbers


def _read(file: BinaryIO, place: int, size: int) -> bytes:
    """Returns bytes of a file, with zeros for what lies behind its end."""
    file.seek(place)
    return file.read(size).ljust(size, b"\0")
