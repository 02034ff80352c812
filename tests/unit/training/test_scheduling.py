"""A schedule moves what is frozen while training: flags, modes, optimizer state, learning rates, records and checks."""

from __future__ import annotations

import gc
import json
import math
import random
import re
import weakref
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import TrainerCallback

from hf_freeze.errors import ConfigError, PlanError
from hf_freeze.plan.audit import check_gradients
from hf_freeze.schedules import Choice, Moment, Schedule
from hf_freeze.schedules.timeline import read_timeline
from hf_freeze.training import FreezeTrainer
from hf_freeze.training.manifest import is_complete
from tests.tiny import tiny_bert, tiny_gpt2, tiny_t5
from tests.unit.training.runs import arguments, assert_same, logged, rows, values
from tests.unit.training.scheduled import SCHEDULES, trainer_of

LORA = {"peft_type": "LORA", "target_modules": ["query", "value"], "r": 4}
HERE = "tests.unit.training.test_scheduling"


class Watch(TrainerCallback):
    """Notes, at every step, what moved, what is frozen and what the optimizer knows."""

    def __init__(self, trainer: FreezeTrainer) -> None:
        self.trainer = weakref.proxy(trainer)
        self.moved: list[set[str]] = []
        self.frozen: list[set[str]] = []
        self.known: list[int] = []
        self.gradients: list[int] = []
        self.modes: list[list[bool]] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.before = values(self.trainer.model)

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        check_gradients(self.trainer.model, self.trainer.plan)
        self.gradients.append(sum(p.grad.nbytes for p in self.trainer.model.parameters() if p.grad is not None))
        self.modes.append([block.training for block in self.trainer.model.bert.encoder.layer])

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        after = values(self.trainer.model)
        self.moved.append({name for name in after if not torch.equal(after[name], self.before[name])})
        self.frozen.append(set(self.trainer.plan.frozen_names))
        state = self.trainer.optimizer.state
        self.known.append(sum(t.numel() for entry in state.values() for t in entry.values() if t.ndim > 0))


@pytest.mark.parametrize("name", SCHEDULES)
def test_at_every_step_what_is_frozen_stays_and_what_trains_moves(tmp_path: Path, name: str) -> None:
    trainer = trainer_of(tmp_path, SCHEDULES[name], lr_scheduler_type="constant")
    watch = Watch(trainer)
    trainer.add_callback(watch)
    trainer.train()
    everything = {decision.name for decision in trainer.plan.decisions}
    assert len(trainer.timeline) >= 2
    for moved, frozen in zip(watch.moved, watch.frozen, strict=True):
        assert moved == everything - frozen
    steps = [transition.step for transition in trainer.timeline]
    assert [step for step in range(1, 24) if watch.frozen[step] != watch.frozen[step - 1]] == steps


def test_frozen_blocks_are_in_eval_mode_and_thawed_ones_are_not(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, SCHEDULES["gradual_unfreeze"])
    watch = Watch(trainer)
    trainer.add_callback(watch)
    trainer.train()
    assert watch.modes[5] == [False, False, False, False]
    assert watch.modes[6] == [False, False, False, True]
    assert watch.modes[-1] == [False, True, True, True]


@pytest.mark.parametrize("name", ["linear", "rotating"])
def test_freezing_frees_optimizer_state_and_gradients(tmp_path: Path, name: str) -> None:
    trainer = trainer_of(tmp_path, SCHEDULES[name])
    watch = Watch(trainer)
    trainer.add_callback(watch)
    trainer.train()
    sizes = {decision.name: decision.parameter.numel for decision in trainer.plan.decisions}
    trained = [sum(n for name, n in sizes.items() if name not in frozen) for frozen in watch.frozen]
    # AdamW keeps two numbers for every one that trains, and a gradient has four bytes for each.
    assert watch.known == [2 * count for count in trained]
    assert watch.gradients == [4 * count for count in trained]
    assert len(set(map(frozenset, watch.frozen))) > 1


def test_state_is_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, SCHEDULES["rotating, state kept"])
    watch = Watch(trainer)
    trainer.add_callback(watch)
    trainer.train()
    assert watch.known == sorted(watch.known)
    assert watch.known[-1] > watch.known[0]


