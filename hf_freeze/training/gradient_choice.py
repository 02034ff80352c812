"""Chooses the blocks that train by their gradients in the first batches.

Source: the relative gradient norm of Surgical Fine-Tuning (Lee et al. 2023). The blocks that train are made a suffix,
so that what is frozen can be cached, and the head is warmed up first: gradients behind a fresh head tell little.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from transformers import Trainer

from hf_freeze.config import FreezeConfig
from hf_freeze.config.automatic import GradientSelection
from hf_freeze.errors import PlanError
from hf_freeze.plan.apply import apply_plan, plan_of
from hf_freeze.plan.automatic import Chosen, first_blocks
from hf_freeze.plan.places import ROLE_HEAD
from hf_freeze.plan.states import block_roles, plan_at
from hf_freeze.plan.wrappers import named_parameters
from hf_freeze.training.norms import Part, local, role_norms
from hf_freeze.training.rehearsing import rehearsal, training_batches

WARM_UP_STEPS: Final = 50
NUM_BATCHES: Final = 8


def num_frozen(scores: Sequence[float], share: float) -> int:
    """Returns how many blocks come before the smallest suffix that has a share of all scores.

    >>> num_frozen([1.0, 1.0, 2.0, 6.0], 0.8)
    2

    Args:
        scores: Of every block, from the input on.
        share: Above 0 and at most 1.
    """
    total, reached = sum(scores), 0.0
    for index in reversed(range(len(scores))):
        reached += scores[index]
        # Sums of floating-point numbers: a share of 1 needs all blocks, and no more than all.
        if reached >= share * total * (1 - 1e-9):
            return index
    return 0


def choose_by_gradient(trainer: Any, section: FreezeConfig, selection: GradientSelection) -> Chosen:
    """Returns the section that freezes what comes before the smallest suffix with a share of the relative gradients.

    Relative gradients are the mean over batches of |g| / |theta|, with the Euclidean norms of a block.

    Args:
        trainer: The trainer, whose model carries a plan in which no block is frozen.
        section: The `freeze` section.
        selection: How it asks to choose.

    Raises:
        PlanError: There are no training rows, or gradients are not finite.
    """
    plan = plan_of(trainer.model)
    roles = block_roles(plan.layout)
    batches = training_batches(trainer, by=selection.by)
    with rehearsal(trainer.model, plan):
        _warm_head(trainer, batches)
        scores = _relative_gradients(trainer, itertools.islice(batches, NUM_BATCHES), roles)
    if not all(map(math.isfinite, scores.values())):
        told = ", ".join(f"{role} {score:.3g}" for role, score in scores.items())
        raise PlanError(
            f"freeze.blocks.auto: nothing can be chosen by gradients that are not finite; got {told}. The weights, the "
            "loss or training.learning_rate, with which the head was warmed up, are at fault. Correct them, or say "
            "which blocks are frozen."
        )
    count = num_frozen(list(scores.values()), selection.train_top)
    made = section.model_copy(update={"blocks": first_blocks(plan.layout.stacks, count)})
    why = (
        f"freeze.blocks.auto: the first {count} of {len(roles)} blocks are frozen: those after them have "
        f"{selection.train_top:.0%} of all relative gradients at least (gradient)."
    )
    return Chosen(selection.spelling, made, (why,), "Relative gradient of a block", scores)


def _warm_head(trainer: Any, batches: Iterator[Mapping[str, Any]]) -> None:
    """Trains the head alone for a few steps; nothing happens where it does not train."""
    plan = plan_of(trainer.model)
    if not plan.trainable_by_role()[ROLE_HEAD]:
        return
    apply_plan(trainer.model, plan_at(plan, frozenset(plan.treatments) - {ROLE_HEAD}))
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(trainer.args)
    optimizer = optimizer_class([p for p in trainer.model.parameters() if p.requires_grad], **options)
    for batch in itertools.islice(batches, WARM_UP_STEPS):
        _backward(trainer, batch)
        optimizer.step()
        optimizer.zero_grad()
    apply_plan(trainer.model, plan)


def _relative_gradients(trainer: Any, batches: Iterator[Mapping[str, Any]], roles: Sequence[str]) -> dict[str, float]:
    """Returns the mean over batches of the norm of a block's gradient over that of its weights."""
    role_of = {decision.name: decision.role for decision in plan_of(trainer.model).decisions}
    blocks = [(role_of[name], p) for name, p in named_parameters(trainer.model) if role_of[name] in set(roles)]
    weights = role_norms(Part(role, parameter, local(parameter)) for role, parameter in blocks)
    found: dict[str, list[float]] = defaultdict(list)
    for batch in batches:
        _backward(trainer, batch)
        gradients = role_norms(Part(role, p, local(p.grad)) for role, p in blocks if p.grad is not None)
        for role, norm in gradients.items():
            found[role].append(norm / weights[role])
        for _, parameter in blocks:
            parameter.grad = None
    return {role: sum(found[role]) / max(1, len(found[role])) for role in roles}


def _backward(trainer: Any, batch: Mapping[str, Any]) -> None:
    with trainer.accelerator.autocast():
        loss = trainer.compute_loss(trainer.model, {**batch})
    torch.autograd.backward(loss)
