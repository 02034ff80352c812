"""The freeze timeline as a picture: what every role did at every step, drawn as SVG."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.plan.table import role_ranges
from hf_freeze.schedules import Transition

_COLOURS: Final = {"frozen": "#9db8d2", "adapter": "#f2b84b", "full": "#d9603b"}
_ROW, _LABEL, _WIDTH, _LEGEND = 24, 150, 560, 34  # pixels


@dataclass(frozen=True)
class Span:
    """What some roles did for some of the steps.

    Attributes:
        roles: `embeddings`, `blocks[0-3]` or `head`.
        treatment: `frozen`, `full` or `adapter`.
        first: The first step, from 0.
        last: The step after the last one.
    """

    roles: str
    treatment: str
    first: int
    last: int


def freeze_spans(
    plan: FreezePlan, frozen: Collection[str], timeline: Sequence[Transition], *, num_steps: int
) -> tuple[Span, ...]:
    """Returns what every role did, neighbouring blocks that did the same in one row.

    Args:
        plan: The plan with all that has trained.
        frozen: The roles that were frozen when training began.
        timeline: What changed then, in order.
        num_steps: The number of steps.
    """
    told = [(transition.step, transition.froze, transition.thawed) for transition in timeline]
    courses: dict[str, tuple[tuple[bool, int], ...]] = {}
    for role in plan.treatments:
        changes = [(role in frozen, 0)]
        changes += [(role in froze, step) for step, froze, thawed in told if role in froze or role in thawed]
        courses[role] = tuple(changes)
    spans = []
    for name, members in role_ranges(plan.layout, {role: (courses[role], plan.treatments[role]) for role in courses}):
        course, treatment = courses[members[0]], plan.treatments[members[0]]
        for (is_frozen, first), (_, last) in itertools.pairwise([*course, (False, num_steps)]):
            spans.append(Span(name, "frozen" if is_frozen else treatment, first, last))
    return tuple(spans)


def draw_timeline(spans: Sequence[Span], *, num_steps: int) -> str:
    """Returns an SVG with a row for every set of roles, the input at the bottom, and the steps from left to right.

    Args:
        spans: What was done, the roles from the input on.
        num_steps: The number of steps.
    """
    rows = list(dict.fromkeys(span.roles for span in spans))
    height = _ROW * len(rows) + _LEGEND
    scale = _WIDTH / max(1, num_steps)
    shapes = [_text(0, _top(rows, name) + 16, name) for name in rows]
    for span in spans:
        place = f'x="{_LABEL + span.first * scale:.1f}" y="{_top(rows, span.roles) + 2}"'
        size = f'width="{(span.last - span.first) * scale:.1f}" height="{_ROW - 4}"'
        shapes.append(f'<rect {place} {size} fill="{_COLOURS[span.treatment]}"/>')
    bottom = _ROW * len(rows) + 18
    shapes.append(_text(_LABEL, bottom, "step 0"))
    shapes.append(_text(_LABEL + _WIDTH, bottom, f"step {num_steps:,}", anchor="end"))
    for index, treatment in enumerate(name for name in _COLOURS if any(span.treatment == name for span in spans)):
        left = _LABEL + 120 + index * 110
        shapes.append(f'<rect x="{left}" y="{bottom - 11}" width="12" height="12" fill="{_COLOURS[treatment]}"/>')
        shapes.append(_text(left + 18, bottom, treatment))
    inside = "\n".join(shapes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LABEL + _WIDTH} {height}" '
        f'width="{_LABEL + _WIDTH}" height="{height}" font-family="sans-serif" font-size="13">\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n{inside}\n</svg>\n'
    )


def _top(rows: Sequence[str], name: str) -> int:
    return _ROW * (len(rows) - 1 - rows.index(name))


def _text(left: float, base: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{left}" y="{base}" text-anchor="{anchor}">{escape(text)}</text>'
