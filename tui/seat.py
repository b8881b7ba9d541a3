"""Two screens on one home: the first acts, the second only looks, says so, and takes over when the first is closed.

A deed that two people begin at once on one project is how a box is rented twice. The seat is a lock that dies with its
holder; who has no seat is read-only in the way of `--read-only`, so whatever refuses there refuses here.
"""

from __future__ import annotations

import os
from pathlib import Path

AGAIN_S = 3.0
"""Seconds between two tries to take the seat."""
_VARIABLE = "TUNEWATCH_READ_ONLY"


class Seat:
    """The right of one screen to act. Not for several threads."""

    def __init__(self, home: Path) -> None:
        from remote.lock import FileLock

        self._lock = FileLock(home / "screen.lock")
        self._mine = False
        """Whether this object made the session read-only."""

    @property
    def taken(self) -> bool:
        """Whether this screen has it."""
        return self._lock.held

    def take(self) -> str:
        """Try to sit down; return what a person has to know, an empty text where nothing changed."""
        from remote.lock import HeldError

        if self.taken:
            return ""
        try:
            self._lock.acquire("Another screen")
        except HeldError as error:
            if self._mine:
                return ""
            self._mine = True
            os.environ[_VARIABLE] = "1"
            holder = error.message.rpartition(" ")[2].rstrip(".")
            return f"Another screen of tunewatch (process {holder}) acts on this project: this one is read-only."
        if not self._mine:
            return ""
        self._mine = False
        os.environ.pop(_VARIABLE, None)
        return "The other screen is closed: this one acts now."

    def leave(self) -> None:
        """Give the seat to the next one."""
        if self._mine:
            os.environ.pop(_VARIABLE, None)
        self._lock.release()


def why_refused(*, second: bool) -> str:
    """Why this session may only look, as the end of a sentence, or nothing; `second`: another screen acts."""
    from tui.commands.common import read_only

    if second:
        return "another screen of tunewatch acts on this project. Close it, and this one takes over."
    return "tunewatch is read-only here." if read_only() else ""
