"""The screen goes first: a thread that works hard asks for its turn between two small pieces of work.

Threads share one interpreter. A thread that parses a log takes half of it from the screen that answers a key, and more
where the screen lets go of it for a moment. So the thread asks the screen's event loop to answer and goes on when the
answer comes at once, which says that nothing is being drawn.
"""

from __future__ import annotations

import asyncio
import threading
import time

AT_ONCE_S = 0.002
"""Seconds within which a loop answers that has nothing else to do."""
LONGEST_S = 0.04
"""Seconds that one turn is waited for: a screen that is never quiet slows the reading down and does not end it."""


class ScreenFirst:
    """Waits, called from any other thread, until the event loop `loop` has nothing to do."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __call__(self) -> None:
        """Wait for the screen, `LONGEST_S` at most; at once where its loop has ended."""
        now = time.monotonic()
        until = now + LONGEST_S
        while now < until:
            answered, asked = threading.Event(), now
            try:
                self._loop.call_soon_threadsafe(answered.set)
            except RuntimeError:  # the loop is closed: the program is ending
                return
            answered.wait(until - asked)
            now = time.monotonic()
            if now - asked < AT_ONCE_S:
                return
