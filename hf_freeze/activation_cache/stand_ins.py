"""What takes the place of frozen modules for a forward call, and when it must give the place back.

Shapes: `B` batch, `L` sequence, `H` hidden.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_freeze.activation_cache.processes import rank_and_world
from hf_freeze.errors import CacheError

# Asking for one of these asks for what the blocks themselves compute.
CAPTURED = ("output_hidden_states", "output_attentions", "output_router_logits")


class StandIn(nn.Module):
    """Stands in for a frozen block: passes its input, or stored hidden states, through.

    Args:
        block: The real block; attributes that the model reads (`layer.attention_type`) are read off it.
        extras: How many values the block returns behind the hidden states; None where it returns a tensor.
        hidden: The stored hidden states, in the model's own order of dimensions.
        carried: Where to keep the extras of the first block for those behind it.
        runs: Whether the real block runs for its extras.
        precision: The autocast dtype that the stored hidden states were computed under, or "none".
    """

    def __init__(
        self,
        block: nn.Module,
        extras: int | None,
        hidden: torch.Tensor | None,
        carried: dict[str, tuple[Any, ...]],
        *,
        runs: bool,
        precision: str,
    ) -> None:
        super().__init__()
        # Straight into the instance: a registered block would be found by `parameters()` and moved by `to()`.
        self.__dict__.update(block=block, extras=extras, hidden=hidden, carried=carried, runs=runs, was_called=False)
        self.__dict__["precision"] = precision
        _list_buffers(self, block)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the block would, with the stored or the given hidden states in front.

        Raises:
            CacheError: The stored ones were computed under another autocast.
        """
        given = self.__dict__
        given["was_called"] = True
        hidden = given["hidden"] if given["hidden"] is not None else _hidden_of(args, kwargs)
        if given["hidden"] is not None and (precision := autocast_of(hidden.device.type)) != given["precision"]:
            raise CacheError(
                f"activation_cache: the model was called under another autocast than its batch was served under; got "
                f"{precision} in place of {given['precision']}. Enter torch.autocast before serve()."
            )
        if given["extras"] is None:
            return hidden
        if given["runs"]:
            with torch.no_grad():
                given["carried"]["extras"] = tuple(given["block"](*args, **kwargs)[1:])
        return (hidden, *given["carried"].get("extras", (None,) * given["extras"]))


