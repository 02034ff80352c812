"""The schedule section tells everything that is wrong with it, and knows whose option is whose."""

from __future__ import annotations

import re
from typing import Any

import pytest

from hf_freeze.config import ScheduleConfig, parse_section
from hf_freeze.errors import ConfigError

FIRST = {"freeze": {"blocks": {"first": 1}}}
UNTIL = "Write a share of the run above 0 and at most 1, {step: n} or {epoch: x}."


def phases(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"type": "phases", "phases": list(entries)}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"type": "progresive"},
            ("schedule.type: unknown schedule; got 'progresive'. Schedules: autofreeze, gradual_unfreeze, phases, "
            "plasticity, plateau, progressive, rotating, static; one of your own is written "
            "my_package.my_module:MySchedule. Did you mean 'progressive'?"),
        ),
        (
            {"type": "progressive", "every": 20},
            ("schedule.every: unknown key; got 20. Known keys: a, ceiling, curve, t0, type. It is an option of "
            "plasticity, rotating."),
        ),
        (
            {"type": "static", "floor": 1},
            "schedule.floor: unknown key; got 1. Known keys: type. It is an option of gradual_unfreeze, plateau.",
        ),
        (
            {"type": "progressive", "a": 0.5},
            "schedule.a: does not belong to the curve linear; got 0.5. It belongs to exponential. Leave it out.",
        ),
        (
            {"type": "progressive", "curve": "exponential", "t0": 0.5},
            ("schedule.t0: does not belong to the curve exponential; got 0.5. It belongs to linear and cubic. Leave it "
            "out."),
        ),
        (
            {"type": "progressive", "t0": 1.0},
            ("schedule.t0: is not below 1.0; got 1.0. Share of the run, from 0 to below 1, before the depth grows "
            "(linear), or whose cube is when block 0 freezes (cubic); null: 0.1 and 0.8."),
        ),
        (
            {"type": "plateau", "patience": 0},
            ("schedule.patience: is below 1; got 0. Number of evaluations without improvement before a thaw, at least "
            "1."),
        ),
        (
            {"type": "rotating", "order": "randon"},
            ("schedule.order: is none of its values; got 'randon'. It takes 'random', 'shuffle', 'ascending' or "
            "'descending'. Did you mean 'random'?"),
        ),
        (phases(), ("schedule.phases: lists no phase; got []. Write one at least.")),
        (
            phases(FIRST, {**FIRST, "until": 1}),
            ("schedule.phases.0.until: is missing in a phase that others follow; got none. Only the last may leave it "
            "out."),
        ),
        (
            phases({**FIRST, "until": 0.5}, {**FIRST, "until": 0.4}, FIRST),
            ("schedule.phases.1.until: does not lie behind the end of the phase before; got 0.4 after 0.5. Phases "
            "follow one another. Put them in order."),
        ),
        (
            phases({**FIRST, "until": {"step": 5}}, {**FIRST, "until": {"step": 5}}, FIRST),
            ("schedule.phases.1.until: does not lie behind the end of the phase before; got {'step': 5} after "
            "{'step': 5}. Phases follow one another. Put them in order."),
        ),
        (
            phases({"freeze": {"keep_dropout": True}}),
            ("schedule.phases.0.freeze.keep_dropout: is the same in every phase; got True. Write it in "
            "freeze.keep_dropout."),
        ),
        *(
            (
                phases({**FIRST, "until": until}),
                f"schedule.phases.0.until: is no end of a phase; got {until!r}. {UNTIL}",
            )
            for until in (0, 1.5, "half", {"step": 0}, {"epoch": -1}, {"steps": 5}, {"step": 1, "epoch": 1})
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        parse_section(ScheduleConfig, section, key="schedule")


def test_all_problems_are_told_together() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_section(ScheduleConfig, {"type": "rotating", "every": 0, "blocks": 0, "floor": 1}, key="schedule")
    assert sorted(line.partition(":")[0] for line in str(caught.value).splitlines()) == [
        "schedule.blocks", "schedule.every", "schedule.floor"
    ]  # fmt: skip
