"""A range that a search chooses values from, by the names that Optuna has for its parts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Final

from pydantic import Field, PlainValidator, WithJsonSchema

from hf_freeze.config.problems import LIST_TAG, RANGE_TAG, Problem, ProblemsFound, shown, unquoted
from hf_freeze.config.section import Section

# What a value is rounded to: so much of its own size on a logarithmic range, of the width of the range elsewhere.
_DIGITS: Final = 3


def _number(given: object) -> int | float:
    if isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given):
        return given
    text = f"is not a finite number; got {shown(given)}. A range has numbers at its ends.{unquoted(given)}"
    raise ProblemsFound([Problem((), text)])


Number = Annotated[int | float, PlainValidator(_number), WithJsonSchema({"type": "number"})]


class Range(Section):
    """All numbers from one to another: whole ones where its keys are whole."""

    low: Number = Field(description="Least value of the range.")
    high: Number = Field(description="Greatest value of the range.")
    log: bool = Field(False, description="Whether values are drawn by their logarithm.")
    step: Number | None = Field(None, description="Distance from one value to the next; null: any, or 1.")

    @classmethod
    def problems_upstream(cls, given: Mapping[str, Any]) -> list[Problem]:
        """Returns what Optuna would refuse, or would change.

        Args:
            given: The whole range as it was written.
        """
        low, high, step = (_known(given.get(key)) for key in ("low", "high", "step"))
        found = []
        if low is not None and high is not None and low >= high:
            found.append(("low", f"is not below high; got {low} and {high}. Exchange them, or write a list."))
        if given.get("log") is True and low is not None and low <= 0:
            found.append(("low", f"is not above 0; got {low}. It has no logarithm. Raise it, or leave log out."))
        if step is not None and given.get("log") is True:
            found.append(("step", f"does not go with log; got {step}. Leave one of them out."))
        if step is not None and step <= 0:
            found.append(("step", f"is not above 0; got {step}. {cls.model_fields['step'].description}"))
        elif None not in (low, high, step) and low < high and (left := (_exact(high) - _exact(low)) % _exact(step)):
            last = f"{(_exact(high) - left).normalize():f}"
            text = f"does not lead from low to high; got {step} from {low} to {high}. The last value is {last}. Make it"
            found.append(("step", f"{text} high, or change the step."))
        return [Problem((key,), text) for key, text in found]

    @property
    def is_whole(self) -> bool:
        """Whether its values are whole numbers."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 0))

    @property
    def num_values(self) -> float:
        """How many values it has, as far as they can be counted; else infinite."""
        step = self.step or (1 if self.is_whole else None)
        return math.inf if step is None else float((_exact(self.high) - _exact(self.low)) // _exact(step) + 1)

    @property
    def values(self) -> list[int | float]:
        """Its values, from the least on, where they can be counted."""
        step = self.step or 1
        return [self.nearest(float(_exact(self.low) + i * _exact(step))) for i in range(int(self.num_values))]

    def nearest(self, value: float) -> int | float:
        """Returns the value that a number stands for, with as many digits as tell values apart.

        Args:
            value: A number between the ends.
        """
        if self.is_whole and self.step is None:
            return round(value)
        if self.step is not None:
            exact = _exact(self.low) + round((_exact(value) - _exact(self.low)) / _exact(self.step)) * _exact(self.step)
            return int(exact) if self.is_whole else float(exact)
        size = abs(value) if self.log else (self.high - self.low) / 10
        rounded = round(value, _DIGITS - 1 - math.floor(math.log10(size)))
        return float(min(max(rounded, self.low), self.high))


class RateRange(Range):
    """A range of learning rates."""

    @classmethod
    def problems_upstream(cls, given: Mapping[str, Any]) -> list[Problem]:
        """Returns what Optuna would refuse, and a least rate that is none.

        Args:
            given: The whole range as it was written.
        """
        low = _known(given.get("low"))
        if low is None or low > 0 or given.get("log") is True:
            return super().problems_upstream(given)
        text = f"is not above 0; got {low}. A learning rate is. Raise it."
        return [Problem(("low",), text), *super().problems_upstream(given)]

    @property
    def is_whole(self) -> bool:
        """Whether its values are whole numbers: never."""
        return False


def kind_of(given: object) -> str:
    """Returns whether an axis is a list of values or a range, by the tag of its type.

    Args:
        given: The axis as it was written, or as it was read.
    """
    return RANGE_TAG if isinstance(given, Mapping | Range) else LIST_TAG


def _known(given: object) -> Any:
    """Returns a number as it is, and None for anything else: that is told elsewhere."""
    try:
        return _number(given)
    except ProblemsFound:
        return None


def _exact(value: float) -> Decimal:
    """Returns the number that is meant: 0.1, and not what is nearest to it in binary."""
    return Decimal(str(value))
