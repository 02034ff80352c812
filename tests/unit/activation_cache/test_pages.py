"""The index of a whole file is found whole, whatever its size; damage that would lead LMDB astray is found."""

from __future__ import annotations

import random
import re
import struct
from pathlib import Path

import lmdb
import pytest

from hf_freeze.activation_cache.pages import find_damage


def write(folder: Path, num_rows: int, *, size: int = 20, first: int = 0) -> Path:
    """Writes rows of a few bytes and, each third, of several pages; replaces those that are there."""
    with (
        lmdb.open(str(folder), map_size=1 << 28, sync=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        for number in range(first, first + num_rows):
            key = random.Random(number).randbytes(16)
            transaction.put(key, b"x" * (10_000 + number if number % 3 == 0 else size))
    return folder / "data.mdb"


def change(path: Path, place: int, layout: str, *values: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(struct.pack(layout, *values))


def pages(path: Path, flags: int) -> list[int]:
    """Returns the numbers of the pages of a kind: 1 branch, 2 leaf."""
    content = path.read_bytes()
    heads = [struct.unpack_from("=Q2xH", content, place) for place in range(8192, len(content), 4096)]
    return [number for place, (number, kind) in enumerate(heads, 2) if number == place and kind == flags]


def node(path: Path, page: int, index: int) -> int:
    """Returns the place of a node in a file."""
    return page * 4096 + int(struct.unpack_from("=H", path.read_bytes(), page * 4096 + 16 + 2 * index)[0])


@pytest.mark.parametrize("num_rows", [0, 1, 2, 50, 3000])
def test_a_whole_file_is_whole(tmp_path: Path, num_rows: int) -> None:
    assert find_damage(write(tmp_path, num_rows)) is None


def test_a_file_with_free_pages_is_whole(tmp_path: Path) -> None:
    for size in (20, 5000, 100, 9000, 20):
        path = write(tmp_path, 300, size=size, first=size)
        assert find_damage(path) is None
    with lmdb.open(str(tmp_path), map_size=1 << 28) as environment, environment.begin(write=True) as transaction:
        with transaction.cursor() as cursor:
            keys = [bytes(key) for key, _ in cursor]
        for key in keys[::2]:
            transaction.delete(key)
    assert find_damage(path) is None


def test_a_file_of_another_engine_is_not_judged(tmp_path: Path) -> None:
    path = write(tmp_path, 10)
    for page in (0, 1):
        change(path, 4096 * page + 20, "=I", 3)
    assert find_damage(path) is None


@pytest.mark.parametrize(
    ("place", "layout", "value", "problem"),
    [
        (16, "=I", 7, "the first page is not LMDB's"),
        (40, "=I", 1000, "1000 is no page size"),
    ],
)
def test_damage_to_the_first_page_is_found(tmp_path: Path, place: int, layout: str, value: int, problem: str) -> None:
    path = write(tmp_path, 10)
    change(path, place, layout, value)
    assert find_damage(path) == problem


def test_a_file_that_is_cut_off_is_found(tmp_path: Path) -> None:
    path = write(tmp_path, 10)
    with lmdb.open(str(tmp_path)) as environment:
        end = (environment.info()["last_pgno"] + 1) * 4096
    with path.open("r+b") as file:
        file.truncate(end - 5)
    assert find_damage(path) == "5 bytes are missing at its end"


@pytest.mark.parametrize(
    ("offset", "layout", "value"),
    [
        (0, "=Q", 77),  # the page's own number
        (10, "=H", 1),  # its kind
        (12, "=H", 14),  # the end of the list of places: before it begins
        (12, "=H", 4097),  # behind the page
        (12, "=H", 16),  # an empty page
        (14, "=H", 4097),  # the begin of the nodes
        (16, "=H", 0xFFF0),  # the place of a node
    ],
)
def test_damage_to_a_leaf_is_found(tmp_path: Path, offset: int, layout: str, value: int) -> None:
    path = write(tmp_path, 3)
    (leaf,) = pages(path, 2)[-1:]
    change(path, leaf * 4096 + offset, layout, value)
    assert find_damage(path) == f"page {leaf} of its index is damaged"


@pytest.mark.parametrize(
    ("offset", "layout", "value"),
    [
        (2, "=H", 0x4000),  # a row of 1 GB
        (4, "=H", 4),  # a kind of node that stores do not have
        (6, "=H", 0xFFF0),  # a key that reaches behind the page
    ],
)
def test_damage_to_a_node_is_found(tmp_path: Path, offset: int, layout: str, value: int) -> None:
    path = write(tmp_path, 9)
    (leaf,) = pages(path, 2)[-1:]
    for index in range(9):
        whole = path.read_bytes()
        change(path, node(path, leaf, index) + offset, layout, value)
        assert find_damage(path) == f"page {leaf} of its index is damaged"
        path.write_bytes(whole)


@pytest.mark.parametrize("page", [0, 1, 1 << 40, (1 << 64) - 1])
def test_a_row_that_lies_outside_is_found(tmp_path: Path, page: int) -> None:
    path = write(tmp_path, 1)
    (leaf,) = pages(path, 2)[-1:]
    change(path, node(path, leaf, 0) + 8 + 16, "=Q", page)
    assert find_damage(path) == f"page {leaf} of its index is damaged"


@pytest.mark.parametrize("page", [0, 1, 1 << 40])
def test_a_branch_that_leads_outside_is_found(tmp_path: Path, page: int) -> None:
    path = write(tmp_path, 500)
    (branch,) = pages(path, 1)
    change(path, node(path, branch, 0), "=HHH", page & 0xFFFF, page >> 16 & 0xFFFF, page >> 32)
    assert find_damage(path) == f"its index leads to page {page}"


def test_a_circle_is_found(tmp_path: Path) -> None:
    path = write(tmp_path, 500)
    (branch,) = pages(path, 1)
    change(path, node(path, branch, 0), "=HHH", branch, 0, 0)
    assert find_damage(path) == f"its index leads to page {branch}"


def test_two_rows_in_the_same_pages_are_found(tmp_path: Path) -> None:
    path = write(tmp_path, 7)
    (leaf,) = pages(path, 2)[-1:]
    outside = [place for index in range(7) if path.read_bytes()[(place := node(path, leaf, index)) + 4] == 1]
    (page,) = struct.unpack_from("=Q", path.read_bytes(), outside[0] + 24)
    for other in (page, page + 1):  # the same, or beginning within the other
        change(path, outside[1] + 24, "=Q", other)
        assert find_damage(path) == f"page {leaf} of its index is damaged"


@pytest.mark.parametrize("offset", [0, 8], ids=["how many", "which"])
def test_a_page_that_is_free_and_in_use_is_found(tmp_path: Path, offset: int) -> None:
    for first in (0, 20, 20):
        path = write(tmp_path, 30, first=first)
    content = path.read_bytes()
    newest = max((0, 4096), key=lambda place: struct.unpack_from("=Q", content, place + 144))
    (entries, root) = struct.unpack_from("=QQ", content, newest + 40 + 32)
    assert entries > 0
    record = node(path, root, 0) + 16
    (page,) = struct.unpack_from("=Q", content, newest + 88 + 40)  # the root of the rows
    assert find_damage(path) is None
    change(path, record + offset, "=Q", page if offset else 1 << 20)
    assert find_damage(path) == f"page {root} of its index is damaged"


def test_a_branch_whose_key_reaches_behind_the_page_is_found(tmp_path: Path) -> None:
    path = write(tmp_path, 500)
    (branch,) = pages(path, 1)
    change(path, node(path, branch, 1) + 6, "=H", 0xFFF0)
    assert find_damage(path) == f"page {branch} of its index is damaged"


def test_a_wrong_number_of_rows_is_found(tmp_path: Path) -> None:
    path = write(tmp_path, 12)
    for page in (0, 1):
        change(path, 4096 * page + 88 + 32, "=Q", 2000)
    damage = find_damage(path)
    assert damage is not None
    assert re.fullmatch("its index has 12 entries where 2000 are said to be", damage)


def test_no_garbage_is_too_much(tmp_path: Path) -> None:
    whole = write(tmp_path, 400).read_bytes()
    path = tmp_path / "garbage"
    for seed in range(100):
        chance = random.Random(seed)
        content = bytearray(whole)
        for _ in range(chance.choice([1, 10, 1000])):
            content[chance.choice([chance.randrange(200), chance.randrange(len(content))])] = chance.randrange(256)
        path.write_bytes(content)
        damage = find_damage(path)
        assert damage is None or damage != ""
