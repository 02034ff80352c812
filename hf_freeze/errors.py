"""The exceptions of hf_freeze, and the search for the nearest name that exists.

```
FreezeError
├── ConfigError     what the user wrote cannot be carried out (also a ValueError)
├── LayoutError     the blocks of the model cannot be found (also a ValueError)
├── PlanError       the config and the model do not fit together (also a ValueError)
├── PlanViolation   training did something that the plan forbids: a bug, or foreign code that changes parameters
├── CacheError      the activation cache cannot be used
├── SearchError     a search cannot go on, or has no answer
└── ShareError      a saved model cannot be pushed, pulled or exported
```
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FreezeError(Exception):
    """The root of every error that hf_freeze raises on purpose."""


class ConfigError(FreezeError, ValueError):
    """A config that cannot be carried out; its message lists every problem that was found."""


class LayoutError(FreezeError, ValueError):
    """A model whose blocks cannot be found."""


class PlanError(FreezeError, ValueError):
    """A request that does not fit the model it is made for."""


class PlanViolation(FreezeError):
    """Training that does not follow the plan, found by the audit."""


class CacheError(FreezeError):
    """An activation cache that cannot be used."""


class SearchError(FreezeError):
    """A search that cannot go on, or that has no answer."""


class ShareError(FreezeError):
    """A saved model that cannot be pushed, pulled or exported; the run that saved it is intact."""


def nearest(word: str, options: Iterable[str]) -> str | None:
    """Returns the option most like `word`, or None where nothing comes close.

    Args:
        word: What was written.
        options: What exists.
    """
    matches = difflib.get_close_matches(word, sorted(options), n=1, cutoff=0.6)
    return matches[0] if matches else None


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the nearest option, or an empty string where nothing comes close.

    Args:
        word: What was written.
        options: What exists.
    """
    match = nearest(word, options)
    return f" Did you mean {match!r}?" if match is not None else ""
