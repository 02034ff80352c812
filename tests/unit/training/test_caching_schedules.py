"""The activation cache follows a schedule: deepened, opened or set aside, and never a wrong value."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_freeze.activation_cache.replay import Replay
from tests.unit.training.cached import Result, assert_agree, trained, trainer_of
from tests.unit.training.runs import assert_same, logged, state

OPTIONS = {"max_steps": 28}
PHASES = [
    {"until": {"step": 7}, "freeze": {"blocks": {"first": 3}}},
    {"until": {"step": 14}, "freeze": {"blocks": "none"}},
    {"until": {"step": 21}, "freeze": {"blocks": {"first": 1}}},
    {"freeze": {"blocks": {"first": 3}}},
]
SCHEDULES: dict[str, dict[str, Any]] = {
    "progressive": {"type": "progressive"},
    "gradual_unfreeze": {"type": "gradual_unfreeze", "warmup": 3},
    "rotating": {"type": "rotating", "every": 5},
    "autofreeze": {"type": "autofreeze", "intervals": 14, "blocks_per_decision": 1, "percentile": 80},
    "plasticity": {"type": "plasticity", "every": 2, "threshold": 0.9},
    "phases": {"type": "phases", "phases": PHASES, "warmup": 0},
}


def section(folder: Path, **changes: Any) -> dict[str, Any]:
    return {"enabled": True, "dir": str(folder / "cache"), **changes}


def run(folder: Path, name: str, cache: dict[str, Any], **options: Any) -> Result:
    return trained(folder, cache, schedule=SCHEDULES[name], freeze=None, options={**OPTIONS, **options})


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("build", ["eager", pytest.param("lazy", marks=pytest.mark.slow)])
def test_caching_changes_nothing(tmp_path: Path, name: str, build: str) -> None:
    plain = run(tmp_path / "plain", name, {"enabled": False})
    cold = run(tmp_path / "cold", name, section(tmp_path, build=build))
    moves = [[(each.step, each.froze, each.thawed) for each in result.trainer.timeline] for result in (cold, plain)]
    assert moves[0] == moves[1]
    assert len(plain.trainer.timeline) >= 2
    assert cold.cache.stats.hits > 0
    assert_agree(cold, plain, atol=5e-5)


def test_workers_add_keys_before_the_first_block_is_frozen(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", "progressive", {"enabled": False})
    cached = run(tmp_path / "cached", "progressive", section(tmp_path), dataloader_num_workers=1)
    assert cached.cache.stats.hits > 0
    assert_agree(cached, plain, atol=5e-5)


def test_a_deeper_prefix_is_computed_from_the_shallower_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[tuple[int, int]] = []
    prefix = Replay.prefix

    def noting(replay: Replay, inputs: Any, *, start: int = 0, **options: Any) -> torch.Tensor:
        starts.append((start, replay.depth))
        return prefix(replay, inputs, start=start, **options)

    monkeypatch.setattr(Replay, "prefix", noting)
    result = run(tmp_path, "progressive", section(tmp_path))
    assert result.trainer.plan.depth == 2
    assert (1, 2) in starts


def test_the_best_model_of_another_depth_is_evaluated_from_its_own_prefix(tmp_path: Path) -> None:
    best = {"save_strategy": "steps", "save_steps": 7, "eval_steps": 7, "load_best_model_at_end": True}
    best |= {"metric_for_best_model": "earliness", "greater_is_better": True}  # the first evaluation stays the best
    evaluations = itertools.count()
    # The blocks that freeze at step 14 are not those of step 7, and come back as they were then.
    first = {"until": {"step": 14}, "freeze": {"blocks": {"first": 1}}}
    phases = {"type": "phases", "phases": [first, PHASES[3]], "warmup": 0}
    result = trained(
        tmp_path,
        section(tmp_path),
        schedule=phases,
        freeze=None,
        options={**OPTIONS, **best, "learning_rate": 0.1},
        compute_metrics=lambda prediction: {"earliness": -next(evaluations)},
    )
    cached = result.trainer
    assert cached.state.best_global_step == 7
    assert (cached.timeline[0].step, cached.timeline[0].depth, cached.plan.depth) == (14, 3, 3)
    hits = cached.activation_cache.stats.hits
    first_loss, *later = result.evaluations
    assert abs(later[-1] - first_loss) > 0.01
    assert cached.evaluate()["eval_loss"] == pytest.approx(first_loss, abs=1e-5)
    assert cached.activation_cache.is_on
    assert cached.activation_cache.stats.hits + cached.activation_cache.stats.misses > hits


def test_nothing_is_served_while_no_block_is_frozen_and_the_cache_comes_back(tmp_path: Path) -> None:
    result = run(tmp_path, "phases", section(tmp_path))
    assert [transition.depth for transition in result.trainer.timeline] == [0, 1, 3]
    assert result.cache.is_on
    other = trained(
        tmp_path / "other", section(tmp_path), schedule={"type": "phases", "phases": [*PHASES[:1], {"freeze": {}}]},
        freeze=None, options=OPTIONS,
    )  # fmt: skip
    assert not other.cache.is_on
    assert other.cache.reason is not None
    assert other.cache.reason.startswith("no block is frozen from the input on")


def test_resumed_equals_uninterrupted_with_the_cache(tmp_path: Path) -> None:
    saves = {"save_strategy": "steps", "save_steps": 5}
    whole = run(tmp_path / "whole", "progressive", section(tmp_path), **saves)
    for step in (5, 15, 25):
        resumed = trainer_of(
            tmp_path / "resumed",
            section(tmp_path),
            schedule=SCHEDULES["progressive"],
            freeze=None,
            options={**OPTIONS, **saves},
        )
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "run" / f"checkpoint-{step}"))
        assert logged(resumed, "loss") == whole.losses
        assert_same(state(resumed.model), state(whole.trainer.model))
        assert resumed.timeline == whole.trainer.timeline
