"""The tasks by name."""

from __future__ import annotations

import re

import pytest

from hf_freeze.errors import ConfigError
from hf_freeze.tasks import get_task, register_task, registry, task_names
from hf_freeze.tasks.text_classification import TextClassification


def test_text_classification_is_a_task() -> None:
    assert "text-classification" in task_names()
    assert isinstance(get_task("text-classification"), TextClassification)


def test_a_registered_class_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_tasks", dict(registry._tasks))

    @register_task("reading-tea-leaves")
    class ReadingTeaLeaves(TextClassification):
        pass

    assert isinstance(get_task("reading-tea-leaves"), ReadingTeaLeaves)
    assert task_names() == ("reading-tea-leaves", "text-classification")


def test_an_unknown_task_is_an_error_that_names_the_nearest() -> None:
    message = (
        "model.task: no task is called 'text-clasification'; the tasks are text-classification. "
        "Did you mean 'text-classification'?"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        get_task("text-clasification")
