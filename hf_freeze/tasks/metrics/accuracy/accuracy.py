"""Accuracy as an `evaluate` module: the share of predictions that are right."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
from sklearn.metrics import accuracy_score

_DESCRIPTION = "Accuracy is the share of predictions that equal their reference."

_INPUTS = """
Args:
    predictions: Predicted label ids; with the configuration `multilabel`, one list of zeros and ones per row.
    references: True label ids, in the same form.
    normalize: False returns the number of right predictions instead of their share.
    sample_weight: One weight per row.

Returns:
    accuracy: between 0 and 1, or a count where `normalize` is False. A multi-label row is right when all of it is.
"""


class Accuracy(evaluate.Metric):  # type: ignore[misc]  # evaluate has no type information
    """The share of predictions that are right."""

    def _info(self) -> evaluate.MetricInfo:
        label = datasets.Value("int32")
        column = datasets.Sequence(label) if self.config_name == "multilabel" else label
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": column, "references": column}),
            reference_urls=["https://scikit-learn.org/stable/modules/generated/sklearn.metrics.accuracy_score.html"],
        )

    def _compute(
        self,
        predictions: Sequence[object],
        references: Sequence[object],
        normalize: bool = True,
        sample_weight: Sequence[float] | None = None,
    ) -> dict[str, float]:
        score = accuracy_score(references, predictions, normalize=normalize, sample_weight=sample_weight)
        return {"accuracy": float(score)}
