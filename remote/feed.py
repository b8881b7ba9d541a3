"""One target, watched: every tick brings what is new from the files into one frozen `FeedState`.

    feed = RunFeed("runs/demo/20261123-101500")      # or box:/root/proj/log.txt, or the name of a known run
    while True:
        state = feed.tick()                           # at most ~0.3 s of reading; network calls end by their deadlines
        show(state.history, state.link)

For callers: one thread calls `tick` and `stirred`; `close` may come from another. `tick` never raises for what the
world does: a link that drops, a path that is not there, a refused key stand in `state.problem` (a `TunewatchError`) and
in `state.link`, beside the last history that was known. A log of gigabytes is caught up over many ticks: until then
`state.caught_up` is false and `state.link.detail` says "catching up" with the share done. `settle` ticks to the end of
that and raises the problem, which is what `watch --once` wants.

`metrics.jsonl` is preferred where it holds something; the log is read all the same, for tracebacks and for the eye.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from remote.health import Health
from remote.home import home as default_home
from remote.link import LOCAL, Link
from remote.source import Files, LocalSource, Source
from remote.tail import FileTail
from remote.target import Target, parse_target
from remote.transport import Transport
from runner.errors import TunewatchError
from runner.history import RunHistory, RunState
from runner.log import LogReader
from runner.metrics import MetricsReader
from runner.rundir import Status
from runner.state import judge_state

_FETCH_S = 0.2
_READ_S = 0.2
"""Seconds of one tick for fetching and for reading, when there is more than that to do."""
_FAR = 64 << 20
"""Bytes to catch up with from which a tick reads for longer: a picture of every slice of gigabytes helps nobody."""
_FIRST_READ_S = 0.05
"""Seconds of reading at the first tick: somebody waits for the first curve, and the rest of it comes with the next."""


@dataclass(frozen=True, slots=True)
class FeedState:
    """Everything known of a target after one tick."""

    history: RunHistory
    state: RunState
    reason: str
    status: Status | None
    """The supervisor's last status.json; None for a foreign run."""
    link: Link
    log_path: Path | None
    """The local file to show as log: the log itself or its mirror; None while there is none."""
    health: Health | None
    """The box; None where it was not measured."""
    warnings: tuple[str, ...]
    run_dir: bool
    """Whether the target is a run directory of ours."""
    caught_up: bool = True
    behind: int = 0
    """Bytes that exist and are not read yet."""
    problem: TunewatchError | None = None


Connect = Callable[[Target], Transport]
"""Makes a transport for a target of kind "ssh" or "vast"; connects no earlier than its first call."""


