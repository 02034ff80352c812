"""What `hf-freeze plan` prints about a schedule: what is frozen when, and what the run costs with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from hf_freeze.cli.terminal import new_grid, print_grid, print_lines

if TYPE_CHECKING:
    from hf_freeze.plan.cost import ScheduleCost
    from hf_freeze.plan.table import ScheduleTable

# A schedule that draws blocks has a row for every draw.
_MOST_ROWS = 20


def print_timeline(console: Console, table: ScheduleTable, cost: ScheduleCost | None) -> None:
    """Prints the timeline of a schedule.

    Args:
        console: Where it goes to.
        table: The schedule.
        cost: What the run costs with it; None where that is not known.
    """
    print_lines(console, "")
    grid = new_grid(f"schedule {table.type}, {table.num_steps:,} steps", "from step", "frozen", "depth", numbers=0)
    for row in table.rows[:_MOST_ROWS]:
        place = f"{row.first_step:,} ({row.share:.0%})"
        if table.is_adaptive:
            place = "at least" if row is table.rows[0] else "at most"
        grid.add_row(place, Text(", ".join(row.frozen) or "nothing"), str(row.depth))
    print_grid(console, grid)
    print_lines(console, *_sentences(table, cost))


def _sentences(table: ScheduleTable, cost: ScheduleCost | None) -> Iterator[str]:
    if len(table.rows) > _MOST_ROWS:
        yield f"{len(table.rows) - _MOST_ROWS} more changes follow."
    if table.is_adaptive:
        yield "What is frozen is decided while training, within these bounds."
    if table.note is not None:
        yield table.note
    if cost is None:
        return
    speed = f"{_between(cost.over_full, '.1f')} times as fast as full fine-tuning"
    if cost.cached_over_full is not None:
        speed += f", with the activation cache {_between(cost.cached_over_full, '.1f')} times"
    yield f"Under the schedule, the mean depth is {_between(cost.mean_depth, '.1f')} and the whole run {speed}."
    if cost.seconds is not None:
        yield f"It would take {_between(cost.seconds, ',.0f')} seconds."


def _between(ends: tuple[float, float], spelling: str) -> str:
    low, high = sorted(ends)
    first, last = format(low, spelling), format(high, spelling)
    return first if first == last else f"{first} to {last}"
