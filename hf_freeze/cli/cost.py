"""What `hf-freeze plan` prints about the cost of a plan: tables and sentences, or JSON for programs."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from hf_freeze.cli.terminal import new_grid, print_grid, print_lines
from hf_freeze.config.sizes import spell_size

if TYPE_CHECKING:
    from hf_freeze.plan.cost import PlanCost, RoleCost
    from hf_freeze.plan.table import PlanTable
    from hf_freeze.plan.timing import Speedup

_UNKNOWN = "?"


def print_cost(console: Console, cost: PlanCost) -> None:
    """Prints what every role costs, and in sentences what they cost together.

    Args:
        console: Where it goes to.
        cost: The cost.
    """
    print_lines(console, "")
    columns = ("role", "weights", "gradients", "optimizer", "activations", "checkpointed", "forward", "backward")
    grid = new_grid("MB of each process, GFLOP of each batch", *columns, numbers=7)
    for row in _merged(cost.roles):
        grid.add_row(*map(Text, _cells(row)))
    grid.add_section()
    grid.add_row(*_cells(cost.total))
    print_grid(console, grid)
    print_lines(console, *_sentences(cost), *cost.notes)


def print_comparison(
    console: Console, names: Sequence[str], tables: Sequence[PlanTable], costs: Sequence[PlanCost]
) -> None:
    """Prints plans side by side.

    Args:
        console: Where they go to.
        names: What each is called.
        tables: The plans.
        costs: What each costs.
    """
    # Whole paths would leave no room for what the rows are about.
    short = [Path(name).name for name in names]
    grid = new_grid(None, "", *(short if len({*short}) == len(names) else names), numbers=len(names))
    grid.add_row("parameters that train", *(f"{table.num_trainable:,}" for table in tables))
    for name, value in _COMPARED.items():
        cells = [value(cost) for cost in costs]
        if any(cell != _UNKNOWN for cell in cells):
            grid.add_row(name, *cells)
    print_grid(console, grid)
    print_lines(console, *dict.fromkeys(note for cost in costs for note in cost.notes))


def print_json(plans: Iterable[tuple[PlanTable, PlanCost]]) -> None:
    """Prints plans and what they cost, for programs: an object for one plan, a list for several.

    Args:
        plans: The plans.
    """
    objects = [{"plan": asdict(table), "cost": {**asdict(cost), "total": asdict(cost.total)}} for table, cost in plans]
    sys.stdout.write(json.dumps(objects if len(objects) > 1 else objects[0], indent=2) + "\n")


def _merged(roles: Sequence[RoleCost]) -> Iterator[RoleCost]:
    """Yields one row for neighbouring blocks of a stack that cost the same, with what they cost together."""
    from hf_freeze.plan.cost import added_up

    def alike(cost: RoleCost) -> tuple[Any, ...]:
        stem, bracket, _ = cost.role.rpartition("[")
        return (stem or cost.role, bool(bracket), *astuple(cost)[1:])

    for _, group in itertools.groupby(roles, alike):
        members = list(group)
        first, last = members[0], members[-1]
        if len(members) == 1:
            yield first
            continue
        ends = f"{first.role.removesuffix(']')}-{last.role[last.role.rindex('[') + 1 :]}"
        yield added_up(ends, members)


def _cells(cost: RoleCost) -> tuple[str, ...]:
    sizes = (cost.weights, cost.gradients, cost.optimizer, cost.activations, cost.checkpointed)
    flops = (cost.forward_flops, cost.backward_flops)
    return (cost.role, *(_scaled(size, 1e6) for size in sizes), *(_scaled(count, 1e9) for count in flops))


def _scaled(value: int | None, unit: float) -> str:
    return _UNKNOWN if value is None else f"{value / unit:,.1f}" if value else "0"


def _size(num_bytes: int | None) -> str:
    return _UNKNOWN if num_bytes is None else spell_size(num_bytes)


def _flops(count: int | None) -> str:
    if count is None:
        return _UNKNOWN
    for unit, name in ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} FLOP"


def _sentences(cost: PlanCost) -> Iterator[str]:
    rows = f"batches of {cost.batch_size} rows"
    if cost.longest > cost.length:
        rows += f": bytes for the longest, of {cost.longest} tokens, FLOPs for a typical one, of {cost.length}"
    else:
        rows += f" of {cost.length} tokens"
    where = "one process" if cost.processes.count == 1 else f"each of {cost.processes.count} processes"
    yield f"In {where}, for {rows}."
    if cost.peak is not None:
        checkpointed = ""
        if cost.peak_checkpointed is not None and not cost.checkpoints:
            checkpointed = f", or {spell_size(cost.peak_checkpointed)} with activation checkpointing"
        yield f"At most {spell_size(cost.peak)} at once{checkpointed}, beside what Python and torch take."
    yield from _speed_sentences(cost)
    yield from _seconds_sentences(cost)


def _speed_sentences(cost: PlanCost) -> Iterator[str]:
    if cost.over_full is None or cost.over_loop is None:
        return
    yield f"A step: {_compared(cost, lambda speedup: speedup.step)}."
    if cost.over_full.run is not None:
        build = ""
        if cost.cache is not None:
            count = max(1, round(cost.cache.build_steps))
            steps = "1 step" if count == 1 else f"{count:,} steps"
            build = f"; its build takes as long as {steps} without it"
        yield f"The whole run: {_compared(cost, lambda speedup: speedup.run)}{build}."


def _compared(cost: PlanCost, of: Callable[[Speedup], float | None]) -> str:
    text = f"{_times(cost.over_full, of)} times as fast as full fine-tuning, {_times(cost.over_loop, of)} times as "
    text += "fast as the frozen loop"
    if cost.cached_over_full is not None:
        cached = f"{_times(cost.cached_over_full, of)} and {_times(cost.cached_over_loop, of)} times"
        text += f"; with the activation cache {cached}"
    return text


def _times(speedup: Speedup | None, of: Callable[[Speedup], float | None] = lambda speedup: speedup.step) -> str:
    value = None if speedup is None else of(speedup)
    return _UNKNOWN if value is None else f"{value:.1f}"


def _seconds_sentences(cost: PlanCost) -> Iterator[str]:
    seconds = cost.seconds
    if seconds is None:
        return
    cached = "" if seconds.cached_step is None else f" ({seconds.cached_step:.3f} with the activation cache)"
    others = f"{seconds.full_step:.3f} in full fine-tuning, {seconds.loop_step:.3f} in the frozen loop"
    yield f"Measured here, a step takes {seconds.step:.3f} seconds{cached}, {others}."
    if seconds.run is not None:
        cached = "" if seconds.cached_run is None else f", {seconds.cached_run:,.0f} with the activation cache"
        yield f"The whole run would take {seconds.run:,.0f} seconds{cached}."


_COMPARED: dict[str, Callable[[PlanCost], str]] = {
    "weights": lambda cost: _size(cost.total.weights),
    "gradients": lambda cost: _size(cost.total.gradients),
    "optimizer": lambda cost: _size(cost.total.optimizer),
    "activations": lambda cost: _size(cost.total.activations),
    "activations, checkpointed": lambda cost: _size(cost.total.checkpointed),
    "at most at once": lambda cost: _size(cost.peak),
    "forward": lambda cost: _flops(cost.total.forward_flops),
    "backward": lambda cost: _flops(cost.total.backward_flops),
    "cache on disk": lambda cost: _UNKNOWN if cost.cache is None else _size(cost.cache.num_bytes),
    "cache build": lambda cost: _UNKNOWN if cost.cache is None else _flops(cost.cache.build_flops),
    "cache build, in steps": lambda cost: _UNKNOWN if cost.cache is None else f"{cost.cache.build_steps:,.0f}",
    "step, over full": lambda cost: _times(cost.over_full),
    "step, over the frozen loop": lambda cost: _times(cost.over_loop),
    "cached step, over full": lambda cost: _times(cost.cached_over_full),
    "cached step, over the frozen loop": lambda cost: _times(cost.cached_over_loop),
    "run, over full": lambda cost: _times(cost.over_full, lambda speedup: speedup.run),
    "run, over the frozen loop": lambda cost: _times(cost.over_loop, lambda speedup: speedup.run),
    "cached run, over full": lambda cost: _times(cost.cached_over_full, lambda speedup: speedup.run),
    "cached run, over the frozen loop": lambda cost: _times(cost.cached_over_loop, lambda speedup: speedup.run),
    "seconds of the run": lambda cost: _UNKNOWN if not cost.seconds else f"{cost.seconds.run or 0:,.0f}",
    "seconds of the cached run": lambda cost: _UNKNOWN if not cost.seconds else f"{cost.seconds.cached_run or 0:,.0f}",
}
