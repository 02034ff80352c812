"""What a run will take in seconds, from a few real steps of it; nothing is written."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch

from hf_freeze.errors import ConfigError
from hf_freeze.plan.apply import apply_loosely, plan_of
from hf_freeze.plan.cost import PlanCost, ScheduleCost, Seconds
from hf_freeze.plan.prepare import freeze_model
from hf_freeze.plan.timing import Speedup, Timing
from hf_freeze.run.batches import batches_of
from hf_freeze.run.planning import Prepared
from hf_freeze.run.settings import Settings, lengths_of
from hf_freeze.tasks import get_task
from hf_freeze.training.arguments import training_arguments
from hf_freeze.training.stepping import Steps


def with_seconds(cost: PlanCost, made: Prepared, *, target: str) -> PlanCost:
    """Returns a cost with what a few real steps tell, speed-ups included.

    The plan, full fine-tuning and the frozen loop each take a few steps on a typical batch, one after the other, in
    this process.

    Args:
        cost: What was predicted.
        made: The plan.
        target: What it was made from, for messages.

    Raises:
        ConfigError: There are no weights or no rows.
    """
    lengths = None if made.data is None else lengths_of(made.data)
    if made.data is None or lengths is None:
        why = "it is a model, not a config" if not made.training else made.problem or "its rows have no tokens"
        raise ConfigError(
            f"--profile: steps are measured on the rows that a config names; got {target!r}. There are none: "
            f"{why.rstrip('.')}. Give a config whose data can be read, or leave --profile out."
        )
    settings = Settings(made.training)
    loaded = get_task(made.request.model.task).load_model(
        made.request.model.name_or_path,
        made.data,
        trust_remote_code=made.request.model.trust_remote_code,
        from_pretrained=made.request.model.from_pretrained_options,
    )
    batch, _ = batches_of(made, settings, lengths)
    steps = Steps(
        batch,
        training_arguments(made.training),
        device=torch.device(cost.processes.device),
        precision=cost.processes.precision,
    )
    request, path = made.request, made.request.model.blocks_path
    own = freeze_model(copy.deepcopy(loaded.model), request.freeze, request.adapters, blocks_path=path)
    plan = steps.timing(own)
    apply_loosely(own, plan_of(own))
    loop = steps.timing(own) if made.plan.frozen_names else plan
    del own
    full = steps.timing(freeze_model(loaded.model, blocks_path=path)) if made.plan.frozen_names else plan
    return _with_timings(cost, plan, full, loop, settings.run_length(lengths, num_processes=cost.processes.count))


def _with_timings(cost: PlanCost, plan: Timing, full: Timing, loop: Timing, length: Any) -> PlanCost:
    is_cached = cost.cached_over_full is not None

    def over(other: Timing, *, cached: bool) -> Speedup:
        step, run = (plan.cached_step(), plan.cached_run(length)) if cached else (plan.step, plan.run(length))
        return Speedup(other.step / step, other.run(length) / run)

    return replace(
        cost,
        over_full=over(full, cached=False),
        over_loop=over(loop, cached=False),
        cached_over_full=over(full, cached=True) if is_cached else None,
        cached_over_loop=over(loop, cached=True) if is_cached else None,
        cache=cost.cache and replace(cost.cache, build_steps=plan.build(length) / plan.step),
        seconds=Seconds(
            step=plan.step,
            cached_step=plan.cached_step() if is_cached else None,
            run=plan.run(length),
            cached_run=plan.cached_run(length) if is_cached else None,
            build=plan.build(length) if is_cached else None,
            full_step=full.step,
            loop_step=loop.step,
        ),
        schedule=None if cost.schedule is None else _with_run(cost.schedule, full.run(length)),
    )


def _with_run(schedule: ScheduleCost, full: float) -> ScheduleCost:
    """Returns the cost of a schedule with its seconds, from those of full fine-tuning."""
    slow, fast = schedule.over_full if schedule.cached_over_full is None else schedule.cached_over_full
    return replace(schedule, seconds=(full / slow, full / fast))
