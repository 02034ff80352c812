"""A plan and a layout as rows for a reader: equal neighbours of one stack in one row. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hf_freeze.plan.layout import Layout
from hf_freeze.plan.places import ROLE_EMBEDDINGS, ROLE_HEAD, Stack, block_role
from hf_freeze.plan.resolve import FreezePlan, Treatment


@dataclass(frozen=True)
class PlanRow:
    """What a plan does to one role, or to several neighbouring blocks that it treats alike.

    Attributes:
        roles: `embeddings`, `blocks[0]`, `blocks[1-3]` or `head`.
        num_parameters: The number of their parameters, adapters included.
        num_trainable: How many of these train.
        treatment: `frozen`, `full` or `adapter`.
        lr_multiplier: The factor on the learning rate, or None where nothing trains.
    """

    roles: str
    num_parameters: int
    num_trainable: int
    treatment: Treatment
    lr_multiplier: float | None


@dataclass(frozen=True)
class ScheduleRow:
    """Steps of a schedule in which what is frozen stays as it is.

    Attributes:
        first_step: Optimizer steps that are done when they begin.
        share: The share of the run that is done then, from 0 to 1.
        frozen: The roles that are frozen, neighbouring blocks as one, such as `blocks[1-3]`.
        depth: The depth of the frozen prefix, in blocks.
    """

    first_step: int
    share: float
    frozen: tuple[str, ...]
    depth: int


@dataclass(frozen=True)
class ScheduleTable:
    """A schedule for a reader.

    Attributes:
        type: Its name.
        num_steps: Optimizer steps of the run.
        is_adaptive: Whether what is frozen is decided while training.
        rows: What is frozen when; for an adaptive schedule what is frozen at least, and what at most.
        note: What the number of steps is assumed from; None where it is known.
    """

    type: str
    num_steps: int
    is_adaptive: bool
    rows: tuple[ScheduleRow, ...]
    note: str | None = None


@dataclass(frozen=True)
class PlanTable:
    """A plan for a reader.

    Attributes:
        model_class: The name of the model's class.
        rows: The roles from the input on.
        backward: A sentence that says where the backward pass stops.
        notes: What else is worth knowing, a sentence each.
        cache: What the activation cache would hold, a sentence each.
        schedule: What is frozen when; None where nothing changes.
    """

    model_class: str
    rows: tuple[PlanRow, ...]
    backward: str
    notes: tuple[str, ...] = ()
    cache: tuple[str, ...] = ()
    schedule: ScheduleTable | None = None

    @property
    def num_parameters(self) -> int:
        """The number of parameters, adapters included."""
        return sum(row.num_parameters for row in self.rows)

    @property
    def num_trainable(self) -> int:
        """The number of parameters that train."""
        return sum(row.num_trainable for row in self.rows)


@dataclass(frozen=True)
class LayoutRow:
    """Where one role is, or several neighbouring blocks of equal size.

    Attributes:
        roles: `embeddings`, `blocks[0]`, `blocks[1-3]` or `head`.
        num_parameters: The number of their parameters.
        modules: The paths of the modules that belong to them.
    """

    roles: str
    num_parameters: int
    modules: tuple[str, ...]


@dataclass(frozen=True)
class LayoutTable:
    """A layout for a reader.

    Attributes:
        model_class: The name of the model's class.
        rows: The roles from the input on.
        notes: Which weights are tied, kept constant or quantised, a sentence each.
    """

    model_class: str
    rows: tuple[LayoutRow, ...]
    notes: tuple[str, ...] = ()


def plan_table(plan: FreezePlan, factors: Mapping[str, float]) -> PlanTable:
    """Returns a plan as rows.

    Args:
        plan: What trains.
        factors: The factor on the learning rate per role.
    """
    trained = plan.trainable_by_role()
    sizes = {decision.name: decision.parameter.numel for decision in plan.decisions}
    totals = dict.fromkeys(plan.treatments, 0)
    for decision in plan.decisions:
        totals[decision.role] += decision.parameter.numel
    facts = {
        role: (
            totals[role],
            sum(sizes[name] for name in trained[role]),
            treatment,
            factors[role] if trained[role] else None,
        )
        for role, treatment in plan.treatments.items()
    }
    rows = []
    for roles, members in role_ranges(plan.layout, facts):
        total, training, treatment, factor = facts[members[0]]
        rows.append(PlanRow(roles, total * len(members), training * len(members), treatment, factor))
    return PlanTable(plan.layout.model_class, tuple(rows), _backward(plan), _ended_prefix(plan))


def schedule_row(plan: FreezePlan, first_step: int, num_steps: int) -> ScheduleRow:
    """Returns what is frozen from a step on.

    Args:
        plan: The plan in its freeze state from there on.
        first_step: Optimizer steps that are done.
        num_steps: Optimizer steps in all.
    """
    frozen = set(plan.start.frozen)
    found = role_ranges(plan.layout, {role: role in frozen for role in plan.treatments})
    roles = tuple(roles for roles, members in found if members[0] in frozen)
    return ScheduleRow(first_step, first_step / num_steps, roles, plan.depth)


def layout_table(layout: Layout) -> LayoutTable:
    """Returns a layout as rows.

    Args:
        layout: Where the roles are.
    """
    totals = dict.fromkeys(layout.roles, 0)
    for parameter in layout.parameters:
        totals[parameter.role] += parameter.numel
    paths = {block_role(stack.name, i): stack.path for stack in layout.stacks for i in range(stack.num_blocks)}
    rows = []
    for roles, members in role_ranges(layout, totals):
        if members[0] in paths:
            modules: tuple[str, ...] = (f"{paths[members[0]]}{roles[roles.rindex('[') :]}",)
        else:
            modules = layout.modules.get(members[0], ())
        rows.append(LayoutRow(roles, totals[members[0]] * len(members), modules))
    return LayoutTable(layout.model_class, tuple(rows), tuple(_peculiarities(layout)))


def role_ranges(layout: Layout, facts: Mapping[str, object]) -> Iterator[tuple[str, list[str]]]:
    """Yields a name and the roles of every row: neighbouring blocks of a stack with equal facts share one.

    Args:
        layout: Where the roles are.
        facts: What is known of every role.
    """
    yield ROLE_EMBEDDINGS, [ROLE_EMBEDDINGS]
    for stack in layout.stacks:
        yield from _block_ranges(stack, facts)
    yield ROLE_HEAD, [ROLE_HEAD]


def _block_ranges(stack: Stack, facts: Mapping[str, object]) -> Iterator[tuple[str, list[str]]]:
    for _, group in itertools.groupby(range(stack.num_blocks), lambda index: facts[block_role(stack.name, index)]):
        indices = list(group)
        first, last = indices[0], indices[-1]
        members = [block_role(stack.name, index) for index in indices]
        one = block_role(stack.name, first)
        yield (one if first == last else f"{one[: one.rindex('[')]}[{first}-{last}]"), members


def _backward(plan: FreezePlan) -> str:
    deepest = plan.backward_reaches
    if deepest == ROLE_EMBEDDINGS:
        return "The backward pass runs through the whole model: parameters of the embeddings train."
    if plan.depth == 0:
        prefix = "the embeddings alone"
    else:
        prefix = f"the embeddings and {plan.depth} {'block' if plan.depth == 1 else 'blocks'}"
    return f"The backward pass stops in {deepest}; the frozen prefix before it holds {prefix}."


def _ended_prefix(plan: FreezePlan) -> tuple[str, ...]:
    """Says where parameters that always train make the frozen prefix shorter than the treatments are."""
    first = plan.layout.stacks[0]
    blocks = [block_role(first.name, index) for index in range(first.num_blocks)]
    prefix = list(itertools.takewhile(lambda role: plan.treatments[role] == "frozen", [ROLE_EMBEDDINGS, *blocks]))
    trained = plan.trainable_by_role()
    ending = next((role for role in prefix if trained[role]), None)
    if ending is None:
        return ()
    what = f"freeze.always_train ends the frozen prefix in {ending}, where {trained[ending][0]} trains"
    return (f"{what}; without it, the prefix would reach to {prefix[-1]}.",)


def _peculiarities(layout: Layout) -> Iterator[str]:
    for parameter in layout.parameters:
        if parameter.aliases:
            yield f"Tied: {' = '.join((parameter.name, *parameter.aliases))}."
    for what, names in (
        ("Kept constant by the model", [parameter.name for parameter in layout.parameters if parameter.constant]),
        ("Quantised", [parameter.name for parameter in layout.parameters if parameter.quantized]),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            yield f"{what}: {names[0]}{more}."
