"""Stops a run with a checkpoint, here or over SSH, and says honestly how it ended. The box stays.

The order is: `stop.request`, then SIGTERM to the supervisor, which gives the trainer its grace and then ends it. A
trainer whose supervisor was killed gets a new one first (`--adopt`). Only when all of that has failed is the group
killed from here, and only after its start ticks were compared. The exit status comes from status.json; where nobody
could wait for the process it is called lost.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from remote.alive import BOOT_ID, judge_alive
from remote.bootstrap import Phases
from remote.connect import open_transport
from remote.deeds import DeedResult, Progress, silent
from remote.feed import resolve
from remote.home import home as default_home
from remote.mirror import mirror_folder
from remote.ssh_auth import AskPassphrase
from remote.target import Target, parse_target
from remote.transport import Transport
from runner import rundir
from runner.errors import NotFoundError, RefusedError, UnreachableError
from runner.rundir import Status

_MARGIN_S = 60.0
"""Seconds beyond the trainer's grace before it is killed from here."""
_LAST_WORDS_S = 4.0
"""Seconds to wait for a last status after both processes were seen gone."""


@dataclass(frozen=True, slots=True)
class Life:
    """Who lives on a run directory."""

    trainer: bool
    supervisor: bool


def stop_target(
    text: str, *, reason: str = "asked for", home: Path | None = None, progress: Progress = silent,
    timeout: float | None = None, ask: AskPassphrase | None = None,
) -> DeedResult:  # fmt: skip
    """`tunewatch stop RUN`: RUN is a target or the name of a known run. `timeout` (s) ends the wait, then kills.

    Raises NotFoundError, RefusedError (not a supervised run) and UnreachableError (nothing is known of the run then).
    """
    target = resolve(parse_target(text), home)
    with open_transport(target, home=home, ask=ask) as host:
        result = stop_run(host, target.path, name=_name(target), reason=reason, progress=progress, timeout=timeout)
        if target.kind != "local":
            _remember(host, target, home or default_home())
        return result


def _remember(host: Transport, target: Target, home: Path) -> None:
    """Keep the run's last words beside its mirror, so that `runs` knows how it ended without asking the host."""
    raw = host.read_from(f"{target.path}/{rundir.STATUS}", 0, limit=1 << 16).data
    if rundir.read_status(raw) is not None:
        folder = mirror_folder(target, home)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / rundir.STATUS).write_bytes(raw)


def stop_run(
    host: Transport,
    run_dir: str,
    *,
    name: str,
    reason: str = "asked for",
    progress: Progress = silent,
    timeout: float | None = None,
    instance_id: int | None = None,
) -> DeedResult:
    """The same for a run directory on a host that is at hand. Asking twice is the same as asking once."""
    phases = Phases(progress)
    if host.name == "this machine" and not run_dir.startswith("/"):
        run_dir = os.path.abspath(run_dir)  # noqa: PTH100 - a transport takes texts
    with phases.step("look") as say:
        status = _status(host, run_dir)
        life = life_of(host, status)
        say(f"{status.state}, step {status.step if status.step is not None else 'unknown'}")
    if not status.ended and not life.trainer:
        # it ended between the two looks, or its supervisor is about to say how: a last word that comes is not lost
        status, life = _await_end(host, run_dir, _MARGIN_S)
    if status.ended or not life.trainer:
        return _result(phases, name, instance_id, status, life)
    if not life.supervisor:
        with phases.step("a new supervisor") as say:
            say(_adopt(host, run_dir))
    with phases.step("ask for a checkpoint and the end"):
        host.put(json.dumps({"reason": reason, "deadline": None}).encode(), f"{run_dir}/{rundir.STOP_REQUEST}")
    patience = timeout if timeout is not None else _patience(host, run_dir)
    with phases.step("wait for the end") as say:
        status, life = _await_end(host, run_dir, patience)
        say(_ending(status, life))
    if life.trainer:
        with phases.step("kill") as say:
            host.run(f"kill -KILL -- -{status.pid} 2>/dev/null || kill -KILL {status.pid}")
            status, life = _await_end(host, run_dir, 15.0)
            say(_ending(status, life))
    return _result(phases, name, instance_id, status, life)


