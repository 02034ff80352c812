"""Metrics by name: bundled `evaluate` modules, which need no network, and any other that `evaluate.load` finds.

Each folder beside this file is an `evaluate` module: `evaluate.load("<this folder>/accuracy")` loads it too. They have
the names, arguments and results of the modules on the hub; the shorter `matthews`, `pearson` and `spearman` are
understood as well.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, Final

import evaluate
import numpy as np
import numpy.typing as npt
from evaluate.loading import import_main_class
from sklearn.exceptions import UndefinedMetricWarning
from transformers import EvalPrediction

from hf_freeze.errors import ConfigError, did_you_mean
from hf_freeze.tasks.labels import ProblemType

_CLASSIFICATION: Final = ("accuracy", "f1", "matthews_correlation", "precision", "recall")
_REGRESSION: Final = ("pearsonr", "spearmanr")

BUNDLED_METRICS: Final = tuple(sorted((*_CLASSIFICATION, *_REGRESSION)))

# Shorter names for modules of which `evaluate` spells the name otherwise.
SHORT_NAMES: Final = {"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr"}

DEFAULT_METRICS: Final[Mapping[ProblemType, tuple[str, ...]]] = {
    "single_label_classification": ("accuracy", "f1"),
    "multi_label_classification": ("accuracy", "f1"),
    "regression": ("pearsonr", "spearmanr"),
}


@dataclass(frozen=True)
class _Metric:
    """One metric: an `evaluate` module and the arguments that it is called with."""

    name: str
    module: evaluate.EvaluationModule
    arguments: Mapping[str, Any] = field(default_factory=dict)


def build_compute_metrics(
    names: Sequence[str] | None,
    *,
    problem_type: ProblemType,
    num_labels: int,
    trust_remote_code: bool = False,
) -> Callable[[EvalPrediction], dict[str, float]]:
    """Returns what a trainer calls with its predictions, to get a number for every metric.

    precision, recall and f1 are those of label 1 where there are two labels, as in GLUE; the mean over the labels
    (`macro`) where there are more; and over all decisions (`micro`) for multi label, where accuracy is the share of
    rows that are right altogether and Matthews correlation the mean over the labels.

    Args:
        names: Bundled metrics, folders of `evaluate` modules, or their names on the hub; None for the usual ones.
        problem_type: What kind of problem it is.
        num_labels: The number of labels.
        trust_remote_code: Whether modules that users of the hub have published may run. Those that `evaluate` itself
            publishes, whose names have no slash, may.

    Raises:
        ConfigError: A metric is named twice, cannot be loaded, or does not fit the problem.
    """
    wanted = [SHORT_NAMES.get(name, name) for name in (DEFAULT_METRICS[problem_type] if names is None else names)]
    for name in wanted:
        if wanted.count(name) > 1:
            raise ConfigError(f"metrics: a metric is named twice; got {name!r}. Name each metric once.")
    metrics = tuple(
        _load_bundled(name, problem_type=problem_type, num_labels=num_labels)
        if name in BUNDLED_METRICS
        else _load_other(name, problem_type=problem_type, trust_remote_code=trust_remote_code)
        for name in wanted
    )

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        said, true = decide(prediction, problem_type=problem_type)
        results = [_compute(metric, said, true) for metric in metrics]
        keys = [key for result in results for key in result]
        return {
            key if keys.count(key) == 1 else f"{metric.name}_{key}": value
            for metric, result in zip(metrics, results, strict=True)
            for key, value in result.items()
        }

    return compute_metrics


def decide(
    prediction: EvalPrediction, *, problem_type: ProblemType
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]:
    """Returns what the model says and what is true: label ids, rows of zeros and ones, or numbers.

    Args:
        prediction: Logits of shape (rows, labels), alone or first in a tuple of what the model returns, and labels.
        problem_type: What kind of problem it is.
    """
    logits = np.asarray(
        prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    )
    true = np.asarray(prediction.label_ids)
    if problem_type == "single_label_classification":
        return logits.argmax(axis=-1), true
    if problem_type == "multi_label_classification":
        return (logits > 0).astype(np.int64), (true >= 0.5).astype(np.int64)
    return logits.reshape(-1), true.reshape(-1)


def _compute(metric: _Metric, said: npt.NDArray[np.generic], true: npt.NDArray[np.generic]) -> dict[str, float]:
    with warnings.catch_warnings():
        # f1 has no argument for what it is where nothing is positive; 0 is what scikit-learn returns then.
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        result = metric.module.compute(predictions=said, references=true, **metric.arguments)
    for key, value in result.items():
        if not isinstance(value, Real) and np.ndim(value) > 0:
            raise ConfigError(
                f"metrics: {metric.name!r} does not give a number that can be logged; its {key!r} has the shape "
                f"{np.shape(value)}. Leave the metric out."
            )
    return {key: float(value) for key, value in result.items()}


def _load_bundled(name: str, *, problem_type: ProblemType, num_labels: int) -> _Metric:
    """Returns a bundled metric.

    Its class is imported from here. `evaluate.load` would first copy its file to a cache that all users and processes
    of the machine may share, which has to be locked, and writable, and trusted.
    """
    fitting = _REGRESSION if problem_type == "regression" else _CLASSIFICATION
    if name not in fitting:
        raise ConfigError(
            f"metrics: {name!r} does not measure {problem_type.replace('_', ' ')}. "
            f"The bundled metrics that do are {', '.join(fitting)}."
        )
    multi_label = problem_type == "multi_label_classification"
    metric_class = import_main_class(f"{__name__}.{name}.{name}")
    module = metric_class("multilabel" if multi_label else None, keep_in_memory=True)
    arguments: dict[str, Any] = {}
    if name in ("f1", "precision", "recall"):
        arguments["average"] = "micro" if multi_label else "binary" if num_labels == 2 else "macro"
    if name in ("precision", "recall"):
        arguments["zero_division"] = 0
    if name == "matthews_correlation" and multi_label:
        arguments["average"] = "macro"
    return _Metric(name, module, arguments)


def _load_other(name: str, *, problem_type: ProblemType, trust_remote_code: bool) -> _Metric:
    """Returns a metric that `evaluate.load` finds: in a folder, or on the hub."""
    if "/" in name and not Path(name).exists() and not trust_remote_code:
        raise ConfigError(
            f"metrics: {name!r} is no folder here, and on the hub it would be code by one of its users. "
            f"The bundled metrics are {', '.join(BUNDLED_METRICS)}. "
            "Set model.trust_remote_code to true to run it, or give the folder of a module."
        )
    config_name = "multilabel" if problem_type == "multi_label_classification" else None
    try:
        module = evaluate.load(name, config_name, keep_in_memory=True)
    except (ImportError, OSError, TypeError, ValueError) as error:
        raise ConfigError(
            f"metrics: {name!r} could not be loaded ({type(error).__name__}). "
            f"The bundled metrics, which need no network, are {', '.join(BUNDLED_METRICS)}."
            f"{did_you_mean(name, (*BUNDLED_METRICS, *SHORT_NAMES))}"
        ) from error
    forms = module.features if isinstance(module.features, list) else [module.features]
    if not any(set(form) == {"predictions", "references"} for form in forms):
        raise ConfigError(
            f"metrics: {name!r} needs more than predictions and references; got {', '.join(sorted(forms[0]))}. "
            f"The bundled metrics are {', '.join(BUNDLED_METRICS)}."
        )
    return _Metric(Path(name).stem, module)
