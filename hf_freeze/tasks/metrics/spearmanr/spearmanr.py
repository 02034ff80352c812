"""Spearman correlation as an `evaluate` module: how alike predictions and references rank the rows."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
from scipy.stats import spearmanr

_DESCRIPTION = "Spearman's rho is Pearson's r of the ranks of predictions and references."

_INPUTS = """
Args:
    predictions: Predicted numbers.
    references: True numbers.
    return_pvalue: True adds the two-sided p-value.

Returns:
    spearmanr: between -1 and 1; not a number where one of the inputs is constant.
    spearmanr_pvalue: only where `return_pvalue` is True.
"""


class Spearmanr(evaluate.Metric):  # type: ignore[misc]  # evaluate has no type information
    """How alike predictions and references rank the rows."""

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": number, "references": number}),
            reference_urls=["https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.spearmanr.html"],
        )

    def _compute(
        self, predictions: Sequence[float], references: Sequence[float], return_pvalue: bool = False
    ) -> dict[str, float]:
        result = spearmanr(references, predictions)
        scores = {"spearmanr": float(result.statistic)}
        if return_pvalue:
            scores["spearmanr_pvalue"] = float(result.pvalue)
        return scores
