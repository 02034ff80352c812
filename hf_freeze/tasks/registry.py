"""The tasks by name, and what each of them can do."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from hf_freeze.errors import ConfigError, did_you_mean
from hf_freeze.tasks.labels import ProblemType

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

# The modules of the tasks that come with hf_freeze. They are imported when a task is first asked for, because each of
# them imports a large part of transformers and datasets.
_BUNDLED_MODULES = ("hf_freeze.tasks.text_classification",)

_tasks: dict[str, type[Task]] = {}

TaskClass = TypeVar("TaskClass", bound="type[Task]")


@dataclass(frozen=True)
class PreparedData:
    """The splits of a dataset with their labels as numbers, and what was inferred about them.

    Attributes:
        train: The rows to learn from: the text columns and `labels`; model inputs and `labels` once tokenised.
        validation: The rows to evaluate on while training, or None.
        test: The rows to report on at the end, or None.
        text_columns: One column of texts, or two for pairs.
        label_columns: The column that the labels came from; several where each is one label of a multi-label task.
        labels: The names of the labels in the order of their ids; empty for regression.
        problem_type: What transformers calls the problem.
        splits: Where `train`, `validation` and `test` came from, by the names in the dataset.
    """

    train: Dataset
    validation: Dataset | None
    test: Dataset | None
    text_columns: tuple[str, ...]
    label_columns: tuple[str, ...]
    labels: tuple[str, ...]
    problem_type: ProblemType
    splits: Mapping[str, str]

    @property
    def num_labels(self) -> int:
        """The number of outputs of the model's head: one for regression."""
        return len(self.labels) or 1


@dataclass(frozen=True)
class LoadedModel:
    """A pretrained model that is ready for a task.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer, with a padding token that the model knows of.
        fresh_parameters: The names of the parameters that the checkpoint did not give: a new head, usually.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fresh_parameters: tuple[str, ...]


class Task(Protocol):
    """What a task can do; the calls are listed in the order in which a run makes them.

    Attributes:
        auto_class: The name of the class of transformers that loads its models.
    """

    auto_class: str

    def prepare_data(
        self,
        load_dataset: Mapping[str, Any],
        *,
        text_columns: str | Sequence[str] | None = None,
        label_column: str | Sequence[str] | None = None,
        labels: Sequence[object] | None = None,
        problem_type: str | None = None,
        splits: Mapping[str, str | None] | None = None,
        allow_blank: bool = False,
    ) -> PreparedData:
        """Loads a dataset and turns its labels into numbers."""
        ...

    def load_model(
        self,
        name_or_path: str,
        data: PreparedData,
        *,
        trust_remote_code: bool = False,
        from_pretrained: Mapping[str, Any] | None = None,
    ) -> LoadedModel:
        """Loads a pretrained model with a head for the labels of the data, and its tokenizer."""
        ...

    def load_tokenizer(
        self, name_or_path: str, *, trust_remote_code: bool = False, from_pretrained: Mapping[str, Any] | None = None
    ) -> PreTrainedTokenizerBase:
        """Loads the tokenizer of a model without the model."""
        ...

    def tokenize(self, data: PreparedData, loaded: LoadedModel, *, max_length: int | None = None) -> PreparedData:
        """Returns the data with model inputs in the place of texts."""
        ...

    def data_collator(self, loaded: LoadedModel) -> Callable[[list[dict[str, Any]]], Mapping[str, Any]]:
        """Returns what makes a batch of rows."""
        ...

    def compute_metrics(
        self, data: PreparedData, names: Sequence[str] | None = None, *, trust_remote_code: bool = False
    ) -> Callable[[EvalPrediction], dict[str, float]]:
        """Returns what a trainer calls with its predictions."""
        ...

    def build_empty_model(
        self,
        name_or_path: str,
        *,
        num_labels: int = 2,
        trust_remote_code: bool = False,
        from_pretrained: Mapping[str, Any] | None = None,
    ) -> PreTrainedModel:
        """Returns the model without weights, on the meta device."""
        ...


def register_task(name: str) -> Callable[[TaskClass], TaskClass]:
    """Returns a decorator that makes a class known as the task `name`.

    Args:
        name: What `model.task` calls it.
    """

    def register(task: TaskClass) -> TaskClass:
        _tasks[name] = task
        return task

    return register


def task_names() -> tuple[str, ...]:
    """Returns the names of all tasks, sorted."""
    for module in _BUNDLED_MODULES:
        importlib.import_module(module)
    return tuple(sorted(_tasks))


def get_task(name: str) -> Task:
    """Returns the task called `name`.

    Args:
        name: A registered name.

    Raises:
        ConfigError: No task has this name.
    """
    names = task_names()
    if name not in names:
        raise ConfigError(
            f"model.task: no task is called {name!r}; the tasks are {', '.join(names)}.{did_you_mean(name, names)}"
        )
    return _tasks[name]()
