"""What a plan costs, role by role and in all: parameters, bytes and FLOPs; pure arithmetic on what a traced step does.

Units: bytes and floating-point operations. A *row* is one example of the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from hf_freeze.plan.optimizer_state import OptimizerKind
from hf_freeze.plan.places import block_role
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.plan.timing import Speedup
from hf_freeze.plan.tracing import ROLE_LM_HEAD, RoleTrace, StepTrace, Work

# Times that clipping goes over the gradients: it reads them, and reads and writes them again.
_CLIPPING: Final = 3


@dataclass(frozen=True)
class Processes:
    """How a run is spread over processes.

    Attributes:
        count: How many there are.
        device: `cpu`, `cuda` or whatever torch calls the device.
        precision: `no`, `fp16` or `bf16`: what the forward pass computes in.
        divides_weights: Whether each holds a part of the weights only (FSDP, ZeRO stage 3).
        divides_gradients: Whether each keeps a part of the gradients only (FSDP, ZeRO from stage 2).
        divides_optimizer: Whether each keeps a part of the optimizer state only (FSDP, ZeRO).
        copies_gradients: Whether gradients are copied to be averaged (DistributedDataParallel's buckets).
    """

    count: int = 1
    device: str = "cpu"
    precision: str = "no"
    divides_weights: bool = False
    divides_gradients: bool = False
    divides_optimizer: bool = False
    copies_gradients: bool = False


@dataclass(frozen=True)
class RoleCost:
    """What one role costs: bytes in each process, and FLOPs of one forward and one backward pass over a batch.

    Attributes:
        role: The role; a language-model head stands by itself as `lm_head`.
        weights: Bytes of its parameters.
        gradients: Bytes of their gradients.
        optimizer: Bytes of their optimizer state.
        activations: Bytes that the backward pass needs of its forward pass; None where the model could not be traced.
        checkpointed: The same with activation checkpointing; None where it could not be traced so.
        forward_flops: Floating-point operations forward; None where the model could not be traced.
        backward_flops: Floating-point operations backward, with what activation checkpointing computes again.
    """

    role: str
    weights: int
    gradients: int
    optimizer: int
    activations: int | None = None
    checkpointed: int | None = None
    forward_flops: int | None = None
    backward_flops: int | None = None


def role_costs(
    plan: FreezePlan,
    *,
    optimizer: OptimizerKind,
    processes: Processes,
    step: StepTrace | None = None,
    forward: StepTrace | None = None,
    checkpointed: StepTrace | None = None,
) -> tuple[RoleCost, ...]:
    """Returns what every role costs, from the input on.

    Args:
        plan: What trains.
        optimizer: What the optimizer keeps.
        processes: How the run is spread.
        step: What a step on the longest batch does: activations are those of this one.
        forward: What a typical step does: FLOPs are those of this one.
        checkpointed: What the step on the longest batch does with activation checkpointing.
    """
    roles = [*plan.treatments]
    if (step is not None and ROLE_LM_HEAD in step.roles) or _separate_output(plan):
        roles.append(ROLE_LM_HEAD)
    sizes = {role: [0, 0, 0] for role in roles}
    for decision in plan.decisions:
        parameter = decision.parameter
        is_output = parameter.output_embedding and decision.role == roles[-2] and roles[-1] == ROLE_LM_HEAD
        size = sizes[ROLE_LM_HEAD if is_output else decision.role]
        size[0] += parameter.num_bytes
        if decision.trainable:
            size[1] += parameter.num_bytes
            size[2] += optimizer.num_bytes(parameter.shape, parameter.num_bytes // max(1, parameter.numel))
    parts, copies, nothing = processes.count, 1 + processes.copies_gradients, RoleTrace()
    costs = []
    for role, (weights, gradients, state) in sizes.items():
        typical = None if forward is None else forward.roles.get(role, nothing)
        costs.append(
            RoleCost(
                role,
                weights=_part(weights, parts, divided=processes.divides_weights),
                gradients=copies * _part(gradients, parts, divided=processes.divides_gradients),
                optimizer=_part(state, parts, divided=processes.divides_optimizer),
                activations=None if step is None else step.roles.get(role, nothing).activation_bytes,
                checkpointed=None if checkpointed is None else checkpointed.roles.get(role, nothing).activation_bytes,
                forward_flops=None if typical is None else typical.forward.flops,
                backward_flops=None if typical is None else typical.backward.flops,
            )
        )
    return tuple(costs)


def added_up(name: str, costs: Sequence[RoleCost]) -> RoleCost:
    """Returns what roles cost together; what is not known of one is not known of all.

    Args:
        name: What they are called together.
        costs: What each costs.
    """

    def known(values: Iterable[int | None]) -> int | None:
        found = list(values)
        return None if None in found else sum(value or 0 for value in found)

    return RoleCost(
        name,
        weights=sum(cost.weights for cost in costs),
        gradients=sum(cost.gradients for cost in costs),
        optimizer=sum(cost.optimizer for cost in costs),
        activations=known(cost.activations for cost in costs),
        checkpointed=known(cost.checkpointed for cost in costs),
        forward_flops=known(cost.forward_flops for cost in costs),
        backward_flops=known(cost.backward_flops for cost in costs),
    )


def _separate_output(plan: FreezePlan) -> bool:
    return any(d.parameter.output_embedding and d.role == [*plan.treatments][-1] for d in plan.decisions)


def _part(num_bytes: int, parts: int, *, divided: bool) -> int:
    return -(-num_bytes // parts) if divided else num_bytes


def peak_bytes(
    costs: Iterable[RoleCost], step: StepTrace, *, processes: Processes, accumulates: bool, cached: Iterable[str] = ()
) -> int:
    """Returns the most bytes that a process holds at once, from the second step on.

    Weights and optimizer state are always there. Beside them are the activations, which go as gradients come; the trace
    has seen how many bytes of both there are at most. A unit of sharded weights is gathered while it is computed.

    Args:
        costs: What every role costs.
        step: What a step does.
        processes: How the run is spread.
        accumulates: Whether gradients of earlier batches are there from the beginning.
        cached: The roles whose forward pass does not run, because its result is read from the activation cache.
    """
    costs = tuple(costs)
    skipped = set(cached)
    gradients = sum(cost.gradients for cost in costs)
    moving = [trace.peak_bytes for role, trace in step.roles.items() if role not in skipped]
    moving.append(step.backward_peak_bytes)
    most = max(*moving, gradients)
    if accumulates:
        most += gradients
    elif processes.copies_gradients:
        most += gradients // 2
    if processes.divides_weights:
        most += max(cost.weights for cost in costs) * processes.count
    return sum(cost.weights + cost.optimizer for cost in costs) + most


def optimizer_work(gradients: int, state: int, *, clips: bool) -> Work:
    """Returns what the optimizer does in a step: it reads gradients, and reads and writes weights and state.

    Args:
        gradients: Bytes of the gradients; weights that train take as many.
        state: Bytes of the optimizer state.
        clips: Whether gradients are clipped.
    """
    return Work(num_bytes=(3 + _CLIPPING * clips) * gradients + 2 * state)


def prefix_roles(plan: FreezePlan) -> tuple[str, ...]:
    """Returns the blocks of the frozen prefix.

    Args:
        plan: What trains.
    """
    return tuple(block_role(plan.layout.stacks[0].name, index) for index in range(plan.depth))


@dataclass(frozen=True)
class CacheCost:
    """What the activation cache costs.

    Attributes:
        num_rows: Rows of the splits that a run goes through, each stored once it gets there.
        num_bytes: Bytes on the disk.
        build_flops: Floating-point operations of the build.
        build_steps: What the build takes, in updates of the plan without the cache.
    """

    num_rows: int
    num_bytes: int
    build_flops: int
    build_steps: float


@dataclass(frozen=True)
class Seconds:
    """What a run is predicted to take from steps that were measured, in seconds.

    Attributes:
        step: An update.
        cached_step: An update with the activation cache; None where there is nothing to cache.
        run: The whole run.
        cached_run: The whole run with the activation cache, its build included.
        build: The build.
        full_step: An update of full fine-tuning.
        loop_step: An update of the frozen loop.
    """

    step: float
    cached_step: float | None
    run: float | None
    cached_run: float | None
    build: float | None
    full_step: float
    loop_step: float


@dataclass(frozen=True)
class ScheduleCost:
    """What a run costs under a schedule, from the freeze state of every step.

    Each is a pair: for the course that freezes least and for the one that freezes most. They are equal where nothing is
    decided while training.

    Attributes:
        mean_depth: The depth of the frozen prefix, in blocks, as a mean over the steps.
        over_full: The speed-up of the whole run over full fine-tuning.
        cached_over_full: The same with the activation cache wherever it is faster; None where it is off.
        seconds: How long the run takes, in seconds; None where no steps were measured.
    """

    mean_depth: tuple[float, float]
    over_full: tuple[float, float]
    cached_over_full: tuple[float, float] | None = None
    seconds: tuple[float, float] | None = None


@dataclass(frozen=True)
class PlanCost:
    """What a plan costs, told before training.

    Attributes:
        model_class: The name of the model's class.
        roles: What every role costs.
        batch_size: Rows in a batch of one process.
        length: Tokens of a typical batch, padding included: FLOPs and speed-ups are for it.
        longest: Tokens of the longest batch: activations and peaks are for it.
        processes: How the run is spread.
        checkpoints: Whether the run uses activation checkpointing: peaks, FLOPs and speed-ups are with it then.
        peak: The most bytes that a process holds; None where the model could not be traced.
        peak_cached: The same with the activation cache.
        peak_checkpointed: The same with activation checkpointing.
        cache: What the activation cache costs; None where there is nothing to cache or the data is not known.
        over_full: The speed-up over full fine-tuning.
        over_loop: The speed-up over the frozen loop: `requires_grad=False` on what the plan freezes, dropout kept on.
        cached_over_full: The speed-up over full fine-tuning with the activation cache.
        cached_over_loop: The speed-up over the frozen loop with the activation cache.
        seconds: What measured steps tell; None where none were measured.
        schedule: What the run costs under its schedule, where all else is for the plan as training starts; None where
            nothing changes.
        notes: What could not be told, a sentence each.
    """

    model_class: str
    roles: tuple[RoleCost, ...]
    batch_size: int
    length: int
    longest: int
    processes: Processes
    checkpoints: bool
    peak: int | None = None
    peak_cached: int | None = None
    peak_checkpointed: int | None = None
    cache: CacheCost | None = None
    over_full: Speedup | None = None
    over_loop: Speedup | None = None
    cached_over_full: Speedup | None = None
    cached_over_loop: Speedup | None = None
    seconds: Seconds | None = None
    schedule: ScheduleCost | None = None
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> RoleCost:
        """All roles together."""
        return added_up("all", self.roles)
