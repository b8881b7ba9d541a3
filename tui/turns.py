"""The screen goes first: a thread that works hard asks for its turn between two small pieces of work.

Threads share one interpreter. A thread that parses a log takes half of it from the screen that answers a key, and more
where the screen lets go of it for a moment. So the thread asks the screen's event loop to answer, and asks again as
long as the screen was at work meanwhile. What the rest of the machine does is no reason to wait.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time

AT_WORK_S = 0.001
"""Seconds of a core that the screen's thread takes at least between question and answer when it is at work."""
LONGEST_S = 0.03
"""Seconds that one turn is waited for: a screen that is never quiet slows the reading down and does not end it."""


class ScreenFirst:
    """Waits, called from any other thread, until the event loop `loop` has nothing to do.

    Make it in the thread of the loop, whose processor time tells whether it is at work.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._clock: int | None = None
        if sys.platform == "linux":
            self._clock = time.pthread_getcpuclockid(threading.get_ident())

    def __call__(self) -> None:
        """Wait for the screen, `LONGEST_S` at most; at once where its loop has ended."""
        until = time.monotonic() + LONGEST_S
        while (left := until - time.monotonic()) > 0:
            answered, before = threading.Event(), self._worked()
            try:
                self._loop.call_soon_threadsafe(answered.set)
            except RuntimeError:  # the loop is closed: the program is ending
                return
            answered.wait(left)
            if self._worked() - before < AT_WORK_S:
                return

    def _worked(self) -> float:
        """Seconds of work of the screen's thread; where a system does not tell them, seconds that went by."""
        try:
            return time.monotonic() if self._clock is None else time.clock_gettime(self._clock)
        except OSError:  # the thread has ended
            return 0.0
