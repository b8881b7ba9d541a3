"""The run directory: the contract between the box and the laptop, as file names, shapes and safe ways to write them.

    log.txt          the trainer's console output, append-only; line 1 is `# tunewatch run <uuid>`
    metrics.jsonl    one event per line (`runner.metrics`)
    status.json      the supervisor's heartbeat, replaced atomically each second
    config.toml      everything that was resolved at the start
    checkpoints/     checkpoint-N/, each whole only once its manifest.json is there
    summary.json     the end of it, with summary.md for people
    stop.request     the laptop asks for a stop; that it exists is the request
    fence.json       the run has moved: supervisors of an epoch older than its own do not train here any more
    run.lock         held (flock) by the trainer's process tree for as long as it lives
    ballast          1 MiB that is given up when the disk is full, so that the last words can be written

The rules of this file:

- What a reader may see is whole: written beside, flushed to disk, renamed over, the folder flushed too.
- A full disk leaves the old file as it was.
- The marker of completeness (manifest.json) is written last and read first.
- Standard library only, and the syntax of Python 3.9: it runs on a rented box before anything is installed there.
"""

from __future__ import annotations

import errno
import json
import re
import time
import uuid
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from runner.atomic import (
    BALLAST,
    BALLAST_BYTES,
    PathLike,
    make_ballast,
    read_object,
    release_ballast,
    sync_folder,
    write_atomic,
)
from runner.manifest import (
    MANIFEST,
    checkpoint_step,
    checkpoints,
    newest_whole_checkpoint,
    read_manifest,
    verify_manifest,
    write_manifest,
)

__all__ = [
    "BALLAST",
    "BALLAST_BYTES",
    "CHECKPOINTS",
    "CONFIG",
    "FENCE",
    "LOCK",
    "LOG",
    "MANIFEST",
    "METRICS",
    "STAMP",
    "STATUS",
    "STOP_REQUEST",
    "SUMMARY",
    "SUMMARY_MD",
    "PathLike",
    "RunDir",
    "Status",
    "StopRequest",
    "checkpoint_step",
    "checkpoints",
    "is_run_dir",
    "make_ballast",
    "newest_whole_checkpoint",
    "parse_run_id",
    "read_fence",
    "read_manifest",
    "read_status",
    "read_stop_request",
    "release_ballast",
    "run_id_line",
    "sync_folder",
    "verify_manifest",
    "write_atomic",
    "write_fence",
    "write_manifest",
    "write_status",
    "write_stop_request",
]

LOG = "log.txt"
METRICS = "metrics.jsonl"
STATUS = "status.json"
CONFIG = "config.toml"
CHECKPOINTS = "checkpoints"
SUMMARY = "summary.json"
SUMMARY_MD = "summary.md"
STOP_REQUEST = "stop.request"
FENCE = "fence.json"
LOCK = "run.lock"

STAMP = "%Y%m%d-%H%M%S"
"""Name of a run's folder, in the local time of the machine that made it."""

_RUN_ID = re.compile(rb"# tunewatch run ([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\s*$")


def run_id_line(run_id: str) -> str:
    """Line 1 of log.txt, with its newline."""
    return f"# tunewatch run {run_id}\n"


def parse_run_id(first_line: bytes) -> str | None:
    """The uuid that line 1 of a log.txt names; None for the log of a foreign run."""
    found = _RUN_ID.match(first_line)
    return found.group(1).decode("ascii") if found else None


@dataclass
class Status:
    """One heartbeat of the supervisor. Everything in it is as seen on the box."""

    state: str = "starting"
    """starting, running, stopping; at the end finished, stopped or crashed."""
    pid: int | None = None
    """The trainer's process, leader of its group."""
    start_ticks: int | None = None
    """Clock ticks after boot at which that process began: with `boot_id` it tells a reused pid from the same one."""
    boot_id: str | None = None
    seq: int = 0
    """Goes up by one each second while the supervisor lives."""
    mono: float = 0.0
    """Seconds of the box's monotonic clock."""
    wall: float = 0.0
    """Seconds since the epoch by the box's wall clock."""
    step: int | None = None
    rc: int | None = None
    """The exit code by the contract (`runner.errors.RunExit`), once the run has ended."""
    signal: int | None = None
    """The signal that ended the trainer, if one did."""
    epoch: int = 0
    """Fencing epoch: goes up each time the run moves to another box; a lower one must not train."""
    reason: str = ""
    """Why it ended, or what it is doing, in words."""
    run_id: str | None = None
    step_mono: float | None = None
    """`mono` when `step` last went up: the difference to `mono` is how long training stands still."""
    supervisor_pid: int | None = None

    @property
    def ended(self) -> bool:
        """Whether the trainer is over."""
        return self.state in ("finished", "stopped", "crashed")


