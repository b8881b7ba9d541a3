"""Keeps one trainer on one run directory, and says each second how it is.

    python -m runner.box.supervise --run-dir runs/stage5/20261122-101500 [--grace 60] -- python -m runner stage5

The rules of this file:

- Never a second trainer. `run.lock` is held by flock, and the lock's descriptor is handed to the trainer: it stays
  held for as long as anything of the trainer lives, also when the supervisor is killed. A lock file that was deleted
  does not help either: a status whose pid, start ticks and boot id are alive is the same as a held lock. Exit 75.
- The trainer writes to log.txt itself, so nothing breaks when the supervisor goes.
- A run that has moved to another box must not train here: `fence.json` names its epoch, and a supervisor of an older
  one does not start, or stops its trainer as soon as it sees the fence. Exit 12.
- SIGTERM, SIGINT or a `stop.request` ask the trainer's whole group to stop (SIGTERM); after the grace it is killed.
- status.json is replaced each second; a full disk leaves the old one whole. The last words are flushed to disk.
- The exit code is the contract's (`runner.errors.RunExit`), see `runner.box.ending`.

Standard library only, and the syntax of Python 3.9.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from runner.box import proc
from runner.box.ending import Ending, judge_end, last_frame
from runner.errors import RunExit
from runner.rundir import (
    RunDir,
    Status,
    make_ballast,
    read_fence,
    read_status,
    read_stop_request,
    write_status,
    write_stop_request,
)

PERIOD_S = 1.0
TAIL_BYTES = 32768
LEAST_ROOM = 16384
"""Bytes; less than this and a traceback may not have fitted into the log."""
LEFTOVER_GRACE_S = 5.0
"""Seconds for what the trainer left running in its group after it ended itself."""

_STEP = re.compile(rb'"step": ?(\d+)')


class AlreadyRunningError(Exception):
    """Something of an earlier trainer lives on this run directory."""


class FencedError(Exception):
    """This run goes on elsewhere, under a newer epoch."""


class Adopted:
    """A trainer whose first supervisor is gone: it can be watched and stopped, but not waited for."""

    returncode = None

    def __init__(self, pid: int, ticks: int | None, boot: str | None) -> None:
        self.pid, self._ticks, self._boot = pid, ticks, boot

    def over(self) -> bool:
        """Whether it is gone."""
        return not proc.is_alive(self.pid, self._ticks, self._boot)


class Started:
    """A trainer of our own."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self.pid = child.pid

    def over(self) -> bool:
        """Whether it has ended; reaps it."""
        return self._child.poll() is not None

    @property
    def returncode(self) -> int | None:
        """As subprocess gives it: negative for a signal."""
        return self._child.returncode


