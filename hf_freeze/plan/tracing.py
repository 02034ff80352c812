"""What one training step does, role by role: a step on tensors without data, watched operation by operation.

Nothing here knows an architecture. The model runs its own forward and backward pass under `FakeTensorMode`, which
works out shapes and allocates nothing. What autograd leaves out of a partly frozen model is left out here, too: weight
gradients of frozen weights, and everything behind the point where the backward pass stops.

Shapes: `B` batch, `L` sequence, padding included.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import PreTrainedModel

from hf_freeze.plan.apply import plan_of
from hf_freeze.plan.places import ROLE_EMBEDDINGS, ROLE_HEAD
from hf_freeze.plan.wrappers import canonical_tree

ROLE_LM_HEAD = "lm_head"

_aten = torch.ops.aten
# torch has no formulas of its own for the kernels of the CPU.
_FORMULAS: Mapping[Any, Callable[..., int]] = {
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[_aten._scaled_dot_product_flash_attention],
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        flop_registry[_aten._scaled_dot_product_flash_attention_backward]
    ),
}
# Operations that read a table at some places only.
_LOOKUPS = frozenset({_aten.embedding, _aten.index_select, _aten.gather, _aten.index})
# What `func.decompose` must not be asked for: it looks at a tensor and computes nothing.
_LOOKS = frozenset({torch.ops.prim.device.default})
# Where `scaled_dot_product_attention` takes dropout.
_DROPOUT_PLACE = 4


@dataclass(frozen=True)
class Work:
    """What operations have to do.

    Attributes:
        flops: Floating-point operations of matrix products, attention and convolutions, 2 for a multiplication with
            its addition.
        num_bytes: Bytes that all other operations read and write.
        num_random: Random numbers that are drawn.
        num_operations: How many operations there are.
    """

    flops: int = 0
    num_bytes: int = 0
    num_random: int = 0
    num_operations: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops,
            self.num_bytes + other.num_bytes,
            self.num_random + other.num_random,
            self.num_operations + other.num_operations,
        )


@dataclass(frozen=True)
class RoleTrace:
    """What one role does in a step.

    Attributes:
        forward: In the forward pass.
        backward: In the backward pass; what activation checkpointing computes again counts here.
        activation_bytes: What it made and is still there when the loss is known, in bytes.
        peak_bytes: The most bytes that are there at once while its forward pass runs, parameters and batch left out.
    """

    forward: Work = Work()
    backward: Work = Work()
    activation_bytes: int = 0
    peak_bytes: int = 0


@dataclass(frozen=True)
class StepTrace:
    """What a step does.

    Attributes:
        roles: By role, from the input on; a language-model head stands by itself, after the head.
        backward_peak_bytes: The most bytes that are there at once in the backward pass: activations, gradients and what
            is soon forgotten.
    """

    roles: Mapping[str, RoleTrace]
    backward_peak_bytes: int

    @property
    def activation_bytes(self) -> int:
        """What is kept for the backward pass, in bytes."""
        return sum(role.activation_bytes for role in self.roles.values())


def trace_step(
    model: nn.Module,
    batch: Mapping[str, torch.Tensor],
    *,
    trains: bool = True,
    autocast: torch.dtype | None = None,
    fuses_attention: bool = False,
    checkpoints: bool = False,
) -> StepTrace:
    """Watches one step of a model that a plan was applied to.

    Args:
        model: The model; its weights are not looked at and may be on the meta device. Its mode is left as it is.
        batch: What the model is called with, labels included: only shapes and dtypes matter.
        trains: Whether there is a backward pass.
        autocast: What the forward pass computes in, where that is not the dtype of the weights.
        fuses_attention: Whether attention with dropout is one kernel, which keeps no scores, as it is on GPUs.
        checkpoints: Whether activation checkpointing is on, where the model supports it.

    Raises:
        RuntimeError: The model looks at values, which are not there; or it does whatever else `FakeTensorMode` cannot.
    """
    watch = _Watch()
    with FakeTensorMode(), contextlib.ExitStack() as stack:
        state = _without_data(model)
        inputs = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in batch.items()}
        watch.leave_out((*state.values(), *inputs.values()))
        stack.enter_context(_roles_noted(model, watch))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(watch.pack, watch.unpack))
        stack.enter_context(torch.set_grad_enabled(trains))
        if fuses_attention:
            stack.enter_context(_FusedAttention())
        stack.enter_context(activation_checkpointing(model, is_on=checkpoints))
        stack.enter_context(watch)
        step = _Step(model, watch, autocast)
        functional_call(step, {f"model.{name}": value for name, value in state.items()}, (inputs, trains))
    return watch.trace([*plan_of(model).treatments, ROLE_LM_HEAD])


@contextlib.contextmanager
def activation_checkpointing(model: nn.Module, *, is_on: bool) -> Iterator[None]:
    """Keeps activation checkpointing on, where the model supports it.

    Args:
        model: The model.
        is_on: Whether it is to be on at all.
    """
    inner = canonical_tree(model).inner
    if not (is_on and isinstance(inner, PreTrainedModel) and inner.supports_gradient_checkpointing):
        yield
        return
    inner.config.use_cache = False  # Both at once are refused, with a warning.
    inner.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    try:
        yield
    finally:
        inner.activation_checkpointing_disable()  # type: ignore[no-untyped-call]
        inner.disable_input_require_grads()  # type: ignore[no-untyped-call]


class _Step(nn.Module):
    """Runs forward and backward pass in one call: checkpointed blocks run again in the backward pass."""

    def __init__(self, model: nn.Module, watch: _Watch, autocast: torch.dtype | None) -> None:
        super().__init__()
        self.model = model
        self._watch = watch
        self._autocast = autocast

    def forward(self, inputs: Mapping[str, torch.Tensor], trains: bool) -> None:
        """Runs the model on a batch."""
        with torch.autocast("cpu", dtype=self._autocast or torch.bfloat16, enabled=self._autocast is not None):
            outputs = self.model(**inputs)
        self._watch.end_forward()
        if trains:
            torch.autograd.backward(outputs["loss"])


class _FusedAttention(TorchFunctionMode):
    """Leaves dropout out of attention: without it, the CPU has a kernel that keeps what those of GPUs keep with it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            if len(args) > _DROPOUT_PLACE:
                args = (*args[:_DROPOUT_PLACE], 0.0, *args[_DROPOUT_PLACE + 1 :])
            else:
                kwargs = {**kwargs, "dropout_p": 0.0}
        return func(*args, **kwargs)


