"""Where a run's files are, brought within reach: in place for a local target, mirrored for a remote one.

A source does the input and output of a feed and decides nothing. `refresh` is called once per tick; it may take as
long as the deadlines of its transport and raises only errors of our tree.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from remote.health import Health
from remote.link import LOCAL, Link
from runner import rundir
from runner.box.proc import is_alive
from runner.errors import NotFoundError, TunewatchError
from runner.rundir import Status

LOG_SUFFIXES = (".log", ".txt", ".out")
"""What a trainer's console output is usually called, for a folder without a log.txt."""


@dataclass(frozen=True, slots=True)
class Files:
    """What is within reach after a refresh."""

    log: Path | None = None
    """The local file with the log's bytes: the log itself or its mirror."""
    metrics: Path | None = None
    status: Status | None = None
    run_dir: bool = False
    log_age_s: float | None = None
    """Seconds since the run last wrote, on one clock; None when that is not known."""
    alive: bool | None = None
    """Whether the supervised process lives; None for a foreign run, or when nobody could look."""
    behind: int = 0
    """Bytes that the host has and we have not fetched yet."""
    problem: TunewatchError | None = None
    """Why there is nothing, or nothing new; the files above are then what was known before."""
    warnings: tuple[str, ...] = ()


class Source(Protocol):
    """What a feed asks for files."""

    def refresh(self, seconds: float) -> Files:
        """Look again, fetching for about `seconds` at most beyond one round trip. Never raises for a fault."""

    def stirred(self) -> bool:
        """Whether something was written since the last refresh: one cheap question, asked several times a second."""

    def link(self) -> Link:
        """The way to the files, as of now."""

    def health(self) -> Health | None:
        """The box, as last measured."""

    def close(self) -> None:
        """Give the connection back."""


class Freshness:
    """How long ago a file was written, without comparing two clocks.

    The first look takes the age as the host tells it; from then on the age counts on the laptop's monotonic clock
    from the moment a change was seen, so a clock that is set back or forward on either side changes nothing.
    """

    def __init__(self) -> None:
        self._mark: tuple[int, float] | None = None
        self._changed_at: float | None = None

    def note(self, size: int, mtime: float, age_s: float | None, now: float) -> float | None:
        """Note what `stat` says at `now` (s, monotonic); returns the age in seconds."""
        if self._mark is None:
            self._changed_at = None if age_s is None else now - max(0.0, age_s)
        elif self._mark != (size, mtime):
            self._changed_at = now
        self._mark = (size, mtime)
        return self.age(now)

    def age(self, now: float) -> float | None:
        """Seconds since the last write that was noted."""
        return None if self._changed_at is None else max(0.0, now - self._changed_at)


def candidates(names: list[str]) -> list[str]:
    """Names in a folder that look like a trainer's console output."""
    return [n for n in sorted(names) if n.endswith(LOG_SUFFIXES) and not n.startswith(("requirements", "."))]


def choose_log(names: list[str], where: str) -> str | None:
    """The log of a folder: log.txt, else the only candidate. None in a run directory whose log is not there yet.

    Raises NotFoundError that names what was found.
    """
    if rundir.LOG in names:
        return rundir.LOG
    if {rundir.METRICS, rundir.STATUS, rundir.CONFIG, rundir.LOCK} & set(names):
        return None
    found = candidates(names)
    if len(found) == 1:
        return found[0]
    if found:
        raise NotFoundError(
            f"{where} holds {len(found)} files that may be the log.", hint=f"Name one: {', '.join(found[:6])}."
        )
    raise NotFoundError(
        f"{where} is a folder without a log.",
        hint="Name the file that the trainer's output goes to, or a run directory with a log.txt.",
    )


class LocalSource:
    """Files on this machine, read where they are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fresh = Freshness()
        self._seen: tuple[int, ...] = ()
        self._ended = False
        self._known = False
        """Whether the path was there once."""

    def refresh(self, seconds: float) -> Files:
        """Look at the path again."""
        try:
            self._seen = self._sizes()
            return self._look()
        except TunewatchError as error:
            return Files(problem=error)
        except PermissionError:
            return Files(problem=NotFoundError(f"{self.path} may not be read by this user."))

    def _look(self) -> Files:
        if not self.path.exists() and self._known:
            raise NotFoundError(
                f"It is gone, deleted or moved while it was watched: {self.path}. What was read of it stays here.",
                hint="It is read again when it is back.",
            )
        if not self.path.exists():
            raise NotFoundError(
                f"{self.path} does not exist.", hint="Name a run directory, a log file, or host:/path over SSH."
            )
        self._known = True
        if not self.path.is_dir():
            return Files(log=self.path, log_age_s=self._age(self.path))
        names = [entry.name for entry in self.path.iterdir()]
        chosen = choose_log(names, str(self.path))
        log = self.path / (chosen or rundir.LOG)
        ours = bool({rundir.METRICS, rundir.STATUS} & set(names))
        metrics = self.path / rundir.METRICS if rundir.METRICS in names else None
        status = rundir.read_status(self.path / rundir.STATUS) if rundir.STATUS in names else None
        self._ended = status is not None and status.ended
        alive = None
        if status is not None and (pid := status.pid or status.supervisor_pid):
            # before there is a trainer its supervisor stands for it
            alive = is_alive(pid, status.start_ticks if status.pid else None, status.boot_id)
        ages = [a for a in (self._age(log), _age_now(metrics)) if a is not None]
        return Files(log, metrics, status, ours, min(ages) if ages else None, alive)

    def _age(self, log: Path) -> float | None:
        try:
            info = log.stat()
        except FileNotFoundError:
            return None
        return self._fresh.note(info.st_size, info.st_mtime, time.time() - info.st_mtime, time.monotonic())

    def stirred(self) -> bool:
        """Compare the sizes with those of the last look."""
        return self._sizes() != self._seen

    def _sizes(self) -> tuple[int, ...]:
        folder = self.path.is_dir()
        paths = [self.path / name for name in (rundir.METRICS, rundir.LOG)] if folder else [self.path]
        return tuple(path.stat().st_size if path.exists() else -1 for path in paths)

    def link(self) -> Link:
        """This machine is always there."""
        return Link(LOCAL.word, 0.0, at=time.monotonic())

    def health(self) -> Health | None:
        """This machine, for a run that goes on; what it is now says nothing of one that is over."""
        if self._ended:
            return None
        from remote.local_health import this_machine

        return this_machine(self.path if self.path.is_dir() else self.path.parent)

    def close(self) -> None:
        """Nothing is held open."""


def _age_now(path: Path | None) -> float | None:
    if path is None:
        return None
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except FileNotFoundError:
        return None
