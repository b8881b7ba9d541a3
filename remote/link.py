"""What is known of the way to a host, and when to try it again. Pure: the clock comes in as an argument.

A link is judged by answers alone. It says nothing about the run behind it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

LinkWord = Literal["live", "stale", "reconnecting", "offline"]
"""live: the last question was answered. stale: one went unanswered, asked again at once. reconnecting: lost, being
built anew. offline: never reached since start, refused for good, or lost for more than five minutes."""

_PATIENCE_S = 300.0
"""After this long without an answer a link is called offline, and asked more rarely."""


@dataclass(frozen=True, slots=True)
class Link:
    """The state of a link at one moment."""

    word: LinkWord
    age_s: float | None
    """Seconds since the host last answered, when this was made; None when it never did."""
    detail: str = ""
    """One sentence for the screen."""
    at: float | None = None
    """The same moment on the laptop's monotonic clock, for a screen that counts on by itself."""
    rtt_s: float | None = None
    """Seconds of the last round trip."""


LOCAL = Link("live", 0.0)
"""This machine."""


class Backoff:
    """When to ask again: soon after a loss, more rarely the longer it lasts, never in step with others.

    The first five minutes stay within 1.2 s, because a link that is back should be noticed within three; then the
    wait doubles up to 30 s. `permanent` (a refused key, a changed host key) waits 30 s from the start.
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not a secret
        self.failures = 0
        self.lost_at: float | None = None
        self.next_at = 0.0

    def failed(self, now: float, *, permanent: bool = False) -> float:
        """Note a failure at `now` (s, monotonic); returns the seconds to wait."""
        self.failures += 1
        if self.lost_at is None:
            self.lost_at = now
        if permanent:
            wait = 30.0
        elif now - self.lost_at < _PATIENCE_S:
            wait = min(1.0, 0.25 * 2 ** min(self.failures - 1, 8))
        else:
            wait = min(30.0, 1.0 + (now - self.lost_at - _PATIENCE_S) / 10)
        wait *= self._rng.uniform(0.8, 1.2)
        self.next_at = now + wait
        return wait

    def answered(self) -> None:
        """Forget the failures."""
        self.failures = 0
        self.lost_at = None
        self.next_at = 0.0

    def word(self, now: float, *, ever: bool, permanent: bool = False) -> LinkWord:
        """The word for the state of this link at `now`; `ever` is whether the host answered since we started."""
        if not self.failures:
            return "live"
        if permanent or not ever or (self.lost_at is not None and now - self.lost_at > _PATIENCE_S):
            return "offline"
        return "stale" if self.failures == 1 else "reconnecting"