def _without_data(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns a stand-in for every parameter and buffer; one for all names of a tied parameter."""
    made: dict[int, torch.Tensor] = {}
    state: dict[str, torch.Tensor] = {}
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        if id(tensor) not in made:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype)
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
        state[name] = made[id(tensor)]
    return state


@contextlib.contextmanager
def _roles_noted(model: nn.Module, watch: _Watch) -> Iterator[None]:
    """Has the model tell the watch which role runs."""
    nodes = {node.path: node for node in canonical_tree(model).walk()}
    modules = {
        id(nodes[path].outer): (nodes[path].outer, role)
        for role, paths in plan_of(model).layout.modules.items()
        for path in paths
        if path in nodes
    }
    inner = canonical_tree(model).inner
    if isinstance(inner, PreTrainedModel):
        output: nn.Module | None = inner.get_output_embeddings()  # type: ignore[no-untyped-call]
        if output is not None:
            modules[id(output)] = (output, ROLE_LM_HEAD)
    handles = []
    for module, role in modules.values():
        handles.append(module.register_forward_pre_hook(functools.partial(watch.enter_role, role)))
        # Activation checkpointing leaves a forward pass by an exception when it has what it needs.
        handles.append(module.register_forward_hook(watch.leave_role, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class _Count:
    """What is counted for one role."""

    forward: Work = Work()
    backward: Work = Work()
    activation_bytes: int = 0
    peak_bytes: int = 0


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations, and the bytes that are there, by the role that runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._counts: dict[str, _Count] = defaultdict(_Count)
        self._running: list[str] = []
        self._between = ROLE_EMBEDDINGS  # the role of what runs outside of all modules that have one
        self._in_backward = False
        self._left_out: dict[int, Any] = {}
        self._alive: dict[int, tuple[weakref.ref[Any], str, int]] = {}
        self._num_bytes = 0
        self._backward_peak = 0

    def leave_out(self, tensors: Iterable[torch.Tensor]) -> None:
        """Counts no bytes for these tensors: parameters and the batch."""
        self._left_out = {id(tensor.untyped_storage()): tensor.untyped_storage() for tensor in tensors}

    def end_forward(self) -> None:
        """Notes what is kept for the backward pass."""
        self._in_backward = True
        self._backward_peak = self._num_bytes
        for _, role, num_bytes in self._alive.values():
            self._counts[role].activation_bytes += num_bytes

    def trace(self, roles: Iterable[str]) -> StepTrace:
        """Returns what was counted, for the roles in their order."""
        traces = {role: RoleTrace(**vars(self._counts[role])) for role in roles if role in self._counts}
        return StepTrace(traces, self._backward_peak)

    def enter_role(self, role: str, module: nn.Module, args: Any) -> None:
        """Called before a module of the role runs."""
        self._running.append(role)
        if role not in (ROLE_EMBEDDINGS, ROLE_HEAD, ROLE_LM_HEAD):
            self._between = ROLE_HEAD

    def leave_role(self, module: nn.Module, args: Any, output: Any) -> None:
        """Called when it has run."""
        role = self._running.pop()
        if self._in_backward:
            self._between = role

    def pack(self, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
        """Called when autograd keeps a tensor."""
        return self._role, tensor

    def unpack(self, packed: tuple[str, torch.Tensor]) -> torch.Tensor:
        """Called when autograd needs it: what it computes next belongs to the role that kept the tensor."""
        self._between, tensor = packed
        return tensor

    @property
    def _role(self) -> str:
        return self._running[-1] if self._running else self._between

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = _FORMULAS.get(func.overloadpacket)
        if formula is None and func not in _LOOKS:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        self._count(func, formula, args, kwargs, result)
        return result

    def _count(self, func: Any, formula: Callable[..., int] | None, args: Any, kwargs: Any, result: Any) -> None:
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        known = {id(tensor.untyped_storage()) for tensor in read}
        is_view = not func._schema.is_mutable and all(id(tensor.untyped_storage()) in known for tensor in made)
        if is_view:
            return
        work = Work(num_operations=1)
        if formula is not None:
            work += Work(flops=int(formula(*args, **kwargs, out_val=result)))
        else:
            # Of a table, no more is read than comes out.
            written = sum(map(_num_bytes, made))
            work += Work(
                num_bytes=2 * written if func.overloadpacket in _LOOKUPS else sum(map(_num_bytes, read), written)
            )
            if torch.Tag.nondeterministic_seeded in func.tags:
                work += Work(num_random=sum(tensor.numel() for tensor in made))
        count = self._counts[self._role]
        if self._in_backward:
            count.backward += work
        else:
            count.forward += work
        for tensor in made:
            self._note(tensor.untyped_storage())
        count.peak_bytes = count.peak_bytes if self._in_backward else max(count.peak_bytes, self._num_bytes)
        self._backward_peak = max(self._backward_peak, self._num_bytes)

    def _note(self, storage: torch.UntypedStorage) -> None:
        """Counts the bytes of a storage from now until it is gone."""
        key = id(storage)
        if key in self._alive or key in self._left_out:
            return
        num_bytes = storage.nbytes()

        def forget(_: weakref.ref[Any]) -> None:
            self._num_bytes -= self._alive.pop(key)[2]

        self._alive[key] = weakref.ref(storage, forget), self._role, num_bytes
        self._num_bytes += num_bytes


def _num_bytes(tensor: torch.Tensor) -> int:
    """Returns the bytes of a tensor; what is expanded is read once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