class RunFeed:
    """Watches one target. See the module for what callers may rely on."""

    def __init__(
        self,
        target: Target | str,
        *,
        home: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        connect: Connect | None = None,
        between: Callable[[], None] | None = None,
    ) -> None:
        """`home` is where mirrors live (default `remote.home.home()`); `clock` is monotonic, in seconds.

        `between` is called between small pieces of a long reading; it may wait there for something more urgent.

        Raises UsageError for a text that is no target and NotFoundError for a name that no known run has.
        """
        self.target = resolve(parse_target(target) if isinstance(target, str) else target, home)
        self._clock = clock
        self._between = between
        self._closed = threading.Event()
        self._read_s = _FIRST_READ_S
        self._source = self._open(home, connect)
        self._log: FileTail[LogReader] | None = None
        self._metrics: FileTail[MetricsReader] | None = None
        self._merged: tuple[RunHistory, RunHistory, RunHistory] | None = None

    def _open(self, home: Path | None, connect: Connect | None) -> Source:
        if self.target.kind == "local":
            return LocalSource(Path(self.target.path))
        from remote.connect import open_transport
        from remote.source_remote import RemoteSource

        home = home or default_home()
        transport = connect(self.target) if connect is not None else open_transport(self.target, home=home)
        return RemoteSource(self.target, transport, home, clock=self._clock)

    def tick(self, now: float | None = None) -> FeedState:
        """Fetch and read what is new, and judge the run by it."""
        files = self._source.refresh(_FETCH_S)
        done = self._read(files)
        history = self._history()
        behind = files.behind + sum(t.behind for t in (self._log, self._metrics) if t is not None)
        link = self._source.link()
        if not (done and not files.behind):
            link = dataclasses.replace(link, detail=_catching_up(history, self._log, behind))
        state, reason = judge_state(
            history,
            files.status,
            log_age_s=files.log_age_s,
            alive=files.alive,
            link_ok=link.word in ("live", "stale"),
        )
        if files.problem is not None and link.word != "stale" and state not in ("finished", "stopped", "crashed"):
            # the path is gone, the key is refused, the provider knows no such instance: none of it ends a run
            state, reason = "unreachable", files.problem.message
        return FeedState(
            history=history,
            state=state,
            reason=reason,
            status=files.status,
            link=link,
            log_path=files.log,
            health=self._source.health(),
            warnings=(*files.warnings, *history.warnings),
            run_dir=files.run_dir,
            caught_up=done and not files.behind,
            behind=behind,
            problem=files.problem,
        )

    def stirred(self) -> bool:
        """Whether the next tick would bring something new: one cheap look, for the run in front. Never raises."""
        return self._source.stirred()

    def settle(self, timeout: float = 60.0) -> FeedState:
        """Tick until everything that exists was read; raises the problem where there is one, with nothing to show."""
        until = self._clock() + timeout
        while True:
            state = self.tick()
            if state.problem is not None and (not state.history.bytes_read or not state.problem.retry):
                raise state.problem
            if state.caught_up or self._clock() >= until or self._closed.is_set():
                return state

    def close(self) -> None:
        """Give the connection back. May be called from another thread, and twice."""
        self._closed.set()
        self._source.close()

    def _read(self, files: Files) -> bool:
        if files.log is not None and (self._log is None or self._log.path != files.log):
            self._log = FileTail(files.log, LogReader)
        if files.metrics is not None and (self._metrics is None or self._metrics.path != files.metrics):
            self._metrics = FileTail(files.metrics, MetricsReader)
        # at first somebody waits for this very reading
        between = None if self._read_s == _FIRST_READ_S else self._between
        seconds, self._read_s = self._read_s, _READ_S
        done = self._metrics is None or self._metrics.advance(seconds, between)
        return (self._log is None or self._log.advance(seconds, between)) and done

    def _history(self) -> RunHistory:
        """The exact history of metrics.jsonl with what only the log can say; the same object while nothing changed."""
        log = self._log.reader.history() if self._log is not None else RunHistory()
        if self._metrics is None:
            return log
        exact = self._metrics.reader.history()
        if not exact.bytes_read:
            return log
        if self._merged is None or self._merged[0] is not exact or self._merged[1] is not log:
            self._merged = (exact, log, merge(exact, log))
        return self._merged[2]


def merge(exact: RunHistory, log: RunHistory) -> RunHistory:
    """Numbers from metrics.jsonl; the end, the traceback and the facts that only the console text holds."""
    changes: dict[str, object] = {}
    if exact.ended is None and log.ended is not None:
        changes.update(ended=log.ended, end_reason=log.end_reason)
    if log.traceback and not exact.traceback:
        changes["traceback"] = log.traceback
    if log.facts:
        changes["facts"] = {**log.facts, **exact.facts}
    if exact.run_id is None and log.run_id is not None:
        changes["run_id"] = log.run_id
    changes["bytes_read"] = exact.bytes_read + log.bytes_read
    return dataclasses.replace(exact, **changes)  # type: ignore[arg-type]


def resolve(target: Target, home: Path | None = None) -> Target:
    """Replace the name of a known run by where it is."""
    if target.kind != "run":
        return target
    from remote.known import find_run

    return find_run(target.path, home or default_home())


def _catching_up(history: RunHistory, log: FileTail[LogReader] | None, behind: int) -> str:
    read = log.offset if log is not None else history.bytes_read
    total = read + behind
    return f"catching up: {read / 1e6:.0f} of {total / 1e6:.0f} MB" if total else "catching up"


__all__ = ["LOCAL", "Connect", "FeedState", "Link", "RunFeed", "merge", "resolve"]
