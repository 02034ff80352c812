"""Precision as an `evaluate` module: how many of the predicted positives are positive."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
import numpy.typing as npt
from sklearn.metrics import precision_score

_DESCRIPTION = "Precision is TP / (TP + FP): how many of the rows predicted as positive are positive."

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
    precision: between 0 and 1; an array of them where `average` is None.
"""


class Precision(evaluate.Metric):  # type: ignore[misc]  # evaluate has no type information
    """How many of the predicted positives are positive."""

    def _info(self) -> evaluate.MetricInfo:
        label = datasets.Value("int32")
        column = datasets.Sequence(label) if self.config_name == "multilabel" else label
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": column, "references": column}),
            reference_urls=["https://scikit-learn.org/stable/modules/generated/sklearn.metrics.precision_score.html"],
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
        score = precision_score(
            references,
            predictions,
            labels=labels,
            pos_label=pos_label,
            average=average,
            sample_weight=sample_weight,
            zero_division=zero_division,
        )
        return {"precision": score if average is None else float(score)}
