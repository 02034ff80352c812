"""The activation_cache section takes what it describes, and refuses the rest in words."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_freeze.config import ActivationCacheConfig, json_schema, load_config, parse_config, parse_section, to_yaml
from hf_freeze.config.problems import ProblemsFound
from hf_freeze.config.sizes import SIZE_SCHEMA, read_size, spell_size
from hf_freeze.errors import ConfigError
from tests.unit.config.smallest import CONFIG

UNITS = "Units: B, kB, MB, GB, TB, KiB, MiB, GiB, TiB."
WRITE = "Write a number and a unit, such as 50 GB, or a whole number of bytes."
SWITCH = "It takes 'auto', true or false."
DTYPES = "It takes 'auto', 'float32', 'bfloat16' or 'float16'."
DIR = "Folder of the cache, on a local disk; null: one below the user's cache home."
DAYS = "Number of days above 0 after which what no run has used is removed; null: never."
SIZES = {
    "1B": 1,
    "2 kB": 2_000,
    "3MB": 3_000_000,
    "50GB": 50_000_000_000,
    "50 gb": 50_000_000_000,
    "4 TB": 4_000_000_000_000,
    "5KiB": 5_120,
    "500 MiB": 524_288_000,
    "6 GiB": 6_442_450_944,
    "7TiB": 7_696_581_394_432,
    "1.5 GB": 1_500_000_000,
    "0.1 GB": 100_000_000,
    "0.3 KiB": 307,
    "  8  KIB  ": 8_192,
}
NO_SIZES = ["", "GB", "x", "-5 GB", "1e3 MB", "1,5 GB", "5 GB!", ".5 GB", "5. GB", "5\nGB", "1 2 GB", "9" * 19 + "B"]
NO_UNITS = ["1 G", "50 GBs", "3 giga", "5 bytes", "1 kbit"]


def read(key: str, value: object) -> Any:
    section = parse_section(ActivationCacheConfig, {key: value}, key="activation_cache")
    return section.model_dump()[key]


def message_of(section: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_section(ActivationCacheConfig, section, key="activation_cache")
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("enabled", ["auto", True, False]),
        ("dir", [None, "~/cache", "/tmp/x", "relative"]),
        ("dtype", ["auto", "float32", "bfloat16", "float16"]),
        ("max_size", [None, 1, 1_000_000, 10**15]),
        ("expire_after", [None, 1, 30, 0.5, 365.25]),
        ("build", ["auto", "eager", "lazy"]),
    ],
)
def test_what_is_taken_as_it_is(key: str, values: list[object]) -> None:
    read_back = [read(key, value) for value in values]
    assert read_back == values
    assert [value for value in read_back if isinstance(value, bool)] == [v for v in values if isinstance(v, bool)]


@pytest.mark.parametrize(("text", "size"), SIZES.items())
def test_sizes_become_bytes(text: str, size: int) -> None:
    assert read("max_size", text) == size


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"enabled": "true"}, f"enabled: is none of its values; got 'true'. {SWITCH} Write it without quotes."),
        ({"enabled": "fales"}, f"enabled: is none of its values; got 'fales'. {SWITCH} Did you mean 'false'?"),
        ({"enabled": "atuo"}, f"enabled: is none of its values; got 'atuo'. {SWITCH} Did you mean 'auto'?"),
        *(
            ({"enabled": value}, f"enabled: is none of its values; got {value!r}. {SWITCH}")
            for value in (1, 0, 1.0, None, "on", "no", [True])
        ),
        ({"dir": ""}, f"dir: is empty; got ''. {DIR}"),
        ({"dir": 3}, f"dir: is not text; got 3. {DIR}"),
        ({"dir": Path("x")}, f"dir: is not text; got {Path('x')!r}. {DIR}"),
        ({"dtype": "float64"}, f"dtype: is none of its values; got 'float64'. {DTYPES} Did you mean 'float16'?"),
        ({"dtype": None}, f"dtype: is none of its values; got None. {DTYPES}"),
        *(
            ({"max_size": value}, f"max_size: is not a size; got {value!r}. {UNITS} {WRITE}")
            for value in (True, 1.5, [1], {"GB": 1}, *NO_SIZES)
        ),
        *(
            ({"max_size": value}, f"max_size: is less than one byte; got {value!r}. {UNITS} {WRITE}")
            for value in (0, -1, "0 GB", "0.9 B", "0.0001kB")
        ),
        *(
            (
                {"max_size": value},
                f"max_size: has no unit; got {value!r}. {UNITS} Add one, or write bytes without quotes.",
            )
            for value in ("1000000", "1.5", " 7 ")
        ),
        (
            {"max_size": "50 GBs"},
            f"max_size: has an unknown unit; got '50 GBs'. {UNITS} {WRITE} Did you mean 'GB'?",
        ),
        ({"max_size": "5 bytes"}, f"max_size: has an unknown unit; got '5 bytes'. {UNITS} {WRITE}"),
        ({"expire_after": 0}, f"expire_after: is not above 0.0; got 0. {DAYS}"),
        ({"expire_after": -0.5}, f"expire_after: is not above 0.0; got -0.5. {DAYS}"),
        ({"expire_after": True}, f"expire_after: is not a number; got True. {DAYS}"),
        ({"expire_after": "30"}, f"expire_after: is not a number; got '30'. {DAYS} Write it without quotes."),
        ({"expire_after": float("inf")}, f"expire_after: is not a finite number; got inf. {DAYS}"),
        (
            {"build": "eagre"},
            "build: is none of its values; got 'eagre'. It takes 'auto', 'eager' or 'lazy'. Did you mean 'eager'?",
        ),
        (
            {"folder": "x"},
            ("folder: unknown key; got 'x'. Known keys: build, dir, dtype, enabled, expire_after, max_size."),
        ),
    ],
)
def test_what_is_refused(section: dict[str, Any], message: str) -> None:
    assert message_of(section) == f"activation_cache.{message}"


def test_every_problem_is_reported_at_once() -> None:
    found = message_of({"enabled": 1, "dir": "", "dtype": 16, "max_size": "x", "expire_after": 0, "build": "now"})
    assert [line.partition(":")[0] for line in found.splitlines()] == [
        f"activation_cache.{key}" for key in ("enabled", "dir", "dtype", "max_size", "expire_after", "build")
    ]


def test_it_is_written_with_the_size_in_bytes_and_reads_back(tmp_path: Path) -> None:
    section = {"enabled": True, "dir": "~/x", "max_size": "1.5 GB", "expire_after": None, "build": "auto"}
    config = parse_config({**CONFIG, "activation_cache": section})
    path = tmp_path / "x.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert to_yaml(config).splitlines()[5:10] == [
        "activation_cache:",
        "  enabled: true",
        "  dir: ~/x",
        "  max_size: 1500000000",
        "  expire_after: null",
    ]
    assert load_config(path) == config


@pytest.mark.parametrize("override", ["500 MiB", '"500 MiB"', "524288000"])
def test_sizes_can_be_given_on_the_command_line(tmp_path: Path, override: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(to_yaml(parse_config(CONFIG)), encoding="utf-8")
    assert load_config(path, [f"activation_cache.max_size={override}"]).activation_cache.max_size == 524_288_000


def test_sizes_are_spelled_in_the_largest_unit_that_fits() -> None:
    spelled = [spell_size(size) for size in (0, 999, 1000, 999_949, 999_950, 1_500_000_000, 10**12, 12 * 10**15)]
    assert spelled == ["0 B", "999 B", "1.0 kB", "999.9 kB", "1.0 MB", "1.5 GB", "1.0 TB", "12000.0 TB"]


class TestSchema:
    def test_the_switch_is_auto_true_or_false(self) -> None:
        switch = json_schema()["$defs"]["ActivationCacheConfig"]["properties"]["enabled"]
        assert (switch["enum"], switch["default"]) == (["auto", True, False], "auto")

    def test_sizes_are_bytes_text_or_null(self) -> None:
        section = json_schema()["$defs"]["ActivationCacheConfig"]["properties"]
        assert section["max_size"]["anyOf"] == [*SIZE_SCHEMA["anyOf"], {"type": "null"}]
        assert section["expire_after"]["anyOf"] == [{"exclusiveMinimum": 0, "type": "number"}, {"type": "null"}]

    @pytest.mark.parametrize("text", [*SIZES, *NO_SIZES, *NO_UNITS, "1000000"])
    def test_an_editor_takes_the_texts_that_are_read(self, text: str) -> None:
        assert bool(re.search(SIZE_SCHEMA["anyOf"][1]["pattern"], text)) == (text in SIZES)

    @given(st.from_regex(SIZE_SCHEMA["anyOf"][1]["pattern"], fullmatch=True).filter(lambda text: "\n" not in text))
    def test_what_an_editor_takes_is_read_unless_it_is_nothing(self, text: str) -> None:
        if re.search("[1-9]", text):
            with contextlib.suppress(ProblemsFound):  # less than one byte
                assert read_size(text) > 0
        else:
            with pytest.raises(ProblemsFound, match="config: is less than one byte; got "):
                read_size(text)
