"""Starting a run on this machine under its supervisor, and following one without a screen.

A run belongs to its supervisor, never to tunewatch: it is started in a session of its own and goes on when the terminal
closes. The same supervisor keeps a run on a rented box.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from runner.box.proc import is_alive
from runner.errors import RefusedError, RunExit, TunewatchError
from runner.rundir import RunDir, Status, read_status

START_S = 10.0
"""Seconds that a supervisor gets to write its first status."""


class RunFailedError(TunewatchError):
    """A run on this machine ended in a way that nobody asked for."""


def alive(run: RunDir) -> bool:
    """Whether a trainer or its supervisor lives on this run directory."""
    status = read_status(run.status)
    return status is not None and not status.ended and _lives(status)


def _lives(status: Status) -> bool:
    pids = ((status.pid, status.start_ticks), (status.supervisor_pid, None))
    return any(pid is not None and is_alive(pid, ticks, status.boot_id) for pid, ticks in pids)


def running_here(kind: str, root: Path) -> RunDir | None:
    """The newest run of this kind under `root` that is still alive."""
    folder = root / kind
    runs = sorted(folder.iterdir(), reverse=True) if folder.is_dir() else []
    return next((RunDir(path) for path in runs if path.is_dir() and alive(RunDir(path))), None)


def start(kind: str, arguments: Sequence[str], root: Path, *, grace_s: float = 60.0) -> RunDir:
    """Make a run directory under `root`/`kind` and start `python -m runner ARGUMENTS` on it under the supervisor.

    Returns when the supervisor holds the run. Raises RefusedError when it does not take it, with its own words.
    """
    run = RunDir.create(kind, root)
    run = RunDir(run.path.resolve())
    command = [
        sys.executable,
        "-m",
        "runner.box.supervise",
        "--run-dir",
        str(run.path),
        "--grace",
        f"{grace_s:g}",
        "--",
    ]
    command += [sys.executable, "-m", "runner", *arguments, "--run-dir", str(run.path)]
    # a file without a name, not a pipe: the supervisor outlives us and must be able to write into it
    with tempfile.TemporaryFile("w+", encoding="utf-8") as words:
        supervisor = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=words, start_new_session=True
        )
        until = time.monotonic() + START_S
        while read_status(run.status) is None and time.monotonic() < until:
            if supervisor.poll() is not None:
                words.seek(0)
                said = words.read().strip().splitlines() or [f"exit {supervisor.returncode}"]
                raise RefusedError(f"The supervisor did not start the run: {said[-1]}", exists=str(run.path))
            time.sleep(0.02)
    _remember(run, kind)
    return run


def _remember(run: RunDir, kind: str) -> None:
    from remote.home import home
    from remote.known import KnownRun, note_run

    note_run(KnownRun(f"{kind}/{run.path.name}", str(run.path), kind), home())


def follow(run: RunDir, say: Callable[[str], None], *, period_s: float = 0.5) -> Status:
    """Wait until the run ends, telling stages, evals and the end; returns the last status."""
    from remote.feed import RunFeed
    from tui import words

    feed = RunFeed(str(run.path))
    told_stages, told_evals, stage = 0, 0, None
    try:
        while True:
            over = not alive(run)
            history = feed.tick().history
            for done in history.stages[told_stages:]:
                say(f"{done.name}: macro {done.macro:.4f}")
            if history.stage != stage and history.stage is not None:
                say(f"{history.stage} …")
            for one in history.evals[told_evals:]:
                pace = f", {words.duration(history.elapsed_s)} so far" if history.elapsed_s else ""
                say(f"  step {one.step}: eval_loss {words.loss(one.eval_loss)}{pace}")
            told_stages, told_evals, stage = len(history.stages), len(history.evals), history.stage
            if over:
                break
            time.sleep(period_s)
    finally:
        feed.close()
    status = read_status(run.status)
    if status is None:
        raise RunFailedError("The run ended without a status.", exists=str(run.path))
    return status


def check_end(run: RunDir, status: Status) -> None:
    """Raise RunFailedError, with the last words of the log, when the run ended in a way that nobody asked for."""
    fine = (RunExit.FINISHED, RunExit.AUTO_STOPPED, RunExit.STOPPED, RunExit.LIMIT)
    if status.rc in fine:
        return
    from tui.tail import LogTail

    said = [line for line in LogTail(keep=4).read(run.log) if line.strip()]
    how = f"exit {status.rc}" if status.rc is not None else f"state {status.state}"
    raise RunFailedError(
        f"The run ended with {how}.", hint="Last words: " + " | ".join(said[-3:]), exists=str(run.path)
    )