class Supervisor:
    """One run of one command. `run` returns the exit code."""

    def __init__(self, run_dir: str | os.PathLike[str], command: list[str], *, grace_s: float = 60.0, epoch: int = 0):
        self.run_dir = RunDir(run_dir)
        self.command = command
        self.grace_s = grace_s
        self.status = Status(epoch=epoch, supervisor_pid=os.getpid(), boot_id=proc.boot_id())
        self._asked = ""
        self._kill_at: float | None = None
        self._killed = False
        self._fenced_by: int | None = None
        self._signalled = 0
        self._lock = -1
        self._own_lock = -1
        self._log_start = 0
        self._sizes = (-1, -1)
        self._wake_read, self._wake_write = os.pipe()

    def run(self, *, adopt: bool = False) -> int:
        """Start the trainer (or with `adopt` take over one whose supervisor is gone) and stay until it has ended.

        Raises AlreadyRunningError when the run directory is taken, FencedError when the run has moved to another box,
        and OSError when the directory cannot be used.
        """
        self.run_dir.path.mkdir(parents=True, exist_ok=True)
        self.status.run_id = self.run_dir.open_log() or None
        self._listen()
        trainer: Started | Adopted | None = self._take_over() if adopt else None
        if trainer is None:
            newer = self._newer_epoch()
            if newer is not None:
                raise FencedError(f"this run goes on elsewhere: epoch {newer} is newer than {self.status.epoch}")
            self._claim()
            trainer = self._start()
        if trainer is None:
            return self._end(judge_end(127, asked="", killed=False, oom_kills=0, tail=b""))
        oom_before = proc.oom_kills()
        self._watch(trainer)
        self._sweep(trainer.pid)
        ending = judge_end(
            trainer.returncode,
            asked=self._asked,
            killed=self._killed,
            oom_kills=proc.oom_kills() - oom_before,
            tail=self._log_tail(),
            no_room=_no_room(self.run_dir.path),
        )
        return self._end(ending)

    # --- before ---

    def _claim(self) -> None:
        """Take the run's lock, or raise AlreadyRunningError saying who has it."""
        self._own_lock = self._flock(self.run_dir.path / "supervise.lock")
        if self._own_lock < 0:
            raise AlreadyRunningError(f"{self.run_dir.path} has a supervisor already")
        self._lock = self._flock(self.run_dir.lock)
        if self._lock < 0:
            pids = ", ".join(map(str, proc.holders(str(self.run_dir.lock)))) or "unknown"
            raise AlreadyRunningError(f"a trainer is still running on {self.run_dir.path} (pid {pids})")
        old = read_status(self.run_dir.status)
        if old is not None:
            if not old.ended and proc.is_alive(old.pid, old.start_ticks, old.boot_id):
                raise AlreadyRunningError(f"a trainer is still running on {self.run_dir.path} (pid {old.pid})")
            if old.epoch > self.status.epoch:
                raise FencedError(f"this run has moved on: epoch {old.epoch} is newer than {self.status.epoch}")
            self.status.seq = old.seq

    def _take_over(self) -> Adopted | None:
        """The living trainer of a supervisor that is gone, None when there is none to adopt."""
        old = read_status(self.run_dir.status)
        if old is None or old.pid is None or not proc.is_alive(old.pid, old.start_ticks, old.boot_id):
            return None
        self._own_lock = self._flock(self.run_dir.path / "supervise.lock")
        if self._own_lock < 0:
            raise AlreadyRunningError(f"{self.run_dir.path} has a supervisor already")
        self.status = old
        self.status.supervisor_pid = os.getpid()
        return Adopted(old.pid, old.start_ticks, old.boot_id)

    @staticmethod
    def _flock(path: Path) -> int:
        """An open descriptor that holds the lock, -1 when another has it."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return -1
        return fd

    def _start(self) -> Started | None:
        """Start the command in its own session; None, with a line in the log, when it cannot be started."""
        self._forget_old_request()
        self._log_start = max(0, _size(self.run_dir.log))
        self._sizes = (_size(self.run_dir.metrics), _size(self.run_dir.log))  # what an earlier run wrote is not news
        make_ballast(self.run_dir.path)
        self.status.state = "starting"
        self._beat()
        # unbuffered, or each loss would wait for the next evaluation's bar before it reaches the log
        env = {**os.environ, "PYTHONUNBUFFERED": "1", "TUNEWATCH_RUN_DIR": str(self.run_dir.path.resolve())}
        log = os.open(self.run_dir.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            child = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                pass_fds=(self._lock,),
                start_new_session=True,
                preexec_fn=self._name_trainer,
            )
        except OSError as error:
            os.write(log, f"tunewatch: could not start {self.command[0]}: {error.strerror}\n".encode())
            return None
        finally:
            os.close(log)
        self.status.seq += 1  # the child's heartbeat was this one
        self.status.state = "running"
        self.status.pid = child.pid
        self.status.start_ticks = proc.start_ticks(child.pid)
        return Started(child)

    def _name_trainer(self) -> None:
        """In the child, before it becomes the trainer: a supervisor that dies now leaves no trainer without a name.

        This process has one thread, so nothing that is held by another can stop the child here.
        """
        self.status.state = "running"
        self.status.pid = os.getpid()
        self.status.start_ticks = proc.start_ticks(self.status.pid)
        self._beat()

    def _forget_old_request(self) -> None:
        """Drop a stop.request that is older than this supervisor: it was meant for the run that it stopped."""
        path = self.run_dir.stop_request
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - _process_age():
                path.unlink()

    # --- during ---

    def _watch(self, trainer: Started | Adopted) -> None:
        next_beat = time.monotonic()
        while not trainer.over():
            self._obey(trainer.pid)
            now = time.monotonic()
            if now >= next_beat:
                self._beat()
                next_beat = max(next_beat + PERIOD_S, now)
            self._sleep(max(0.0, next_beat - time.monotonic()))

    def _obey(self, group: int) -> None:
        """Pass on a wish to stop, and lose patience when the grace is over."""
        if self._fenced_by is None and (newer := self._newer_epoch()) is not None:
            self._fenced_by = newer
            if not self._asked:
                with contextlib.suppress(OSError):
                    write_stop_request(self.run_dir.path, f"fenced: the run goes on elsewhere, epoch {newer}")
        if not self._asked:
            request = read_stop_request(self.run_dir.path)
            if request is None and not self._signalled and self._fenced_by is None:
                return
            now = time.monotonic()
            self._asked = request.reason if request else self._why_asked()
            self._kill_at = now + self.grace_s
            if request is not None and request.deadline is not None:
                self._kill_at = now + max(0.0, request.deadline - time.time())
            self.status.state, self.status.reason = "stopping", f"asked to stop: {self._asked}"
            _signal_group(group, signal.SIGTERM)
        elif self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._killed, self._kill_at = True, None
            self.status.reason = f"killed after its grace: {self._asked}"
            _signal_group(group, signal.SIGKILL)

    def _why_asked(self) -> str:
        return signal.Signals(self._signalled).name if self._signalled else f"fenced by epoch {self._fenced_by}"

    def _newer_epoch(self) -> int | None:
        """The epoch under which this run goes on elsewhere; None while it is ours."""
        fence = read_fence(self.run_dir.path)
        return fence if fence is not None and fence > self.status.epoch else None

    def _beat(self) -> None:
        """Write one heartbeat; a disk that is full keeps the old one."""
        status = self.status
        status.seq += 1
        status.mono, status.wall = time.monotonic(), time.time()
        step = self._step()
        if step is not None and step != status.step:
            status.step, status.step_mono = step, status.mono
        with contextlib.suppress(OSError):
            write_status(self.run_dir.status, status, last=False)

    def _step(self) -> int | None:
        """The newest step in metrics.jsonl, or in the log where there is none; None while neither has grown."""
        sizes = (_size(self.run_dir.metrics), _size(self.run_dir.log))
        before, self._sizes = self._sizes, sizes
        if sizes[0] > 0:
            if sizes[0] == before[0]:
                return None
            found = _STEP.findall(_tail(self.run_dir.metrics, 4096))
            return int(found[-1]) if found else None
        if sizes[1] == before[1]:
            return None
        frame = last_frame(_tail(self.run_dir.log, 4096, self._log_start))
        return frame[0] if frame else None

    # --- after ---

    def _sweep(self, group: int) -> None:
        """End what the trainer left running in its group: it would keep the GPU's memory and the run's lock."""
        give_up = time.monotonic() + LEFTOVER_GRACE_S
        if proc.group_members(group):
            _signal_group(group, signal.SIGTERM)
        while proc.group_members(group):
            if time.monotonic() >= give_up:
                _signal_group(group, signal.SIGKILL)
                give_up = time.monotonic() + LEFTOVER_GRACE_S
            self._beat()
            time.sleep(0.05)

    def _end(self, ending: Ending) -> int:
        """Write the last status and return the exit code."""
        status = self.status
        if self._fenced_by is not None and ending.code != RunExit.FINISHED:
            reason = f"fenced: the run goes on elsewhere, epoch {self._fenced_by}"
            ending = Ending(int(RunExit.LIMIT), "stopped", reason, ending.signal)
        step = self._step()
        if step is not None:
            status.step = step
        status.seq += 1
        status.mono, status.wall = time.monotonic(), time.time()
        status.state, status.reason = ending.state, ending.reason
        status.rc, status.signal = ending.code, ending.signal
        try:
            write_status(self.run_dir.status, status)
        except OSError as error:
            print(f"tunewatch: the last status could not be written: {error.strerror}", file=sys.stderr)  # noqa: T201 (the only way left to say it)
        return ending.code

    def _log_tail(self) -> bytes:
        return _tail(self.run_dir.log, TAIL_BYTES, self._log_start)

    # --- signals ---

    def _listen(self) -> None:
        """Wake up at once for a child's end and for signals; a lost terminal is no reason to stop."""
        os.set_blocking(self._wake_write, False)
        os.set_blocking(self._wake_read, False)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        for number in (signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, _no_op)

    def _on_stop(self, number: int, _frame: Any) -> None:
        self._signalled = number

    def _sleep(self, seconds: float) -> None:
        ready, _, _ = select.select([self._wake_read], [], [], seconds)
        if ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 512)


