"""Schedules of a user that fail, each in one place, or answer with something of another kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_freeze.schedules import Choice, Moment, RunLength, Schedule


class Resting(Schedule):
    """Changes nothing."""

    def decide(self, moment: Moment) -> Choice | None:
        return None


class TakesNothing(Resting):
    def __init__(self) -> None:
        pass


class FailsInit(Resting):
    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        raise KeyError("blocks[12]")


class FailsBegin(Resting):
    def begin(self, run: RunLength) -> None:
        raise RuntimeError("no")


class FailsStart(Resting):
    @property
    def start(self) -> frozenset[str]:
        raise ZeroDivisionError("no")


class StartsNowhere(Resting):
    start: Any = frozenset({"blocks[77]"})


class StartsInWords(Resting):
    start: Any = "head"


class FailsNeeds(Resting):
    @property
    def needs(self) -> frozenset[str]:
        raise ZeroDivisionError("no")


class NeedsInWords(Resting):
    needs: Any = "gradients"


class NeedsSpeed(Resting):
    needs: Any = frozenset({"gradient"})


class WarmsUpInWords(Resting):
    warmup: Any = "50"


class WarmsUpBackwards(Resting):
    warmup: Any = -5


class FailsFactors(Resting):
    def lr_factors(self, moment: Moment) -> Mapping[str, float]:
        raise ValueError("no")


class FailsDue(Resting):
    needs: Any = frozenset({"gradients"})

    def is_due(self, moment: Moment) -> bool:
        raise ValueError("no")


class ChoosesInWords(Schedule):
    def decide(self, moment: Moment) -> Choice | None:
        frozen: Any = "blocks[0]"
        return Choice(frozen, "one") if moment.step == 5 else None


class FailsDecide(Schedule):
    def decide(self, moment: Moment) -> Choice | None:
        if moment.step == 5:
            raise ValueError("no")
        return None


class DecidesNothing(Schedule):
    pass


class FailsState(Resting):
    def state_dict(self) -> dict[str, Any]:
        raise OSError("no")


class HasNoState(Resting):
    def state_dict(self) -> Any:
        return None


class FailsLoading(Resting):
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        raise KeyError("x")


class HasOtherOptions(Resting):
    Options: Any = dict