class EmbeddingStandIn(nn.Module):
    """Stands in for frozen embeddings that only the blocks read: the shape that it returns matters, not the values.

    Args:
        module: The real module.
        output: What to return, of the shape, dtype and device of what the module returns.
    """

    def __init__(self, module: nn.Module, output: torch.Tensor) -> None:
        super().__init__()
        self.__dict__.update(module=module, output=output)
        _list_buffers(self, module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["module"], name)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Returns the output that was given."""
        output: torch.Tensor = self.__dict__["output"]
        return output


def real_module(module: nn.Module | None) -> nn.Module | None:
    """Returns what a stand-in stands in for; any other module is returned as it is.

    Args:
        module: What is registered in a place.
    """
    while isinstance(module, StandIn | EmbeddingStandIn):
        module = module.__dict__["block" if isinstance(module, StandIn) else "module"]
    return module


def _list_buffers(stand_in: nn.Module, module: nn.Module) -> None:
    """Has a stand-in list the buffers of the real module, under their own names, where there are several processes.

    DistributedDataParallel lists the buffers of the model anew in every forward call, and fails where none is left.

    Args:
        stand_in: The stand-in.
        module: What it stands in for.
    """
    if rank_and_world()[1] > 1:
        stand_in._buffers.update(module.named_buffers())


def autocast_of(device_type: str) -> str:
    """Returns the dtype of autocast where it is on, or "none".

    Args:
        device_type: The type of the device, as `cpu`.
    """
    return str(torch.get_autocast_dtype(device_type)) if torch.is_autocast_enabled(device_type) else "none"


def _hidden_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    hidden: torch.Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


class Place(NamedTuple):
    """Where a module is registered.

    Attributes:
        holder: The module that holds it.
        name: Its name there.
        module: The module.
    """

    holder: nn.Module
    name: str
    module: nn.Module


class Swap:
    """Modules in the places of others, from entering the context to leaving it.

    Args:
        changes: Places, and what to put there.
    """

    def __init__(self, changes: Sequence[tuple[Place, nn.Module]]) -> None:
        self._changes = changes
        self._suspended = 0

    def __enter__(self) -> Swap:
        self._put()
        return self

    def __exit__(self, *error: object) -> None:
        self._take_back()

    def suspend(self) -> None:
        """Puts the real modules back until `resume` was called as often."""
        if self._suspended == 0:
            self._take_back()
        self._suspended += 1

    def resume(self) -> None:
        """Undoes one `suspend`."""
        self._suspended -= 1
        if self._suspended == 0:
            self._put()

    def _put(self) -> None:
        for place, module in self._changes:
            place.holder._modules[place.name] = module

    def _take_back(self) -> None:
        for place, _ in self._changes:
            place.holder._modules[place.name] = place.module


class Guard:
    """Watches the calls of a model while stand-ins are in, and has those run in full that stored rows do not answer.

    These are calls with other inputs than the rows were stored for, calls that continue from a key-value cache, as
    `generate` makes them, and calls that ask for what the blocks compute. Models inside the model are watched where
    they are called by themselves, as `generate` calls an encoder.

    Attributes:
        num_answered: How many calls stored rows answered.
        left_out: Names of inputs that calls which ran in full did not get.

    Args:
        models: The model without wrappers and adapters, and the models inside it.
        inputs: What the stored rows belong to, labels excluded.
        unkeyed: Names of inputs that the prefix does not read: labels, and inputs of a decoder.
    """

    def __init__(self, models: Sequence[nn.Module], inputs: Mapping[str, Any], unkeyed: Collection[str]) -> None:
        self._model, *self._inside = models
        self._unkeyed = unkeyed
        self._inputs = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        self._versions = self._versions_now()
        # For every call that has not returned: whether it runs in full.
        self._calls: list[bool] = []
        self.num_answered = 0
        self.left_out: set[str] = set()

    @contextlib.contextmanager
    def watching(self, swap: Swap, last: StandIn) -> Iterator[None]:
        """Watches until the context is left.

        Args:
            swap: The stand-ins.
            last: The one that returns the stored hidden states.

        Raises:
            CacheError: A call that they answer went past the last stand-in.
        """

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            is_inside = bool(self._calls)
            self._calls.append(not is_inside and not self._is_answered(module, args, kwargs))
            if self._calls[-1]:
                swap.suspend()
            elif not is_inside:
                self.num_answered += 1
                last.__dict__["was_called"] = False

        def after(module: nn.Module, args: Any, output: Any) -> None:
            if self._calls.pop():
                swap.resume()
            elif module is self._model and output is not None and not self._calls and not last.__dict__["was_called"]:
                raise CacheError(
                    f"activation_cache: {type(module).__name__} went past its frozen blocks; got an output that stored "
                    "rows have no part in. Set activation_cache.enabled to false for this model."
                )

        handles = []
        for module in (self._model, *self._inside):
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _versions_now(self) -> list[int]:
        """Returns what changes when an input is written to in place; tensors of inference mode do not tell."""
        return [0 if value.is_inference() else value._version for value in self._inputs.values()]

    def _is_answered(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        if isinstance(module, PreTrainedModel) and asks_for_blocks(module, kwargs):
            return False
        given = dict(kwargs)
        if args:
            given.update(zip(inspect.signature(module.forward).parameters, args, strict=False))
        if given.get("past_key_values") is not None:
            return False
        if any(
            isinstance(value, torch.Tensor)
            and value.ndim > 0
            and name not in self._inputs
            and name not in self._unkeyed
            for name, value in given.items()
        ):
            return False  # Positions, say, or embeddings in place of tokens.
        if self._versions_now() != self._versions:
            return False  # They were written to since the rows were fetched.
        # The whole model takes all inputs, a model inside those that its forward pass names.
        taken = self._inputs if module is self._model else inspect.signature(module.forward).parameters
        names = [name for name in self._inputs if name in taken]
        self.left_out |= {name for name in names if given.get(name) is None}
        return all(_is_same(given.get(name), self._inputs[name]) for name in names)


def asks_for_blocks(model: PreTrainedModel, kwargs: Mapping[str, Any]) -> bool:
    """Returns whether a call asks for hidden states, attentions or router logits.

    Args:
        model: The model that is called.
        kwargs: The arguments of the call, which the model's config stands in for.
    """
    for name in CAPTURED:
        asked = kwargs.get(name)
        if asked if asked is not None else getattr(model.config, name, False):
            return True
    return False


def _is_same(given: object, expected: torch.Tensor) -> bool:
    if given is expected:
        return True
    if not isinstance(given, torch.Tensor) or given.shape != expected.shape:
        return False
    return torch.equal(given, expected.to(given.device, given.dtype))
