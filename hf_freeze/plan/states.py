"""One plan in different freeze states, for a schedule that moves between them. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from hf_freeze.config import FreezeConfig
from hf_freeze.errors import PlanError, did_you_mean
from hf_freeze.plan.layout import Layout
from hf_freeze.plan.places import ROLE_EMBEDDINGS, ROLE_HEAD, block_role
from hf_freeze.plan.resolve import (
    Decision,
    FreezePlan,
    Treatment,
    check_trainable,
    decide,
    decided_blocks,
    select_roles,
)


def plan_at(plan: FreezePlan, frozen: Collection[str]) -> FreezePlan:
    """Returns the plan in another freeze state.

    A role that the plan freezes and the state does not trains in full. What always trains does so in every state, and
    what the model itself keeps constant in none.

    Args:
        plan: What the config says trains.
        frozen: The roles that are frozen.

    Raises:
        PlanError: A role does not exist, nothing is left to train, or a quantised weight would train in full.
    """
    check_roles(plan.treatments, frozen)
    treatments: dict[str, Treatment] = {}
    for role, treatment in plan.treatments.items():
        thawed: Treatment = "full" if treatment == "frozen" else treatment
        treatments[role] = "frozen" if role in frozen else thawed
    decisions = tuple(_decision(plan, decision, treatments) for decision in plan.decisions)
    if not any(decision.trainable for decision in decisions):
        raise PlanError(
            f"schedule: nothing would be left to train; got a freeze state in which all {len(plan.treatments)} roles "
            "are frozen. Leave a block or the head out of it."
        )
    check_trainable(decisions)
    return dataclasses.replace(plan, treatments=treatments, decisions=decisions)


def _decision(plan: FreezePlan, decision: Decision, treatments: dict[str, Treatment]) -> Decision:
    if decision.always or treatments[decision.role] == plan.treatments[decision.role]:
        return decision
    if treatments[decision.role] == "frozen":
        return dataclasses.replace(decision, trainable=False, reason="the schedule freezes it")
    thawed = decide(decision.parameter, "full")
    return dataclasses.replace(thawed, reason="the schedule thaws it") if thawed.trainable else thawed


def with_trained(plan: FreezePlan, names: Collection[str]) -> FreezePlan:
    """Returns the plan as if it trained some parameters, too: those that trained before it came into force.

    Args:
        plan: What trains.
        names: Canonical names of parameters; those that the model has no longer are left out.
    """
    added = {decision.name: decision.role for decision in plan.decisions if not decision.trainable}
    added = {name: role for name, role in added.items() if name in set(names)}
    treatments: dict[str, Treatment] = {
        role: "full" if treatment == "frozen" and role in added.values() else treatment
        for role, treatment in plan.treatments.items()
    }
    decisions = tuple(
        dataclasses.replace(decision, trainable=True, reason="it trained before")
        if decision.name in added
        else decision
        for decision in plan.decisions
    )
    return dataclasses.replace(plan, treatments=treatments, decisions=decisions)


def check_roles(existing: Collection[str], roles: Collection[str]) -> None:
    """Checks that the model has the roles that a schedule names.

    Args:
        existing: All roles of the model.
        roles: The roles.

    Raises:
        PlanError: It has not.
    """
    for role in sorted(map(str, roles)):
        if role not in existing:
            raise PlanError(
                f"schedule: the model has no such role; got {role!r}. Its roles are {', '.join(existing)}. "
                f"Return roles from among course.roles.{did_you_mean(role, existing)}"
            )


def block_roles(layout: Layout) -> tuple[str, ...]:
    """Returns the roles of the blocks from the input on, of all stacks one after the other.

    Args:
        layout: Where the blocks are.
    """
    return tuple(block_role(stack.name, index) for stack in layout.stacks for index in range(stack.num_blocks))


def frozen_by(plan: FreezePlan, section: FreezeConfig, *, key: str) -> frozenset[str]:
    """Returns the roles that a section like `freeze` freezes, adapters in them included.

    Args:
        plan: What the config says trains.
        section: The section.
        key: What messages call it.

    Raises:
        PlanError: It names a stack or a block that does not exist.
    """
    frozen = set(select_roles(plan.layout, decided_blocks(section), key=f"{key}.blocks"))
    first = block_roles(plan.layout)[0]
    follows = section.embeddings == "auto" and (first in frozen or plan.treatments[first] == "adapter")
    if section.embeddings == "frozen" or (follows and plan.treatments[ROLE_EMBEDDINGS] != "adapter"):
        frozen.add(ROLE_EMBEDDINGS)
    if section.head == "frozen":
        frozen.add(ROLE_HEAD)
    return frozenset(frozen)
