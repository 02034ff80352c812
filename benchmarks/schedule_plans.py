"""The schedules that `benchmarks/schedules.py` compares on MiniLM, and what they are compared with."""

from __future__ import annotations

from typing import Any

from benchmarks.balance_plans import CACHED, FROZEN_LOOP, FULL, HEAD_ONLY, NUM_BLOCKS, Plan

# What is tried where training starts with everything, and where it starts with little.
_LOW, _HIGH = FULL.learning_rates, CACHED.learning_rates


def scheduled(name: str, about: str, *, rates: tuple[float, ...] = _LOW, caches: bool = True, **schedule: Any) -> Plan:
    """Returns the plan that follows a schedule."""
    return Plan(name, about, FULL.num_trainable, rates, None, {"schedule": schedule}, caches)


def after(until: float | dict[str, int], depth: int, *, name: str, about: str) -> Plan:
    """Returns the plan that trains everything until a progress, and freezes up to a depth afterwards."""
    phases = [{"until": until, "freeze": {"blocks": "none"}}, {"freeze": {"blocks": {"first": depth}}}]
    return scheduled(name, f"everything {about}, then depth {depth}", type="phases", phases=phases, warmup=0)


def fixed(depth: int) -> Plan:
    """Returns the plan that freezes up to one depth all the time."""
    section = {"freeze": {"blocks": {"first": depth}}}
    rates = _LOW if depth <= 2 else _HIGH
    return Plan(f"fixed {depth}", f"depth {depth} all the time", 0, rates, depth, section, caches=True)


CONTROL = " shuffled"
SCHEDULES = (
    after({"epoch": 1}, 4, name="phases 4", about="for one epoch"),
    after({"epoch": 1}, 5, name="phases 5", about="for one epoch"),
    after(0.35, 5, name="later phases 5", about="for 35 % of the steps"),
    scheduled("linear", "`progressive`, linear", type="progressive"),
    scheduled("exponential", "`progressive`, exponential", type="progressive", curve="exponential"),
    scheduled("cubic", "`progressive`, cubic", type="progressive", curve="cubic"),
    scheduled("autofreeze", "`autofreeze`", type="autofreeze"),
    scheduled("plasticity", "`plasticity`", type="plasticity"),
    scheduled("gradual_unfreeze", "`gradual_unfreeze`", rates=_HIGH, type="gradual_unfreeze"),
    scheduled("plateau", "`plateau`, on the loss of the tuning rows after each epoch", rates=_HIGH, type="plateau"),
    scheduled("rotating", "`rotating`", rates=_HIGH, caches=False, type="rotating"),
)
SHUFFLED = tuple(
    scheduled(f"{name}{CONTROL}", f"`{name}` with `control: shuffled`", type=name, control="shuffled")
    for name in ("autofreeze", "plasticity")
)
FIXED = tuple(fixed(depth) for depth in range(1, NUM_BLOCKS))
CONTROLS = (FULL, FROZEN_LOOP, HEAD_ONLY)
PLANS = {plan.name: plan for plan in (*CONTROLS, *SCHEDULES, *SHUFFLED, *FIXED)}