def _no_op(_number: int, _frame: Any) -> None:
    """A handler, not SIG_IGN: what is ignored stays ignored in the trainer."""


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _process_age() -> float:
    """Seconds since this process began (0 where there is no /proc)."""
    ticks = proc.start_ticks(os.getpid())
    try:
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0.0
    return max(0.0, uptime - ticks / os.sysconf("SC_CLK_TCK")) if ticks is not None else 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _no_room(path: Path) -> bool:
    """Whether the file system has no room for a line more."""
    try:
        room = os.statvfs(path)
    except OSError:
        return False
    return room.f_blocks > 0 and room.f_bavail * room.f_frsize < LEAST_ROOM


def _tail(path: Path, size: int, start: int = 0) -> bytes:
    """The last `size` bytes of a file, none of them from before `start`."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(start, end - size))
            return file.read(size)
    except OSError:
        return b""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m runner.box.supervise", description="Keep one trainer on one run directory."
    )
    parser.add_argument("--run-dir", required=True, help="where log.txt, status.json and run.lock are")
    parser.add_argument("--grace", type=float, default=60.0, help="seconds from SIGTERM to SIGKILL (default 60)")
    parser.add_argument("--epoch", type=int, default=0, help="fencing epoch of this start (default 0)")
    parser.add_argument("--adopt", action="store_true", help="take over a trainer whose supervisor is gone")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and the trainer's command line")
    options = parser.parse_args(argv)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command and not options.adopt:
        parser.error("what should run? give the trainer's command line after --")
    supervisor = Supervisor(options.run_dir, command, grace_s=options.grace, epoch=options.epoch)
    try:
        return supervisor.run(adopt=options.adopt)
    except AlreadyRunningError as error:
        print(f"tunewatch: {error}", file=sys.stderr)  # noqa: T201 (a command line's own words)
        return int(RunExit.ALREADY_RUNNING)
    except FencedError as error:
        print(f"tunewatch: {error}", file=sys.stderr)  # noqa: T201 (as above)
        return int(RunExit.LIMIT)
    except OSError as error:
        print(f"tunewatch: {options.run_dir} cannot be used: {error.strerror}", file=sys.stderr)  # noqa: T201 (as above)
        return int(RunExit.DISK_FULL) if error.errno == errno.ENOSPC else 1


if __name__ == "__main__":
    sys.exit(main())
