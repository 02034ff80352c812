"""Gathers what schedules decide from: sums of gradients, drift, and the outputs of blocks for a few fixed rows.

Shapes: `B` batch, `L` sequence, `H` hidden.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.data import DataLoader

from hf_freeze.activation_cache.replay import in_mode
from hf_freeze.activation_cache.rows import Rows, kept_random_state
from hf_freeze.plan.places import block_role
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.plan.wrappers import canonical_tree, named_parameters, reshard
from hf_freeze.schedules.statistics import DRIFT, GRADIENTS, NUM_PROBED, PROBE, Statistics
from hf_freeze.training.norms import Part, local, role_norms

# Rows of like length go through the model together.
_ROWS_AT_A_TIME = 16


class _Seen(Exception):
    """Ends a forward pass once all blocks that are probed have run: not an error, so it is never seen outside."""


class Gatherer:
    """Gathers the statistics that a schedule needs, and frees what it does not need any more.

    Args:
        trainer: The trainer whose model carries the plan.
        blocks: The roles of all blocks from the input on.
    """

    def __init__(self, trainer: Any, blocks: tuple[str, ...]) -> None:
        self.trainer = weakref.proxy(trainer)
        self._blocks = blocks
        self._sums: dict[str, torch.Tensor] = {}
        self._start: dict[str, torch.Tensor] = {}
        self._rows: list[dict[str, Any]] = []
        self._known: tuple[FreezePlan, nn.Module, list[tuple[str, str, nn.Parameter]]] | None = None

    def _trained(self, plan: FreezePlan) -> list[tuple[str, str, nn.Parameter]]:
        """Returns role, name and parameter of what trains in the blocks."""
        model = self.trainer.model
        if self._known is None or self._known[0] is not plan or self._known[1] is not model:
            roles = {each.name: each.role for each in plan.decisions if each.trainable and each.role in self._blocks}
            found = [(roles[name], name, p) for name, p in named_parameters(model) if name in roles]
            self._known = (plan, model, found)
        return self._known[2]

    def add_gradients(self) -> None:
        """Adds the gradients of a step, whole and unclipped, to the sums; a step that float16 skips does not count."""
        scaler = self.trainer.accelerator.scaler
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        found = [
            (name, local(parameter.grad))
            for _, name, parameter in self._trained(self.trainer.plan)
            if parameter.grad is not None
        ]
        if scaler is not None and not all(bool(gradient.isfinite().all()) for _, gradient in found):
            return
        for name, gradient in found:
            if name in self._sums:
                self._sums[name].add_(gradient, alpha=1 / scale)
            else:
                wide = torch.promote_types(gradient.dtype, torch.float32)
                self._sums[name] = gradient.to(wide, copy=True).div_(scale)

    def keep_start(self, *, anew: bool) -> None:
        """Keeps the weights of all blocks that may train, for the drift, where they are not kept already.

        Args:
            anew: Whether to forget those that are kept.
        """
        if anew:
            self._start.clear()
        if not self._start:
            trained = self._trained(self.trainer.union_plan)
            self._start = {name: local(parameter).to("cpu", copy=True) for _, name, parameter in trained}

    def free(self, needs: frozenset[str]) -> None:
        """Frees what is not needed any more, that of frozen blocks included.

        Args:
            needs: The statistics that are still gathered.
        """
        trained = {name for _, name, _ in self._trained(self.trainer.plan)} if GRADIENTS in needs else set()
        self._sums = {name: kept for name, kept in self._sums.items() if name in trained}
        if DRIFT not in needs:
            self._start.clear()
        if PROBE not in needs:
            self._rows.clear()

    def read(self, needs: frozenset[str], train_dataloader: DataLoader[Any] | None) -> Statistics:
        """Returns what was gathered, equal in all processes, and starts the sums of gradients anew.

        Args:
            needs: The statistics.
            train_dataloader: The loader whose rows are probed.
        """
        gradients = self._agreed(self._gradient_norms()) if GRADIENTS in needs else {}
        drift = self._agreed(self._drift()) if DRIFT in needs else {}
        probe = self._probe(train_dataloader) if PROBE in needs and train_dataloader is not None else {}
        return Statistics(gradients, drift, probe)

    def _gradient_norms(self) -> dict[str, float]:
        trained = self._trained(self.trainer.plan)
        parts = (Part(role, p, self._sums[name]) for role, name, p in trained if name in self._sums)
        norms = role_norms(parts, order=1)
        self._sums.clear()
        return norms

    def _drift(self) -> dict[str, float]:
        trained = [(role, p, self._start[name].to(p.device)) for role, name, p in self._trained(self.trainer.plan)]
        lengths = role_norms(Part(role, p, start) for role, p, start in trained)
        ways = role_norms(Part(role, p, local(p) - start) for role, p, start in trained)
        return {role: way / lengths[role] for role, way in ways.items() if lengths[role] > 0}

    def _agreed(self, values: Mapping[str, float]) -> dict[str, float]:
        """Returns the numbers of the main process: a decision must be the same in all."""
        accelerator = self.trainer.accelerator
        if accelerator.num_processes == 1 or not values:
            return dict(values)
        tensor = torch.tensor(list(values.values()), dtype=torch.float64, device=accelerator.device)
        return dict(zip(values, broadcast(tensor).tolist(), strict=True))

    def _probe(self, train_dataloader: DataLoader[Any]) -> dict[str, torch.Tensor]:
        """Returns what every block that trains, but the last of all, makes of the probed rows."""
        blocks = [block for block in self._blocks[:-1] if block in self.trainer.plan.trainable_roles]
        found: dict[str, list[torch.Tensor]] = {block: [] for block in blocks}
        if not blocks:
            return {}
        model = self.trainer.model
        with kept_random_state(), torch.no_grad(), in_mode(model, training=False):
            if not self._rows:
                self._rows = _fixed_rows(train_dataloader, self.trainer.activation_cache.unkeyed)
            for batch in self._rows:
                for block, output in self._outputs(batch, blocks).items():
                    found[block].append(output)
        reshard(model)
        outputs = {block: torch.cat(parts) for block, parts in found.items()}
        if self.trainer.accelerator.num_processes > 1:
            outputs = {block: broadcast(output) for block, output in outputs.items()}
        return {block: output.to("cpu") for block, output in outputs.items()}

    def _outputs(self, batch: Mapping[str, Any], blocks: list[str]) -> dict[str, torch.Tensor]:
        """Returns the outputs of some blocks for a batch, of shape (B, H)."""
        model, found = self.trainer.model, dict[str, torch.Tensor]()
        # An exception out of the forward pass leaves the root of an FSDP2 model in a state that it does not expect.
        may_stop = not isinstance(model, FSDPModule)
        nodes = {node.path: node for node in canonical_tree(model).walk()}
        stacks = self.trainer.plan.layout.stacks
        paths = {block_role(each.name, i): f"{each.path}.{i}" for each in stacks for i in range(each.num_blocks)}

        def keep(block: str, module: nn.Module, args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple | list) else output
            found[block] = pooled(hidden, _mask(batch, block))
            if may_stop and len(found) == len(blocks):
                raise _Seen

        with contextlib.ExitStack() as stack:
            for block in blocks:
                handle = nodes[paths[block]].outer.register_forward_hook(functools.partial(keep, block))
                stack.callback(handle.remove)
            stack.enter_context(contextlib.suppress(_Seen))
            self.trainer.call_model(batch)
        return found

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns the sums of gradients, whole, by the name of their parameter; all processes must call this."""
        found = {}
        for _, name, parameter in self._trained(self.trainer.plan):
            if name in self._sums:
                found[name] = _whole(self._sums[name], parameter)
        return found

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Takes up what `tensors` returned.

        Args:
            tensors: What it returned.
        """
        for _, name, parameter in self._trained(self.trainer.plan):
            if name in tensors:
                self._sums[name] = _part(tensors[name].to(parameter.device), parameter)


def pooled(hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Returns the mean of hidden states over the tokens of each row, of shape (B, H), in float32.

    Args:
        hidden: Of shape (B, L, H), or (L, B, H) where the mask says so; without a mask, any dimensions between B and H.
        mask: 1 for tokens and 0 for padding, of shape (B, L); None where there is no padding.
    """
    hidden = hidden.float()
    if mask is not None and hidden.ndim == 3:
        if hidden.shape[:2] != mask.shape == hidden.transpose(0, 1).shape[:2]:
            hidden = hidden.transpose(0, 1)
        if hidden.shape[:2] == mask.shape:
            weights = mask.to(hidden).unsqueeze(-1)
            return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    return hidden.flatten(1, -2).mean(1)


def _mask(batch: Mapping[str, Any], block: str) -> torch.Tensor | None:
    mask = batch.get("decoder_attention_mask" if block.startswith("decoder.") else "attention_mask")
    return mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None


def _fixed_rows(loader: DataLoader[Any], unkeyed: frozenset[str]) -> list[dict[str, Any]]:
    """Returns batches of rows that are spread evenly over the lengths of all, the shortest first."""
    rows = Rows(loader, unkeyed)
    if not rows.has_length:
        return [rows.fetch(range(NUM_PROBED))]
    indices = rows.spread(NUM_PROBED)
    starts = range(0, len(indices), _ROWS_AT_A_TIME)
    return [rows.fetch(indices[start : start + _ROWS_AT_A_TIME]) for start in starts]


def _whole(part: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    if not isinstance(parameter, DTensor):
        return part
    whole: torch.Tensor = DTensor.from_local(
        part, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
    ).full_tensor()
    return whole


def _part(whole: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    if not isinstance(parameter, DTensor):
        return whole
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None).to_local()
