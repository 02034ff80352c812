"""How blocks are chosen automatically: what may stand under `auto`, and whose option is whose."""

from __future__ import annotations

import re
from typing import Any

import pytest

from hf_freeze.config import FreezeConfig, ScheduleConfig, Selection, json_schema, parse_config, parse_section
from hf_freeze.config.automatic import BudgetSelection, GradientSelection, SnrSelection
from hf_freeze.errors import ConfigError
from tests.unit.config.smallest import changed

TARGETS = "Targets: memory, seconds, speedup. Give exactly one."
SHARE_OF_WEIGHTS = "Share of the weights of each type of module that trains, above 0 and at most 1."
SHARE_OF_GRADIENTS = "Share of all relative gradients that the blocks that train have at least, above 0 and at most 1."


def automatic(**options: Any) -> dict[str, Any]:
    return {"blocks": {"auto": options}}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"by": "snr"}, SnrSelection(train_top=0.5)),
        ({"by": "snr", "train_top": 1}, SnrSelection(train_top=1.0)),
        ({"by": "gradient"}, GradientSelection(train_top=0.9)),
        ({"by": "budget", "speedup": 2}, BudgetSelection(speedup=2.0)),
        ({"by": "budget", "memory": "8 GB"}, BudgetSelection(memory=8_000_000_000)),
        ({"by": "budget", "seconds": 60}, BudgetSelection(seconds=60.0)),
    ],
)
def test_what_may_stand_under_auto(options: dict[str, Any], expected: object) -> None:
    section = parse_section(FreezeConfig, automatic(**options), key="freeze")
    assert section.blocks == expected
    assert type(section.blocks) is type(expected)
    assert parse_section(FreezeConfig, section.model_dump(exclude_defaults=True), key="freeze") == section
    assert section.undecided == section.model_copy(update={"blocks": Selection("none")})


@pytest.mark.parametrize(
    ("options", "schedule", "message"),
    [
        (
            {"by": "snr"},
            {"type": "autofreeze"},
            (
                "chooses single weights, and schedules move whole blocks; got 'snr' beside the schedule 'autofreeze'. "
                "Leave the schedule out, choose by gradient, or write which blocks are frozen."
            ),
        ),
        (
            {"by": "budget", "speedup": 2},
            {"type": "plateau"},
            (
                "meets its target with what it freezes; got 'budget' beside the schedule 'plateau', which trains other "
                "blocks. Leave the schedule out, take one that only freezes more (autofreeze, plasticity, "
                "progressive), or write which blocks are frozen."
            ),
        ),
        (
            {"by": "gradient"},
            {"type": "phases", "phases": [{"freeze": {"blocks": "all"}}]},
            (
                "chooses what is frozen, which every phase says by itself; got 'gradient' beside the schedule "
                "'phases'. Leave one of them out."
            ),
        ),
    ],
)
def test_what_is_chosen_fits_the_schedule(options: dict[str, Any], schedule: dict[str, Any], message: str) -> None:
    config = changed({"freeze": automatic(**options), "schedule": schedule})
    with pytest.raises(ConfigError, match=re.escape(f"freeze.blocks.auto: {message}")):
        parse_config(config)
    parse_config(changed({"freeze": automatic(**options), "schedule": {"type": "static"}}))


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (
            {"auto": {"by": "srn"}},
            ("freeze.blocks.auto.by: unknown automatic selection; got 'srn'. It goes by one of budget, gradient, snr. "
            "Did you mean 'snr'?"),
        ),
        (
            {"auto": {}},
            "freeze.blocks.auto.by: unknown automatic selection; got None. It goes by one of budget, gradient, snr.",
        ),
        (
            {"auto": "snr"},
            ("freeze.blocks.auto: is not a mapping; got 'snr'. It has the key by (budget, gradient, snr) and "
            "options."),
        ),
        (
            {"auto": {"by": "snr", "train_top": 0}},
            f"freeze.blocks.auto.train_top: is not above 0.0; got 0. {SHARE_OF_WEIGHTS}",
        ),
        (
            {"auto": {"by": "gradient", "train_top": 1.5}},
            f"freeze.blocks.auto.train_top: is above 1.0; got 1.5. {SHARE_OF_GRADIENTS}",
        ),
        (
            {"auto": {"by": "snr", "speedup": 2}},
            ("freeze.blocks.auto.speedup: unknown key; got 2. Known keys: by, train_top. It is an option of "
            "budget."),
        ),
        (
            {"auto": {"by": "budget", "speedup": 2, "memory": "8 GB"}},
            f"freeze.blocks.auto: needs one target; got memory, speedup. {TARGETS}",
        ),
        ({"auto": {"by": "budget"}}, f"freeze.blocks.auto: needs one target; got none. {TARGETS}"),
        (
            {"auto": {"by": "budget", "speedup": 1}},
            ("freeze.blocks.auto.speedup: is not above 1.0; got 1. How many times as fast as full fine-tuning the "
            "whole run is at least, above 1."),
        ),
        (
            {"auto": {"by": "snr"}, "first": 2},
            ("freeze.blocks: has 2 selectors; got auto, first. auto chooses by itself. Keep one of them."),
        ),
        (
            {"atuo": {"by": "snr"}},
            ("freeze.blocks.atuo: unknown key; got {'by': 'snr'}. Known keys: auto, first, fraction, indices, last. "
            "Did you mean 'auto'?"),
        ),
        (
            {"encoder": {"auto": {"by": "snr"}}},
            ("freeze.blocks.encoder.auto: cannot be chosen automatically here; got {'by': 'snr'}. It chooses from all "
            "blocks, for freeze.blocks as a whole. Write freeze.blocks: {auto: {by: ...}}."),
        ),
    ],
)  # fmt: skip
def test_anything_else_is_refused(blocks: object, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        parse_section(FreezeConfig, {"blocks": blocks}, key="freeze")


def test_a_phase_says_which_blocks_are_frozen() -> None:
    message = (
        "schedule.phases.0.freeze.blocks: cannot be chosen in a phase; got {'auto': {'by': 'snr', 'train_top': 0.5}}. "
        "Write which blocks are frozen."
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        parse_section(ScheduleConfig, {"type": "phases", "phases": [{"freeze": automatic(by="snr")}]}, key="schedule")


def test_adapters_are_not_put_on_chosen_blocks() -> None:
    adapter = {"peft_type": "LORA", "blocks": {"auto": {"by": "snr"}}}
    message = (
        "adapters.0.blocks.auto: cannot be chosen automatically here; got {'by': 'snr'}. It chooses from all blocks, "
        "for freeze.blocks as a whole. Write freeze.blocks: {auto: {by: ...}}."
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        parse_config(changed({"adapters": [adapter]}))


def test_editors_know_the_options() -> None:
    blocks = json_schema()["$defs"]["FreezeConfig"]["properties"]["blocks"]["oneOf"]
    [auto] = [entry["properties"]["auto"]["oneOf"] for entry in blocks if "auto" in entry.get("properties", {})]
    options = {entry["properties"]["by"]["const"]: set(entry["properties"]) - {"by"} for entry in auto}
    assert options == {
        "budget": {"memory", "seconds", "speedup"},
        "gradient": {"train_top"},
        "snr": {"train_top"},
    }
