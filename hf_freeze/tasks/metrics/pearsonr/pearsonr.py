"""Pearson correlation as an `evaluate` module: how linearly predictions and references move together."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
from scipy.stats import pearsonr

_DESCRIPTION = (
    "Pearson's r is the covariance of predictions and references over the product of their standard deviations."
)

_INPUTS = """
Args:
    predictions: Predicted numbers.
    references: True numbers.
    return_pvalue: True adds the two-sided p-value.

Returns:
    pearsonr: between -1 and 1; not a number where one of the inputs is constant.
    p-value: only where `return_pvalue` is True.
"""


class Pearsonr(evaluate.Metric):  # type: ignore[misc]  # evaluate has no type information
    """How linearly predictions and references move together."""

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": number, "references": number}),
            reference_urls=["https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.pearsonr.html"],
        )

    def _compute(
        self, predictions: Sequence[float], references: Sequence[float], return_pvalue: bool = False
    ) -> dict[str, float]:
        result = pearsonr(references, predictions)
        scores = {"pearsonr": float(result.statistic)}
        if return_pvalue:
            scores["p-value"] = float(result.pvalue)
        return scores
