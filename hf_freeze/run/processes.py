"""How many processes a run has and what each of them holds, as an accelerate config says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.utils import DistributedType

from hf_freeze.errors import ConfigError
from hf_freeze.plan.cost import Processes

_ONE_PER_DEVICE = "accelerate_configs/ holds one for each common case."


def processes_of(path: str | None) -> Processes:
    """Reads an accelerate config.

    Args:
        path: The file; None for the one that `accelerate config` wrote, or one process where there is none.

    Raises:
        ConfigError: There is no such file, or accelerate cannot read it.
    """
    if path is None and not Path(default_config_file).is_file():
        return Processes(device=_device(use_cpu=False))
    if path is not None and not Path(path).is_file():
        raise ConfigError(
            f"--accelerate-config: no such file; got {path!r}. {_ONE_PER_DEVICE} Name one, or leave the option out."
        )
    try:
        config: Any = load_config_from_file(path)
        return _processes(config)
    # The file may hold anything: accelerate tells wrong keys, and its YAML reader wrong YAML, by these.
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from error
    except Exception as error:
        if type(error).__module__.split(".")[0] != "yaml":
            raise
        raise _unreadable(path, error) from error


def _unreadable(path: str | None, error: Exception) -> ConfigError:
    text = " ".join(str(error).split()).rstrip(".")
    return ConfigError(
        f"--accelerate-config: accelerate cannot read this file; got {str(path or default_config_file)!r}. It says: "
        f"{text}. {_ONE_PER_DEVICE} Name one of them, or mend the file."
    )


def _processes(config: Any) -> Processes:
    kind = DistributedType(str(getattr(config.distributed_type, "value", config.distributed_type)).upper())
    count = int(config.num_processes or 1)
    precision = str(config.mixed_precision or "no")
    # ZeRO divides the optimizer state from stage 1 on, gradients from stage 2 on and weights in stage 3.
    stage = 0
    if kind == DistributedType.DEEPSPEED:
        stage = int((config.deepspeed_config or {}).get("zero_stage", 2))
    elif kind == DistributedType.FSDP:
        stage = 3
    return Processes(
        count=count,
        device=_device(use_cpu=bool(config.use_cpu)),
        precision=precision if precision in ("bf16", "fp16") else "no",
        divides_weights=stage == 3,
        divides_gradients=stage >= 2,
        divides_optimizer=stage >= 1,
        copies_gradients=stage == 0 and count > 1,
    )


def _device(*, use_cpu: bool) -> str:
    found = None if use_cpu else torch.accelerator.current_accelerator()
    return "cpu" if found is None else found.type
