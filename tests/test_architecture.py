"""The rules that the source keeps: imports go one way, one writer, small files, nothing unsafe, light imports."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

import hf_freeze
from tests import architecture
from tests.conftest import REPOSITORY

SOURCES = {
    str(path.relative_to(REPOSITORY).as_posix()): path.read_text(encoding="utf-8")
    for path in sorted((REPOSITORY / "hf_freeze").rglob("*.py"))
}


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)


class TestRepository:
    def test_imports_go_one_way(self) -> None:
        assert architecture.import_violations(SOURCES) == []

    @pytest.mark.parametrize("path", SOURCES)
    def test_files_and_functions_stay_small(self, path: str) -> None:
        assert architecture.size_violations(path, SOURCES[path]) == []

    @pytest.mark.parametrize("path", SOURCES)
    def test_files_are_named_for_what_they_hold(self, path: str) -> None:
        assert architecture.name_violations(path) == []

    @pytest.mark.parametrize("path", SOURCES)
    def test_one_writer_of_requires_grad_no_prints_and_nothing_unsafe(self, path: str) -> None:
        assert architecture.code_violations(path, SOURCES[path]) == []

    @pytest.mark.parametrize("path", SOURCES)
    def test_files_open_with_a_docstring(self, path: str) -> None:
        assert ast.get_docstring(ast.parse(SOURCES[path])) is not None


class TestPublicNames:
    def test_importing_the_package_is_light_and_silent(self) -> None:
        heavy = ("torch", "transformers", "datasets", "peft", "accelerate", "pydantic", "numpy")
        result = run_python(f"import sys, hf_freeze; sys.stdout.write(str([n for n in {heavy} if n in sys.modules]))")
        assert (result.stdout, result.stderr) == ("[]", "")

    def test_public_names_are_sorted(self) -> None:
        assert hf_freeze.__all__ == sorted(hf_freeze.__all__)

    @pytest.mark.parametrize("name", hf_freeze.__all__)
    def test_public_names_resolve_and_are_listed(self, name: str) -> None:
        assert getattr(hf_freeze, name).__name__ == name
        assert name in dir(hf_freeze)

    def test_type_checkers_see_the_public_names_where_they_live(self) -> None:
        seen = {
            alias.name: node.module
            for node in ast.walk(ast.parse(SOURCES["hf_freeze/__init__.py"]))
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
            if alias.asname == alias.name
        }
        assert seen == hf_freeze._HOMES

    def test_the_version_is_that_of_the_installed_package(self) -> None:
        assert hf_freeze.__version__.split(".")[:2] == ["0", "1"]

    def test_a_name_that_does_not_exist_is_an_attribute_error(self) -> None:
        with pytest.raises(AttributeError, match=r"^module 'hf_freeze' has no attribute 'FrozenTrainer'$"):
            _ = hf_freeze.FrozenTrainer


class TestTheRulesThemselves:
    """Each rule finds what it is for in a made-up source, and nothing in one that keeps it."""

    @pytest.mark.parametrize(
        ("path", "statement", "problem"),
        [
            (
                "config/schema.py",
                "from hf_freeze.plan import layout",
                "imports hf_freeze.plan.layout, which stands above it",
            ),
            (
                "config/schema.py",
                "from hf_freeze.plan.layout import f",
                "imports hf_freeze.plan.layout, which stands above it",
            ),
            ("training/trainer.py", "import hf_freeze.run", "imports hf_freeze.run, which stands above it"),
            (
                "plan/layout.py",
                "from hf_freeze.plan.resolve import f",
                "imports hf_freeze.plan.resolve, which stands above it",
            ),
            (
                "plan/apply.py",
                "from hf_freeze.plan import f",
                "imports hf_freeze.plan itself; import from the module that defines the name",
            ),
            (
                "plan/apply.py",
                "from hf_freeze import FreezePlan",
                "imports the package itself; import from the module that defines the name",
            ),
            (
                "plan/apply.py",
                "def f():\n    from hf_freeze.cli import g",
                "imports hf_freeze.cli, which stands above it",
            ),
            (
                "extras/apply.py",
                "from hf_freeze.plan import layout",
                "hf_freeze.extras is not in LEVELS of tests/architecture.py",
            ),
        ],
    )
    def test_an_import_that_goes_up_is_found(self, path: str, statement: str, problem: str) -> None:
        sources = {"hf_freeze/plan/layout.py": "", f"hf_freeze/{path}": statement}
        line = len(statement.splitlines())
        assert architecture.import_violations(sources) == [f"hf_freeze/{path}:{line}: {problem}"]

    @pytest.mark.parametrize(
        ("path", "statement"),
        [
            ("config/loading.py", "from hf_freeze.config.schema import RunConfig"),
            ("plan/__init__.py", "from hf_freeze.plan.apply import apply_plan"),
            ("plan/apply.py", "from hf_freeze.config import FreezeConfig"),
            ("plan/apply.py", "from hf_freeze.plan.adapters import attach"),
            ("plan/layout.py", "from hf_freeze.plan.stacks import find_stacks"),
            ("cli/commands.py", "from hf_freeze.run import train"),
        ],
    )
    def test_an_import_that_goes_down_is_not_found(self, path: str, statement: str) -> None:
        assert architecture.import_violations({f"hf_freeze/{path}": statement}) == []

    def test_an_import_that_goes_up_by_way_of_an_unlisted_module_is_found(self) -> None:
        sources = {
            "hf_freeze/plan/layout.py": "from hf_freeze.plan.stacks import f",
            "hf_freeze/plan/stacks.py": "from hf_freeze.plan.trees import f",
            "hf_freeze/plan/trees.py": "from hf_freeze.plan.resolve import f",
        }
        assert architecture.import_violations(sources) == [
            "hf_freeze/plan/layout.py:1: imports hf_freeze.plan.stacks, which stands above it"
        ]

    def test_imports_in_a_circle_are_found(self) -> None:
        sources = {
            "hf_freeze/plan/apply.py": "from hf_freeze.plan import cost",
            "hf_freeze/plan/cost.py": "from hf_freeze.plan import apply",
        }
        assert [violation.split(":")[0] for violation in architecture.import_violations(sources)] == [
            "imports in a circle"
        ]

    def test_long_files_and_functions_are_found(self) -> None:
        fits = "def f():\n" + "    x = 1\n" * 48
        assert architecture.size_violations("m.py", fits) == []
        assert architecture.size_violations("m.py", fits + "    x = 1\n") == ["m.py:1: f has 50 lines"]
        assert architecture.size_violations("m.py", "x = 1\n" * 399) == []
        assert architecture.size_violations("m.py", "x = 1\n" * 400) == ["m.py: 400 lines"]

    def test_names_without_a_purpose_are_found(self) -> None:
        assert architecture.name_violations("hf_freeze/core/layout.py") == [
            "hf_freeze/core/layout.py: 'core' says nothing about what is inside"
        ]
        assert architecture.name_violations("hf_freeze/plan/utils.py") == [
            "hf_freeze/plan/utils.py: 'utils' says nothing about what is inside"
        ]

    @pytest.mark.parametrize(
        ("statement", "problem"),
        [
            ("parameter.requires_grad = False", "writes requires_grad"),
            ("a, parameter.requires_grad = 1, True", "writes requires_grad"),
            ("model.requires_grad_(False)", "writes requires_grad"),
            ("setattr(parameter, 'requires_grad', False)", "writes requires_grad"),
            ("print('x')", "prints"),
            ("import pickle", "imports a module that unpickles"),
            ("from joblib import load", "imports a module that unpickles"),
            ("import yaml", "imports PyYAML, which reads YAML 1.1; ruamel.yaml reads 1.2"),
            ("torch.load(path)", "calls torch.load without weights_only=True"),
            ("torch.load(path, weights_only=False)", "calls torch.load without weights_only=True"),
            ("YAML(typ='unsafe')", "loads YAML that may run code"),
            ("np.load(path, allow_pickle=True)", "allows pickles"),
            ("eval(text)", "runs code from a string"),
        ],
    )
    def test_code_in_the_wrong_place_is_found(self, statement: str, problem: str) -> None:
        assert architecture.code_violations("hf_freeze/run/training.py", statement) == [
            f"hf_freeze/run/training.py:1: {problem}"
        ]

    @pytest.mark.parametrize(
        ("path", "statement"),
        [
            ("hf_freeze/plan/apply.py", "parameter.requires_grad = False"),
            ("hf_freeze/cli/commands.py", "print('x')"),
            ("hf_freeze/run/training.py", "frozen = not parameter.requires_grad"),
            ("hf_freeze/run/training.py", "torch.load(path, weights_only=True)"),
            ("hf_freeze/run/training.py", "YAML(typ='safe')"),
            ("hf_freeze/run/training.py", "model.eval()"),
        ],
    )
    def test_code_in_its_place_is_not_found(self, path: str, statement: str) -> None:
        assert architecture.code_violations(path, statement) == []
