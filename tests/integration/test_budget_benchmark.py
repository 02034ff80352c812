"""The benchmark of a budget, with a few rows."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks.budget import main, speedup_table


def test_a_limit_on_memory_stands_beside_what_was_taken(capsys: pytest.CaptureFixture[str]) -> None:
    limit = ["--limit", "16 GB"]
    main(["memory", "--rows", "32", "--epochs", "1", "--threads", str(torch.get_num_threads()), *limit])
    printed = capsys.readouterr().out
    assert (
        "freeze.blocks.auto: the first 0 of 6 blocks are frozen, the fewest that meet memory 16.0 GB: predicted"
    ) in printed
    assert re.search(r"^The process took [\d.]+ .B at most; the limit was 16 GB\.$", printed, re.MULTILINE)


def test_ratios_are_taken_within_a_round() -> None:
    lines = speedup_table([10.0, 30.0], {1: [8.0, 20.0], 2: [5.0, 10.0]}, {"up to blocks[1]": 2.25})
    assert lines[2:] == [
        "| 0 | 20.0 | 1.00 |  |  |",
        "| 1 | 14.0 | 1.38 | 1.25 to 1.50 | not tried |",
        "| 2 | 7.5 | 2.50 | 2.00 to 3.00 | 2.25 |",
    ]
