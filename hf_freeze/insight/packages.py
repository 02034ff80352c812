"""Whether the packages are there that only some commands need."""

from __future__ import annotations

import importlib

from hf_freeze.errors import ConfigError


def require_packages(section: str, *names: str, extra: str) -> None:
    """Raises where a package is missing, with the extra that brings it.

    Args:
        section: What needs them.
        *names: The packages.
        extra: The extra of hf_freeze.

    Raises:
        ConfigError: A package cannot be imported.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"{section}: needs a package that is not installed; got no {name}. It comes with an extra of "
                f"hf_freeze. Install it: pip install 'hf-freeze[{extra}]'."
            ) from error