def read_status(source: bytes | PathLike) -> Status | None:
    """Read a status from its bytes or its file.

    None when there is none or it is not one (never raises for content); keys of later versions are ignored.
    """
    if isinstance(source, bytes):
        raw = source
    else:
        try:
            raw = Path(source).read_bytes()
        except OSError:
            return None
    data = read_object(raw)
    if data is None or not isinstance(data.get("state"), str):
        return None
    known = {f.name for f in fields(Status)}
    status = Status(**{k: v for k, v in data.items() if k in known})
    for name in ("pid", "start_ticks", "step", "rc", "signal", "supervisor_pid"):
        if not isinstance(getattr(status, name), (int, type(None))):
            setattr(status, name, None)
    for name in ("seq", "epoch", "mono", "wall"):
        if not isinstance(getattr(status, name), (int, float)):
            setattr(status, name, 0)
    return status


def write_status(path: PathLike, status: Status, *, last: bool = True) -> None:
    """Replace status.json.

    The last words (`last=True`) are flushed to disk, and on a full disk the ballast is given up for them; a heartbeat
    (`last=False`) does neither. Raises OSError when it could not be written; the old status is whole then.
    """
    target = Path(path)
    data = json.dumps(asdict(status)).encode()
    try:
        write_atomic(target, data, durable=last)
    except OSError as error:
        if not last or error.errno not in (errno.ENOSPC, errno.EDQUOT) or not release_ballast(target.parent):
            raise
        write_atomic(target, data)


@dataclass(frozen=True)
class StopRequest:
    """What the laptop asked for."""

    reason: str = "asked for"
    deadline: float | None = None
    """Seconds since the epoch by the box's clock after which the trainer is killed; None leaves it its grace."""


def write_stop_request(run_dir: PathLike, reason: str, deadline: float | None = None) -> None:
    """Ask the run to save and stop. Asking twice is the same as asking once, the newest words stand."""
    data = json.dumps({"reason": reason, "deadline": deadline}).encode()
    write_atomic(Path(run_dir) / STOP_REQUEST, data)


def read_stop_request(run_dir: PathLike) -> StopRequest | None:
    """The request, if there is one. A file that cannot be understood (`touch stop.request`) is one too."""
    try:
        raw = (Path(run_dir) / STOP_REQUEST).read_bytes()
    except FileNotFoundError:
        return None
    except OSError:
        return StopRequest()
    data = read_object(raw) or {}
    reason, deadline = data.get("reason"), data.get("deadline")
    return StopRequest(
        reason if isinstance(reason, str) and reason else "asked for",
        float(deadline) if isinstance(deadline, (int, float)) and not isinstance(deadline, bool) else None,
    )


def write_fence(run_dir: PathLike, epoch: int) -> None:
    """Say that the run goes on elsewhere under `epoch`; a higher one that stands there already is kept."""
    if epoch > (read_fence(run_dir) or 0):
        write_atomic(Path(run_dir) / FENCE, json.dumps({"epoch": epoch}).encode())


def read_fence(run_dir: PathLike) -> int | None:
    """The epoch below which nothing may train here; None where the run has not moved away."""
    try:
        epoch = (read_object((Path(run_dir) / FENCE).read_bytes()) or {}).get("epoch")
    except OSError:
        return None
    return epoch if isinstance(epoch, int) else None


class RunDir:
    """The paths of one run directory, and what is done to it as a whole."""

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, kind: str, root: PathLike, *, now: float | None = None) -> RunDir:
        """Make `root/kind/<YYYYMMDD-HHMMSS>/` with its log opened and its ballast put aside.

        `now` is in seconds since the epoch. A name that is taken moves on by a second. Raises OSError.
        """
        moment = time.time() if now is None else now
        while True:
            path = Path(root) / kind / time.strftime(STAMP, time.localtime(moment))
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:
                moment += 1
        run = cls(path)
        run.open_log()
        make_ballast(path)
        return run

    def open_log(self) -> str:
        """Make sure that log.txt begins with a run id and return it; a foreign log without one is left as it is."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.log.exists() or self.log.stat().st_size == 0:
            write_atomic(self.log, run_id_line(str(uuid.uuid4())).encode())
        return self.run_id() or ""

    def run_id(self) -> str | None:
        """The uuid in line 1 of log.txt, None when there is none."""
        try:
            with self.log.open("rb") as file:
                return parse_run_id(file.readline(200))
        except OSError:
            return None

    @property
    def log(self) -> Path:
        """log.txt."""
        return self.path / LOG

    @property
    def metrics(self) -> Path:
        """metrics.jsonl."""
        return self.path / METRICS

    @property
    def status(self) -> Path:
        """status.json."""
        return self.path / STATUS

    @property
    def config(self) -> Path:
        """config.toml."""
        return self.path / CONFIG

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoint-N."""
        return self.path / CHECKPOINTS

    @property
    def summary(self) -> Path:
        """summary.json."""
        return self.path / SUMMARY

    @property
    def summary_md(self) -> Path:
        """summary.md."""
        return self.path / SUMMARY_MD

    @property
    def stop_request(self) -> Path:
        """stop.request."""
        return self.path / STOP_REQUEST

    @property
    def lock(self) -> Path:
        """run.lock."""
        return self.path / LOCK

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"


def is_run_dir(path: PathLike) -> bool:
    """Whether a directory has what a run directory of ours has: a log, metrics or a status."""
    root = Path(path)
    return root.is_dir() and any((root / name).is_file() for name in (LOG, METRICS, STATUS))
