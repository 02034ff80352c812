"""What the documents show works: Python blocks run, whole configs are sound, commands parse, printed plans are real."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
from ruamel.yaml import YAML

from hf_freeze.cli import app, main
from hf_freeze.config import (
    MonitorConfig,
    SearchConfig,
    load_config,
    parse_config,
    parse_overrides,
    parse_section,
)
from hf_freeze.config.save import SaveConfig
from hf_freeze.config.schema import ActivationCacheConfig, Adapters, FreezeConfig, ScheduleConfig
from hf_freeze.config.section import Section
from tests.conftest import REPOSITORY

DOCUMENTS = ["README.md", *sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"`(hf-freeze [^`\n]*)`")


class Fragment(Section):
    """What a document may show of a config by itself."""

    freeze: FreezeConfig | None = None
    adapters: Adapters = ()
    schedule: ScheduleConfig = ScheduleConfig()
    activation_cache: ActivationCacheConfig = ActivationCacheConfig()
    save: SaveConfig = SaveConfig()
    monitor: MonitorConfig = MonitorConfig()
    search: SearchConfig | None = None


def blocks(document: str, *languages: str) -> list[tuple[int, str]]:
    """The fenced blocks in these languages, each with the number of its first line."""
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, found.start(2)) + 1, found[2]) for found in FENCED.finditer(text) if found[1] in languages
    ]


def commands(document: str) -> list[str]:
    """Every `hf-freeze` command that a document shows, a spelling of several commands (`a | b`) left out."""
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    lines = [line for _, block in blocks(document, "bash") for line in block.replace("\\\n", "").splitlines()]
    shown = [line for line in lines if line.startswith("hf-freeze ")] + COMMAND.findall(FENCED.sub("", text))
    return [command for command in shown if " | " not in command]


DOCUMENTS_WITH_PYTHON = [document for document in DOCUMENTS if blocks(document, "python")]
YAML_BLOCKS = [
    pytest.param(block, id=f"{document}:{line}") for document in DOCUMENTS for line, block in blocks(document, "yaml")
]
COMMANDS = [pytest.param(command, id=command) for command in sorted({c for d in DOCUMENTS for c in commands(d)})]


@pytest.mark.parametrize("document", DOCUMENTS_WITH_PYTHON)
def test_python_blocks_of_a_document_run_in_order(
    document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "documented"}
    for line, block in blocks(document, "python"):
        # Blank lines in front give errors the line number that the document has.
        exec(compile("\n" * (line - 1) + block, document, "exec"), namespace)


@pytest.mark.parametrize("block", YAML_BLOCKS)
def test_yaml_blocks_are_sound_configs_or_sound_sections(block: str) -> None:
    sections = YAML(typ="safe", pure=True).load(block)
    if "model" in sections:
        parse_config(sections)
    else:
        parse_section(Fragment, sections, key="")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_that_a_document_shows_parse(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    name, *arguments = shlex.split(command)[1:] or ["--help"]
    group: Any = typer.main.get_command(app)
    if name == "--help":
        return
    values = group.commands[name].make_context(name, arguments).params if arguments else {}
    target = values.get("config") or values.get("target") or ""
    if target.endswith(".yaml"):
        load_config(target, values["overrides"] or ())
    else:
        parse_overrides(values.get("overrides") or ())


def test_the_readme_shows_the_real_plan_of_the_quickstart(
    minilm_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(SystemExit) as ended:
        main(["plan", "configs/quickstart.yaml", f"model.name_or_path={minilm_path}"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() in (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_readme_fits_a_few_screens() -> None:
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
