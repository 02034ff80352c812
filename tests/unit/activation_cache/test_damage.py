"""A damaged file costs rows, said once; it never gives a wrong row and never ends the process.

Every damaged file is read by a process of its own, since what must not happen is a SIGBUS.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hf_freeze.activation_cache.store import ActivationStore
from tests.unit.activation_cache.rows import FINGERPRINT, key, num_right, put, row, run_python, start_python

NUM_ROWS = 120
Reader = Callable[[], tuple[list[str], list[str]]]
# For each folder that it is told: reads all rows, puts them again, and reads them again, in a child, as the import of
# torch takes most of the time. Says how many rows there were, how many then, and how many were damaged.
READER = f"""
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        store = ActivationStore(Path(line.strip()), FINGERPRINT)
        numbers = range({NUM_ROWS})
        first = num_right(store, numbers)
        put(store, numbers)
        print(first, num_right(store, numbers), store.damaged, store.writable, sep=";", flush=True)
        os._exit(0)
    print("ended with", os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a store that is never changed."""
    root = tmp_path_factory.mktemp("intact")
    store = ActivationStore(root, FINGERPRINT)
    put(store, range(NUM_ROWS))
    store.close()
    return root / FINGERPRINT


@pytest.fixture
def folder(intact: Path, tmp_path: Path) -> Path:
    return shutil.copytree(intact, tmp_path / FINGERPRINT)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    with start_python(READER, tmp_path_factory.mktemp("unused")) as process:
        yield process
        process.communicate()


@pytest.fixture
def read_and_heal(reader: subprocess.Popen[str], folder: Path) -> Reader:
    """Returns the warnings and the results."""

    def read() -> tuple[list[str], list[str]]:
        assert reader.stdin is not None
        assert reader.stdout is not None
        print(folder.parent, file=reader.stdin, flush=True)
        lines = []
        while not (lines and lines[-1].startswith("ended with ")):
            lines.append(reader.stdout.readline().rstrip("\n"))
        *warnings, result, end = lines
        assert end == "ended with 0", lines
        return warnings, result.split(";")

    return read


def test_an_intact_file_is_read_without_a_word(folder: Path, read_and_heal: Reader) -> None:
    assert read_and_heal() == ([], ["120", "120", "0", "True"])


@pytest.mark.parametrize("fraction", [0.9, 0.5, 0.1])
def test_a_file_that_was_cut_off_is_discarded(folder: Path, fraction: float, read_and_heal: Reader) -> None:
    data = folder / "data.mdb"
    size = data.stat().st_size
    kept = int(size * fraction) // 4096 * 4096 + 100
    with data.open("r+b") as file:
        file.truncate(kept)
    warnings, result = read_and_heal()
    problem = f"{size - kept} bytes are missing at its end"
    assert warnings == [f"activation_cache: {data} is damaged ({problem}). Its rows are discarded and computed again."]
    assert result == ["0", "120", "0", "True"]


@pytest.mark.parametrize("size", [0, 1, 200, 4096, 5000, 8191])
def test_a_file_without_its_first_pages_is_discarded(folder: Path, size: int, read_and_heal: Reader) -> None:
    with (folder / "data.mdb").open("r+b") as file:
        file.truncate(size)
    warnings, result = read_and_heal()
    assert len(warnings) == 1
    assert warnings[0].startswith(f"activation_cache: {folder / 'data.mdb'} is damaged (")
    assert warnings[0].endswith("). Its rows are discarded and computed again.")
    assert result == ["0", "120", "0", "True"]


@pytest.mark.parametrize("garbage", [b"\xff" * 8192, random.Random(0).randbytes(8192)], ids=["ones", "noise"])
@pytest.mark.parametrize("num_pages", [1, 2])
def test_a_file_that_begins_with_garbage_is_discarded(
    folder: Path, garbage: bytes, num_pages: int, read_and_heal: Reader
) -> None:
    with (folder / "data.mdb").open("r+b") as file:
        file.write(garbage[: 4096 * num_pages])
    warnings, result = read_and_heal()
    assert len(warnings) == 1
    assert result == ["0", "120", "0", "True"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"fingerprint": "another", "format_version": 1}'])
def test_rows_without_a_description_are_discarded(folder: Path, text: str, read_and_heal: Reader) -> None:
    (folder / "meta.json").write_text(text, encoding="utf-8")
    warnings, result = read_and_heal()
    problem = f"{folder / 'data.mdb'} is damaged (its meta.json does not describe it)"
    assert warnings == [f"activation_cache: {problem}. Its rows are discarded and computed again."]
    assert result == ["0", "120", "0", "True"]


def test_a_file_that_says_it_is_of_an_unknown_engine_is_discarded(folder: Path, read_and_heal: Reader) -> None:
    with (folder / "data.mdb").open("r+b") as file:
        for page in (0, 1):
            file.seek(4096 * page + 20)
            file.write(struct.pack("=I", 17))
    warnings, result = read_and_heal()
    assert len(warnings) == 1
    assert result == ["0", "120", "0", "True"]


@pytest.mark.parametrize("tree", [40, 88], ids=["free pages", "rows"])
@pytest.mark.parametrize("bit", range(4))  # LMDB itself refuses the others
def test_a_file_whose_keys_are_said_to_be_ordered_otherwise_is_discarded(
    folder: Path, tree: int, bit: int, read_and_heal: Reader
) -> None:
    data = folder / "data.mdb"
    content = bytearray(data.read_bytes())
    newest = max((0, 4096), key=lambda page: int.from_bytes(content[page + 144 : page + 152], "little"))
    content[newest + tree + 4] ^= 1 << bit
    data.write_bytes(content)
    warnings, result = read_and_heal()
    problem = f"its keys are said to be of kind {content[newest + tree + 4]}"
    assert warnings == [f"activation_cache: {data} is damaged ({problem}). Its rows are discarded and computed again."]
    assert result == ["0", "120", "0", "True"]


def test_a_flipped_bit_in_a_row_costs_that_row(folder: Path, read_and_heal: Reader) -> None:
    data = folder / "data.mdb"
    content = bytearray(data.read_bytes())
    for number in (5, 7):
        content[content.index(row(number).numpy().tobytes()) + 100] ^= 4
    data.write_bytes(content)
    warnings, result = read_and_heal()
    assert warnings == [f"activation_cache: {folder} has damaged rows. They are computed again."]
    assert result == ["118", "120", "2", "True"]
    assert read_and_heal() == ([], ["120", "120", "0", "True"])
    again = ActivationStore(folder.parent, FINGERPRINT)
    assert again.verify() == (120, 0)
    again.close()


def test_a_row_may_be_damaged_again_and_again(folder: Path, read_and_heal: Reader) -> None:
    data = folder / "data.mdb"
    for count in range(3):
        content = bytearray(data.read_bytes())
        content[content.index(row(5).numpy().tobytes()) + 100] ^= 4
        data.write_bytes(content)
        assert read_and_heal()[1] == ["119", "120", "1", "True"], count
    store = ActivationStore(folder.parent, FINGERPRINT)
    assert store.verify() == (120, 0)
    store.close()


def test_damage_is_seen_by_verify_and_not_by_has(folder: Path) -> None:
    data = folder / "data.mdb"
    content = bytearray(data.read_bytes())
    content[content.index(row(5).numpy().tobytes()) + 100] ^= 4
    data.write_bytes(content)
    store = ActivationStore(folder.parent, FINGERPRINT)
    assert store.has([key(5)]) == [True]
    assert store.verify() == (119, 1)
    assert num_right(store, range(NUM_ROWS)) == 119
    store.close()


# Forks for each damaged file, as the import of torch would take most of the time.
FUZZ = f"""
import shutil
intact = Path({{intact!r}})
logging.disable()
size = (intact / "data.mdb").stat().st_size
chance = random.Random({{seed}})
folder = root / FINGERPRINT
for trial in range({{num_trials}}):
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(intact, folder)
    with (folder / "data.mdb").open("r+b") as file:
        for _ in range(chance.choice([1, 1, 4, 20])):
            {{damage}}
    child = os.fork()
    if child == 0:
        numbers = range({NUM_ROWS} + 20)
        before = num_right(store, numbers)
        put(store, numbers)
        put(store, numbers)  # a page that only the first found damaged cost the rows before it
        # A flip in the key of a row may hide a row behind another: it is computed each time.
        after = num_right(store, numbers)
        assert after >= len(numbers) - 5 and store.writable, (before, after, store.reason)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, (trial, status)
print("as it should be")
"""
FLIP = "place = chance.randrange(size); file.seek(place); bits = file.read(1)[0] ^ 1 << chance.randrange(8); "
FLIP += "file.seek(place); file.write(bytes([bits]))"
FLIP_IN_FIRST_PAGES = FLIP.replace("chance.randrange(size)", "chance.choice([0, 4096]) + chance.randrange(160)")
OVERWRITE = "file.seek(4096 * chance.randrange(2, size // 4096)); "
OVERWRITE += "file.write(chance.choice([bytes(4096), bytes([255]) * 4096, chance.randbytes(4096)]))"


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("damage", [FLIP, FLIP_IN_FIRST_PAGES, OVERWRITE], ids=["flip", "first pages", "overwrite"])
def test_damage_anywhere_never_gives_a_wrong_row_or_a_crash(intact: Path, tmp_path: Path, damage: str) -> None:
    code = FUZZ.format(intact=str(intact), seed=random.randrange(1 << 30), num_trials=60, damage=damage)
    assert run_python(code, tmp_path) == "as it should be\n", code


def test_damage_while_a_store_is_open_costs_its_rows(folder: Path) -> None:
    code = f"""
numbers = range({NUM_ROWS})
assert num_right(store, numbers) == {NUM_ROWS}
with (root / FINGERPRINT / "data.mdb").open("r+b") as file:
    size = os.fstat(file.fileno()).st_size
    for place in range(8192, size, 4096):
        file.seek(place + 10)
        flags = int.from_bytes(file.read(2), "little")
        if flags in (1, 2):
            file.seek(place)
            file.write(bytes(4096))
assert num_right(store, numbers) == 0
put(store, numbers)
print(num_right(store, numbers), store.verify(), store.writable, sep=";")
"""
    first, second, result = run_python(code, folder.parent).splitlines()
    assert first == f"activation_cache: {folder} has damaged rows. They are computed again."
    assert second.startswith(f"activation_cache: {folder / 'data.mdb'} is damaged (")
    assert result == "120;(120, 0);True"


def test_the_description_of_a_store_is_kept_when_its_rows_are_discarded(folder: Path, read_and_heal: Reader) -> None:
    meta = folder / "meta.json"
    said = json.loads(meta.read_text(encoding="utf-8")) | {"model": "named"}
    meta.write_text(json.dumps(said), encoding="utf-8")
    (folder / "data.mdb").write_bytes(b"garbage" * 1000)
    read_and_heal()
    assert json.loads(meta.read_text(encoding="utf-8"))["model"] == "named"
