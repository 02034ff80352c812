"""How a config says how many bytes, a whole number or text with a unit, and how a reader is told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Final

from hf_freeze.config.problems import Problem, ProblemsFound, shown
from hf_freeze.errors import did_you_mean

_BYTES: Final[Mapping[str, int]] = {
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("kMGT", start=1)},
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", start=1)},
}
_UNITS: Final = {unit.lower(): unit for unit in _BYTES}
_EXIST: Final = f"Units: {', '.join(_BYTES)}."
_ADVICE: Final = "Write a number and a unit, such as 50 GB, or a whole number of bytes."
# No more digits than any disk needs: Python refuses to read a number of thousands of digits.
_NUMBER: Final = r"([0-9]{1,18}(?:\.[0-9]{1,18})?)"

SIZE_SCHEMA: Final[dict[str, Any]] = {
    "anyOf": [
        {"type": "integer", "exclusiveMinimum": 0},
        {"type": "string", "pattern": rf"^ *{_NUMBER} *([kKmMgGtT][iI]?)?[bB] *$"},
    ]
}


def read_size(value: object) -> int:
    """Reads a number of bytes; a fraction of a byte is dropped.

    >>> read_size("1.5 GB"), read_size("500 MiB"), read_size(1000000)
    (1500000000, 524288000, 1000000)

    Args:
        value: A whole number, or text such as `50GB`; kB, MB, GB and TB are powers of 1000, KiB, MiB, GiB and TiB of
            1024, in upper or lower case.

    Raises:
        ProblemsFound: If it is spelled otherwise, or is less than one byte.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str):
        size = _with_unit(value)
    else:
        raise _problem(f"is not a size; got {shown(value)}. {_EXIST} {_ADVICE}")
    if size < 1:
        raise _problem(f"is less than one byte; got {shown(value)}. {_EXIST} {_ADVICE}")
    return size


def spell_size(num_bytes: int) -> str:
    """Returns a number of bytes in the largest unit that fits, to one decimal place.

    >>> spell_size(1_500_000_000), spell_size(999_950), spell_size(12)
    ('1.5 GB', '1.0 MB', '12 B')

    Args:
        num_bytes: Any number from 0 up.
    """
    if num_bytes < 1000:
        return f"{num_bytes} B"
    size = float(num_bytes)
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"


def _with_unit(text: str) -> int:
    match = re.fullmatch(rf" *{_NUMBER} *([A-Za-z]*) *", text)
    if match is None:
        raise _problem(f"is not a size; got {shown(text)}. {_EXIST} {_ADVICE}")
    number, unit = match.groups()
    if not unit:
        raise _problem(f"has no unit; got {shown(text)}. {_EXIST} Add one, or write bytes without quotes.")
    if unit.lower() not in _UNITS:
        meant = did_you_mean(unit, _BYTES)
        raise _problem(f"has an unknown unit; got {shown(text)}. {_EXIST} {_ADVICE}{meant}")
    return int(Fraction(number) * _BYTES[_UNITS[unit.lower()]])


def _problem(text: str) -> ProblemsFound:
    return ProblemsFound([Problem((), text)])
