"""Says what to do where the Hub does not give what is read from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, cast

from huggingface_hub import get_token, is_offline_mode
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

# The errors of the HTTP library below the client derive from a class that the client's own errors derive from, too;
# huggingface_hub 1 and 2 use different libraries.
HTTP_ERROR: Final = cast("type[Exception]", HfHubHTTPError.__bases__[0])


def first_line(error: BaseException) -> str:
    """Returns the first line of what an error says, or the name of its class where it says nothing.

    Args:
        error: The error.
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def hub_remedy(error: BaseException) -> str:
    """Returns a sentence, with a blank behind it, on what opens the way to a repo; empty where nothing is known.

    Args:
        error: What Transformers or the client raised; what the Hub answered is among its causes.
    """
    causes = tuple(_causes(error))

    def is_any(*kinds: type[Exception]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if is_any(GatedRepoError):
        return "Ask for access on its page, and log in with `hf auth login` or set HF_TOKEN. "
    if is_any(RevisionNotFoundError):
        return "Name a revision that the repo has. "
    if is_any(RepositoryNotFoundError) and get_token() is None:
        return "Where it is private, log in with `hf auth login` or set HF_TOKEN. "
    if is_any(RepositoryNotFoundError):
        return "Where it is private, use a token that may read it. "
    if is_any(OfflineModeIsEnabled, LocalEntryNotFoundError) and is_offline_mode():
        return "Where it is on the Hub, unset HF_HUB_OFFLINE. "
    if is_any(HTTP_ERROR, ConnectionError, TimeoutError, LocalEntryNotFoundError):
        return "Look after the network. "
    return ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