@pytest.mark.parametrize(("reset_state", "expected"), [(True, [1, 2, 1, 2, 1, 2]), (False, [1, 2, 3, 4, 5, 6])])
def test_a_block_that_is_drawn_again_starts_with_fresh_optimizer_state_where_it_is_reset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reset_state: bool, expected: list[int]
) -> None:
    monkeypatch.setattr("hf_freeze.schedules.rotating.drawn", lambda blocks, *_, **__: frozenset(blocks[:1]))
    steps: list[int] = []

    class Count(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            weight = kwargs["model"].bert.encoder.layer[0].output.dense.weight
            steps.append(int(kwargs["optimizer"].state[weight]["step"]))

    options = {"type": "rotating", "every": 2, "reset_state": reset_state}
    trainer = trainer_of(tmp_path, options, max_steps=6)
    trainer.add_callback(Count())
    trainer.train()
    assert steps == expected


def test_freed_state_is_gone_from_memory(tmp_path: Path) -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    class Hold(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            block = kwargs["model"].bert.encoder.layer[0].output.dense.weight
            if state.global_step == 2:
                held.append(weakref.ref(kwargs["optimizer"].state[block]["exp_avg"]))

    trainer = trainer_of(tmp_path, SCHEDULES["linear"])
    trainer.add_callback(Hold())
    trainer.train()
    gc.collect()
    assert held[0]() is None


class TestLearningRates:
    def rates(self, folder: Path, schedule: Mapping[str, Any]) -> list[dict[str, float]]:
        trainer = trainer_of(folder, schedule, lr_scheduler_type="constant")
        told: list[dict[str, float]] = []

        class Read(TrainerCallback):
            def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                told.append({group["name"]: group["lr"] for group in kwargs["optimizer"].param_groups})

        trainer.callback_handler.callbacks.insert(0, Read())
        trainer.train()
        assert {group["lr"] for group in trainer.optimizer.param_groups} == {1e-3}
        self.trainer = trainer
        return told

    def test_what_was_thawed_warms_up(self, tmp_path: Path) -> None:
        told = self.rates(tmp_path, SCHEDULES["gradual_unfreeze"])
        expected = [0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3]
        assert [step["blocks[3]"] for step in told[6:11]] == pytest.approx(expected)
        assert {step["head"] for step in told} == {1e-3}

    def test_only_scaled_rates_are_logged_beside_that_of_the_run(self, tmp_path: Path) -> None:
        self.rates(tmp_path, SCHEDULES["gradual_unfreeze"])
        assert set(logged(self.trainer, "learning_rate")) == {1e-3}
        assert logged(self.trainer, "learning_rate/blocks[3]") == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3])
        assert logged(self.trainer, "learning_rate/head") == []

    def test_the_cubic_curve_anneals_what_will_freeze(self, tmp_path: Path) -> None:
        told = [step["blocks[2]"] for step in self.rates(tmp_path, SCHEDULES["cubic"])]
        assert told[0] == 1e-3
        assert told[:11] == sorted(told[:11], reverse=True)
        assert told[10] < 0.1e-3


