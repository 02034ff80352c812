"""Rows that are known by their number, and Python programs of their own that put and get them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import torch

from hf_freeze.activation_cache.store import ActivationStore
from tests.conftest import REPOSITORY

FINGERPRINT = "0123456789abcdef"
PROGRAM = """
import logging, os, random, resource, signal, sys, time
from pathlib import Path
import torch
from hf_freeze.activation_cache import environment, housekeeping
from hf_freeze.activation_cache.store import ActivationStore
from hf_freeze.errors import CacheError
from tests.unit.activation_cache.rows import FINGERPRINT, key, num_right, put, row

logging.basicConfig(format="%(message)s", stream=sys.stdout)
root = Path(sys.argv[1])
store = ActivationStore(root, FINGERPRINT)
"""


def key(number: int) -> bytes:
    return hashlib.blake2b(str(number).encode(), digest_size=16).digest()


def row(number: int) -> torch.Tensor:
    """A row of one to seven positions; some fit in a page of the index, most fill pages of their own."""
    return torch.full((1 + number % 7, 8 if number % 3 == 0 else 384), float(number))


def put(store: ActivationStore, numbers: range, *, step: int = 16) -> None:
    for start in range(0, len(numbers), step):
        store.put((key(number), row(number)) for number in numbers[start : start + step])


def num_right(store: ActivationStore, numbers: range) -> int:
    """Returns how many rows are there; none of them may be wrong."""
    found = [
        (stored, row(number))
        for number, stored in zip(numbers, store.get([key(number) for number in numbers]), strict=True)
        if stored is not None
    ]
    assert all(torch.equal(stored, expected) for stored, expected in found)
    return len(found)


def start_python(code: str, root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM + code, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=REPOSITORY,
    )


def run_python(code: str, root: Path) -> str:
    """Returns what a program printed; it must end well, and above all not by a signal."""
    process = start_python(code, root)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output
