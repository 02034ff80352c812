"""How a config lies over the one that it extends, and an override over both."""

from __future__ import annotations

from collections.abc import Sequence

from hf_freeze.config.problems import Key, KeyPath, dotted
from hf_freeze.config.selection import AUTO, SELECTORS
from hf_freeze.config.yaml_source import Located
from hf_freeze.errors import ConfigError

# The keys that make a mapping one selection.
_WHOLE = (*SELECTORS, AUTO)


def merge(base: Located | None, over: Located, path: KeyPath = ()) -> Located:
    """Lays one value over another: mappings merge key by key, anything else replaces what it covers.

    A selection is one value, although it is spelled as a mapping: `{last: 2}` over `{first: 4}` is `{last: 2}`.
    Selections for several stacks merge stack by stack.

    Args:
        base: What is covered; None where nothing is.
        over: What covers it.
        path: The key that holds both.
    """
    if base is None or not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    if _selects(path[:-1]) or (_selects(path) and not base.value.keys().isdisjoint(_WHOLE)):
        return over
    if _selects(path) and not over.value.keys().isdisjoint(_WHOLE):
        return over
    covered = {key: merge(base.value.get(key), value, (*path, key)) for key, value in over.value.items()}
    return Located({**base.value, **covered}, over.where)


def overlay(base: Located | None, keys: Sequence[Key], leaf: Located, path: KeyPath = ()) -> Located:
    """Returns what, merged over `base`, sets one nested key.

    Args:
        base: What the override will be merged over.
        keys: The way from `base` to the value; whole numbers lead into lists.
        leaf: The value.
        path: The key that holds `base`.

    Raises:
        ConfigError: If a list on the way has no such entry.
    """
    if not keys:
        return leaf
    key, *rest = keys
    inside = (*path, key)
    if base is not None and isinstance(base.value, list):
        if not isinstance(key, int) or key >= len(base.value):
            what = f"no such entry; got {key!r}. {dotted(path)} has {len(base.value)} entries, counted from 0."
            raise ConfigError(f"{leaf.where}: {dotted(inside)}: {what}")
        entry = merge(base.value[key], overlay(base.value[key], rest, leaf, inside), inside)
        return Located([*base.value[:key], entry, *base.value[key + 1 :]], base.where)
    child = base.value.get(key) if base is not None and isinstance(base.value, dict) else None
    where = base.where if base is not None else leaf.where
    return Located({key: overlay(child, rest, leaf, inside)}, where)


def _selects(path: KeyPath) -> bool:
    """Tells whether a key holds a selection, or one selection for each stack."""
    return path == ("freeze", "blocks") or (len(path) == 3 and path[0] == "adapters" and path[2] == "blocks")