class TestRecords:
    def test_the_file_lists_what_the_trainer_lists(self, tmp_path: Path) -> None:
        trainer = trainer_of(tmp_path, SCHEDULES["linear"])
        trainer.train()
        assert read_timeline(tmp_path) == trainer.timeline
        first = trainer.timeline[0]
        assert (first.step, first.froze, first.thawed, first.depth) == (10, ("embeddings", "blocks[0]"), (), 1)
        assert first.numbers == {"depth": 1.0, "progress": pytest.approx(10 / 24)}
        assert first.line == "step 10: froze embeddings, blocks[0]; depth 1; the linear curve is at depth 1"

    def test_trackers_hear_of_every_transition(self, tmp_path: Path) -> None:
        trainer = trainer_of(tmp_path, SCHEDULES["linear"])
        trainer.train()
        told = [entry for entry in trainer.state.log_history if "freeze/depth" in entry]
        assert [entry["step"] for entry in told] == [transition.step for transition in trainer.timeline]
        assert [entry["freeze/depth"] for entry in told] == [1, 2]
        trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        assert told[-1]["freeze/trainable_parameters"] == trained

    def test_a_line_is_printed_for_each(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        trainer = trainer_of(tmp_path, SCHEDULES["linear"], disable_tqdm=False)
        trainer.train()
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
        assert lines == [transition.line for transition in trainer.timeline]

    def test_numbers_that_are_not_finite_are_null_in_the_file(self, tmp_path: Path) -> None:
        trainer = trainer_of(tmp_path, {"type": f"{HERE}:Divides"}, max_steps=4)
        trainer.train()
        (line,) = (tmp_path / "timeline.jsonl").read_text().splitlines()
        assert json.loads(line, parse_constant=pytest.fail)["numbers"] == {"a": None, "b": None, "c": 1.0}
        assert math.isnan(read_timeline(tmp_path)[0].numbers["a"])

    def test_a_new_run_starts_a_new_file(self, tmp_path: Path) -> None:
        for _ in range(2):
            trainer = trainer_of(tmp_path, SCHEDULES["rotating"])
            trainer.train()
        assert read_timeline(tmp_path) == trainer.timeline


class RandomStates(Schedule):
    """Draws a freeze state at every step."""

    def decide(self, moment: Moment) -> Choice | None:
        draw = random.Random(moment.step)
        roles = self.course.roles[:-1]
        return Choice(frozenset(draw.sample(roles, draw.randint(0, len(roles)))), "a draw")


def test_200_random_transitions(tmp_path: Path) -> None:
    trainer = trainer_of(
        tmp_path, {"type": f"{HERE}:RandomStates"}, max_steps=220, eval_strategy="no", per_device_train_batch_size=2
    )
    watch, process = Watch(trainer), psutil.Process()
    memory: list[int] = []

    class Measure(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in (60, 220):
                gc.collect()
                memory.append(process.memory_info().rss)
            groups = kwargs["optimizer"].param_groups
            counts.append(Counter(id(p) for group in groups for p in group["params"]))

    counts: list[Counter[int]] = []
    trainer.add_callback(watch)
    trainer.add_callback(Measure())
    trainer.train()
    assert len(trainer.timeline) >= 200
    everything = {decision.name for decision in trainer.plan.decisions}
    assert all(moved == everything - frozen for moved, frozen in zip(watch.moved, watch.frozen, strict=True))
    once = Counter(id(parameter) for parameter in trainer.model.parameters())
    assert all(count == once for count in counts)
    assert memory[1] - memory[0] < 30e6


@pytest.mark.parametrize(
    ("build", "labels", "keywords"),
    [
        (tiny_bert, "classes", {"adapters": [LORA]}),
        (tiny_bert, "classes", {"freeze": {"blocks": {"first": 2}}, "adapters": [{**LORA, "blocks": {"last": 1}}]}),
        (tiny_gpt2, "words", {"freeze": {"blocks": "all"}}),
        (tiny_t5, "words", {"freeze": {"blocks": {"encoder": "all"}}}),
    ],
    ids=["lora", "mixed", "tied", "two stacks"],
)
def test_blocks_of_any_kind_thaw(tmp_path: Path, build: Any, labels: str, keywords: dict[str, Any]) -> None:
    trainer = FreezeTrainer(
        build(),
        arguments(tmp_path, max_steps=15, lr_scheduler_type="constant"),
        train_dataset=rows(12, labels=labels),
        schedule={"type": "gradual_unfreeze", "warmup": 0},
        **keywords,
    )
    before = values(trainer.model)
    start = set(trainer.plan.trainable_names)
    trainer.train()
    after = values(trainer.model)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert [len(transition.thawed) for transition in trainer.timeline] == [1] * len(trainer.timeline)
    assert trainer.timeline
    assert moved == set(trainer.union_plan.trainable_names) > start


def test_the_best_model_is_loaded_though_its_blocks_are_frozen_by_then(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 4, "load_best_model_at_end": True, "learning_rate": 5e-2}
    trainer = trainer_of(tmp_path, SCHEDULES["linear"], metric_for_best_model="eval_loss", **options)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, abs=1e-6)


def test_training_twice_starts_the_schedule_anew(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, SCHEDULES["linear"])
    trainer.train()
    first = trainer.timeline
    trainer.train()
    assert trainer.timeline == first


def test_static_is_no_schedule(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, {"type": "static"})
    trainer.train()
    assert trainer.timeline == []
    assert len(trainer.optimizer.param_groups) == 2
    assert read_timeline(tmp_path) == []


class Raises(Schedule):
    """Fails at the sixth step."""

    def decide(self, moment: Moment) -> Choice | None:
        if moment.step == 5:
            raise ZeroDivisionError("division by zero")
        return None


class Mutters(Schedule):
    """Gives a number that is none."""

    def decide(self, moment: Moment) -> Choice | None:
        numbers: Any = {"a": "text"}
        return Choice(frozenset({"embeddings"}), "so", numbers) if moment.step == 5 else None


class Divides(Schedule):
    """Gives numbers that are not finite."""

    def decide(self, moment: Moment) -> Choice | None:
        return Choice(frozenset({"embeddings"}), "so", {"a": math.nan, "b": math.inf, "c": 1.0})


class Collects(Schedule):
    """Goes on changing the set that it returned."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.kept: Any = set()

    def decide(self, moment: Moment) -> Choice | None:
        self.kept.update({4: ["embeddings"], 8: ["blocks[0]"]}.get(moment.step, []))
        return Choice(self.kept, "more")


def test_a_schedule_may_change_the_set_that_it_returned(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, {"type": f"{HERE}:Collects"})
    trainer.train()
    assert [(each.step, each.froze) for each in trainer.timeline] == [(4, ("embeddings",)), (8, ("blocks[0]",))]
    assert set(trainer.plan.start.frozen) == {"embeddings", "blocks[0]"}


class Invents(Schedule):
    """Freezes a block that is not there."""

    def decide(self, moment: Moment) -> Choice | None:
        return Choice(frozenset({"blocks[9]"}), "why not") if moment.step == 5 else None


class FreezesAll(Schedule):
    """Leaves nothing to train."""

    def decide(self, moment: Moment) -> Choice | None:
        return Choice(frozenset(self.course.roles), "rest") if moment.step == 5 else None


class Oversteps(Schedule):
    """Thaws what it said would never train."""

    @property
    def start(self) -> frozenset[str]:
        return frozenset({"embeddings"})

    @property
    def may_train(self) -> frozenset[str]:
        return frozenset(self.course.roles) - self.start

    def decide(self, moment: Moment) -> Choice | None:
        return Choice(frozenset(), "all") if moment.step == 5 else None


class Mumbles(Schedule):
    """Returns something else than a choice."""

    def decide(self, moment: Moment) -> Any:
        return {"blocks[0]"} if moment.step == 5 else None


class Negative(Schedule):
    """Returns a learning rate that goes up the hill."""

    def decide(self, moment: Moment) -> Choice | None:
        return None

    def lr_factors(self, moment: Moment) -> Mapping[str, float]:
        return {"head": -1.0} if moment.step == 5 else {}


class Hoards(Schedule):
    """Keeps a state that is no plain data."""

    def decide(self, moment: Moment) -> Choice | None:
        return None

    def state_dict(self) -> dict[str, Any]:
        return {"roles": {"head"}}


ROLES = "embeddings, blocks[0], blocks[1], blocks[2], blocks[3], head"


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            "Raises",
            (
                f"schedule: {HERE}:Raises failed in decide before step 6; got ZeroDivisionError: division by zero. "
                "Correct it there. The checkpoint %s is complete."
            ),
        ),
        (
            "Mutters",
            (
                f"schedule: {HERE}:Mutters failed in decide before step 6; got ValueError: could not convert string "
                "to float: 'text'. Correct it there. The checkpoint %s is complete."
            ),
        ),
        (
            "Invents",
            (
                f"schedule: the model has no such role; got 'blocks[9]'. Its roles are {ROLES}. Return roles from "
                "among course.roles. Did you mean 'blocks[3]'? The checkpoint %s is complete."
            ),
        ),
        (
            "FreezesAll",
            (
                "schedule: nothing would be left to train; got a freeze state in which all 6 roles are frozen. Leave a "
                "block or the head out of it."
            ),
        ),
        (
            "Oversteps",
            (
                f"schedule: {HERE}:Oversteps thaws a role that it may not train; got 'embeddings'. The optimizer holds "
                "blocks[0], blocks[1], blocks[2], blocks[3], head. Return the role from may_train. The checkpoint %s "
                "is complete."
            ),
        ),
        (
            "Mumbles",
            (
                f"schedule: {HERE}:Mumbles decided for something that is no Choice; got {{'blocks[0]'}}. decide "
                "returns a Choice or None. The checkpoint %s is complete."
            ),
        ),
        (
            "Negative",
            (
                f"schedule: {HERE}:Negative returns a factor on the learning rate of head below 0 or not finite; got "
                "-1.0. The checkpoint %s is complete."
            ),
        ),
    ],
)
def test_a_schedule_of_the_user_that_fails_says_so_and_the_last_checkpoint_is_kept(
    tmp_path: Path, schedule: str, message: str
) -> None:
    trainer = trainer_of(tmp_path, {"type": f"{HERE}:{schedule}"}, save_strategy="steps", save_steps=2)
    kept = tmp_path / "checkpoint-4"
    expected = message % kept if "%s" in message else message
    with pytest.raises(PlanError, match=f"^{re.escape(expected)}$"):
        trainer.train()
    assert is_complete(kept)


def test_a_state_that_a_checkpoint_cannot_hold_is_said(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, {"type": f"{HERE}:Hoards"}, save_strategy="steps", save_steps=2)
    message = (
        f"schedule: {HERE}:Hoards keeps a state that a checkpoint cannot hold; got {{'roles': {{'head'}}}}. JSON holds "
        "text, numbers, booleans, null, lists and mappings. Return these from state_dict. There is no checkpoint yet."
    )
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        trainer.train()


class TestRefusals:
    def test_sections_are_read_before_the_model_is_touched(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"^schedule\.type: unknown schedule; got 'gradual'\."):
            trainer_of(tmp_path, {"type": "gradual"})

    def test_an_optimizer_of_the_user(self, tmp_path: Path) -> None:
        message = (
            "schedule: an optimizer that is passed in has its own learning rates; got optimizers= beside schedule=. "
            "Leave one of them out."
        )
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
        with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
            trainer_of(tmp_path, SCHEDULES["linear"], keywords={"optimizers": (optimizer, None)})

    def test_too_few_steps_are_said_before_the_first(self, tmp_path: Path) -> None:
        message = (
            "schedule.every: the run ends before blocks are drawn a second time; got 20. Training takes 3 steps. Draw "
            "more often, or train longer."
        )
        trainer = trainer_of(tmp_path, {"type": "rotating"}, max_steps=3)
        with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
            trainer.train()
        assert trainer.state.global_step == 0

    def test_a_metric_that_is_never_logged_is_said_after_the_first_evaluation(self, tmp_path: Path) -> None:
        trainer = trainer_of(tmp_path, {"type": "plateau", "metric": "eval_f1"}, save_strategy="steps", save_steps=4)
        with pytest.raises(PlanError, match=r"^schedule\.metric: this metric was not logged .* got 'eval_f1'"):
            trainer.train()
        assert trainer.state.global_step == 4
        assert is_complete(tmp_path / "checkpoint-4")

    def test_too_few_evaluations_are_said_before_the_first(self, tmp_path: Path) -> None:
        message = (
            "schedule.patience: plateau would thaw nothing in this run; got 1. 0 evaluations come before the last of "
            "24 steps, the first of which is only compared with. Evaluate more often, wait for fewer evaluations, or "
            "train longer."
        )
        trainer = trainer_of(tmp_path, {"type": "plateau"}, eval_steps=1000)
        with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
            trainer.train()
        assert trainer.state.global_step == 0

    def test_epochs_of_a_stream_are_not_counted(self, tmp_path: Path) -> None:
        message = (
            "schedule: gradual_unfreeze counts epochs, and how long one is is not known; got training rows without a "
            "length. Take rows that have one, or schedule.type phases with steps or shares of the run."
        )
        keywords = {"train_dataset": rows(400).to_iterable_dataset()}
        trainer = trainer_of(tmp_path, SCHEDULES["gradual_unfreeze"], keywords=keywords)
        with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
            trainer.train()

    def test_phases_that_name_blocks_that_do_not_exist(self, tmp_path: Path) -> None:
        message = (
            "schedule.phases.0.freeze.blocks: cannot select the first 9 blocks; bert.encoder.layer has 4. Select at "
            "most 4."
        )
        with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
            trainer_of(tmp_path, {"type": "phases", "phases": [{"freeze": {"blocks": {"first": 9}}}]})


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_code_follows_what_thaws(tmp_path: Path) -> None:
    phases = [{"until": {"step": 3}, "freeze": {"blocks": {"first": 3}}}, {"freeze": {"blocks": {"first": 2}}}]
    schedule, options = {"type": "phases", "phases": phases}, {"max_steps": 6, "eval_strategy": "no"}
    plain = trainer_of(tmp_path / "plain", schedule, **options)
    plain.train()
    options |= {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    compiled = trainer_of(tmp_path / "compiled", schedule, **options)
    compiled.train()
    assert len(compiled.timeline) == 1
    assert_same(values(compiled.model), values(plain.model))
