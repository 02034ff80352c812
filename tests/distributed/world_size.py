"""Writes what one process sees of the world to a folder; started by `accelerate launch` in test_launch.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator


def main(folder: Path) -> None:
    """Sums the rank plus one over all processes and writes one file per process."""
    accelerator = Accelerator()
    total = accelerator.reduce(torch.tensor([accelerator.process_index + 1.0]), reduction="sum")
    seen = {
        "device": accelerator.device.type,
        "mixed_precision": accelerator.mixed_precision,
        "rank": accelerator.process_index,
        "sum": total.item(),
        "world_size": accelerator.num_processes,
    }
    (folder / f"{accelerator.process_index}.json").write_text(json.dumps(seen))
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
