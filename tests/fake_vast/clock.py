"""Clocks of the stand-in: one that a test moves by hand, one that runs faster than life."""

from __future__ import annotations

import threading
import time

EPOCH = 1_771_152_000.0
"""2026-02-15 10:40 UTC, the morning of the study's run."""


class ManualClock:
    """Stands still until it is told to move; `sleep` moves it, so code that waits runs at once."""

    def __init__(self, start: float = EPOCH) -> None:
        self._now = start
        self._lock = threading.Lock()

    def __call__(self) -> float:
        with self._lock:
            return self._now

    def sleep(self, seconds: float) -> None:
        """Move on by `seconds`; what waits for a real process still gets a moment of real time."""
        with self._lock:
            self._now += max(0.0, seconds)
        time.sleep(0.0005)

    advance = sleep


class ScaledClock:
    """Real time, `rate` times as fast: an hour of billing in a few seconds."""

    def __init__(self, rate: float = 1.0, start: float | None = None) -> None:
        self.rate = rate
        self._start = time.time() if start is None else start
        self._zero = time.monotonic()

    def __call__(self) -> float:
        return self._start + (time.monotonic() - self._zero) * self.rate

    def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds) / self.rate)
