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

    def look(self, now: float) -> RunSnapshot:
        """Read once. A fault of link or file is told in the snapshot; what was known before stays in it."""
        try:
            read = self.feed.tick()
            self.behind = not getattr(read, "caught_up", True)
            path = Path(read.log_path) if read.log_path else None
            snapshot = self.maker.make(read, at=now, tail=self.tail.read(path))
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name=f"poll {host}", daemon=True)
        self.host = host
        self._post = post
        self._interval = interval
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
            self._wake.clear()
            started = self._clock()
            with self._lock:
                watches = list(self._watches)
            for watch in watches:
                if self._ending.is_set():
                    break
                self._post(self._looked(watch))
            rest = 0.0 if any(w.behind for w in watches) else self._interval - (self._clock() - started)
            self._wake.wait(max(rest, 0.02))
        for watch in self._watches:
            watch.close()

    def _looked(self, watch: Watch) -> RunSnapshot:
        try:
            return watch.look(self._clock())
        except Exception as error:
            # a fault of ours: say it where the eye is before this thread ends, or the screen would look merely quiet
            before = watch.last or RunSnapshot(watch.maker.target, watch.maker.name)
            words = f"reading stopped by a fault in tunewatch: {type(error).__name__}: {error}"
            self._post(replace(before, link=LinkView("offline", None, words), warnings=(*before.warnings, words)))
            raise
