"""Recall as an `evaluate` module: how many of the positives are found."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
import numpy.typing as npt
from sklearn.metrics import recall_score

_DESCRIPTION = "Recall is TP / (TP + FN): how many of the positive rows are predicted as positive."

_INPUTS = """
Args:
    predictions: Predicted label ids; with the configuration `multilabel`, one list of zeros and ones per row.
    references: True label ids, in the same form.
    labels: The label ids that count, where `average` is not `binary`; their order where it is None.
    pos_label: The label id that counts as positive, where `average` is `binary`.
    average: `binary`, `micro`, `macro`, `weighted`, `samples`, or None for one score per label.
    sample_weight: One weight per row.
    zero_division: The score where the denominator is zero: 0, 1, or `warn` for 0 and a warning.

Returns:
    recall: between 0 and 1; an array of them where `average` is None.
"""


class Recall(evaluate.Metric):  # type: ignore[misc]  # evaluate has no type information
    """How many of the positives are found."""

    def _info(self) -> evaluate.MetricInfo:
        label = datasets.Value("int32")
        column = datasets.Sequence(label) if self.config_name == "multilabel" else label
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": column, "references": column}),
            reference_urls=["https://scikit-learn.org/stable/modules/generated/sklearn.metrics.recall_score.html"],
        )

    def _compute(
        self,
        predictions: Sequence[object],
        references: Sequence[object],
        labels: Sequence[int] | None = None,
        pos_label: int = 1,
        average: str | None = "binary",
        sample_weight: Sequence[float] | None = None,
        zero_division: str | int = "warn",
    ) -> dict[str, float | npt.NDArray[np.float64]]:
        score = recall_score(
            references,
            predictions,
            labels=labels,
            pos_label=pos_label,
            average=average,
            sample_weight=sample_weight,
            zero_division=zero_division,
        )
        return {"recall": score if average is None else float(score)}
