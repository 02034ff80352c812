"""docs/defaults.md lists every key of a section, with its default."""

from __future__ import annotations

import re

import pytest
from ruamel.yaml import YAML

from hf_freeze.config import ActivationCacheConfig, MonitorConfig, SaveConfig, SearchConfig
from hf_freeze.config.section import Section
from tests.conftest import REPOSITORY


@pytest.mark.parametrize(
    ("name", "section"),
    [
        ("activation_cache", ActivationCacheConfig()),
        ("monitor", MonitorConfig()),
        ("save", SaveConfig()),
        ("search", SearchConfig(depths=[1])),
    ],
)
def test_the_document_has_every_key_and_its_default(name: str, section: Section) -> None:
    text = (REPOSITORY / "docs" / "defaults.md").read_text(encoding="utf-8")
    table = text.partition(f"keys of `{name}`")[2].partition("\n## ")[0]
    documented = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", table, re.MULTILINE))
    given = {"depths": None} if name == "search" else {}
    found = {key: YAML(typ="safe").load(value) for key, value in documented.items()}
    assert found == {**section.model_dump(), **given}
