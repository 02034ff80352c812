"""What a run took, in sentences: seconds, memory, and what the activation cache did."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Final

import torch

from hf_freeze.activation_cache.cache import ActivationCache
from hf_freeze.activation_cache.outputs import CacheStats

_GIB: Final = 1 << 30  # bytes


@dataclass(frozen=True)
class RunCosts:
    """What a run took.

    Attributes:
        seconds: How long training took, in seconds, evaluation at its end not included.
        peak_memory_bytes: The most memory that this process held, in bytes: of its GPU where there is one.
        on_gpu: Whether the peak is of GPU memory.
        cache: What the activation cache did, in this process; None where it was off.
        cache_reason: Why it was off; None where it was on, where it was not asked for, or where nothing is frozen.
    """

    seconds: float
    peak_memory_bytes: int
    on_gpu: bool
    cache: CacheStats | None
    cache_reason: str | None

    @property
    def sentences(self) -> tuple[str, ...]:
        """The costs, a sentence each."""
        memory = "GPU memory" if self.on_gpu else "memory of the process"
        peak = f"Peak {memory}: {self.peak_memory_bytes / _GIB:.2f} GiB."
        took = f"Training took {self.seconds:.1f} seconds. {peak}"
        stats = self.cache
        if stats is None:
            return (
                (took,) if self.cache_reason is None else (took, f"The activation cache was off: {self.cache_reason}.")
            )
        served = f"{stats.hits:,} rows were served and {stats.misses:,} were not there"
        kept = stats.seconds_saved
        saved = f"about {abs(kept):.1f} seconds were {'saved' if kept >= 0 else 'spent beyond what it saved'}"
        built = f"{stats.num_bytes / 1e6:,.0f} MB, built in {stats.build_seconds:.1f} seconds"
        return (took, f"Activation cache: {served}; {built}; {saved}.")


def run_costs(seconds: float, cache: ActivationCache, *, on_gpu: bool, is_cache_wanted: bool) -> RunCosts:
    """Returns what a run took, in this process and until now.

    Args:
        seconds: How long training took.
        cache: The activation cache.
        on_gpu: Whether training was on a GPU of CUDA.
        is_cache_wanted: Whether the cache was asked for and something is frozen.
    """
    was_on = cache.is_on or cache.stats.hits + cache.stats.misses > 0  # A schedule may have ended the prefix.
    return RunCosts(
        seconds=seconds,
        peak_memory_bytes=torch.cuda.max_memory_allocated() if on_gpu else _peak_process_memory(),
        on_gpu=on_gpu,
        cache=cache.stats if was_on else None,
        cache_reason=cache.reason if is_cache_wanted and not was_on else None,
    )


def _peak_process_memory() -> int:
    """Returns the most memory that this process has held so far, in bytes."""
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
