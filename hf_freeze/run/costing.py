"""Config in, cost out: what a plan costs, told without reading weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from torch import nn

from hf_freeze.errors import ConfigError
from hf_freeze.plan.apply import apply_loosely, apply_plan, plan_of
from hf_freeze.plan.cost import (
    CacheCost,
    PlanCost,
    Processes,
    added_up,
    optimizer_work,
    peak_bytes,
    prefix_roles,
    role_costs,
)
from hf_freeze.plan.optimizer_state import optimizer_kind
from hf_freeze.plan.places import ROLE_EMBEDDINGS
from hf_freeze.plan.prepare import freeze_model
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.plan.table import PlanTable
from hf_freeze.plan.timing import DEFAULT_RATES, HALF_PRECISION_FACTORS, Rates, RunLength, Speedup, Timing, timing
from hf_freeze.plan.tracing import StepTrace, Work, trace_step
from hf_freeze.run.batches import Batch, batches_of, width
from hf_freeze.run.outlining import outlined, schedule_cost
from hf_freeze.run.planning import (
    Prepared,
    cache_size,
    empty_model,
    prepare,
    prepared_table,
    reason_of_cache,
    request_for,
)
from hf_freeze.run.processes import processes_of
from hf_freeze.run.profiling import with_seconds
from hf_freeze.run.settings import Lengths, Settings, lengths_of

# What a model raises under FakeTensorMode where it looks at values, and what its own code makes of that.
_UNTRACED: Final = (RuntimeError, TypeError, ValueError, AssertionError, KeyError, AttributeError, IndexError)
_HALVES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass(frozen=True)
class Traces:
    """What steps of a plan and of its rivals do, with activation checkpointing where the run has it.

    Attributes:
        step: A typical step of the plan.
        longest: Its step on the longest batch, without activation checkpointing.
        checkpointed: The same with activation checkpointing; None where the model does not support it.
        evaluation: Its forward pass on a typical batch.
        full: A typical step of full fine-tuning.
        loop: A typical step of the frozen loop.
        whole: The plan of full fine-tuning.
    """

    step: StepTrace
    longest: StepTrace
    checkpointed: StepTrace | None
    evaluation: StepTrace
    full: StepTrace
    loop: StepTrace
    whole: FreezePlan


def plan_cost(
    target: str, overrides: Iterable[str] = (), *, accelerate_config: str | None = None, rates: Rates | None = None
) -> PlanCost:
    """Returns what the plan of a config costs, or what overrides would cost of a model; no weights are read.

    Args:
        target: A config file, or a model: a folder or its name on the hub.
        overrides: Such as `freeze.blocks.first=8`.
        accelerate_config: What `accelerate launch --config_file` is given; None for accelerate's default config.
        rates: How fast the device is; None for what is usual for its type.

    Raises:
        ConfigError: Something in the config does not exist, or the accelerate config cannot be read.
        LayoutError: The blocks of the model cannot be found.
        PlanError: The freeze or adapters section does not fit the model.
    """
    return prepared_cost(prepare(target, overrides), accelerate_config=accelerate_config, rates=rates)


def priced_plan(
    target: str,
    overrides: Iterable[str] = (),
    accelerate_config: str | None = None,
    *,
    measures: bool = False,
) -> tuple[PlanTable, PlanCost]:
    """Returns a plan for a reader, and what it costs.

    Args:
        target: As for `plan_cost`.
        overrides: As for `plan_cost`.
        accelerate_config: As for `plan_cost`.
        measures: Whether a few real steps are taken, to predict seconds; that needs the weights.
    """
    made = prepare(target, overrides)
    table = prepared_table(made, num_processes=processes_of(accelerate_config).count)
    cost = prepared_cost(made, accelerate_config=accelerate_config)
    if (found := outlined(made, num_processes=cost.processes.count)) is not None:
        table = replace(table, schedule=found.table)
    return table, with_seconds(cost, made, target=target) if measures else cost


def rival_plan(
    target: str,
    rival: str,
    overrides: Iterable[str] = (),
    accelerate_config: str | None = None,
    *,
    measures: bool = False,
) -> tuple[PlanTable, PlanCost]:
    """Returns the plan of another config, and what it costs, to be seen beside the first.

    Args:
        target: The first: a config file or a model.
        rival: The other config file.
        overrides: Hold for both.
        accelerate_config: Holds for both.
        measures: As for `priced_plan`.

    Raises:
        ConfigError: There is no such file, or it is for another model or task.
    """
    if not Path(rival).is_file():
        raise ConfigError(
            f"--compare: no such file; got {rival!r}. It is the config of another plan for the same model. Name one."
        )
    overrides = tuple(overrides)
    own, other = (request_for(each, overrides)[0].model for each in (target, rival))
    for key, first, second in (("name_or_path", own.name_or_path, other.name_or_path), ("task", own.task, other.task)):
        if first != second:
            raise ConfigError(
                f"--compare: plans of one model and one task can be compared; got model.{key} {second!r} in {rival}. "
                f"In {target} it is {first!r}. Name another config, or override model.{key}."
            )
    return priced_plan(rival, overrides, accelerate_config, measures=measures)


def prepared_cost(made: Prepared, *, accelerate_config: str | None = None, rates: Rates | None = None) -> PlanCost:
    """Returns what a plan costs.

    Args:
        made: The plan; its model is used up.
        accelerate_config: As for `plan_cost`.
        rates: As for `plan_cost`.
    """
    settings = Settings(made.training)
    given = processes_of(accelerate_config)
    processes = replace(given, device=settings.device(given.device), precision=settings.precision(given.precision))
    lengths = None if made.data is None else lengths_of(made.data)
    typical, longest = batches_of(made, settings, lengths)
    plan, optimizer = made.plan, optimizer_kind(settings.optimizer, settings.optimizer_options)
    notes = [] if lengths is not None else [_assumed(made, settings, typical)]
    if not optimizer.is_known:
        notes.append(f"What {settings.optimizer} keeps is not known; its state is counted as that of AdamW.")
    step = functools.partial(_traced, processes=processes, checkpoints=settings.checkpoints)
    try:
        traces: Traces | None = _trace(made, typical, longest, step)
    except _UNTRACED as error:
        notes.append(_untraced(error))
        traces = None
    costs = role_costs(
        plan,
        optimizer=optimizer,
        processes=processes,
        step=traces.longest if traces else None,
        forward=traces.step if traces else None,
        checkpointed=traces.checkpointed if traces else None,
    )
    cost = PlanCost(
        plan.layout.model_class,
        costs,
        batch_size=settings.batch_size,
        length=width(typical),
        longest=width(longest),
        processes=processes,
        checkpoints=settings.checkpoints,
        notes=tuple(notes),
    )
    if traces is None:
        return cost
    length = settings.run_length(lengths, num_processes=processes.count) if lengths is not None else None
    cost = _with_peaks(cost, made, traces, accumulates=settings.accumulation > 1)
    rates = rates or _rates(processes)
    cost = _with_speed(cost, made, traces, settings, length, lengths, rates)
    return _with_schedule(cost, made, traces, settings, length, rates, functools.partial(step, batch=typical))


def _untraced(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
    what = "Activations, FLOPs and speed-ups are not known: the model does not run without data"
    return f"{what} ({text[:160]})."


def _rates(processes: Processes) -> Rates:
    known = processes.device if processes.device in DEFAULT_RATES else "cuda"
    factor = HALF_PRECISION_FACTORS[known] if processes.precision != "no" else 1.0
    return replace(DEFAULT_RATES[known], flops=factor * DEFAULT_RATES[known].flops)


def _assumed(made: Prepared, settings: Settings, batch: Batch) -> str:
    why = "no data is named" if made.problem is None else f"the data cannot be read: {made.problem}"
    return f"Costs are for batches of {settings.batch_size} rows of {width(batch)} tokens, as {why.rstrip('.')}."


def _traced(
    model: nn.Module, batch: Batch, *, processes: Processes, checkpoints: bool, trains: bool = True
) -> StepTrace:
    model.train(trains)
    half, on_gpu = _HALVES.get(processes.precision), processes.device != "cpu"
    return trace_step(model, batch, trains=trains, autocast=half, fuses_attention=on_gpu, checkpoints=checkpoints)


def _trace(made: Prepared, typical: Batch, longest: Batch, step: Callable[..., StepTrace]) -> Traces:
    model, plan = made.model, made.plan
    common = step(model, typical)
    at_longest = step(model, longest, checkpoints=False)
    evaluation = step(model, typical, trains=False)
    loop = common
    if plan.frozen_names:
        apply_loosely(model, plan)
        loop = step(model, typical)
        apply_plan(model, plan)
    full, whole = common, plan
    if plan.frozen_names:
        rival = freeze_model(
            empty_model(made.request.model, num_labels=made.num_labels or 2),
            blocks_path=made.request.model.blocks_path,
        )
        full, whole = step(rival, typical), plan_of(rival)
    checkpointed = None
    if made.base.supports_gradient_checkpointing:
        checkpointed = step(model, longest, checkpoints=True)
    return Traces(common, at_longest, checkpointed, evaluation, full, loop, whole)


def _with_peaks(cost: PlanCost, made: Prepared, traces: Traces, *, accumulates: bool) -> PlanCost:
    used = traces.checkpointed if cost.checkpoints and traces.checkpointed is not None else traces.longest
    is_cached = reason_of_cache(made, made.plan, num_processes=cost.processes.count) is None

    def peak(step: StepTrace, cached: Iterable[str] = ()) -> int:
        return peak_bytes(cost.roles, step, processes=cost.processes, accumulates=accumulates, cached=cached)

    return replace(
        cost,
        peak=peak(used),
        peak_cached=peak(used, prefix_roles(made.plan)) if is_cached else None,
        peak_checkpointed=None if traces.checkpointed is None else peak(traces.checkpointed),
    )


def _with_speed(
    cost: PlanCost,
    made: Prepared,
    traces: Traces,
    settings: Settings,
    length: RunLength | None,
    lengths: Lengths | None,
    rates: Rates,
) -> PlanCost:
    prefix = prefix_roles(made.plan)

    def timed(step: StepTrace, plan: FreezePlan) -> Timing:
        update = _update(plan, settings, cost.processes)
        return timing(
            step, traces.evaluation, rates=rates, update=update, accumulation=settings.accumulation, prefix=prefix
        )

    plan, full, loop = (
        timed(traces.step, made.plan),
        timed(traces.full, traces.whole),
        timed(traces.loop, made.plan),
    )
    cost = replace(cost, over_full=_speedup(full, plan, length), over_loop=_speedup(loop, plan, length))
    if reason_of_cache(made, made.plan, num_processes=cost.processes.count) is not None:
        return cost
    cost = replace(
        cost,
        cached_over_full=_speedup(full, plan, length, cached=True),
        cached_over_loop=_speedup(loop, plan, length, cached=True),
    )
    if length is None or lengths is None:
        return cost
    return replace(cost, cache=_cache_cost(made, traces, plan, length, lengths))


def _with_schedule(
    cost: PlanCost,
    made: Prepared,
    traces: Traces,
    settings: Settings,
    length: RunLength | None,
    rates: Rates,
    trace: Callable[[nn.Module], StepTrace],
) -> PlanCost:
    found = outlined(made, num_processes=cost.processes.count)
    if found is None:
        return cost

    def timed(plan: FreezePlan) -> tuple[Timing, bool]:
        apply_plan(made.model, plan)
        step = trace(made.model)
        update = _update(plan, settings, cost.processes)
        prefix, accumulation = prefix_roles(plan), settings.accumulation
        is_on = reason_of_cache(made, plan, num_processes=cost.processes.count) is None
        parts = timing(step, traces.evaluation, rates=rates, update=update, accumulation=accumulation, prefix=prefix)
        return parts, is_on

    everything = _update(traces.whole, settings, cost.processes)
    full = timing(traces.full, traces.evaluation, rates=rates, update=everything, accumulation=settings.accumulation)
    cost = replace(cost, schedule=schedule_cost(found, length, full, timed))
    apply_plan(made.model, found.scheduled.start)
    return cost


def _update(plan: FreezePlan, settings: Settings, processes: Processes) -> Work:
    """Returns what the optimizer does in a step of a plan, in each process."""
    kind = optimizer_kind(settings.optimizer, settings.optimizer_options)
    total = added_up("all", role_costs(plan, optimizer=kind, processes=processes))
    return optimizer_work(total.gradients, total.optimizer, clips=settings.clips)


def _speedup(other: Timing, own: Timing, length: RunLength | None, *, cached: bool = False) -> Speedup:
    step = own.cached_step() if cached else own.step
    run = None
    if length is not None:
        run = other.run(length) / (own.cached_run(length) if cached else own.run(length))
    return Speedup(other.step / step, run)


def _cache_cost(made: Prepared, traces: Traces, plan: Timing, length: RunLength, lengths: Lengths) -> CacheCost:
    size = cache_size(made.request.activation_cache, lengths, made.base)
    roles = (ROLE_EMBEDDINGS, *prefix_roles(made.plan))
    flops = sum(traces.evaluation.roles[role].forward.flops for role in roles if role in traces.evaluation.roles)
    return CacheCost(
        num_rows=size.num_rows,
        num_bytes=size.num_bytes,
        build_flops=round(flops * length.build_batches),
        build_steps=plan.build(length) / plan.step,
    )
