"""A checkpoint or a record whose JSON was changed is refused in words, with the place that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_freeze.errors import PlanError
from hf_freeze.plan import freeze_model, plan_of
from hf_freeze.training.checkpoint import STATE_FILE, read_schedule, read_trained, write_plan
from tests.tiny import tiny_bert

SCHEDULE = {"type": "static", "options": {}, "metrics": {"eval_loss": float("nan")}}


def written(folder: Path) -> Path:
    plan = plan_of(freeze_model(tiny_bert(), {"blocks": {"first": 2}}))
    write_plan(plan, folder, {}, trained=plan.trainable_names, schedule=SCHEDULE)
    return folder / STATE_FILE


def test_what_was_written_is_read_as_it_was(tmp_path: Path) -> None:
    written(tmp_path)
    assert repr(read_schedule(tmp_path)) == repr(SCHEDULE)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ("", "no JSON"),
        ("[1]", "no mapping"),
        ({"format_version": None}, "'format_version' missing or of another kind"),
        ({"plan": {}}, "'plan.digest' missing or of another kind"),
        (
            {"plan": {"digest": "", "keep_dropout": False, "roles": {"head": {"treatment": "full"}}}},
            "'plan.roles.head.trains' missing or of another kind",
        ),
        ({"trained": None}, "'trained' missing or of another kind"),
        ({"base_digests": {"a": 3}}, "'base_digests.a' missing or of another kind"),
        ({"schedule": {"type": "static"}}, "'schedule.options' missing or of another kind"),
    ],
)
def test_a_checkpoint_that_was_changed_is_refused(tmp_path: Path, changes: str | dict[str, Any], what: str) -> None:
    file = written(tmp_path)
    changed = changes if isinstance(changes, str) else json.dumps({**json.loads(file.read_text()), **changes})
    file.write_text(changed)
    with pytest.raises(PlanError) as caught:
        read_trained(tmp_path)
    assert str(caught.value) == (
        f"{file}: this file does not say under which plan the checkpoint was written; got {what}. Resume from another "
        "checkpoint, or download this one again."
    )
