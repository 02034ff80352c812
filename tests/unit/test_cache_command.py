"""`hf-freeze cache` on real stores: what it shows, what it finds, what it removes, and what it leaves."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from hf_freeze.activation_cache import folders
from hf_freeze.activation_cache.descriptions import read_description, write_description
from hf_freeze.activation_cache.housekeeping import list_stores
from hf_freeze.activation_cache.store import ActivationStore
from hf_freeze.cli import app
from hf_freeze.config.sizes import spell_size
from tests.unit.activation_cache.rows import put, row

OLD, NEW = "0123456789abcdef" * 2, "fedcba9876543210" * 2
OLD_SHORT, NEW_SHORT = OLD[:12], NEW[:12]
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
DAY = 86_400.0
NUM_ROWS = 40


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["cache", *map(str, arguments)], prog_name="hf-freeze")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two stores, last used 40 days and an hour ago."""
    root = tmp_path / "root"
    for fingerprint, model, depth, dtype, age in (
        (OLD, "tiny", 3, None, 40 * DAY),
        (NEW, MINILM, 4, torch.float16, 3700.0),
    ):
        store = ActivationStore(root, fingerprint, model=model, depth=depth, dtype=dtype)
        put(store, range(NUM_ROWS))
        store.close()
        change(root, fingerprint, last_used=time.time() - age)
    return root


@pytest.fixture
def opened(root: Path) -> Iterator[ActivationStore]:
    """The old store, in use by this process, though for 40 days without a look at it."""
    store = ActivationStore(root, OLD)
    assert len(store) == NUM_ROWS
    change(root, OLD, last_used=time.time() - 40 * DAY)
    yield store
    store.close()


def change(root: Path, fingerprint: str, **changes: float) -> None:
    description = read_description(root / fingerprint)
    assert description is not None
    write_description(root / fingerprint, dataclasses.replace(description, **changes))


def sizes(root: Path) -> dict[str, str]:
    stores = list_stores(root)
    return {
        "all": spell_size(sum(store.num_bytes for store in stores)),
        **{store.fingerprint: spell_size(store.num_bytes) for store in stores},
    }


def flip_bytes_of(path: Path, number: int) -> None:
    """Flips a byte of one row that fills pages of its own."""
    content = bytearray(path.read_bytes())
    position = content.index(row(number).numpy().tobytes())
    content[position + 1000] ^= 0xFF
    path.write_bytes(content)


def words(line: str) -> list[str]:
    return line.split()


