"""pyproject.toml, constraints.txt and constraints-lowest.txt say the same about versions."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DEPENDENCIES = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = {extra: [Requirement(line) for line in lines] for extra, lines in PROJECT["optional-dependencies"].items()}
TOOLS = [requirement for extra in ("onnx", "search", "test") for requirement in EXTRAS[extra]]
EVERY = sorted({*DEPENDENCIES, *(requirement for extra in EXTRAS.values() for requirement in extra)}, key=str)


def pins(name: str) -> dict[str, Version]:
    """Reads a constraints file into canonical name and exact version."""
    lines = [line for line in (REPOSITORY / name).read_text(encoding="utf-8").splitlines() if line[:1] not in ("", "#")]
    pairs = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line) for line in lines]
    assert all(pairs), "every line pins one version, without a local label such as +cpu"
    pinned = {canonicalize_name(pair[1]): Version(pair[2]) for pair in pairs}
    assert len(pinned) == len(lines), "every package is pinned once"
    return pinned


def lower_bound(requirement: Requirement) -> Version:
    (bound,) = [Version(specifier.version) for specifier in requirement.specifier if specifier.operator == ">="]
    return bound


@pytest.mark.parametrize("requirement", DEPENDENCIES, ids=lambda requirement: requirement.name)
def test_the_lowest_versions_are_the_ones_that_are_promised(requirement: Requirement) -> None:
    assert pins("constraints-lowest.txt")[canonicalize_name(requirement.name)] == lower_bound(requirement)


@pytest.mark.parametrize("requirement", EVERY, ids=str)
def test_the_exact_versions_are_within_what_is_promised(requirement: Requirement) -> None:
    assert pins("constraints.txt")[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize(
    "requirement", [r for extra in ("onnx", "search", "test") for r in EXTRAS[extra]], ids=lambda r: r.name
)
def test_the_lowest_versions_are_tested_with_tools_within_what_is_promised(requirement: Requirement) -> None:
    assert pins("constraints-lowest.txt")[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize("name", ["accelerate", "peft", "torch", "transformers"])
def test_libraries_whose_insides_are_relied_on_are_capped(name: str) -> None:
    (requirement,) = [requirement for requirement in DEPENDENCIES if requirement.name == name]
    assert any(specifier.operator == "<" for specifier in requirement.specifier)
