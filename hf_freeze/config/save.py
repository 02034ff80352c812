"""The `save` section: what checkpoints and the final model are written as."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hf_freeze.config.section import Section


class SaveConfig(Section):
    """What is written while training, and at its end."""

    checkpoints: Literal["small", "full"] = Field(
        "small",
        description="What checkpoints hold: small, what can change; full, what those of the Trainer hold.",
    )
    format: Literal["auto", "delta"] = Field(
        "auto",
        description="What the final model is: auto, a PEFT folder with adapters and a Transformers folder without; "
        "delta, the trained tensors and the name of the base model.",
    )
    overwrite: bool = Field(False, description="Whether another run in training.output_dir is removed.")
