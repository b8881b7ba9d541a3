"""The files of a run on another machine: mirrored by pull, with the link judged by its answers.

What was seen last is on disk: after a restart of the laptop the mirrors and the last status show the run at once,
before, and without, any answer from the host.
"""

from __future__ import annotations

import difflib
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

from remote.alive import judge_alive
from remote.health import SCRIPT, Health, read_health
from remote.known import note_watched
from remote.link import Backoff, Link
from remote.mirror import Mirror, mirror_folder
from remote.source import Files, Freshness, choose_log
from remote.target import Target
from remote.transport import AuthError, LinkError, NoHostError, Transport, shell_path
from runner import rundir
from runner.atomic import write_atomic
from runner.errors import NotFoundError, RefusedError, TunewatchError, UnreachableError
from runner.rundir import Status

_DEADLINE_S = 5.0
"""For one question while watching: a link that is silent for longer counts as lost."""
_FIRST_S = 15.0
_HEALTH_EVERY_S = 15.0
_STATUS_EVERY_S = 2.0
_LOOK_EVERY_S = 5.0
"""How often the folder is listed again, for files that were not there yet."""
_PULSE_S = 4.0
"""A heartbeat (status.json's seq) this young proves the process; an older one makes us look at /proc."""


class RemoteSource:
    """One target on one host. `refresh` and the rest are called by one thread, `close` by any."""

    def __init__(
        self,
        target: Target,
        host: Transport,
        home: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        """`host` is owned by the source from here on; `home` is where `mirrors/` lies."""
        self._host = host
        self._target = target
        self._home = home
        self._path = target.path.rstrip("/") or "/"
        self._clock = clock
        self._backoff = Backoff(rng)
        self._closed = threading.Event()
        self._last_answer: float | None = None
        self._rtt: float | None = None
        self._trouble: TunewatchError | None = None
        self._health: Health | None = None
        self._health_at = self._looked_at = self._status_at = float("-inf")
        self._fresh = Freshness()
        self._pulse: tuple[int, float] | None = None
        self._alive: bool | None = None
        self._folder: str | None = None
        """The run directory over there; None until known, and for a target that is a file."""
        self._is_file = False
        self._log: Mirror | None = None
        self._metrics: Mirror | None = None
        self._status: Status | None = None
        self._store = mirror_folder(target, home)
        self._behind = 0
        self._recall()

    def _recall(self) -> None:
        """What the last session left: shown before the host has answered."""
        if not self._store.is_dir():
            return
        names = sorted(p.name for p in self._store.iterdir() if p.name.endswith(".mirror.json"))
        for name in (n.removesuffix(".mirror.json") for n in names):
            copy = Mirror(self._host, "", self._store / name)
            if name == rundir.METRICS:
                self._metrics = copy
            elif copy.offset:
                self._log = copy
        self._status = rundir.read_status(self._store / rundir.STATUS)

    # what a feed asks ---------------------------------------------------------------------------------------------

    def refresh(self, seconds: float) -> Files:
        """Ask the host, unless it is too early to ask again; whatever is known comes back either way."""
        now = self._clock()
        if now < self._backoff.next_at or self._closed.is_set():
            self._closed.wait(min(seconds, max(0.0, self._backoff.next_at - now)))
        else:
            try:
                self._ask(seconds)
            except (UnreachableError, RefusedError, NotFoundError) as error:
                self._note_trouble(error)
            else:
                self._trouble = None
        return self._files()

    def stirred(self) -> bool:
        """Whether the metrics, or else the log, changed. Silent about a link that fails: the next refresh says it."""
        copy = self._metrics if self._metrics is not None and self._metrics.remote else self._log
        if copy is None or not copy.remote or self._backoff.failures or self._closed.is_set():
            return False
        try:
            return copy.stirred(timeout=_DEADLINE_S)
        except TunewatchError:
            return True

    def link(self) -> Link:
        """Judged by the answers so far."""
        now = self._clock()
        ever = self._last_answer is not None
        age = None if self._last_answer is None else now - self._last_answer
        detail = ""
        if isinstance(self._trouble, LinkError) and self._backoff.failures and ever:
            detail = f"No answer from {self._host.name}, the run may be perfectly well. {self._trouble.message}"
        elif isinstance(self._trouble, (UnreachableError, RefusedError)) and self._backoff.failures:
            detail = self._trouble.message
        elif not ever:
            detail = "connecting"
        if not ever and not self._backoff.failures:
            return Link("offline", None, detail)
        word = self._backoff.word(now, ever=ever, permanent=_permanent(self._trouble))
        return Link(word, age, detail, self._last_answer, self._rtt)

    def health(self) -> Health | None:
        """The last measurement."""
        return self._health

    def close(self) -> None:
        """Give the connection back; a call that waits for the host ends."""
        self._closed.set()
        self._host.close()

    # the questions ------------------------------------------------------------------------------------------------

    def _ask(self, seconds: float) -> None:
        began = self._clock()
        # a run of ours writes its metrics a moment after its status: not to be waited for like what may never come
        soon = 1.0 if self._status is not None and self._metrics is None else _LOOK_EVERY_S
        if not self._is_file and (self._folder is None or began - self._looked_at > soon):
            self._look(began)
            self._answered()
        until = began + seconds
        self._behind = 0
        for copy in (self._metrics, self._log):
            if copy is None:
                continue
            try:
                pulled = copy.pull(max(0.05, until - self._clock()), timeout=_DEADLINE_S)
            except NoHostError:
                raise
            except NotFoundError as error:
                # the log of a run that has only just begun, or that was moved away: what is here stays
                if copy is self._log and self._is_file:
                    raise (self._gone() if copy.offset else error) from None
                continue
            self._behind += pulled.behind
            now = self._answered()
            if pulled.info.mtime:
                self._fresh.note(pulled.info.size, pulled.info.mtime, self._age(pulled.info.mtime), now)
            elif pulled.appended:
                self._fresh.note(pulled.size, 0.0, 0.0, now)
        if self._folder is not None and self._clock() - self._status_at >= _STATUS_EVERY_S:
            self._read_status()
        if self._clock() - self._health_at >= _HEALTH_EVERY_S and not self._behind:
            self._measure()

    def _look(self, now: float) -> None:
        """Find out what the path is, and which of a run's files are there."""
        # the first question pays for the connection; on a link that answered before, silence means a loss
        patience = _FIRST_S if self._last_answer is None else _DEADLINE_S
        began = self._clock()
        try:
            info = self._host.stat(self._path, timeout=patience)
        except NoHostError:
            raise
        except NotFoundError as error:
            if self._folder is not None:
                raise self._gone() from None
            known = self._trouble if isinstance(self._trouble, NotFoundError) else None
            raise known or NotFoundError(error.message, hint=self._nearby(patience)) from None
        self._rtt = self._clock() - began
        self._host.home(timeout=patience)
        self._looked_at = now
        if not info.is_dir:
            self._is_file = True
            self._log = self._mirror(self._path)
            return
        names = self._host.listdir(self._path, timeout=patience)
        if self._folder is None or self._log is None:
            chosen = choose_log(names, f"{self._path} on {self._host.name}")
            self._folder = self._path
            if chosen is not None:
                self._log = self._mirror(f"{self._path}/{chosen}")
        if rundir.METRICS in names and (self._metrics is None or not self._metrics.remote):
            self._metrics = self._mirror(f"{self._path}/{rundir.METRICS}")

    def _gone(self) -> NotFoundError:
        """What was there when it was looked at before."""
        where = f"{self._path} on {self._host.name}"
        return NotFoundError(
            f"It is gone, deleted or moved while it was watched: {where}. What was read of it stays here.",
            hint="It is read again when it is back.",
        )

    def _nearby(self, patience: float) -> str:
        """What there is instead of a path that is not there: names in the nearest folder above it that exists."""
        wanted, top = self._path, "/" if self._path.startswith("/") else "~"
        while True:
            above, _, name = wanted.rpartition("/")
            wanted = above if above.strip("~/") else top
            try:
                names = [n for n in self._host.listdir(wanted, timeout=patience) if not n.startswith(".")]
            except (NotFoundError, RefusedError):
                if wanted == top:
                    return "Paths are absolute, or relative to the home directory there."
                continue
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names[:6]
            if not near:
                return f"{wanted} is there, and empty."
            more = f" and {len(names) - len(near)} more" if len(names) > len(near) else ""
            return f"{wanted} is there, and holds {', '.join(near)}{more}."

    def _mirror(self, remote: str) -> Mirror:
        copy = Mirror(self._host, remote, self._store / remote.rpartition("/")[2])
        note_watched(self._target, self._home, copy.path)
        return copy

    def _read_status(self) -> None:
        self._status_at = self._clock()
        try:
            raw = self._host.read_from(f"{self._path}/{rundir.STATUS}", 0, limit=1 << 16, timeout=_DEADLINE_S).data
        except NotFoundError:
            return
        status = rundir.read_status(raw)
        if status is None:
            return
        now = self._answered()
        if self._pulse is None or self._pulse[0] != status.seq or self._status is None:
            first = self._pulse is None
            self._pulse = (status.seq, now)
            # the first look proves nothing yet: a dead supervisor's last words look the same
            self._alive = None if first else True
        self._status = status
        self._store.mkdir(parents=True, exist_ok=True)
        write_atomic(self._store / rundir.STATUS, raw, durable=False)
        if not status.ended and now - self._pulse[1] > _PULSE_S:
            self._measure()

    def _measure(self) -> None:
        """Health, clock and the life of the process in one question."""
        self._health_at = self._clock()
        # before there is a trainer its supervisor stands for it
        status = self._status
        watched = None if status is None else status.pid or status.supervisor_pid
        pid = "" if watched is None else str(watched)
        where = self._folder or self._path.rpartition("/")[0] or "/"
        sent = time.time()
        answer = self._host.run(f"DIR={shell_path(where)} PID={pid}\n{SCRIPT}", timeout=15.0)
        got = time.time()
        now = self._answered()
        self._health = read_health(
            answer.stdout.decode("utf-8", "replace"), now=now, wall_sent=sent, wall_got=got, before=self._health
        )
        if status is not None and watched:
            self._alive = judge_alive(
                self._health.pid_stat,
                self._health.boot_id,
                start_ticks=status.start_ticks if status.pid else None,
                boot_id=status.boot_id,
            )

    def _age(self, mtime: float) -> float | None:
        """Seconds since the host wrote the file, by the host's own clock."""
        skew = self._health.skew_s if self._health is not None else getattr(self._host, "skew_s", None)
        return None if skew is None else max(0.0, time.time() + skew - mtime)

    # the answers --------------------------------------------------------------------------------------------------

    def _answered(self) -> float:
        now = self._clock()
        self._last_answer = now
        self._backoff.answered()
        return now

    def _note_trouble(self, error: TunewatchError) -> None:
        if isinstance(error, NoHostError) and not isinstance(self._trouble, NoHostError):
            # whoever ended the box brought the run's last words home
            self._status = rundir.read_status(self._store / rundir.STATUS) or self._status
        self._trouble = error
        self._alive = None
        if isinstance(error, UnreachableError) or _permanent(error):
            self._backoff.failed(self._clock(), permanent=_permanent(error))
        else:
            # the host answered, the path is the trouble: look again later, the link is fine
            self._answered()
            self._backoff.next_at = self._clock() + 2.0
            self._looked_at = float("-inf")

    def _files(self) -> Files:
        now = self._clock()
        log = self._log.path if self._log is not None else None
        metrics = self._metrics.path if self._metrics is not None else None
        warnings: list[str] = self._health.warnings() if self._health is not None else []
        status = self._status
        orphaned = status is not None and not status.ended and self._alive is True and self._pulse is not None
        if orphaned and self._pulse is not None and now - self._pulse[1] > 3 * _PULSE_S:
            warnings.append("The supervisor on the box is gone; the trainer lives on without it.")
        return Files(
            log=log,
            metrics=metrics,
            status=status,
            run_dir=metrics is not None or status is not None,
            log_age_s=self._fresh.age(now),
            alive=self._alive,
            behind=self._behind,
            problem=self._trouble,
            warnings=tuple(warnings),
        )


def _permanent(error: TunewatchError | None) -> bool:
    """Whether trying again soon is useless, or would lock us out."""
    from remote.transport import HostKeyChangedError

    return isinstance(error, (AuthError, HostKeyChangedError))


__all__ = ["RemoteSource"]