class TestList:
    def test_it_shows_each_store_and_the_total(self, root: Path) -> None:
        result = call("list", "--dir", root)
        size = sizes(root)
        assert (result.exit_code, result.stderr) == (0, "")
        lines = [words(line) for line in result.stdout.splitlines() if line.strip(" ─")]
        assert lines == [
            [str(root)],
            ["fingerprint", "model", "depth", "dtype", "rows", "size", "last", "use"],
            [NEW_SHORT, MINILM[:33], "4", "float16", "40", *words(size[NEW]), "1", "hour", "ago"],
            [MINILM[33:]],
            [OLD_SHORT, "tiny", "3", "float32", "40", *words(size[OLD]), "40", "days", "ago"],
            ["all", "80", *words(size["all"])],
        ]

    def test_a_narrow_terminal_loses_no_fingerprint_and_no_number(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        shown = call("list", "--dir", root).stdout
        for text in (OLD_SHORT, NEW_SHORT, "float16", *sizes(root).values(), "40 days ago"):
            assert text in shown

    def test_programs_get_json(self, root: Path) -> None:
        result = call("list", "--json", "--dir", root)
        assert (result.exit_code, result.stderr) == (0, "")
        assert json.loads(result.stdout) == [
            {**dataclasses.asdict(store), "folder": str(store.folder)} for store in list_stores(root)
        ]

    def test_a_folder_that_does_not_exist_holds_nothing(self, tmp_path: Path) -> None:
        folder = tmp_path / "nowhere"
        assert call("list", "--dir", folder).stdout == f"{folder} does not exist, so it holds no stores.\n"
        assert call("list", "--json", "--dir", folder).stdout == "[]\n"
        assert not folder.exists()

    def test_without_a_folder_it_is_the_default_one(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_FREEZE_CACHE", str(root))
        assert folders.default_folder() == root
        assert call("list").stdout == call("list", "--dir", root).stdout

    def test_the_home_of_the_user_can_be_written_as_a_tilde(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(root.parent))
        assert call("list", "--dir", "~/root").stdout == call("list", "--dir", root).stdout

    def test_another_format_is_named_and_not_read(self, root: Path) -> None:
        change(root, OLD, format_version=7)
        shown = call("list", "--dir", root).stdout
        assert words(shown[shown.index(OLD_SHORT) :])[1:6] == ["tiny", "3", "float32", "format", "7"]
        assert words(shown[shown.rindex(" all ") :])[:2] == ["all", "40"]
        assert shown.endswith("Stores of another format are not read; `hf-freeze cache clear` removes them, too.\n")


class TestVerify:
    def test_intact_stores_are_said_to_be(self, root: Path) -> None:
        result = call("verify", "--dir", root)
        assert (result.exit_code, result.stderr) == (0, "")
        lines = [words(line) for line in result.stdout.splitlines() if line.strip(" ─")]
        assert lines == [
            ["fingerprint", "model", "intact", "damaged"],
            [NEW_SHORT, MINILM, "40", "0"],
            [OLD_SHORT, "tiny", "40", "0"],
            words("All rows that were read are intact."),
        ]

    def test_damage_is_counted_and_is_an_exit_status(self, root: Path) -> None:
        flip_bytes_of(root / OLD / "data.mdb", 5)
        result = call("verify", "--dir", root)
        assert (result.exit_code, result.stderr) == (1, "")
        assert [OLD_SHORT, "tiny", "39", "1"] in map(words, result.stdout.splitlines())
        assert [NEW_SHORT, MINILM, "40", "0"] in map(words, result.stdout.splitlines())
        assert result.stdout.endswith("What is damaged is computed again when it is next needed.\n")

    def test_a_file_that_was_cut_off_is_damaged_as_a_whole(self, root: Path, caplog: pytest.LogCaptureFixture) -> None:
        data = root / OLD / "data.mdb"
        with data.open("r+b") as file:
            file.truncate(50_000)
        result = call("verify", "--dir", root)
        assert result.exit_code == 1
        assert [OLD_SHORT, "tiny", "0", "all"] in map(words, result.stdout.splitlines())
        (message,) = caplog.messages
        assert message.startswith(f"activation_cache: {data} is damaged (")
        assert call("verify", "--dir", root).exit_code == 0

    def test_only_those_that_are_named_are_read(self, root: Path) -> None:
        flip_bytes_of(root / OLD / "data.mdb", 5)
        result = call("verify", NEW, "--dir", root)
        assert result.exit_code == 0
        assert OLD_SHORT not in result.stdout
        assert call("verify", NEW, OLD_SHORT, "--dir", root).exit_code == 1

    def test_what_does_not_exist_is_said(self, root: Path) -> None:
        result = call("verify", "fedcba98x654", "x", OLD, "--dir", root)
        exist = f"{root} holds {OLD_SHORT}, {NEW_SHORT}. Name one that exists."
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == (
            f"FINGERPRINT: no store's begins so; got 'fedcba98x654'. {exist} Did you mean {NEW_SHORT!r}?\n"
            f"FINGERPRINT: no store's begins so; got 'x'. {exist}\n"
        )

    def test_a_store_is_no_younger_for_having_been_checked(self, root: Path) -> None:
        before = [store.last_used for store in list_stores(root)]
        assert call("verify", "--dir", root).exit_code == 0
        assert [store.last_used for store in list_stores(root)] == before

    def test_a_store_that_is_in_use_is_read_and_stays_in_use(self, root: Path, opened: ActivationStore) -> None:
        result = call("verify", "--dir", root)
        assert result.exit_code == 0
        assert [OLD_SHORT, "tiny", "40", "0"] in map(words, result.stdout.splitlines())
        assert opened.verify() == (NUM_ROWS, 0)

    def test_another_format_is_left_alone(self, root: Path) -> None:
        change(root, OLD, format_version=7)
        files = sorted(path.name for path in (root / OLD).iterdir())
        result = call("verify", "--dir", root)
        assert result.exit_code == 0
        assert [OLD_SHORT, "tiny", "format", "7", "not", "read"] in map(words, result.stdout.splitlines())
        assert sorted(path.name for path in (root / OLD).iterdir()) == files

    def test_a_folder_that_does_not_exist_holds_nothing(self, tmp_path: Path) -> None:
        folder = tmp_path / "nowhere"
        result = call("verify", "--dir", folder)
        assert (result.exit_code, result.stdout) == (0, f"{folder} does not exist, so it holds no stores.\n")
        assert call("verify", "x", "--dir", folder).stderr == (
            f"FINGERPRINT: no store's begins so; got 'x'. {folder} does not exist, so it holds no stores. Name one "
            "that exists.\n"
        )

    def test_a_store_without_a_file_holds_no_rows(self, root: Path) -> None:
        (root / OLD / "data.mdb").unlink()
        result = call("verify", OLD, "--dir", root)
        assert result.exit_code == 0
        assert [OLD_SHORT, "tiny", "0", "0"] in map(words, result.stdout.splitlines())


class TestPrune:
    def test_without_options_the_defaults_of_configs_hold(self, root: Path) -> None:
        size = sizes(root)[OLD]
        result = call("prune", "--dir", root)
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout == f"Removed {OLD_SHORT} (tiny, {size}).\n1 store ({size}) removed from {root}.\n"
        assert [store.fingerprint for store in list_stores(root)] == [NEW]

    def test_where_all_may_stay_nothing_is_removed(self, root: Path) -> None:
        result = call("prune", "--expire-after", "41", "--dir", root)
        assert (result.exit_code, result.stdout) == (0, f"Nothing was removed from {root}.\n")
        assert call("prune", "--expire-after", "null", "--dir", root).stdout == result.stdout

    @pytest.mark.parametrize("size", ["1", "1 B", "0.5kB"])
    def test_the_size_is_spelled_as_in_configs(self, root: Path, size: str) -> None:
        result = call("prune", "--max-size", size, "--expire-after", "null", "--dir", root)
        assert result.stdout.splitlines()[2].startswith("2 stores (")
        assert list_stores(root) == []

    def test_a_part_of_a_day_is_days_too(self, root: Path) -> None:
        call("prune", "--expire-after", "0.01", "--dir", root)
        assert list_stores(root) == []

    def test_what_no_config_could_say_is_refused_together(self, root: Path) -> None:
        result = call("prune", "--max-size", "5 apples", "--expire-after", "0", "--dir", root)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == (
            "--max-size: has an unknown unit; got '5 apples'. Units: B, kB, MB, GB, TB, KiB, MiB, GiB, TiB. Write a "
            "number and a unit, such as 50 GB, or a whole number of bytes.\n"
            "--expire-after: is not above 0.0; got 0. Number of days above 0 after which what no run has used is "
            "removed; null: never.\n"
        )
        assert len(list_stores(root)) == 2

    def test_what_is_in_use_is_left_and_said(self, root: Path, opened: ActivationStore) -> None:
        size = sizes(root)[OLD]
        result = call("prune", "--dir", root)
        assert result.exit_code == 0
        assert result.stdout == (
            f"Nothing was removed from {root}.\nLeft {OLD_SHORT} (tiny, {size}): a process is using it.\n"
        )
        assert opened.verify() == (NUM_ROWS, 0)

    def test_what_is_in_use_and_may_stay_is_not_worth_a_word(self, root: Path, opened: ActivationStore) -> None:
        result = call("prune", "--expire-after", "null", "--dir", root)
        assert result.stdout == f"Nothing was removed from {root}.\n"

    def test_a_folder_that_does_not_exist_stays_so(self, tmp_path: Path) -> None:
        folder = tmp_path / "nowhere"
        assert call("prune", "--dir", folder).stdout == f"{folder} does not exist, so it holds no stores.\n"
        assert not folder.exists()


class TestClear:
    def test_with_yes_all_go(self, root: Path) -> None:
        size = sizes(root)
        change(root, OLD, format_version=7)
        result = call("clear", "--yes", "--dir", root)
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout.splitlines() == [
            f"Removed {OLD_SHORT} (tiny, {size[OLD]}).",
            f"Removed {NEW_SHORT} ({MINILM}, {size[NEW]}).",
            f"2 stores ({size['all']}) removed from {root}.",
        ]
        assert list_stores(root) == []

    def test_without_a_terminal_it_needs_yes(self, root: Path) -> None:
        result = call("clear", "--dir", root)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == (
            f"--yes: is needed where there is no terminal to ask on; got none. {root} holds 2 stores "
            f"({sizes(root)['all']}). Add --yes to remove them.\n"
        )
        assert len(list_stores(root)) == 2

    def test_where_there_is_nothing_it_does_not_ask(self, tmp_path: Path) -> None:
        result = call("clear", "--dir", tmp_path)
        assert (result.exit_code, result.stdout) == (0, f"Nothing was removed from {tmp_path}.\n")

    def test_what_is_in_use_is_left_and_said(self, root: Path, opened: ActivationStore) -> None:
        size = sizes(root)
        result = call("clear", "--yes", "--dir", root)
        assert result.exit_code == 0
        assert result.stdout.splitlines()[1:] == [
            f"1 store ({size[NEW]}) removed from {root}.",
            f"Left {OLD_SHORT} (tiny, {size[OLD]}): a process is using it.",
        ]
        assert opened.verify() == (NUM_ROWS, 0)

    @pytest.mark.parametrize(("answer", "number"), [(b"n\n", 2), (b"y\n", 0)])
    def test_on_a_terminal_it_asks(self, root: Path, answer: bytes, number: int) -> None:
        controller, terminal = pty.openpty()
        command = [sys.executable, "-c", "from hf_freeze.cli import main; main()", "cache", "clear", "--dir", str(root)]
        question = f"Remove 2 stores ({sizes(root)['all']}) from {root}? [y/N]: "
        os.write(controller, answer)
        done = subprocess.run(command, stdin=terminal, capture_output=True, text=True, check=True, timeout=60)
        os.close(terminal)
        os.close(controller)
        assert done.stdout.startswith(question)
        assert done.stdout.endswith(f"removed from {root}.\n" if number == 0 else "Nothing was removed.\n")
        assert (len(list_stores(root)), done.stderr) == (number, "")


@pytest.mark.parametrize("command", [["list"], ["verify"], ["prune"], ["clear", "--yes"]])
def test_what_the_system_refuses_is_said_without_a_traceback(command: list[str], tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 300)
    result = call(*command, "--dir", folder)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"--dir: the cache in this folder cannot be used; got {str(folder)!r}. The system says: File name too long. "
        "Name a folder that you may read and write.\n"
    )


def test_every_command_has_a_line_of_help() -> None:
    overview = call("--help").stdout
    for command in ("list", "verify", "prune", "clear"):
        assert call(command, "--help").exit_code == 0
        assert f"  {command} " in overview


def test_looking_does_not_wait_for_torch() -> None:
    code = "import sys, hf_freeze.cli as cli; cli.app(['cache', 'list'], standalone_mode=False); "
    code += "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
