"""Who works on what: locks on a file beside the study, which end with the process that holds them.

The system drops the locks of a process however it ends. So a trial that is marked as running and that nobody holds was
killed, and no waiting time has to tell the slow from the dead. Like SQLite's own, they are POSIX locks on ranges of a
file, and work wherever a SQLite file can be shared.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_TURN: Final = 0  # the byte that a process holds while it chooses what to do next
_FIRST_TRIAL: Final = 1
_FIRST_CONFIRMATION: Final = 1 << 40  # behind any trial


class Claims:
    """The claims of this process on the parts of one search.

    Args:
        path: The file that carries the locks; it is made where it does not exist, and stays empty.
    """

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._held: set[int] = set()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Waits until no other process chooses, and keeps others from choosing."""
        fcntl.lockf(self._handle, fcntl.LOCK_EX, 1, _TURN)
        try:
            yield
        finally:
            fcntl.lockf(self._handle, fcntl.LOCK_UN, 1, _TURN)

    def claim_trial(self, number: int) -> bool:
        """Takes a trial, unless another process has it, and returns whether this one has it now.

        Args:
            number: The number of the trial.
        """
        return self._claim(_FIRST_TRIAL + number)

    def claim_confirmation(self, place: int) -> bool:
        """Takes a confirmation, unless another process has it, and returns whether this one has it now.

        Args:
            place: A number below 2 ** 62 that is its own.
        """
        return self._claim(_FIRST_CONFIRMATION + place)

    def release_trial(self, number: int) -> None:
        """Gives a trial back.

        Args:
            number: The number of the trial.
        """
        self._release(_FIRST_TRIAL + number)

    def release_confirmation(self, place: int) -> None:
        """Gives a confirmation back.

        Args:
            place: The number that is its own.
        """
        self._release(_FIRST_CONFIRMATION + place)

    def holds_trial(self, number: int) -> bool:
        """Returns whether this process has a trial.

        Args:
            number: The number of the trial.
        """
        return _FIRST_TRIAL + number in self._held

    def close(self) -> None:
        """Gives everything back."""
        os.close(self._handle)

    def _claim(self, place: int) -> bool:
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except (BlockingIOError, PermissionError):
            return False
        self._held.add(place)
        return True

    def _release(self, place: int) -> None:
        fcntl.lockf(self._handle, fcntl.LOCK_UN, 1, place)
        self._held.discard(place)
