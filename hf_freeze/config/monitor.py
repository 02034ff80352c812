"""The `monitor` section: how often training is measured."""

from __future__ import annotations

from pydantic import Field

from hf_freeze.config.section import Section


class MonitorConfig(Section):
    """How often gradients, drift and updates are measured while training."""

    every: int | None = Field(
        100, gt=0, description="Number of steps above 0 from one measurement to the next; null: none is made."
    )
