"""What the plan asks of each backend and of the training arguments, seen to before training."""

from __future__ import annotations

import os
from typing import Any

from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import StateDictType
from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from hf_freeze.errors import PlanError
from hf_freeze.plan.places import ROLE_EMBEDDINGS
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.plan.wrappers import resolve_module


def check_backend(args: TrainingArguments, state: Any, plan: FreezePlan, *, changes: bool = False) -> None:
    """Refuses combinations in which the plan could not be kept.

    Args:
        args: The training arguments.
        state: The `AcceleratorState`.
        plan: What trains.
        changes: Whether a schedule changes the freeze state.

    Raises:
        PlanError: A schedule on DeepSpeed or FSDP1, processes that would never synchronise, FSDP1 without original
            parameters, sharded checkpoints of a model with adapters, reentrant activation checkpointing or NEFTune
            noise over frozen embeddings.
    """
    _check_processes(args)
    plugin = state.fsdp_plugin if state.distributed_type == DistributedType.FSDP else None
    if plugin is not None and plugin.fsdp_version == 1 and not plugin.use_orig_params and plan.frozen_names:
        raise PlanError(
            "fsdp_use_orig_params: FSDP version 1 flattens frozen and trainable parameters into one without it; got "
            "False. Set it to true in the accelerate config, or use fsdp_version: 2."
        )
    if plugin is not None and args.save_strategy != SaveStrategy.NO:
        _check_sharded_checkpoints(plugin, plan)
    if changes:
        _check_changes(state)
    elif ROLE_EMBEDDINGS not in plan.start.frozen:
        return
    options = args.activation_checkpointing_kwargs or {}
    if args.activation_checkpointing and isinstance(options, dict) and options.get("use_reentrant"):
        raise PlanError(
            "training.activation_checkpointing_kwargs.use_reentrant: reentrant checkpointing gives no gradient where "
            "its input needs none, as behind frozen embeddings; got True. Set it to false, which is the default."
        )
    if args.neftune_noise_alpha is not None:
        raise PlanError(
            f"training.neftune_noise_alpha: frozen embeddings stay in eval mode, where NEFTune adds no noise; got "
            f"{args.neftune_noise_alpha}. Remove it, or set freeze.embeddings to 'full'."
        )


def _check_sharded_checkpoints(plugin: Any, plan: FreezePlan) -> None:
    """Refuses checkpoints that lack what trains.

    Of a model with adapters, accelerate 1.15 writes the adapters alone to shards, and nothing under FSDP version 1.
    """
    kinds = {decision.parameter.kind for decision in plan.decisions if decision.trainable}
    is_sharded = plugin.state_dict_type != StateDictType.FULL_STATE_DICT
    if is_sharded and "adapter" in kinds and (plugin.fsdp_version == 1 or "base" in kinds):
        raise PlanError(
            "fsdp_state_dict_type: sharded checkpoints of a model with adapters lack weights that train, and resuming "
            f"would lose them; got {plugin.state_dict_type.name}. Set it to FULL_STATE_DICT in the accelerate config, "
            "or training.save_strategy to 'no'."
        )


def _check_changes(state: Any) -> None:
    """Refuses backends that note once what trains."""
    is_fsdp1 = state.distributed_type == DistributedType.FSDP and state.fsdp_plugin.fsdp_version == 1
    if is_fsdp1 or state.distributed_type == DistributedType.DEEPSPEED:
        backend = "FSDP version 1" if is_fsdp1 else "DeepSpeed"
        raise PlanError(
            f"schedule: {backend} cannot follow a freeze state that changes; got a schedule other than static. It "
            "notes once which parameters train. Use one process, DDP or fsdp_version: 2, or set schedule.type to "
            "static."
        )


def shard_by_block(state: Any, model: nn.Module, plan: FreezePlan) -> None:
    """Has FSDP treat every block as one unit, where the user names no classes for it.

    Accelerate 1.15 takes the classes that must not be split over devices instead. For BERT, ViT and others these
    include the embeddings, which it then shards a second time by themselves, and that fails.

    Args:
        state: The `AcceleratorState`.
        model: The model that carries the plan, not yet wrapped.
        plan: What trains.
    """
    plugin = state.fsdp_plugin if state.distributed_type == DistributedType.FSDP else None
    if plugin is not None and plugin.transformer_cls_names_to_wrap is None:
        paths = (path for stack in plan.layout.stacks for path in stack.blocks)
        plugin.transformer_cls_names_to_wrap = sorted({type(resolve_module(model, path)).__name__ for path in paths})


def _check_processes(args: TrainingArguments) -> None:
    """Refuses a launch of several processes that do not know of each other.

    Launchers set WORLD_SIZE. On a machine without an accelerator, accelerate 1.15 forms a group only when it is told to
    use the CPU; otherwise every process trains a model of its own without a word.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != args.world_size:
        raise PlanError(
            f"training.use_cpu: {launched} processes were launched, but they do not synchronise; got a group of "
            f"{args.world_size}. There is no accelerator on this machine that they could use. Set use_cpu to true, or "
            "launch with ACCELERATE_USE_CPU=true."
        )
