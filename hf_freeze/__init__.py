"""Fine-tuning of Hugging Face Transformers while only part of the model moves.

The public names are imported on first use: `import hf_freeze` is silent and loads neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_freeze.errors import CacheError as CacheError
    from hf_freeze.errors import ConfigError as ConfigError
    from hf_freeze.errors import FreezeError as FreezeError
    from hf_freeze.errors import LayoutError as LayoutError
    from hf_freeze.errors import PlanError as PlanError
    from hf_freeze.errors import PlanViolation as PlanViolation

# Where each public name lives. The imports above say the same to type checkers; a test keeps the two equal.
_HOMES = {
    "CacheError": "hf_freeze.errors",
    "ConfigError": "hf_freeze.errors",
    "FreezeError": "hf_freeze.errors",
    "LayoutError": "hf_freeze.errors",
    "PlanError": "hf_freeze.errors",
    "PlanViolation": "hf_freeze.errors",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    """Imports a public name on first use."""
    if name == "__version__":
        return version("hf-freeze")
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_freeze' has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Lists the public names, those not yet imported included."""
    return sorted({*globals(), *__all__, "__version__"})
