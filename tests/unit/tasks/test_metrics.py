"""The bundled metrics, and those that `evaluate.load` finds."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
from transformers import EvalPrediction

from hf_freeze.errors import ConfigError
from hf_freeze.tasks import metrics
from hf_freeze.tasks.labels import ProblemType
from hf_freeze.tasks.metrics import BUNDLED_METRICS, build_compute_metrics

SINGLE: ProblemType = "single_label_classification"
MULTI: ProblemType = "multi_label_classification"
REGRESSION: ProblemType = "regression"
FOLDER = Path(metrics.__file__).parent

BUNDLED_NAMES = "accuracy, f1, matthews_correlation, pearsonr, precision, recall, spearmanr"

# The examples in the descriptions of the modules on the hub: configuration, inputs, arguments, result.
BINARY = {"references": [0, 1, 0, 1, 0], "predictions": [0, 0, 1, 1, 0]}
THREE = {"references": [0, 1, 2, 0, 1, 2], "predictions": [0, 2, 1, 0, 0, 1]}
RECALL = {"references": [0, 0, 1, 1, 1], "predictions": [0, 1, 0, 1, 1]}
FOUR = {"references": [1, 3, 2, 0, 3, 2], "predictions": [1, 2, 2, 0, 3, 3]}
NUMBERS = {"references": [1, 2, 3, 4, 5], "predictions": [10, 9, 2.5, 6, 4]}
SETS = {"predictions": [[0, 1, 1], [1, 1, 0]], "references": [[0, 1, 1], [0, 1, 0]]}
ACCURACY = {"references": [0, 1, 2, 0, 1, 2], "predictions": [0, 1, 1, 2, 1, 0]}
EXAMPLES: list[tuple[str, str | None, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("accuracy", None, ACCURACY, {}, {"accuracy": 0.5}),
    ("accuracy", None, ACCURACY, {"normalize": False}, {"accuracy": 3.0}),
    ("accuracy", None, ACCURACY, {"sample_weight": [0.5, 2, 0.7, 0.5, 9, 0.4]}, {"accuracy": 0.8778625954198473}),
    ("accuracy", "multilabel", SETS, {}, {"accuracy": 0.5}),
    ("f1", None, BINARY, {}, {"f1": 0.5}),
    ("f1", None, BINARY, {"pos_label": 0}, {"f1": 0.67}),
    ("f1", None, BINARY, {"sample_weight": [0.9, 0.5, 3.9, 1.2, 0.3]}, {"f1": 0.35}),
    ("f1", None, THREE, {"average": "macro"}, {"f1": 0.27}),
    ("f1", None, THREE, {"average": "micro"}, {"f1": 0.33}),
    ("f1", None, THREE, {"average": "weighted"}, {"f1": 0.27}),
    ("f1", None, THREE, {"average": None}, {"f1": [0.8, 0.0, 0.0]}),
    ("f1", None, THREE, {"average": "macro", "labels": [0, 1]}, {"f1": 0.4}),
    ("f1", "multilabel", SETS, {"average": "macro"}, {"f1": 0.67}),
    ("precision", None, BINARY, {}, {"precision": 0.5}),
    ("precision", None, BINARY, {"pos_label": 0}, {"precision": 0.67}),
    ("precision", None, BINARY, {"sample_weight": [0.9, 0.5, 3.9, 1.2, 0.3]}, {"precision": 0.23529411764705882}),
    ("precision", None, THREE, {"average": "macro"}, {"precision": 0.2222222222222222}),
    ("precision", None, THREE, {"average": "micro"}, {"precision": 0.3333333333333333}),
    ("precision", None, THREE, {"average": None}, {"precision": [0.67, 0.0, 0.0]}),
    ("precision", None, {"references": [0, 1], "predictions": [0, 0]}, {"zero_division": 1}, {"precision": 1.0}),
    ("recall", None, RECALL, {}, {"recall": 0.6666666666666666}),
    ("recall", None, RECALL, {"pos_label": 0}, {"recall": 0.5}),
    ("recall", None, RECALL, {"sample_weight": [0.9, 0.2, 0.9, 0.3, 0.8]}, {"recall": 0.55}),
    ("recall", None, THREE, {"average": "macro"}, {"recall": 0.3333333333333333}),
    ("recall", None, THREE, {"average": None}, {"recall": [1.0, 0.0, 0.0]}),
    ("matthews_correlation", None, FOUR, {}, {"matthews_correlation": 0.54}),
    ("matthews_correlation", None, FOUR, {"sample_weight": [0.5, 3, 1, 1, 1, 2]}, {"matthews_correlation": 0.1}),
    ("matthews_correlation", None, FOUR, {"sample_weight": [0.5, 1, 0, 0, 0, 1]}, {"matthews_correlation": -0.25}),
    (
        "matthews_correlation",
        "multilabel",
        {"references": [[0, 1], [1, 0], [1, 1]], "predictions": [[0, 1], [1, 1], [0, 1]]},
        {"average": "macro"},
        {"matthews_correlation": 0.25},
    ),
    (
        "matthews_correlation",
        "multilabel",
        {"references": [[0, 1], [1, 0], [1, 1]], "predictions": [[0, 1], [1, 1], [0, 1]]},
        {},
        {"matthews_correlation": [0.5, 0.0]},
    ),
    ("pearsonr", None, NUMBERS, {}, {"pearsonr": -0.74}),
    ("pearsonr", None, NUMBERS, {"return_pvalue": True}, {"pearsonr": -0.74, "p-value": 0.15}),
    ("spearmanr", None, NUMBERS, {}, {"spearmanr": -0.7}),
    ("spearmanr", None, NUMBERS, {"return_pvalue": True}, {"spearmanr": -0.7, "spearmanr_pvalue": 0.19}),
]


def predicted(predictions: Any, label_ids: Any) -> EvalPrediction:
    return EvalPrediction(predictions=predictions, label_ids=np.array(label_ids))


def logits_of(ids: list[int], num_labels: int) -> Any:
    return np.eye(num_labels)[ids]


class TestBundledModules:
    @pytest.mark.parametrize(("name", "config_name", "inputs", "arguments", "expected"), EXAMPLES)
    def test_they_give_what_the_modules_on_the_hub_give(
        self,
        name: str,
        config_name: str | None,
        inputs: dict[str, Any],
        arguments: dict[str, Any],
        expected: dict[str, Any],
    ) -> None:
        module = evaluate.load(str(FOLDER / name), config_name, keep_in_memory=True)
        assert module.name == name
        result = module.compute(**inputs, **arguments)
        assert result.keys() == expected.keys()
        for key, value in expected.items():
            assert result[key] == pytest.approx(value, abs=5e-3)  # the hub's examples are rounded to two places
            assert isinstance(result[key], np.ndarray if isinstance(value, list) else float)

    def test_there_is_a_folder_for_each_name(self) -> None:
        folders = sorted(path.name for path in FOLDER.iterdir() if path.is_dir() and path.name != "__pycache__")
        assert folders == list(BUNDLED_METRICS)
        assert ", ".join(BUNDLED_METRICS) == BUNDLED_NAMES


class TestSingleLabel:
    def test_accuracy_and_f1_are_computed_when_nothing_is_named(self) -> None:
        compute = build_compute_metrics(None, problem_type=SINGLE, num_labels=2)
        result = compute(predicted(logits_of([0, 1, 1, 1], 2), [0, 1, 0, 1]))
        assert result == {"accuracy": 0.75, "f1": pytest.approx(0.8)}

    def test_with_two_labels_the_second_is_the_positive_one(self) -> None:
        compute = build_compute_metrics(["precision", "recall", "matthews"], problem_type=SINGLE, num_labels=2)
        result = compute(predicted(logits_of([0, 1, 1, 1], 2), [0, 1, 0, 1]))
        assert result == {
            "precision": pytest.approx(2 / 3),
            "recall": 1.0,
            "matthews_correlation": pytest.approx(1 / math.sqrt(3)),
        }

    def test_with_more_labels_each_counts_the_same(self) -> None:
        compute = build_compute_metrics(["f1", "precision", "recall"], problem_type=SINGLE, num_labels=3)
        result = compute(predicted(logits_of([0, 2, 1, 0, 0, 1], 3), [0, 1, 2, 0, 1, 2]))
        assert result == {
            "f1": pytest.approx(0.8 / 3),
            "precision": pytest.approx(2 / 9),
            "recall": pytest.approx(1 / 3),
        }

    def test_a_label_that_is_never_predicted_scores_zero_without_a_warning(self) -> None:
        compute = build_compute_metrics(["f1", "precision", "recall"], problem_type=SINGLE, num_labels=2)
        assert compute(predicted(logits_of([0, 0], 2), [0, 1])) == {"f1": 0.0, "precision": 0.0, "recall": 0.0}

    def test_logits_may_come_first_in_a_tuple(self) -> None:
        compute = build_compute_metrics(["accuracy"], problem_type=SINGLE, num_labels=2)
        assert compute(predicted((logits_of([0, 1], 2), np.zeros((2, 7, 4))), [0, 1])) == {"accuracy": 1.0}


class TestMultiLabel:
    def test_accuracy_counts_whole_rows_and_f1_all_decisions(self) -> None:
        compute = build_compute_metrics(None, problem_type=MULTI, num_labels=3)
        logits = np.array([[-1.0, 2.0, 3.0], [4.0, 0.5, -2.0]])
        result = compute(predicted(logits, [[0.0, 1.0, 1.0], [0.0, 1.0, 0.0]]))
        assert result == {"accuracy": 0.5, "f1": pytest.approx(6 / 7)}

    def test_matthews_correlation_is_the_mean_over_the_labels(self) -> None:
        compute = build_compute_metrics(["matthews_correlation"], problem_type=MULTI, num_labels=2)
        logits = np.array([[-1.0, 1.0], [1.0, 1.0], [-1.0, 1.0]])
        result = compute(predicted(logits, [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]))
        assert result == {"matthews_correlation": pytest.approx(0.25)}


class TestRegression:
    @pytest.mark.parametrize("names", [None, ["pearsonr", "spearmanr"], ["pearson", "spearman"]])
    def test_correlations_are_computed(self, names: list[str] | None) -> None:
        compute = build_compute_metrics(names, problem_type=REGRESSION, num_labels=1)
        result = compute(predicted(np.array([[10.0], [9.0], [2.5], [6.0], [4.0]]), [1.0, 2.0, 3.0, 4.0, 5.0]))
        assert result == {"pearsonr": pytest.approx(-15 / math.sqrt(408)), "spearmanr": pytest.approx(-0.7)}


MODULE = """
import datasets
import evaluate


