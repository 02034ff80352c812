"""What several processes have to agree on before each of them caches.

Every function works on one process, too.
"""

from __future__ import annotations

import hashlib

import torch.distributed

from hf_freeze.activation_cache.keys import KEY_SIZE


def is_main_process() -> bool:
    """Returns whether this is the process that speaks for all."""
    return rank_and_world()[0] == 0


def rank_and_world() -> tuple[int, int]:
    """Returns the number of this process, and how many there are."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def first_reason(reason: str | None) -> str | None:
    """Returns the first reason that any process has against the cache: all of them use it, or none does.

    Args:
        reason: That of this process, or None.
    """
    world = rank_and_world()[1]
    if world == 1:
        return reason
    reasons: list[str | None] = [None] * world
    torch.distributed.all_gather_object(reasons, reason)
    return next((each for each in reasons if each is not None), None)


def all_agree(is_so: bool) -> bool:
    """Returns whether something is so in all processes.

    Args:
        is_so: Whether it is in this one.
    """
    return first_reason(None if is_so else "not here") is None


def of_all_shards(fingerprints: tuple[str, ...]) -> tuple[str, ...]:
    """Returns fingerprints of whole weights, where each process takes them of its own shards.

    Args:
        fingerprints: Those of this process.
    """
    world = rank_and_world()[1]
    if world == 1:
        return fingerprints
    shards: list[tuple[str, ...]] = [()] * world
    torch.distributed.all_gather_object(shards, fingerprints)
    return tuple(
        hashlib.blake2b("".join(parts).encode(), digest_size=KEY_SIZE).hexdigest()
        for parts in zip(*shards, strict=True)
    )
