"""What the documents say about the repository is so: targets, files and links exist, and caps are kept."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

DOCUMENTS = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for path in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("examples/**/*.md")]
)
FILE = re.compile(r"\b(?:accelerate_configs|benchmarks|configs|docs|examples|scripts|tests)/[\w./-]*\.\w+")
LINK = re.compile(r"\[[^\]]*\]\((?!https?:|#)([^)#]+)")
MAKE_TARGET = re.compile(r"\bmake ([a-z][a-z-]*)\b(?=`|$)", re.MULTILINE)
CHANGE_KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def read(document: str) -> str:
    return (REPOSITORY / document).read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_a_document_names_exist(document: str) -> None:
    missing = {name for name in FILE.findall(read(document)) if not (REPOSITORY / name).exists()}
    assert missing == set()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_inside_the_repository_lead_somewhere(document: str) -> None:
    folder = (REPOSITORY / document).parent
    assert {link for link in LINK.findall(read(document)) if not (folder / link).exists()} == set()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_that_a_document_names_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", read("Makefile"), re.MULTILINE))
    assert set(MAKE_TARGET.findall(read(document))) <= targets


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_to_the_web_are_encrypted(document: str) -> None:
    assert re.findall(r"http://[^\s)]+", read(document)) == []


def test_every_make_target_that_is_listed_is_phony() -> None:
    makefile = read("Makefile")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert set(phony.split()) == set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))


def test_the_contributing_guide_stays_short() -> None:
    assert len(read("CONTRIBUTING.md").splitlines()) <= 60


def test_the_changelog_keeps_its_form() -> None:
    changelog = read("CHANGELOG.md")
    releases = re.findall(r"^## (.*)$", changelog, re.MULTILINE)
    assert releases[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", release) for release in releases[1:])
    assert set(re.findall(r"^### (.*)$", changelog, re.MULTILINE)) <= CHANGE_KINDS


def test_the_data_say_where_they_come_from() -> None:
    for table in REPOSITORY.glob("examples/data/*/*.csv"):
        readme = table.with_name("README.md").read_text(encoding="utf-8")
        assert "Source:" in readme, Path(table).name
        assert "licence" in readme, Path(table).name
