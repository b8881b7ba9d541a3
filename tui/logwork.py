"""The thread behind the Logs screen: numbers, filters, searches and looks for growth, so that keys never wait.

It works in slices of a few milliseconds and posts a frozen `Report` at most twenty times a second. The screen hands it
new work at any time; what it was doing for the old work is dropped with the next slice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runner.errors import NotFoundError
from tui.logindex import Change, LogIndex
from tui.logscan import Filter, Search, StepLine, StepSearch

LOOK_S = 0.01
"""Seconds between two looks at the size of a file that is watched closely: three calls of the system."""
CALM_S = 0.05
"""Seconds between them when for `LIVELY_S` nothing was written and nothing was asked."""
LIVELY_S = 60.0
REPORT_S = 0.05
TURN_S = 0.008
"""Seconds of work after which the interpreter is left to the screen for a moment."""
REST_S = 0.001


@dataclass(frozen=True, slots=True)
class Report:
    """What the thread has to tell."""

    change: Change = Change.NONE
    busy: bool = False
    """Whether anything is still being numbered, filtered or searched."""
    jump: tuple[int, StepLine | None] | None = None
    """The step that was looked for and where it is, told once."""
    trouble: str = ""
    """One sentence when the file cannot be read."""


class LogWork(threading.Thread):
    """Works on one index until `stop`; `post` is called from this thread."""

    def __init__(self, index: LogIndex, post: Callable[[Report], None]) -> None:
        super().__init__(name=f"log {index.path.name}", daemon=True)
        self.index = index
        self._post = post
        self._filter: Filter | None = None
        self._search: Search | None = None
        self._evals: Search | None = None
        self._jump: StepSearch | None = None
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._told = 0.0
        self._opened = False
        self._trouble = ""

    def look_for(self, search: Search | None) -> None:
        """Search for this from now on (None: for nothing)."""
        self._search = search
        self._wake.set()

    def count_evals(self, evals: Search) -> None:
        """Search for this too, whatever else is searched."""
        self._evals = evals
        self._wake.set()

    def let_pass(self, chosen: Filter | None) -> None:
        """Filter by this from now on (None: everything passes)."""
        self._filter = chosen
        self._wake.set()

    def find_step(self, jump: StepSearch) -> None:
        """Find the line of a step; the answer comes as `Report.jump`."""
        self._jump = jump
        self._wake.set()

    def stop(self) -> None:
        """Ask the thread to end; it closes the file. Does not wait."""
        self._ending.set()
        self._wake.set()

    def run(self) -> None:
        """Work until told to stop."""
        looked, rested, busy, pace, stirred = -LOOK_S, 0.0, False, LOOK_S, time.monotonic()
        seen, grown = Change.NONE, False
        while not self._ending.is_set():
            now, was_busy = time.monotonic(), busy
            asked = self._wake.is_set()
            self._wake.clear()
            change = Change.NONE
            if asked or now - looked >= pace:
                looked, change = now, self._look()
                # a file that stays away is told once, and its return (as the same file) is news again
                asked = asked or (change is Change.MISSING) != (seen is Change.MISSING)
                seen = change
            busy = self._slice()
            if asked or busy or change in (Change.GREW, Change.RESTARTED):
                stirred = now
            pace = LOOK_S if now - stirred < LIVELY_S else CALM_S
            grown = grown or change is Change.GREW
            done = was_busy and not busy
            if asked or change is Change.RESTARTED or done or self._due(busy or grown, now):
                self._told = now
                if grown and change is Change.NONE:
                    change = Change.GREW
                grown = False
                gone = Change.MISSING if seen is Change.MISSING else change
                self._post(Report(gone, busy, trouble="" if self._opened else self._trouble))
            if not busy:
                self._wake.wait(pace)
            elif time.monotonic() - rested > TURN_S:
                # letting go of the interpreter's lock without sleeping would take it back before the screen woke up
                time.sleep(REST_S)
                rested = time.monotonic()
        self.index.close()

    def _due(self, news: bool, now: float) -> bool:
        """Whether it is time to tell how far work and file are; an idle log tells nothing, and costs nothing."""
        return news and now - self._told >= REPORT_S

    def _look(self) -> Change:
        if self._opened:
            return self.index.refresh()
        try:
            self.index.open()
        except NotFoundError as error:
            self._trouble = str(error)
            return Change.MISSING
        self._opened = True
        return Change.RESTARTED

    def _slice(self) -> bool:
        """Do a little of everything that is wanted; True while there is more."""
        if not self._opened:
            return False
        busy = self.index.scan()
        for work in (self._filter, self._search, self._evals):
            if work is not None and work.slice():
                busy = True
        jump = self._jump
        if jump is not None:
            if jump.slice():
                return True
            if self._jump is jump:
                self._jump = None
            self._post(Report(jump=(jump.step, jump.result())))
        return busy


def save_lines(index: LogIndex, chosen: Filter | None, path: Path, cancelled: Callable[[], bool]) -> int:
    """Write the lines that pass `chosen` (None: all) as they are shown to `path`; return how many.

    For a thread. Raises OSError, also when `path` exists already, and leaves nothing behind then or when cancelled.
    """
    with path.open("xb") as file:
        try:
            written = 0
            line, stop = 0, index.line_count
            while line < stop and not cancelled():
                block, following = index.block(line, stop)
                lines = block.split(b"\n")
                if chosen is not None:
                    first, last = chosen.row_at_or_after(line), chosen.row_at_or_after(following)
                    lines = [lines[chosen.at(row) - line] for row in range(first, last)]
                if lines:
                    file.write(b"\n".join(lines) + b"\n")
                written += len(lines)
                line = following
        except OSError:
            path.unlink(missing_ok=True)
            raise
    if cancelled():
        path.unlink(missing_ok=True)
        return 0
    return written
