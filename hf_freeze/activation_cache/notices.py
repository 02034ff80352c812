"""What is said where the cache is off: an error where it was asked for, or else a line of the log."""

from __future__ import annotations

import logging
from typing import Literal

from hf_freeze.activation_cache.processes import is_main_process
from hf_freeze.errors import CacheError
from hf_freeze.plan.places import ROLE_EMBEDDINGS, block_role
from hf_freeze.plan.resolve import FreezePlan

logger = logging.getLogger(__name__)


def say_off(reason: str, plan: FreezePlan, enabled: bool | Literal["auto"]) -> None:
    """Says why the cache is off; a plan that freezes nothing that could be cached is not worth a word.

    Args:
        reason: Why it is off.
        plan: What is frozen.
        enabled: What `activation_cache.enabled` says.

    Raises:
        CacheError: `enabled` is true.
    """
    if enabled is True:
        raise CacheError(
            reason
            if reason.startswith("activation_cache.")
            else f"activation_cache.enabled: the cache cannot be used here; got True. {sentence(reason)} "
            "Set activation_cache.enabled to auto or false, or change what stands in its way."
        )
    first = plan.layout.stacks[0]
    roles = [ROLE_EMBEDDINGS, *(block_role(first.name, index) for index in range(first.num_blocks))]
    if enabled == "auto" and any(plan.treatments[role] == "frozen" for role in roles) and is_main_process():
        logger.warning("activation_cache: off. %s", sentence(reason))


def sentence(text: str) -> str:
    """Returns a reason as a sentence; options and classes keep their spelling.

    >>> sentence("there are no rows"), sentence("activation_cache.enabled is false")
    ('There are no rows.', 'activation_cache.enabled is false.')

    Args:
        text: The reason.
    """
    first = text[:1].upper() if text.partition(" ")[0].isalpha() else text[:1]
    return f"{first}{text[1:].rstrip('.')}."
