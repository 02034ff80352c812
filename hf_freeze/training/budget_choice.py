"""Freezes as few blocks as a target for speed or memory allows.

Source: the idea of TimelyFreeze and of GreenTrainer, to measure on the device at hand what freezing buys, and then to
meet a budget. Depths are tried by bisection, the deepest first: to freeze more never takes longer and never takes more
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from hf_freeze.activation_cache.checks import reason_of_plan
from hf_freeze.config import FreezeConfig
from hf_freeze.config.automatic import BudgetSelection
from hf_freeze.config.sizes import spell_size
from hf_freeze.errors import PlanError
from hf_freeze.plan.apply import apply_plan, plan_of
from hf_freeze.plan.automatic import Chosen, first_blocks
from hf_freeze.plan.resolve import FreezePlan, resolve_plan
from hf_freeze.plan.states import block_roles
from hf_freeze.training.forecasting import Forecast, predicted_peak, run_length_of, sampled
from hf_freeze.training.rehearsing import rehearsal
from hf_freeze.training.stepping import Steps

# A prediction this close below a speed-up meets it: steps vary by as much.
_TOLERANCE: Final = 0.05


@dataclass(frozen=True)
class Reading:
    """What is predicted at one depth, in the unit of the target: times as fast, bytes or seconds.

    Attributes:
        value: The prediction.
        meets: Whether it meets the target.
    """

    value: float
    meets: bool


def smallest_depth(num_blocks: int, read: Callable[[int], Reading]) -> int | None:
    """Returns the least number of frozen blocks that meets a target, at most all but one, or None where none does.

    >>> smallest_depth(6, lambda depth: Reading(depth, depth >= 3))
    3

    Args:
        num_blocks: How many blocks there are.
        read: Tells what a depth comes to.
    """
    low, high = 0, num_blocks - 1
    if not read(high).meets:
        # Where steps are so short that freezing costs more than it saves, what is frozen least is fastest.
        return 0 if read(0).meets else None
    while low < high:
        middle = (low + high) // 2
        if read(middle).meets:
            high = middle
        else:
            low = middle + 1
    return high


def choose_by_budget(trainer: Any, section: FreezeConfig, selection: BudgetSelection) -> Chosen:
    """Returns the section that freezes the fewest blocks with which a target is met.

    Args:
        trainer: The trainer, whose model carries a plan in which no block is frozen.
        section: The `freeze` section.
        selection: The target.

    Raises:
        PlanError: There are no training rows, or no depth meets the target.
    """
    layout = plan_of(trainer.model).layout
    roles = block_roles(layout)
    whole = resolve_plan(layout)

    def plan_of_depth(depth: int) -> FreezePlan:
        return resolve_plan(layout, section.model_copy(update={"blocks": first_blocks(layout.stacks, depth)}))

    readings: dict[int, Reading] = {}
    with rehearsal(trainer.model, whole):
        bench = _Bench(trainer, selection, whole)

        def read(depth: int) -> Reading:
            if depth not in readings:
                readings[depth] = bench.reading(plan_of_depth(depth))
            return readings[depth]

        depth = smallest_depth(len(roles), read)
    if depth is None:
        raise _infeasible(selection, readings, len(roles))
    made = section.model_copy(update={"blocks": first_blocks(layout.stacks, depth)})
    why = (
        f"freeze.blocks.auto: the first {depth} of {len(roles)} blocks are frozen, the fewest that meet "
        f"{selection.spelled_target}: predicted is {_spelled(selection, readings[depth].value)} (budget)."
    )
    scores = {"no block": readings[0].value} if 0 in readings else {}
    scores |= {f"up to {roles[tried - 1]}": readings[tried].value for tried in sorted(readings) if tried}
    return Chosen(selection.spelling, made, (why,), f"{_UNITS[selection.target[0]]} with blocks frozen", scores)


_UNITS: Final = {"speedup": "Speed-up", "memory": "Bytes", "seconds": "Seconds"}


def _spelled(selection: BudgetSelection, value: float) -> str:
    name, _ = selection.target
    if name == "memory":
        return spell_size(round(value))
    return f"{value:.2f} times as fast as full fine-tuning" if name == "speedup" else f"{value:.3g} seconds"


def _infeasible(selection: BudgetSelection, readings: Mapping[int, Reading], num_blocks: int) -> PlanError:
    name, value = selection.target
    best = max if name == "speedup" else min
    depth = best(readings, key=lambda tried: readings[tried].value)
    got = spell_size(int(value)) if name == "memory" else f"{value:g}"
    return PlanError(
        f"freeze.blocks.auto.{name}: no number of frozen blocks meets it; got {got}. At best, with {depth} of "
        f"{num_blocks} blocks frozen, it is {_spelled(selection, readings[depth].value)}. Ask for that, or train the "
        "head alone (freeze.blocks: all)."
    )


class _Bench:
    """Predicts what plans come to.

    Args:
        trainer: The trainer.
        selection: The target.
        whole: The plan of full fine-tuning.
    """

    def __init__(self, trainer: Any, selection: BudgetSelection, whole: FreezePlan) -> None:
        self._trainer = trainer
        self._name, self._target = selection.target
        sample = sampled(trainer, by=selection.by)
        self._longest = sample.longest
        self._steps = Steps(
            sample.typical, trainer.args, device=trainer.args.device, precision=trainer.accelerator.mixed_precision
        )
        self._length = run_length_of(trainer, sample)
        self._full = self._forecast(whole).seconds if self._name == "speedup" else 0.0

    def reading(self, plan: FreezePlan) -> Reading:
        """Returns what a plan comes to."""
        if self._name == "memory":
            apply_plan(self._trainer.model, plan)
            peak = predicted_peak(self._trainer, plan, self._longest, is_cached=self._may_cache(plan))
            return Reading(peak, peak <= self._target)
        seconds = self._forecast(plan).seconds
        if self._name == "seconds":
            return Reading(seconds, seconds <= self._target)
        speedup = self._full / seconds
        return Reading(speedup, speedup >= (1 - _TOLERANCE) * self._target)

    def _forecast(self, plan: FreezePlan) -> Forecast:
        apply_plan(self._trainer.model, plan)
        timing = self._steps.timing(self._trainer.model)
        return Forecast(timing.run(self._length), timing.cached_run(self._length) if self._may_cache(plan) else None)

    def _may_cache(self, plan: FreezePlan) -> bool:
        return bool(self._trainer.may_cache) and reason_of_plan(plan) is None
