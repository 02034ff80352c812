"""What an automatic selection chooses, told before training where the weights alone tell it."""

from __future__ import annotations

from transformers import PreTrainedModel

from hf_freeze.config import FreezeConfig, ModelConfig
from hf_freeze.config.automatic import AutomaticSelection, SnrSelection
from hf_freeze.plan.automatic import Chosen
from hf_freeze.plan.layout import find_layout
from hf_freeze.plan.snr import choose_by_snr
from hf_freeze.tasks.models import hub_arguments
from hf_freeze.training.pretrained import load_base


def chosen_by_weights(empty: PreTrainedModel, model: ModelConfig, section: FreezeConfig) -> Chosen | None:
    """Returns what is chosen, or None where that takes training rows.

    Args:
        empty: The model without weights.
        model: The `model` section.
        section: The `freeze` section.

    Raises:
        PlanError: The weights cannot be read, or nothing can be chosen.
    """
    if not isinstance(section.automatic, SnrSelection):
        return None
    loaded, _ = load_base(
        type(empty),
        model.name_or_path,
        empty.config,
        dtype=empty.dtype,
        trust_remote_code=model.trust_remote_code,
        **hub_arguments(model.from_pretrained_options),
    )
    layout = find_layout(loaded, blocks_path=model.blocks_path)
    return choose_by_snr(loaded, layout, section, section.automatic)


def undecided_note(selection: AutomaticSelection) -> str:
    """Says that what is frozen is chosen when training starts.

    Args:
        selection: How it is chosen.
    """
    return (
        f"freeze.blocks.auto: which blocks are frozen is chosen by {selection.by} when training starts, from training "
        "rows. What is shown here freezes no block yet."
    )
