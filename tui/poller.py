"""Reads runs while the screens only show: one thread per host, one frozen snapshot per run and tick.

The thread alone touches files and links. A dead host delays the runs on that host and nothing else; the screens hear
of it as the age of the link. A fault in reading one run becomes a snapshot that says so, never a lost thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from runner.errors import TunewatchError
from tui.snapshot import Feed, LinkView, RunSnapshot, SnapshotMaker
from tui.tail import LogTail

Post = Callable[[RunSnapshot], None]

BACKGROUND_S = 10.0
"""Seconds between two looks at a run that nobody looks at: fifty of them stay under 2 % of a core."""
FIRST_S = 1.0
"""Seconds that the first forecast waits at most for the screen to have drawn the curve: both want the interpreter."""
CATCHING_UP_S = 0.7
"""Seconds between two snapshots of a log that is being caught up."""
GLANCE_S = 0.1
"""Seconds between two glances at the size of what the run in front writes."""


@dataclass(slots=True)
class Watch:
    """One run under watch: where it is read, how its snapshot is made, and the tail of its log."""

    open: Callable[[], Feed]
    """Opens the feed, at the first look."""
    maker: SnapshotMaker
    tail: LogTail = field(default_factory=LogTail)
    last: RunSnapshot | None = None
    behind: bool = False
    """Whether there is more to read than one tick allows."""
    front: bool | None = None
    """Whether a person looks at this run, True, or at another one, False; None where nobody said."""
    looked: float = float("-inf")
    """When it was last read, monotonic seconds."""
    between: Callable[[], None] | None = None
    """Called before a piece of work that cannot be cut: it waits while the screen has something to do."""
    _feed: Feed | None = None

    @property
    def feed(self) -> Feed:
        """The feed, opened when it is first asked for."""
        if self._feed is None:
            self._feed = self.open()
        return self._feed

    def close(self) -> None:
        """Let go of files and links."""
        if self._feed is not None:
            self._feed.close()

    def due(self, now: float, background: float) -> bool:
        """Whether it is to be read in this tick: always, but for a run in the background."""
        return self.front is not False or self.behind or now - self.looked >= background

    def stirred(self) -> bool:
        """Whether the run in front has written something; a feed that cannot tell is read at each tick alone."""
        ask = getattr(self._feed, "stirred", None) if self.front else None
        return bool(ask()) if ask is not None else False

    def look(self, now: float, *, first: bool = False) -> RunSnapshot | None:
        """Read once. A fault of link or file is told in the snapshot; what was known before stays in it.

        None while a long log is caught up and a snapshot was made a moment ago: a forecast and four charts for each
        piece of it would keep the screen from answering keys. With `first`, the snapshot of the first look has curve
        and verdict but no forecast, and the next look is due at once: a person sees the run while the forecast's
        libraries are still read.
        """
        self.looked = now
        first = first and self.last is None
        try:
            read = self.feed.tick()
            self.behind = not getattr(read, "caught_up", True)
            if self.behind and self.last is not None and now - self.last.at < CATCHING_UP_S:
                return None
            path = Path(read.log_path) if read.log_path else None
            if self.between is not None and self.last is not None:
                self.between()
            snapshot = self.maker.make(read, at=now, tail=self.tail.read(path), forecast=not first)
            self.behind = self.behind or first
        except (TunewatchError, OSError) as error:
            before = self.last or RunSnapshot(self.maker.target, self.maker.name)
            age = now - before.at if self.last else None
            snapshot = replace(
                before, link=LinkView("offline", age, str(error)), state="unreachable", reason=str(error)
            )
            snapshot = replace(snapshot, at=before.at if self.last else now)
        self.last = snapshot
        return snapshot


class HostPoller(threading.Thread):
    """Looks at every run of one host, again and again."""

    def __init__(
        self,
        host: str,
        post: Post,
        watches: Iterable[Watch] = (),
        *,
        interval: float = 1.0,
        background: float = BACKGROUND_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name=f"poll {host}", daemon=True)
        self.host = host
        self._post = post
        self._interval = interval
        self._background = background
        self._clock = clock
        self._lock = threading.Lock()
        self._watches: list[Watch] = list(watches)
        self._wake = threading.Event()
        self._ending = threading.Event()

    def add(self, watch: Watch) -> None:
        """Watch one more run of this host."""
        with self._lock:
            self._watches.append(watch)
        self._wake.set()

    def drop(self, watch: Watch) -> None:
        """Look at one run no longer. Its link is closed aside: a dead one must not hold the screen."""
        with self._lock:
            if watch not in self._watches:
                return
            self._watches.remove(watch)
        threading.Thread(target=watch.close, name=f"close {self.host}", daemon=True).start()

    def look_now(self) -> None:
        """Do not wait for the next tick."""
        self._wake.set()

    def stop(self) -> None:
        """Ask the thread to end; it closes its feeds. Does not wait: a dead link must not hold the screen."""
        self._ending.set()
        self._wake.set()

    def run(self) -> None:
        """Poll until told to stop."""
        while not self._ending.is_set():
            asked = self._wake.is_set()
            self._wake.clear()
            started = self._clock()
            with self._lock:
                watches = list(self._watches)
            for watch in watches:
                if self._ending.is_set():
                    break
                if asked or watch.due(started, self._background):
                    snapshot = self._looked(watch)
                    if snapshot is not None:
                        self._post(snapshot)
            if any(w.last is not None and not w.last.estimated for w in watches):
                self._wake.wait(FIRST_S)
            elif any(w.behind for w in watches):
                self._wake.wait(0.02)
            else:
                self._rest(started + self._interval, watches)
        for watch in self._watches:
            watch.close()

    def _rest(self, until: float, watches: list[Watch]) -> None:
        """Wait for the next tick; end early when the run in front has written something, though not at once again."""
        self._wake.wait(max(0.02, min(GLANCE_S, until - self._clock())))
        while not self._wake.is_set() and self._clock() < until:
            if any(watch.stirred() for watch in watches):
                return
            self._wake.wait(max(0.02, min(GLANCE_S, until - self._clock())))

    def _looked(self, watch: Watch) -> RunSnapshot | None:
        try:
            return watch.look(self._clock(), first=True)
        except Exception as error:
            # a fault of ours: say it where the eye is before this thread ends, or the screen would look merely quiet
            before = watch.last or RunSnapshot(watch.maker.target, watch.maker.name)
            words = f"reading stopped by a fault in tunewatch: {type(error).__name__}: {error}"
            self._post(replace(before, link=LinkView("offline", None, words), warnings=(*before.warnings, words)))
            raise