def _status(host: Transport, run_dir: str) -> Status:
    path = f"{run_dir}/{rundir.STATUS}"
    try:
        status = rundir.read_status(host.read_from(path, 0, limit=1 << 16).data)
    except NotFoundError:
        host.stat(run_dir)
        status = None
    if status is None:
        raise RefusedError(
            f"{run_dir} on {host.name} is not a run that tunewatch started; it has no status.json.",
            hint="A run under watch only can be stopped where it was started.",
        )
    return status


def life_of(host: Transport, status: Status) -> Life:
    """Look at both processes in one question."""
    pids = (status.pid or 0, status.supervisor_pid or 0)
    answer = host.run(
        f"cat {BOOT_ID} 2>/dev/null; echo @; cat /proc/{pids[0]}/stat 2>/dev/null; echo @; "
        f"cat /proc/{pids[1]}/stat 2>/dev/null; echo @; tr '\\0' ' ' </proc/{pids[1]}/cmdline 2>/dev/null"
    )
    parts = [part.strip() for part in answer.stdout.decode("utf-8", "replace").split("@\n")]
    boot, trainer, supervisor, words = (*parts, "", "", "", "")[:4]
    if not boot:
        # no /proc (macOS): the number is all there is
        alive = [bool(pid) and host.run(f"kill -0 {pid}").rc == 0 for pid in pids]
        return Life(alive[0], alive[1])
    return Life(
        bool(status.pid) and judge_alive(trainer, boot, start_ticks=status.start_ticks, boot_id=status.boot_id),
        "supervise" in words and judge_alive(supervisor, boot, start_ticks=None, boot_id=status.boot_id),
    )


def _adopt(host: Transport, run_dir: str) -> str:
    """Start a supervisor for a trainer that lost its own."""
    q = shlex.quote
    python, root = q(sys.executable), q(str(Path(rundir.__file__).parent.parent))
    local = f"PYTHONPATH={root} {python} -m runner.box.supervise --run-dir {q(run_dir)} --adopt"
    script = f"cd {q(run_dir)} && if [ -r adopt.sh ]; then sh adopt.sh; else {local}; fi"
    host.run(f"( {script} ) </dev/null >>{q(run_dir)}/supervise.out 2>&1 &")
    return "the old one was gone"


def _patience(host: Transport, run_dir: str) -> float:
    """Seconds to wait: the grace the run was started with, and a margin. A save may take most of the grace."""
    grace = 60.0
    answer = host.run(f"grep -o -- '--grace [0-9.]*' {shlex.quote(run_dir)}/start.sh 2>/dev/null | head -n 1")
    words = answer.text.split()
    if len(words) == 2:
        grace = float(words[1])
    return grace + _MARGIN_S


def _await_end(host: Transport, run_dir: str, seconds: float) -> tuple[Status, Life]:
    """Poll until the run has ended; a link that breaks meanwhile is built anew, for as long as there is time."""
    until = time.monotonic() + seconds
    gone_since: float | None = None
    while True:
        try:
            status = _status(host, run_dir)
            if status.ended:
                return status, Life(False, False)
            life = life_of(host, status)
            if not life.trainer and not life.supervisor:
                # a supervisor that has just taken over is in no status yet, its last words may still be on their way
                gone_since = gone_since or time.monotonic()
                if time.monotonic() - gone_since > _LAST_WORDS_S:
                    return status, life
        except UnreachableError:
            if time.monotonic() >= until:
                raise
            life = Life(True, True)
        if time.monotonic() >= until:
            return status, life
        time.sleep(0.2)


def _ending(status: Status, life: Life) -> str:
    if status.ended:
        return f"{status.reason}, exit status {status.rc}"
    return "still alive" if life.trainer else "gone; its exit status is lost"


def _result(phases: Phases, name: str, instance_id: int | None, status: Status, life: Life) -> DeedResult:
    ended = status.ended or not life.trainer
    with phases.step("how it ended") as say:
        say(_ending(status, life))
    return DeedResult(ended, "stopped" if ended else "failed", name, instance_id, tuple(phases.steps))


def _name(target: Target) -> str:
    parts = [part for part in target.path.split("/") if part]
    return "/".join(parts[-2:]) if parts else target.path
