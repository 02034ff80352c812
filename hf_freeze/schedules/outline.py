"""What is known of a schedule before training: its course where it follows from the moment alone, else its bounds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stretch:
    """Steps in which what is frozen stays as it is.

    Attributes:
        first_step: Optimizer steps that are done when it begins.
        frozen: The roles that are frozen.
    """

    first_step: int
    frozen: frozenset[str]


@dataclass(frozen=True)
class Outline:
    """The course of a schedule as far as it is known before training.

    Attributes:
        least: The course that freezes least.
        most: The course that freezes most; the same where nothing is decided while training.
        is_adaptive: Whether what is frozen is decided while training.
    """

    least: tuple[Stretch, ...]
    most: tuple[Stretch, ...]
    is_adaptive: bool
