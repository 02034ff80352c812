"""Carries a plan out on a model: the one writer of `requires_grad` and of the eval mode of frozen modules.

`apply_plan` is total and idempotent: it sets every parameter and every module that the plan speaks of, whatever their
state was, so that applying twice is applying once and a changed plan needs no undoing.

Frozen means eval. `Trainer.training_step` and most hand-written loops call `model.train()` on every step, which would
switch dropout and BatchNorm of frozen blocks back on. So `train` is overridden on the frozen module *instances* by a
`functools.partial` of a function of this module: unlike a bound method it pickles, and `copy.deepcopy` binds it to the
copy. Shapes: `B` batch, `L` sequence, `H` hidden.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from hf_freeze.errors import PlanError
from hf_freeze.plan.optimizer import free_state
from hf_freeze.plan.places import ROLE_EMBEDDINGS
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.plan.wrappers import canonical_tree, named_parameters, unwrap_model

Module = TypeVar("Module", bound=nn.Module)

# The plan lives on the model itself, so that it survives deepcopy, pickling and every wrapper around the model.
_PLAN_ATTRIBUTE = "freeze_plan"


def apply_plan(model: nn.Module, plan: FreezePlan) -> None:
    """Makes the model follow the plan.

    Sets `requires_grad` of every parameter, drops the gradients of the frozen ones, keeps frozen modules in eval mode
    through every `model.train()`, and detaches the output of frozen input embeddings, so that activation checkpointing
    (which makes that output require a gradient) does not pull the backward pass through the frozen blocks.

    Args:
        model: The model that the plan's layout was found in, wrapped or not.
        plan: What trains.

    Raises:
        PlanError: The model has a parameter that the plan does not know, or lacks one that it names.
    """
    trainable = plan.is_trainable()
    parameters = dict(named_parameters(model))
    _check_same_parameters(plan, parameters)
    for name, parameter in parameters.items():
        if parameter.requires_grad != trainable[name]:
            parameter.requires_grad_(trainable[name])
        if not trainable[name]:
            parameter.grad = None
    _keep_eval(model, plan)
    _keep_detached(model, frozen=ROLE_EMBEDDINGS in plan.start.frozen)
    _remember(model, plan)


def apply_loosely(model: nn.Module, plan: FreezePlan) -> None:
    """Makes the model follow the plan by `requires_grad` alone, as a frozen loop does.

    Dropout stays on in what is frozen, and activation checkpointing pulls the backward pass through all blocks.

    Args:
        model: As for `apply_plan`.
        plan: What trains.

    Raises:
        PlanError: As for `apply_plan`.
    """
    apply_plan(model, replace(plan, keep_dropout=True))
    _keep_detached(model, frozen=False)


def freeze_all(model: nn.Module) -> None:
    """Freezes every parameter and switches to eval mode, for a model that will not train any more.

    Args:
        model: A model without a plan.
    """
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None


def transition(model: nn.Module, plan: FreezePlan, optimizer: Any = None) -> None:
    """Moves a model that is being trained to another freeze state.

    Beside what `apply_plan` does, the optimizer's state of what is frozen is freed: what is thawed later starts fresh.

    Args:
        model: The model that carries a plan, wrapped or not.
        plan: The plan in its new freeze state, as `plan_at` gives it.
        optimizer: What trains the model; None where its state is to be kept.

    Raises:
        PlanError: The plan was made for another model.
    """
    apply_plan(model, plan)
    if optimizer is not None:
        trainable = plan.is_trainable()
        free_state(optimizer, (parameter for name, parameter in named_parameters(model) if not trainable[name]))
    torch._dynamo.reset()  # Compiled code may have been made for the gradients of before.


def plan_of(model: nn.Module) -> FreezePlan:
    """Returns the plan that was last applied to the model.

    Args:
        model: A model, wrapped or not.

    Raises:
        PlanError: No plan was applied.
    """
    plan = _home(model).__dict__.get(_PLAN_ATTRIBUTE)
    if not isinstance(plan, FreezePlan):
        raise PlanError(
            f"{type(model).__name__}: no plan was applied to this model. "
            "Call freeze_model(model, ...) first, or apply_plan(model, plan)."
        )
    return plan


def has_plan(model: nn.Module) -> bool:
    """Returns whether a plan was applied to the model.

    Args:
        model: A model, wrapped or not.
    """
    return isinstance(_home(model).__dict__.get(_PLAN_ATTRIBUTE), FreezePlan)


def forget_plan(model: nn.Module) -> None:
    """Takes back what `apply_plan` did to modules and hooks, and the plan itself; `requires_grad` stays.

    Args:
        model: A model, wrapped or not.
    """
    _unlock(model, keep=(), mode=_home(model).training)
    _keep_detached(model, frozen=False)
    _home(model).__dict__.pop(_PLAN_ATTRIBUTE, None)


def _check_same_parameters(plan: FreezePlan, parameters: Mapping[str, nn.Parameter]) -> None:
    planned = {decision.name for decision in plan.decisions}
    for names, verb in ((planned - parameters.keys(), "lacks"), (parameters.keys() - planned, "has besides")):
        if names:
            raise PlanError(
                f"{plan.layout.model_class}: the plan was made for another model; this one {verb} "
                f"{sorted(names)[0]!r} and {len(names) - 1} more. "
                "Make the plan anew from find_layout(model), after adapters are attached."
            )


def _keep_eval(model: nn.Module, plan: FreezePlan) -> None:
    """Locks the modules of frozen roles in eval mode, and frees all others."""
    frozen = () if plan.keep_dropout else plan.start.frozen
    paths = {path for role in frozen for path in plan.layout.modules.get(role, ())}
    # GPT-2, T5, BART, XLNet and wav2vec2 apply dropout to the embeddings in the module that owns the blocks.
    straddlers = set(plan.layout.straddlers) if ROLE_EMBEDDINGS in frozen else set()
    nodes = list(canonical_tree(model).walk())
    locked = [node.outer for node in nodes if node.path in paths]
    own_flag = [node.outer for node in nodes if node.path in straddlers]
    mode = _home(model).training
    _unlock(model, keep={id(module) for module in (*locked, *own_flag)}, mode=mode)
    for module in locked:
        module.__dict__["train"] = functools.partial(_stay_in_eval, module)
        module.train(mode)
    for module in own_flag:
        module.__dict__["train"] = functools.partial(_train_children_only, module)
        module.train(mode)


def _unlock(model: nn.Module, *, keep: Collection[int], mode: bool) -> None:
    for module in unwrap_model(model).modules():
        if _is_locked(module) and id(module) not in keep:
            del module.__dict__["train"]
            module.train(mode)


def _is_locked(module: nn.Module) -> bool:
    override = module.__dict__.get("train")
    return isinstance(override, functools.partial) and override.func in (_stay_in_eval, _train_children_only)


def _stay_in_eval(module: Module, mode: bool = True) -> Module:
    """Replaces `train` of a frozen module."""
    return nn.Module.train(module, False)


def _train_children_only(module: Module, mode: bool = True) -> Module:
    """Replaces `train` of a module that runs frozen and trainable parts: its own flag stays in eval mode."""
    nn.Module.train(module, mode)
    module.training = False
    return module


def _keep_detached(model: nn.Module, *, frozen: bool) -> None:
    """Detaches the output of the input embeddings while they are frozen.

    Activation checkpointing registers hooks that make this output require a gradient, sometimes twice, after this
    function has run. A pre-hook moves the detaching hook behind them on each call.
    """
    embeddings: dict[int, nn.Module] = {}
    for module in unwrap_model(model).modules():
        if isinstance(module, PreTrainedModel):
            inputs = _input_embeddings(module)
            if inputs is not None:
                embeddings[id(inputs)] = inputs
    for inputs in embeddings.values():
        _remove_hooks(inputs._forward_hooks, _detach_output)
        _remove_hooks(inputs._forward_pre_hooks, _move_detach_last)
        if frozen:
            inputs.register_forward_pre_hook(_move_detach_last)
            inputs.register_forward_hook(_detach_output)


def _input_embeddings(module: PreTrainedModel) -> nn.Module | None:
    try:
        embeddings: object = module.get_input_embeddings()
    except NotImplementedError:
        # Models without a single embedding module (most audio encoders); checkpointing adds no hook to them either.
        return None
    return embeddings if isinstance(embeddings, nn.Module) else None  # Perceiver's are a parameter.


def _remove_hooks(hooks: dict[int, Any], function: object) -> None:
    for key in [key for key, hook in hooks.items() if hook is function]:
        del hooks[key]


def _move_detach_last(module: nn.Module, args: tuple[Any, ...]) -> None:
    hooks = module._forward_hooks
    for key in [key for key, hook in hooks.items() if hook is _detach_output]:
        hooks[key] = hooks.pop(key)  # A dict keeps the order of insertion.


def _detach_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> torch.Tensor | None:
    """Returns the embeddings, of shape (B, L, H), cut off from the graph."""
    return output.detach() if isinstance(output, torch.Tensor) and output.requires_grad else None


def _home(model: nn.Module) -> nn.Module:
    """Returns the module that carries the plan: the model beneath every wrapper, PEFT's included."""
    inner = unwrap_model(model)
    return unwrap_model(inner.get_base_model()) if isinstance(inner, PeftModel) else inner


def _remember(model: nn.Module, plan: FreezePlan) -> None:
    _home(model).__dict__[_PLAN_ATTRIBUTE] = plan


@contextlib.contextmanager
def asking_for_gradients(parameters: Collection[nn.Parameter]) -> Iterator[None]:
    """Has frozen parameters ask for gradients for a while, to see what reads them.

    Args:
        parameters: All frozen, and frozen again afterwards.
    """
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
