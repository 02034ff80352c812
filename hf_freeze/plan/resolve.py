"""Decides, for every parameter of a layout, whether it trains; pure, touches no model.

The rules apply in this order and the last one wins: the table of defaults, the roles that the config names, then
`always_train`. `B`, `L` and `H` do not occur here: a plan speaks of parameters, not of activations.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from hf_freeze.config import AdapterConfig, FreezeConfig, Selection, parse_adapters, parse_section
from hf_freeze.config.automatic import AutomaticSelection
from hf_freeze.errors import PlanError, did_you_mean
from hf_freeze.plan.automatic import Chosen
from hf_freeze.plan.layout import Layout, Parameter
from hf_freeze.plan.places import ROLE_EMBEDDINGS, ROLE_HEAD, Stack, block_role
from hf_freeze.plan.selection import select_blocks

Treatment = Literal["frozen", "full", "adapter"]
BlockSelection = Selection | Mapping[str, Selection]


@dataclasses.dataclass(frozen=True)
class Decision:
    """What happens to one parameter.

    Attributes:
        parameter: The parameter, as the layout describes it.
        trainable: Whether it trains.
        reason: The rule that decided, in words.
        always: Whether `freeze.always_train` decided: no schedule freezes it.
    """

    parameter: Parameter
    trainable: bool
    reason: str
    always: bool = False

    @property
    def name(self) -> str:
        """The canonical name of the parameter."""
        return self.parameter.name

    @property
    def role(self) -> str:
        """The role of the parameter."""
        return self.parameter.role


@dataclasses.dataclass(frozen=True)
class FreezeState:
    """Which roles are frozen now.

    Attributes:
        frozen: The frozen roles, in the order of the layout.
    """

    frozen: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class FreezePlan:
    """The resolved, immutable decisions: one per parameter of the layout.

    Attributes:
        layout: Where the roles are in the model.
        treatments: Role to treatment, in the order of the layout.
        decisions: One decision per distinct parameter, in the order of `named_parameters()`.
        keep_dropout: Whether frozen modules follow `model.train()` instead of staying in eval mode.
        chosen: What was chosen before training, and why; None where the config says what is frozen.
    """

    layout: Layout
    treatments: Mapping[str, Treatment]
    decisions: tuple[Decision, ...]
    keep_dropout: bool = False
    chosen: Chosen | None = None

    @property
    def trainable_names(self) -> tuple[str, ...]:
        """Canonical names of the parameters that train."""
        return tuple(decision.name for decision in self.decisions if decision.trainable)

    @property
    def frozen_names(self) -> tuple[str, ...]:
        """Canonical names of the parameters that do not train."""
        return tuple(decision.name for decision in self.decisions if not decision.trainable)

    @property
    def trainable_roles(self) -> tuple[str, ...]:
        """Roles with at least one parameter that trains."""
        training = {decision.role for decision in self.decisions if decision.trainable}
        return tuple(role for role in self.treatments if role in training)

    @property
    def start(self) -> FreezeState:
        """The freeze state that training starts with: the roles in which nothing trains."""
        training = set(self.trainable_roles)
        frozen = (role for role, treatment in self.treatments.items() if treatment == "frozen" and role not in training)
        return FreezeState(tuple(frozen))

    @property
    def depth(self) -> int:
        """The number of blocks in the frozen prefix: 0 where the embeddings or the first block train."""
        frozen = set(self.start.frozen)
        if ROLE_EMBEDDINGS not in frozen:
            return 0
        first = self.layout.stacks[0]
        roles = [block_role(first.name, index) for index in range(first.num_blocks)]
        return next((index for index, role in enumerate(roles) if role not in frozen), first.num_blocks)

    @property
    def backward_reaches(self) -> str:
        """The role nearest to the input that trains: the backward pass goes no deeper."""
        order = {role: index for index, role in enumerate(self.treatments)}
        training = [decision for decision in self.decisions if decision.trainable]
        return min(training, key=lambda decision: self._position(decision, order)).role

    @property
    def digest(self) -> str:
        """A hash (blake2b, 16 bytes, hexadecimal) that is equal for two plans if and only if they decide alike."""
        lines = [f"keep_dropout={self.keep_dropout}"]
        lines += [f"{role}={treatment}" for role, treatment in self.treatments.items()]
        lines += [f"{d.name}:{d.parameter.shape}:{d.trainable}" for d in self.decisions]
        return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()

    def is_trainable(self) -> dict[str, bool]:
        """Maps the canonical name of every parameter to whether it trains."""
        return {decision.name: decision.trainable for decision in self.decisions}

    def trainable_by_role(self) -> dict[str, tuple[str, ...]]:
        """Maps every role to the canonical names of its parameters that train."""
        names: dict[str, list[str]] = {role: [] for role in self.treatments}
        for decision in self.decisions:
            if decision.trainable:
                names[decision.role].append(decision.name)
        return {role: tuple(members) for role, members in names.items()}

    def _position(self, decision: Decision, order: Mapping[str, int]) -> float:
        """Where the parameter acts, counted in roles from the input.

        The head is everything else, so it can lie early: the final norm of an encoder runs before the decoder does.
        """
        if decision.role != ROLE_HEAD:
            return order[decision.role]
        for stack in self.layout.stacks[:-1]:
            owner = stack.path.rpartition(".")[0]
            if owner and decision.name.startswith(f"{owner}.") and not self._shares_owner_with_later(stack, owner):
                return order[block_role(stack.name, stack.num_blocks - 1)] + 0.5
        return order[ROLE_HEAD]

    def _shares_owner_with_later(self, stack: Stack, owner: str) -> bool:
        later = self.layout.stacks[self.layout.stacks.index(stack) + 1 :]
        return any(other.path.startswith(f"{owner}.") for other in later)


def resolve_plan(
    layout: Layout,
    freeze: FreezeConfig | Mapping[str, object] | None = None,
    adapters: Iterable[AdapterConfig | Mapping[str, object] | object] = (),
) -> FreezePlan:
    """Resolves what the config asks for into one decision per parameter.

    Adapters that are in the layout already (it was found in a model that carries them) count; `adapters` names those
    that are still to be attached.

    Args:
        layout: Where the roles are in the model.
        freeze: The `freeze` section: an instance, a mapping with its keys, or None where nothing is frozen.
        adapters: The `adapters` section: instances, mappings, or PEFT config objects.

    Returns:
        The plan. Equal arguments give equal plans.

    Raises:
        ConfigError: A section cannot be read; every problem is listed.
        PlanError: A selection, a stack or a glob matches nothing, tied weights contradict each other, a quantised
            weight would train, or nothing would train although no adapters are to be attached.
    """
    section = parse_section(FreezeConfig, freeze, key="freeze") if freeze is not None else None
    entries = parse_adapters(adapters)
    adapted = _adapted_roles(layout, entries)
    treatments = _treatments(layout, section, adapted)
    _check_tied(layout, section, treatments)
    only_adapters = section is None and bool(adapted)
    decisions = tuple(decide(p, treatments[p.role], only_adapters=only_adapters) for p in layout.parameters)
    if section is not None:
        decisions = _always_train(decisions, section.always_train)
    check_trainable(decisions, adapters_follow=bool(entries))
    return FreezePlan(layout, treatments, decisions, keep_dropout=section is not None and section.keep_dropout)


def decided_blocks(section: FreezeConfig) -> BlockSelection:
    """Returns the blocks that a section freezes.

    Args:
        section: A section like `freeze`.

    Raises:
        PlanError: They are still to be chosen.
    """
    if isinstance(section.blocks, AutomaticSelection):
        raise PlanError(
            f"freeze.blocks: what is frozen is not chosen yet; got {section.blocks.spelling!r}. Going by "
            f"{section.blocks.by} takes training rows, which FreezeTrainer has. Use it, or write which blocks."
        )
    return section.blocks


def select_roles(layout: Layout, blocks: BlockSelection, *, key: str) -> tuple[str, ...]:
    """Returns the block roles that a selection names, in the order of the layout.

    Args:
        layout: Where the blocks are.
        blocks: One selection for every stack, or one for each named stack.
        key: The dotted key that error messages start with, such as `freeze.blocks`.

    Raises:
        PlanError: A stack or a block that is named does not exist.
    """
    per_stack: Mapping[str, Selection]
    if isinstance(blocks, Selection):
        per_stack = {stack.name: blocks for stack in layout.stacks}
    else:
        _check_stacks(layout, blocks, key=key)
        per_stack = blocks
    roles: list[str] = []
    for stack in layout.stacks:
        if stack.name in per_stack:
            stack_key = key if isinstance(blocks, Selection) else f"{key}.{stack.name}"
            indices = select_blocks(per_stack[stack.name], stack.num_blocks, key=stack_key, where=stack.path)
            roles += [block_role(stack.name, index) for index in indices]
    return tuple(roles)


def _check_stacks(layout: Layout, named: Mapping[str, Selection], *, key: str) -> None:
    existing = [stack.name for stack in layout.stacks if stack.name]
    for name in named:
        if name not in existing:
            has = f"The stacks are {', '.join(sorted(existing))}." if existing else "It has only one stack."
            what = (
                f"Name one of them.{did_you_mean(name, existing)}" if existing else "Give one selection without a name."
            )
            raise PlanError(f"{key}: {layout.model_class} has no stack of this name; got {name!r}. {has} {what}")


def _adapted_roles(layout: Layout, entries: Sequence[AdapterConfig]) -> frozenset[str]:
    attached = {parameter.role for parameter in layout.parameters if parameter.kind == "adapter"}
    if attached:
        return frozenset(attached)
    roles: set[str] = set()
    for index, entry in enumerate(entries):
        blocks = entry.blocks if entry.blocks is not None else Selection("all", None)
        roles.update(select_roles(layout, blocks, key=f"adapters.{index}.blocks"))
    return frozenset(roles)


def _treatments(layout: Layout, freeze: FreezeConfig | None, adapted: frozenset[str]) -> dict[str, Treatment]:
    """Applies the table of defaults and the explicit keys of the section to the roles."""
    blocks: BlockSelection = Selection("none") if freeze is None else decided_blocks(freeze)
    frozen = set(select_roles(layout, blocks, key="freeze.blocks"))
    rest: Treatment = "frozen" if freeze is None and adapted else "full"
    treatments: dict[str, Treatment] = {}
    for stack in layout.stacks:
        for index in range(stack.num_blocks):
            role = block_role(stack.name, index)
            treatments[role] = "adapter" if role in adapted else "frozen" if role in frozen else rest
    first_block = treatments[block_role(layout.stacks[0].name, 0)]
    embeddings: Treatment = "full" if first_block == "full" else "frozen"
    if freeze is None and adapted:
        embeddings = "frozen"
    head: Treatment = "full"
    if freeze is not None:
        embeddings = embeddings if freeze.embeddings == "auto" else freeze.embeddings
        head = head if freeze.head == "auto" else freeze.head
    if ROLE_EMBEDDINGS in adapted and embeddings == "frozen":
        embeddings = "adapter"
    return {ROLE_EMBEDDINGS: embeddings, **treatments, ROLE_HEAD: head}


def _check_tied(layout: Layout, freeze: FreezeConfig | None, treatments: Mapping[str, Treatment]) -> None:
    """Refuses an explicit head that contradicts the embeddings through a tied weight."""
    tied = [p for p in layout.parameters if p.role == ROLE_EMBEDDINGS and p.output_embedding]
    if freeze is None or not tied:
        return
    embeddings = "full" if treatments[ROLE_EMBEDDINGS] == "full" else "frozen"
    if freeze.head in ("auto", embeddings):
        return
    names = " = ".join((tied[0].name, *tied[0].aliases))
    raise PlanError(
        f"freeze.head: a weight cannot be frozen and trained at once; got {freeze.head!r} while the embeddings are "
        f"{embeddings}. The weight of the head is tied to the embeddings ({names}) and follows them. "
        f"Set freeze.embeddings to {freeze.head!r} too, leave freeze.head out, or untie the weights "
        "(tie_word_embeddings: false in the model's config)."
    )


def decide(parameter: Parameter, treatment: Treatment, *, only_adapters: bool = False) -> Decision:
    """Returns what happens to a parameter under the treatment of its role.

    Args:
        parameter: The parameter.
        treatment: The treatment of its role.
        only_adapters: Whether adapters are given and no `freeze` section.
    """
    if parameter.constant:
        return Decision(parameter, trainable=False, reason="the model keeps it constant")
    if parameter.kind == "adapter":
        return Decision(parameter, trainable=True, reason="adapter")
    if treatment == "adapter":
        return Decision(parameter, trainable=False, reason="base of an adapter")
    if parameter.role == ROLE_HEAD and treatment == "full" and only_adapters:
        if parameter.outside_base and not parameter.output_embedding:
            return Decision(parameter, trainable=True, reason="outside the base model")
        return Decision(parameter, trainable=False, reason="belongs to the base model, which adapters leave frozen")
    return Decision(parameter, trainable=treatment == "full", reason=f"{parameter.role} is {treatment}")


def _always_train(decisions: tuple[Decision, ...], globs: Sequence[str]) -> tuple[Decision, ...]:
    names = [name for decision in decisions for name in (decision.name, *decision.parameter.aliases)]
    for written in globs:
        _check_glob(written, decisions, names)
    decided = []
    for decision in decisions:
        glob = _matching(decision, globs)
        if glob is not None and not decision.parameter.constant:
            reason = f"freeze.always_train: {glob}"
            decision = dataclasses.replace(decision, trainable=True, reason=reason, always=True)
        decided.append(decision)
    return tuple(decided)


def _matching(decision: Decision, globs: Sequence[str]) -> str | None:
    names = (decision.name, *decision.parameter.aliases)
    return next((glob for glob in globs if any(fnmatchcase(name, glob) for name in names)), None)


def _check_glob(glob: str, decisions: Sequence[Decision], names: Sequence[str]) -> None:
    matched = [decision for decision in decisions if _matching(decision, (glob,)) is not None]
    if not matched:
        raise PlanError(
            f"freeze.always_train: no parameter matches this glob; got {glob!r}. "
            f"The model has {len(decisions)} parameters, such as {names[0]!r}. "
            f"Write a glob that matches full parameter names, such as '*.bias'.{did_you_mean(glob, names)}"
        )
    if all(decision.parameter.constant for decision in matched):
        raise PlanError(
            f"freeze.always_train: the model keeps every parameter that this glob matches constant; got {glob!r}. "
            f"It matches {', '.join(decision.name for decision in matched[:3])}. Remove the glob."
        )


def check_trainable(decisions: Sequence[Decision], *, adapters_follow: bool = False) -> None:
    """Checks that something trains, and no quantised weight in full.

    Args:
        decisions: One for every parameter.
        adapters_follow: Whether adapters are still to be attached.

    Raises:
        PlanError: Nothing trains, or a quantised weight would.
    """
    training = [decision for decision in decisions if decision.trainable]
    # A language model has no fresh head: with adapters alone, nothing trains before they are attached.
    if not training and not adapters_follow:
        raise PlanError(
            f"freeze: nothing is left to train; all {len(decisions)} parameters are frozen. "
            "Freeze fewer blocks, set freeze.head to 'full', or add adapters."
        )
    quantized = [decision for decision in training if decision.parameter.quantized]
    if quantized:
        roles = sorted({decision.role for decision in quantized})
        raise PlanError(
            f"freeze.blocks: a quantised weight cannot be trained in full; got {quantized[0].name} "
            f"({quantized[0].parameter.dtype}) and {len(quantized) - 1} more. They lie in {', '.join(roles)}. "
            "Freeze these roles, give their blocks adapters, or load the model without quantization_config."
        )