class Mine(evaluate.Metric):
    def _info(self):
        label = datasets.Value("int32")
        return evaluate.MetricInfo(
            description="",
            citation="",
            inputs_description="",
            features=datasets.Features({inputs}),
        )

    def _compute(self, predictions, references, **rest):
        return {result}
"""


def write_module(folder: Path, *, inputs: str = '{"predictions": label, "references": label}', result: str) -> str:
    folder.mkdir()
    source = MODULE.replace("{inputs}", inputs).replace("{result}", result)
    (folder / f"{folder.name}.py").write_text(source, encoding="utf-8")
    return str(folder)


class TestOtherModules:
    def test_a_folder_with_a_module_is_loaded(self, tmp_path: Path) -> None:
        name = write_module(tmp_path / "mine", result='{"half": 0.5, "accuracy": len(predictions)}')
        compute = build_compute_metrics(["accuracy", name], problem_type=SINGLE, num_labels=2)
        result = compute(predicted(logits_of([0, 1], 2), [0, 1]))
        assert result == {"accuracy_accuracy": 1.0, "half": 0.5, "mine_accuracy": 2.0}

    def test_a_result_that_is_no_number_is_an_error(self, tmp_path: Path) -> None:
        name = write_module(tmp_path / "mine", result='{"matrix": [[1, 2], [3, 4]]}')
        compute = build_compute_metrics([name], problem_type=SINGLE, num_labels=2)
        message = (
            "metrics: 'mine' does not give a number that can be logged; its 'matrix' has the shape (2, 2). "
            "Leave the metric out."
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            compute(predicted(logits_of([0, 1], 2), [0, 1]))

    def test_a_module_that_needs_more_than_predictions_is_an_error(self, tmp_path: Path) -> None:
        inputs = '{"predictions": label, "references": label, "sources": label}'
        name = write_module(tmp_path / "mine", inputs=inputs, result="{}")
        message = (
            f"metrics: {name!r} needs more than predictions and references; got predictions, references, sources. "
            f"The bundled metrics are {BUNDLED_NAMES}."
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            build_compute_metrics([name], problem_type=SINGLE, num_labels=2)

    def test_a_name_that_the_hub_does_not_give_is_an_error(self) -> None:
        message = (
            "metrics: 'acuracy' could not be loaded (FileNotFoundError). The bundled metrics, which need no network, "
            f"are {BUNDLED_NAMES}. Did you mean 'accuracy'?"
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            build_compute_metrics(["acuracy"], problem_type=SINGLE, num_labels=2)

    def test_code_by_users_of_the_hub_does_not_run_unless_it_is_trusted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        message = (
            "metrics: 'somebody/metric' is no folder here, and on the hub it would be code by one of its users. "
            f"The bundled metrics are {BUNDLED_NAMES}. "
            "Set model.trust_remote_code to true to run it, or give the folder of a module."
        )
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            build_compute_metrics(["somebody/metric"], problem_type=SINGLE, num_labels=2)
        bundled = evaluate.load(str(FOLDER / "accuracy"), keep_in_memory=True)
        asked_for = []
        monkeypatch.setattr(evaluate, "load", lambda name, *args, **kwargs: asked_for.append(name) or bundled)
        build_compute_metrics(["somebody/metric"], problem_type=SINGLE, num_labels=2, trust_remote_code=True)
        assert asked_for == ["somebody/metric"]


class TestNames:
    def test_a_metric_that_is_named_twice_is_an_error(self) -> None:
        message = "metrics: a metric is named twice; got 'matthews_correlation'. Name each metric once."
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            build_compute_metrics(["matthews", "matthews_correlation"], problem_type=SINGLE, num_labels=2)

    @pytest.mark.parametrize(
        ("name", "problem_type", "message"),
        [
            (
                "accuracy",
                REGRESSION,
                (
                    "metrics: 'accuracy' does not measure regression. "
                    "The bundled metrics that do are pearsonr, spearmanr."
                ),
            ),
            (
                "pearson",
                SINGLE,
                (
                    "metrics: 'pearsonr' does not measure single label classification. "
                    "The bundled metrics that do are accuracy, f1, matthews_correlation, precision, recall."
                ),
            ),
        ],
    )
    def test_a_metric_that_does_not_fit_the_problem_is_an_error(
        self, name: str, problem_type: ProblemType, message: str
    ) -> None:
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            build_compute_metrics([name], problem_type=problem_type, num_labels=2)


PROCESS = """
import numpy as np
import sys
from transformers import EvalPrediction
from hf_freeze.tasks.metrics import build_compute_metrics

compute = build_compute_metrics([*sys.argv[1:]], problem_type="single_label_classification", num_labels=2)
for _ in range(20):
    result = compute(EvalPrediction(predictions=np.eye(2)[[0, 1, 1]], label_ids=np.array([0, 1, 0])))
sys.stdout.write(str(sorted(result.items())))
"""


@pytest.mark.distributed
def test_two_processes_compute_at_once_and_leave_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    mine = write_module(tmp_path / "mine", result='{"mine": len(predictions)}')
    command = [sys.executable, "-W", "error", "-c", PROCESS, "accuracy", "f1", mine]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    expected = "[('accuracy', 0.6666666666666666), ('f1', 0.6666666666666666), ('mine', 3.0)]"
    assert [output for output, _ in outputs] == [expected, expected], outputs
    assert list(tmp_path.rglob("*.arrow*")) == []
