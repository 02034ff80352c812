"""The schedules that `benchmarks/schedules.py` compares on MiniLM, and what they are compared with."""

from __future__ import annotations

from typing import Any

from benchmarks.balance_plans import CACHED, FROZEN_LOOP, FULL, HEAD_ONLY, NUM_BLOCKS, Plan

# What is tried where training starts with everything, and where it starts with little.
_LOW, _HIGH = FULL.learning_rates, CACHED.learning_rates


def scheduled(name: str, about: str, *, rates: tuple[float, ...] = _LOW, caches: bool = True, **schedule: Any) -> Plan:
    """Returns the plan that follows a schedule."""
    return Plan(name, about, FULL.num_trainable, rates, None, {"schedule": schedule}, caches)


def phased(name: str, about: str, *phases: tuple[float | dict[str, int] | None, dict[str, Any]]) -> Plan:
    """Returns the plan that freezes what each phase says until its end; that of the last is None."""
    entries = [{"until": until, "freeze": freeze} for until, freeze in phases]
    return scheduled(name, about, type="phases", phases=entries, warmup=0)


def first(depth: int) -> dict[str, Any]:
    """Returns the `freeze` section of the first blocks and the embeddings."""
    return {"blocks": {"first": depth}}


_EVERYTHING: dict[str, Any] = {"blocks": "none"}
_NO_EMBEDDINGS: dict[str, Any] = {"embeddings": "frozen", "blocks": "none"}


def fixed(depth: int) -> Plan:
    """Returns the plan that freezes up to one depth all the time."""
    section = {"freeze": {"blocks": {"first": depth}}}
    rates = _LOW if depth <= 2 else _HIGH
    return Plan(f"fixed {depth}", f"depth {depth} all the time", 0, rates, depth, section, caches=True)


CONTROL = " shuffled"
SCHEDULES = (
    phased("phases 4", "everything for one epoch, then depth 4", ({"epoch": 1}, _EVERYTHING), (None, first(4))),
    phased("phases 5", "everything for one epoch, then depth 5", ({"epoch": 1}, _EVERYTHING), (None, first(5))),
    phased("later phases 5", "everything for 35 % of the steps, then depth 5", (0.35, _EVERYTHING), (None, first(5))),
    phased(
        "phases 0, 5",
        "all but the embeddings for 40 % of the steps, then depth 5",
        (0.4, _NO_EMBEDDINGS),
        (None, first(5)),
    ),
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
