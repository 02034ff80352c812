from __future__ import annotations

from dataclasses import replace

import pytest

from hf_freeze import find_layout, resolve_plan
from hf_freeze.plan.cost import Processes, RoleCost, added_up, optimizer_work, peak_bytes, prefix_roles, role_costs
from hf_freeze.plan.optimizer_state import optimizer_kind
from hf_freeze.plan.timing import Rates, RunLength, timing
from hf_freeze.plan.tracing import RoleTrace, StepTrace, Work
from tests.tiny import tiny_bert, tiny_gpt2, tiny_llama

ADAMW = optimizer_kind("adamw_torch_fused", {})
PLAN = resolve_plan(find_layout(tiny_bert()), {"blocks": {"first": 2}})
UNIT = Rates(flops=1.0, num_bytes=1.0, num_random=1.0, operation=1.0, step=0.0)


@pytest.mark.parametrize(
    ("name", "options", "num_bytes"),
    [
        ("adamw_torch_fused", {}, 2 * 4 * 48),
        ("paged_adamw_32bit", {}, 2 * 4 * 48),
        ("adamw_bnb_8bit", {}, 2 * 48),
        ("adamw_torch_4bit", {}, 48),
        ("sgd", {}, 0),
        ("sgd", {"momentum": "0.9"}, 4 * 48),
        ("adagrad", {}, 4 * 48),
        ("lion_32bit", {}, 4 * 48),
        ("lion_8bit", {}, 48),
        ("adafactor", {}, 4 * (6 + 8)),
    ],
)
def test_every_optimizer_keeps_what_it_keeps(name: str, options: dict[str, str], num_bytes: int) -> None:
    kind = optimizer_kind(name, options)
    assert kind.is_known
    assert kind.num_bytes((6, 8), 4) == num_bytes


def test_an_optimizer_that_is_not_known_counts_as_adamw() -> None:
    kind = optimizer_kind("galore_adamw", {})
    assert not kind.is_known
    assert kind.num_bytes((6, 8), 4) == ADAMW.num_bytes((6, 8), 4)


def test_a_frozen_role_has_weights_alone() -> None:
    costs = {cost.role: cost for cost in role_costs(PLAN, optimizer=ADAMW, processes=Processes())}
    assert (costs["blocks[0]"].gradients, costs["blocks[0]"].optimizer) == (0, 0)
    block = costs["blocks[2]"]
    assert block.weights == block.gradients == block.optimizer // 2 == costs["blocks[0]"].weights > 0
    assert (block.activations, block.forward_flops) == (None, None)
    total = added_up("all", [*costs.values()])
    assert total.weights == sum(p.nbytes for p in tiny_bert().parameters())
    assert total.activations is None


@pytest.mark.parametrize(
    ("processes", "factors"),
    [
        (Processes(), (1, 1, 1)),
        (Processes(2, copies_gradients=True), (1, 2, 1)),
        (Processes(2, divides_optimizer=True), (1, 1, 0.5)),
        (Processes(2, divides_gradients=True, divides_optimizer=True), (1, 0.5, 0.5)),
        (Processes(2, divides_weights=True, divides_gradients=True, divides_optimizer=True), (0.5, 0.5, 0.5)),
    ],
)
def test_processes_share_what_their_backend_divides(processes: Processes, factors: tuple[float, ...]) -> None:
    alone, shared = (role_costs(PLAN, optimizer=ADAMW, processes=each)[3] for each in (Processes(), processes))
    found = (shared.weights / alone.weights, shared.gradients / alone.gradients, shared.optimizer / alone.optimizer)
    assert found == factors


def test_an_output_embedding_that_is_not_tied_is_a_role_of_its_own() -> None:
    llama, gpt2 = (
        role_costs(resolve_plan(find_layout(model)), optimizer=ADAMW, processes=Processes())
        for model in (tiny_llama(), tiny_gpt2())
    )
    assert llama[-1].role == "lm_head"
    assert llama[-1].weights == llama[0].weights
    assert gpt2[-1].role == "head"


STEP = StepTrace(
    {
        "blocks[0]": RoleTrace(forward=Work(flops=10), peak_bytes=700),
        "blocks[1]": RoleTrace(forward=Work(flops=10), backward=Work(flops=20), activation_bytes=300, peak_bytes=400),
    },
    backward_peak_bytes=500,
)
COSTS = (RoleCost("blocks[0]", 100, 0, 0), RoleCost("blocks[1]", 100, 80, 200))


def test_the_peak_adds_what_stays_to_what_moves_at_most() -> None:
    one = Processes()
    assert peak_bytes(COSTS, STEP, processes=one, accumulates=False) == 400 + 700
    assert peak_bytes(COSTS, STEP, processes=one, accumulates=False, cached=["blocks[0]"]) == 400 + 500
    assert peak_bytes(COSTS, STEP, processes=one, accumulates=True) == 400 + 700 + 80
    assert peak_bytes(COSTS, STEP, processes=replace(one, count=2, copies_gradients=True), accumulates=False) == 1140
    assert peak_bytes(COSTS, STEP, processes=replace(one, count=2, divides_weights=True), accumulates=False) == 1300


def test_a_cached_run_leaves_the_prefix_out_and_builds_it_once() -> None:
    evaluation = StepTrace({role: RoleTrace(forward=trace.forward) for role, trace in STEP.roles.items()}, 0)
    found = timing(STEP, evaluation, rates=UNIT, update=Work(num_bytes=5), prefix=["blocks[0]"])
    assert (found.step, found.cached_step(), found.evaluation) == (45, 35, 20)
    length = RunLength(num_steps=10, evaluation_batches=6, build_batches=4)
    assert found.run(length) == 10 * 45 + 6 * 20
    assert found.build(length) == pytest.approx(1.1 * 4 * 10)
    assert found.cached_run(length) == pytest.approx(10 * 35 + 6 * 10 + 44)


def test_accumulated_batches_share_an_update() -> None:
    found = timing(
        STEP, STEP, rates=replace(UNIT, step=7), update=Work(num_bytes=5), accumulation=3, prefix=["blocks[0]"]
    )
    assert (found.step, found.cached_step()) == (3 * 40 + 12, 3 * 30 + 12)


def test_seconds_add_up_over_what_operations_do() -> None:
    rates = Rates(flops=2.0, num_bytes=4.0, num_random=5.0, operation=0.5, step=9.0)
    assert rates.seconds(Work(flops=2, num_bytes=8, num_random=15, num_operations=4)) == 1 + 2 + 3 + 2


def test_the_optimizer_reads_gradients_and_reads_and_writes_the_rest() -> None:
    """AdamW: 28 bytes a number of 4 bytes, and 12 more where gradients are clipped."""
    assert optimizer_work(4, 8, clips=False) == Work(num_bytes=28)
    assert optimizer_work(4, 8, clips=True) == Work(num_bytes=40)


def test_the_prefix_holds_the_first_blocks() -> None:
    assert prefix_roles(PLAN) == ("blocks[0]", "blocks[1]")
