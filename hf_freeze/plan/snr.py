"""Chooses the weights that stand out most from noise, from the weights alone.

Source: Spectrum (Hartford et al. 2024). Singular values of a random matrix stay below the edge of the Marchenko-Pastur
distribution; what lies above it is signal:

    sigma = IQR(S) / 1.349    beta = shorter side / longer side    threshold = sigma (1 + sqrt(beta))
    score = (sum of S above the threshold / sum of S up to it) / max S

The top share trains within each type of module. It is a method to save memory: weights that train are spread over all
blocks, so the backward pass runs through most of them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Final

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

from hf_freeze.config import FreezeConfig, Selection
from hf_freeze.config.automatic import SnrSelection
from hf_freeze.errors import PlanError
from hf_freeze.plan.automatic import Chosen
from hf_freeze.plan.layout import Layout
from hf_freeze.plan.places import block_role
from hf_freeze.plan.wrappers import Node, canonical_tree, join

# The interquartile range of a normal distribution in standard deviations.
_IQR: Final = 1.349


def signal_to_noise(weight: torch.Tensor) -> float:
    """Returns the score of one weight; infinite where no singular value is noise.

    >>> round(signal_to_noise(torch.diag(torch.tensor([8.0, 1.0, 1.0, 0.5]))), 6)
    0.4

    Args:
        weight: A matrix.
    """
    singular = torch.linalg.svdvals(weight.detach().float())
    quartiles = torch.quantile(singular, torch.tensor([0.25, 0.75], device=singular.device))
    sigma = float(quartiles[1] - quartiles[0]) / _IQR
    threshold = sigma * (1 + math.sqrt(min(weight.shape) / max(weight.shape)))
    signal, noise = singular[singular > threshold].sum(), singular[singular <= threshold].sum()
    largest = float(singular.max())
    if largest == 0.0:
        return 0.0
    return float(signal / noise) / largest if float(noise) > 0 else math.inf


def choose_by_snr(model: nn.Module, layout: Layout, section: FreezeConfig, selection: SnrSelection) -> Chosen:
    """Returns the section that trains the top share of the weights of each type of module.

    Embeddings are as the section says, frozen where it says `auto`, and the head trains unless it says otherwise.

    Args:
        model: The model with its weights, without adapters.
        layout: Where the roles are in it.
        section: The `freeze` section.
        selection: How it asks to choose.

    Raises:
        PlanError: There are no weights to score, or they are not finite.
    """
    groups: dict[str, dict[str, tuple[str, float]]] = defaultdict(dict)
    for kind, role, path, weight in _linear_weights(model, layout):
        whole = _whole(weight)
        if not bool(whole.isfinite().all()):
            raise PlanError(
                f"freeze.blocks.auto: this weight cannot be scored, as it is not finite; got {path}. snr takes the "
                "singular values of every linear weight in a block. Load a model whose weights are sound."
            )
        groups[kind][path] = role, signal_to_noise(whole)
    if not groups:
        raise PlanError(
            f"freeze.blocks.auto: {layout.model_class} has no weights to score; got {selection.by!r}. It scores the "
            "weights of linear layers in blocks, unquantised. Choose by gradient, or say which blocks are frozen."
        )
    chosen = [path for members in groups.values() for path in _top(members, selection.train_top)]
    named = {leaf for path in chosen for leaf in _parameters_of(layout, path)}
    globs = tuple(p.name for p in layout.parameters if p.name in named)
    made = section.model_copy(update={"blocks": Selection("all"), "always_train": (*section.always_train, *globs)})
    why = _sentences(groups, chosen, selection)
    return Chosen(selection.spelling, made, why, "Mean score of the weights of a block", _block_scores(groups))


def _linear_weights(model: nn.Module, layout: Layout) -> Iterator[tuple[str, str, str, torch.Tensor]]:
    """Yields type, role, path and weight of every linear layer in a block: its type is its path within the block."""
    nodes = {node.path: node for node in canonical_tree(model).walk()}
    for stack in layout.stacks:
        for index, block in enumerate(stack.blocks):
            for node in nodes[block].walk():
                if (weight := _weight(node)) is not None:
                    kind = join(stack.name, node.path.removeprefix(block).removeprefix("."))
                    yield kind, block_role(stack.name, index), node.path, weight


def _weight(node: Node) -> torch.Tensor | None:
    if not isinstance(node.inner, nn.Linear | Conv1D):
        return None
    leaf = node.leaves.get("weight")
    usable = leaf is not None and leaf.parameter.is_floating_point() and leaf.parameter.ndim == 2
    return leaf.parameter if usable and leaf is not None and leaf.parameter.numel() > 0 else None


def _whole(weight: torch.Tensor) -> torch.Tensor:
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def _top(members: Mapping[str, tuple[str, float]], share: float) -> list[str]:
    """Returns the paths with the highest scores, one at least; equal scores go to the layer nearer to the output."""
    count = max(1, round(share * len(members)))
    places = {path: place for place, path in enumerate(members)}
    ranked = sorted(members, key=lambda path: (members[path][1], places[path]), reverse=True)
    return sorted(ranked[:count], key=places.__getitem__)


def _parameters_of(layout: Layout, path: str) -> Iterator[str]:
    return (p.name for p in layout.parameters if p.name.rpartition(".")[0] == path)


def _sentences(
    groups: Mapping[str, Mapping[str, tuple[str, float]]], chosen: list[str], selection: SnrSelection
) -> tuple[str, ...]:
    total = sum(map(len, groups.values()))
    share = f"the {selection.train_top:.0%} of each type that stand out most from noise (snr)"
    lines = [f"freeze.blocks.auto: {len(chosen)} of {total} linear weights train, {share}."]
    trained = set(chosen)
    for kind, members in groups.items():
        roles = [role for path, (role, _) in members.items() if path in trained]
        lines.append(f"{kind}: {', '.join(roles)}.")
    return tuple(lines)


def _block_scores(groups: Mapping[str, Mapping[str, tuple[str, float]]]) -> dict[str, float]:
    """Returns the mean score of the weights of every block."""
    found: dict[str, list[float]] = defaultdict(list)
    for members in groups.values():
        for role, score in members.values():
            found[role].append(score)
    return {role: sum(scores) / len(scores) for role, scores in found.items()}
