"""What data parallelism needs when the freeze state changes, and whether all processes decided alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

# What `nn.Module.__init__` empties: hooks that others registered on the wrapper.
_HOOKS = (
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
_BYTES_A_MEBIBYTE = 2**20


def rebuild_reducer(model: nn.Module) -> None:
    """Has DistributedDataParallel reduce the gradients of what trains now; nothing happens without it.

    DDP notes once, when it wraps the model, which parameters require a gradient. What is thawed later is never reduced,
    without a word, and what is frozen later is waited for in vain. Calling `__init__` again on the same wrapper, with
    its own arguments, makes a new reducer and keeps everything that refers to the wrapper.

    Args:
        model: The model as the training loop calls it.
    """
    ddp = next((module for module in model.modules() if isinstance(module, DistributedDataParallel)), None)
    if ddp is None:
        return
    kept: dict[str, Any] = {name: vars(ddp)[name] for name in _HOOKS}
    communication, training = list(ddp._comm_hooks), ddp.training
    DistributedDataParallel.__init__(
        ddp,
        ddp.module,
        device_ids=ddp.device_ids,
        output_device=ddp.output_device,
        dim=ddp.dim,
        init_sync=False,  # The processes have the same weights.
        process_group=ddp.process_group,
        bucket_cap_mb=ddp.bucket_bytes_cap // _BYTES_A_MEBIBYTE,
        find_unused_parameters=ddp.find_unused_parameters,
        gradient_as_bucket_view=ddp.gradient_as_bucket_view,
        static_graph=ddp.static_graph,
        skip_all_reduce_unused_params=ddp.skip_all_reduce_unused_params,
        batched_grad_copy=ddp.batched_grad_copy,
        forward_sync_buffers=ddp.forward_sync_buffers,
    )
    vars(ddp).update(kept)
    ddp.training = training
    for hook, state in communication:
        ddp.register_comm_hook(state, hook)


def gathered(token: int, accelerator: Any) -> list[int]:
    """Returns the numbers that all processes bring, in the order of their ranks.

    Args:
        token: The number of this process, of 63 bits.
        accelerator: The accelerator of the trainer.
    """
    if accelerator.num_processes == 1:
        return [token]
    tokens: list[int] = accelerator.gather(torch.tensor([token], device=accelerator.device)).tolist()
    return tokens
