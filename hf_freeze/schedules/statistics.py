"""What is gathered of the blocks while training, for schedules that decide from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import torch

GRADIENTS, DRIFT, PROBE = "gradients", "drift", "probe"
STATISTICS: Final = frozenset({GRADIENTS, DRIFT, PROBE})
NUM_PROBED = 64


@dataclass(frozen=True)
class Statistics:
    """What was gathered of the blocks that train, equal in all processes; empty where a schedule does not need it.

    Attributes:
        gradients: By block, the sum over its parameters of the L1 norms of their gradients, where those of all steps
            since the last moment that was due are added up first. Gradients are accumulated over micro-batches,
            averaged over processes, and not clipped. Costs one addition per parameter and step, and 4 bytes per
            parameter of these blocks.
        drift: By block, ||w - w0|| / ||w0||, with w0 its weights at the start of the run; left out where these are all
            zero. Costs a copy of the weights of all blocks that may train, in the memory of the CPU, and one pass over
            them at moments that are due. A resumed run takes as w0 what the model holds before the checkpoint is
            loaded, so the model has to be made as it was.
        probe: By block, its outputs of shape (64, H) for 64 rows of the training data, always the same, in eval mode
            and averaged over the tokens of each row; fewer than 64 where there are fewer rows. Costs their forward pass
            up to the last block but one at moments that are due, behind the frozen prefix where it is cached.
    """

    gradients: Mapping[str, float] = field(default_factory=dict)
    drift: Mapping[str, float] = field(default_factory=dict)
    probe: Mapping[str, torch.Tensor] = field(default_factory=dict)
