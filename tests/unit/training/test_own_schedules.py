"""What a schedule of the user does wrong is said in words, wherever it does it, and the last checkpoint is kept."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hf_freeze.config import ScheduleConfig
from hf_freeze.errors import ConfigError, FreezeError, PlanError
from hf_freeze.schedules import RunLength
from hf_freeze.schedules.guarded import Guarded
from hf_freeze.training.manifest import is_complete
from tests.unit.schedules.courses import course_of
from tests.unit.training.scheduled import trainer_of

FAILING = "tests.unit.schedules.failing"
ROLES = "embeddings, blocks[0], blocks[1], blocks[2], blocks[3], head"
NO = "Correct it there."
BEFORE_TRAINING = {
    "TakesNothing": (
        "failed in __init__; got TypeError: TakesNothing.__init__() takes 1 positional argument but 3 were given. "
        "Correct it there."
    ),
    "FailsInit": f"failed in __init__; got KeyError: 'blocks[12]'. {NO}",
    "FailsBegin": f"failed in begin; got RuntimeError: no. {NO}",
    "FailsStart": f"failed in start; got ZeroDivisionError: no. {NO}",
    "StartsInWords": "returns no set of roles from start; got 'head'. Return a set of their names.",
    "FailsNeeds": f"failed in needs; got ZeroDivisionError: no. {NO}",
    "NeedsInWords": "returns no set of statistics from needs; got 'gradients'. Return a set of their names.",
    "NeedsSpeed": (
        "needs a statistic that is not gathered; got 'gradient'. There are drift, gradients, probe. Return some of "
        "these from needs. Did you mean 'gradients'?"
    ),
}
AT_A_STEP = {
    "DecidesNothing": (1, f"failed in decide before step 1; got NotImplementedError: %s has no method decide. {NO}"),
    "ChoosesInWords": (6, "returns no set of roles from decide; got 'blocks[0]'. Return a set of their names."),
    "FailsFactors": (1, f"failed in lr_factors before step 1; got ValueError: no. {NO}"),
    "FailsDue": (1, f"failed in is_due before step 1; got ValueError: no. {NO}"),
    "WarmsUpInWords": (1, "has a warmup that is no number of steps; got '50'. Return an int from 0 up."),
    "WarmsUpBackwards": (1, "has a warmup that is no number of steps; got -5. Return an int from 0 up."),
    "FailsState": (3, f"failed in state_dict; got OSError: no. {NO}"),
    "HasNoState": (3, "returns no state from state_dict; got None. Return plain data or tensors by name."),
}


def refusal(folder: Path, name: str, error: type[FreezeError] = PlanError) -> str:
    """What a run says whose schedule is one of those that fail; it saves every two steps."""
    with pytest.raises(error) as caught:
        trainer_of(folder, {"type": f"{FAILING}:{name}"}, save_strategy="steps", save_steps=2, max_steps=8).train()
    return str(caught.value)


@pytest.mark.parametrize("name", BEFORE_TRAINING)
def test_what_fails_before_training_is_said_with_its_place(tmp_path: Path, name: str) -> None:
    assert refusal(tmp_path, name) == f"schedule: {FAILING}:{name} {BEFORE_TRAINING[name]}"


@pytest.mark.parametrize("name", AT_A_STEP)
def test_what_fails_while_training_is_said_with_its_place_and_what_is_kept(tmp_path: Path, name: str) -> None:
    step, told = AT_A_STEP[name]
    told = told.replace("%s", name)
    kept = f"The checkpoint {tmp_path / 'checkpoint-4'} is complete." if step > 4 else "There is no checkpoint yet."
    assert refusal(tmp_path, name) == f"schedule: {FAILING}:{name} {told} {kept}"
    assert is_complete(tmp_path / "checkpoint-4") == (step > 4)


def test_a_start_that_does_not_exist_names_what_does(tmp_path: Path) -> None:
    assert refusal(tmp_path, "StartsNowhere") == (
        f"schedule: the model has no such role; got 'blocks[77]'. Its roles are {ROLES}. Return roles from among "
        "course.roles. Did you mean 'blocks[3]'?"
    )


def test_a_state_that_is_not_taken_back_is_said(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 8}
    trainer_of(tmp_path, {"type": f"{FAILING}:FailsLoading"}, **options).train()
    resumed = trainer_of(tmp_path, {"type": f"{FAILING}:FailsLoading"}, **options)
    message = f"schedule: {FAILING}:FailsLoading failed in load_state_dict; got KeyError: 'x'. {NO}"
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_options_that_are_no_options(tmp_path: Path) -> None:
    assert refusal(tmp_path, "HasOtherOptions", ConfigError) == (
        "schedule.type: the Options of HasOtherOptions are no options of a schedule; got <class 'dict'>. Derive them "
        "from hf_freeze.schedules.ScheduleOptions."
    )


@pytest.mark.parametrize(
    ("source", "error"),
    [("class A(", "SyntaxError: "), ("x = undefined", "NameError: name 'undefined' is not defined")],
)
def test_a_module_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, error: str) -> None:
    name = f"unreadable_{error.partition(':')[0].lower()}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    message = f"schedule.type: this module cannot be imported; got '{name}:A'. Python says: {error}"
    with pytest.raises(ConfigError, match=rf"^{re.escape(message)}.*\. Correct the module\.$"):
        trainer_of(tmp_path, {"type": f"{name}:A"})


def test_a_schedule_that_fails_while_it_is_outlined_is_said_with_its_step() -> None:
    schedule = Guarded(ScheduleConfig(type=f"{FAILING}:FailsDecide"), course_of())
    message = f"schedule: {FAILING}:FailsDecide failed in decide before step 6; got ValueError: no. {NO}"
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        schedule.outline(RunLength(num_steps=12, steps_per_epoch=4, evaluates=True))
