"""The layouts of full-size models are those that were looked at and committed."""

from __future__ import annotations

import json

import pytest

from tests.golden.write_layouts import FAMILIES, FOLDER, described, full_size_layout


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layout_of_a_full_size_model_is_the_golden_one(family: str) -> None:
    golden = json.loads((FOLDER / f"{family}.json").read_text(encoding="utf-8"))
    assert described(full_size_layout(family)) == golden


def test_every_golden_file_has_a_family_and_there_are_at_least_25() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(FAMILIES)
    assert len({model_type for _, model_type, _ in FAMILIES.values()}) >= 25
