"""Matthews correlation as an `evaluate` module: one number for a whole confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
import numpy.typing as npt
from sklearn.metrics import matthews_corrcoef

_DESCRIPTION = (
    "The Matthews correlation is the correlation of predicted and true labels, fair to labels of any frequency."
)

_INPUTS = """
Args:
    predictions: Predicted label ids; with the configuration `multilabel`, one list of zeros and ones per row.
    references: True label ids, in the same form.
    sample_weight: One weight per row.
    average: With `multilabel` only: `macro` for the mean over the labels, None for one score per label.

Returns:
    matthews_correlation: between -1 and 1; 0 is chance.
"""


class MatthewsCorrelation(evaluate.Metric):  # type: ignore[misc]  # evaluate has no type information
    """The correlation of predicted and true labels."""

    def _info(self) -> evaluate.MetricInfo:
        label = datasets.Value("int32")
        column = datasets.Sequence(label) if self.config_name == "multilabel" else label
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": column, "references": column}),
            reference_urls=["https://scikit-learn.org/stable/modules/generated/sklearn.metrics.matthews_corrcoef.html"],
        )

    def _compute(
        self,
        predictions: Sequence[object],
        references: Sequence[object],
        sample_weight: Sequence[float] | None = None,
        average: str | None = None,
    ) -> dict[str, float | npt.NDArray[np.float64]]:
        if self.config_name != "multilabel":
            score = matthews_corrcoef(references, predictions, sample_weight=sample_weight)
            return {"matthews_correlation": float(score)}
        columns = zip(np.asarray(references).T, np.asarray(predictions).T, strict=True)
        scores = np.array([matthews_corrcoef(true, said, sample_weight=sample_weight) for true, said in columns])
        return {"matthews_correlation": float(scores.mean()) if average == "macro" else scores}
