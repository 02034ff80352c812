"""Fine-tuning of Hugging Face Transformers while only part of the model moves.

The public names are imported on first use: `import hf_freeze` is silent and loads neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_freeze.activation_cache.cache import ActivationCache as ActivationCache
    from hf_freeze.config import load_config as load_config
    from hf_freeze.errors import CacheError as CacheError
    from hf_freeze.errors import ConfigError as ConfigError
    from hf_freeze.errors import FreezeError as FreezeError
    from hf_freeze.errors import LayoutError as LayoutError
    from hf_freeze.errors import PlanError as PlanError
    from hf_freeze.errors import PlanViolation as PlanViolation
    from hf_freeze.errors import SearchError as SearchError
    from hf_freeze.errors import ShareError as ShareError
    from hf_freeze.insight.monitor import MonitorCallback as MonitorCallback
    from hf_freeze.plan import FreezePlan as FreezePlan
    from hf_freeze.plan import apply_plan as apply_plan
    from hf_freeze.plan import find_layout as find_layout
    from hf_freeze.plan import freeze_model as freeze_model
    from hf_freeze.plan import merge_adapters as merge_adapters
    from hf_freeze.plan import print_trainable_parameters as print_trainable_parameters
    from hf_freeze.plan import resolve_plan as resolve_plan
    from hf_freeze.run import plan_cost as plan_cost
    from hf_freeze.sharing import load_model as load_model
    from hf_freeze.training import FreezeMixin as FreezeMixin
    from hf_freeze.training import FreezeSeq2SeqTrainer as FreezeSeq2SeqTrainer
    from hf_freeze.training import FreezeTrainer as FreezeTrainer

# Where each public name lives. The imports above say the same to type checkers; a test keeps the two equal.
_HOMES = {
    "ActivationCache": "hf_freeze.activation_cache.cache",
    "CacheError": "hf_freeze.errors",
    "ConfigError": "hf_freeze.errors",
    "FreezeError": "hf_freeze.errors",
    "FreezeMixin": "hf_freeze.training",
    "FreezePlan": "hf_freeze.plan",
    "FreezeSeq2SeqTrainer": "hf_freeze.training",
    "FreezeTrainer": "hf_freeze.training",
    "LayoutError": "hf_freeze.errors",
    "MonitorCallback": "hf_freeze.insight.monitor",
    "PlanError": "hf_freeze.errors",
    "PlanViolation": "hf_freeze.errors",
    "SearchError": "hf_freeze.errors",
    "ShareError": "hf_freeze.errors",
    "apply_plan": "hf_freeze.plan",
    "find_layout": "hf_freeze.plan",
    "freeze_model": "hf_freeze.plan",
    "load_config": "hf_freeze.config",
    "load_model": "hf_freeze.sharing",
    "merge_adapters": "hf_freeze.plan",
    "plan_cost": "hf_freeze.run",
    "print_trainable_parameters": "hf_freeze.plan",
    "resolve_plan": "hf_freeze.plan",
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
