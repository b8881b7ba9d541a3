"""What a guard can see of its box: the GPU, the network, saves and uploads of the run, how long nothing ran.

Nothing here waits for what may never answer and nothing here raises: a guard that dies of a broken driver, a torn file
or a process with an odd name ends no rental. Standard library only, syntax of Python 3.9.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runner.atomic import read_object
from runner.rundir import METRICS, Status

TOOL_S = 10.0
"""Seconds that nvidia-smi may take."""
LONGEST_SAVE_S = 900.0
"""A checkpoint that is said to have taken longer is not waited for any longer than this."""
_LONGEST_LINE = 1 << 20
_CHUNK = 1 << 20


def finite(value: Any, otherwise: float) -> float:
    """A number that can be reckoned with; `otherwise` for anything else, NaN and infinity among it."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return otherwise
    try:
        found = float(value)
    except OverflowError:
        return otherwise
    return found if math.isfinite(found) else otherwise


class GpuMeter:
    """How busy the GPUs are, by the vendor's tool.

    The tool hangs in the kernel, and cannot be killed, when a GPU has fallen off the bus. So it is never waited for
    after its time: it is left behind, and none is started beside it.
    """

    def __init__(self, command: list[str] | None = None, timeout_s: float = TOOL_S) -> None:
        self._command = command
        self._timeout = timeout_s
        self._stuck: subprocess.Popen[bytes] | None = None

    def __call__(self) -> float | None:
        """The busiest GPU in per cent; None where nobody can say."""
        if self._stuck is not None:
            if self._stuck.poll() is None:
                return None
            self._stuck = None
        command = self._command
        if command is None:
            tool = shutil.which("nvidia-smi")
            if tool is None:
                return None
            command = [tool, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError:
            return None
        try:
            text = child.communicate(timeout=self._timeout)[0].decode("ascii", "replace")
        except subprocess.TimeoutExpired:
            child.kill()
            if child.stdout is not None:
                child.stdout.close()
            self._stuck = child
            return None
        uses = [float(line) for line in text.split() if line.replace(".", "", 1).isdigit()]
        return max(uses) if uses else None


def network_bytes(table: Path = Path("/proc/net/dev")) -> tuple[int, int]:
    """Bytes received and sent by every interface but loopback; zeros where it cannot be read."""
    down = up = 0
    try:
        lines = table.read_text(errors="replace").splitlines()[2:]
    except OSError:
        return 0, 0
    for line in lines:
        name, _, rest = line.partition(":")
        numbers = rest.split()
        if name.strip() != "lo" and len(numbers) >= 9 and numbers[0].isdigit() and numbers[8].isdigit():
            down += int(numbers[0])
            up += int(numbers[8])
    return down, up


class Uploads:
    """Saves and uploads by metrics.jsonl, which grows to hundreds of megabytes: each byte of it is read once."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / METRICS
        self._forget()

    def _forget(self) -> None:
        self._offset = 0
        self._file: tuple[int, int] | None = None
        self._torn = b""
        self._longest = 0.0
        self._saved: int | None = None
        self._uploads: dict[int, str] = {}

    def read(self) -> tuple[float, bool, bool]:
        """`(longest save in s, an upload is under way, the newest checkpoint is uploaded)`."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if self._file != (found.st_dev, found.st_ino) or found.st_size < self._offset:
                    self._forget()
                    self._file = (found.st_dev, found.st_ino)
                file.seek(self._offset)
                while chunk := file.read(_CHUNK):
                    self._offset += len(chunk)
                    lines = (self._torn + chunk).split(b"\n")
                    self._torn = lines.pop()[-_LONGEST_LINE:]
                    for line in lines:
                        self._take(line)
        except OSError:
            pass  # not there yet, or no more: what was seen stands
        newest = max(self._uploads) if self._uploads else None
        uploaded = (
            self._saved is not None and newest is not None and newest >= self._saved
            and self._uploads[newest] == "done"
        )  # fmt: skip
        return self._longest, any(word == "queued" for word in self._uploads.values()), uploaded

    def _take(self, line: bytes) -> None:
        # only two kinds matter here; a long file is mostly others
        if b'"save"' not in line and b'"upload"' not in line:
            return
        event = read_object(line)
        if event is None:
            return
        kind, step = event.get("event"), event.get("step")
        if not isinstance(step, int) or isinstance(step, bool):
            return
        if kind == "save":
            self._saved = step if self._saved is None else max(self._saved, step)
            self._longest = max(self._longest, min(finite(event.get("seconds"), 0.0), LONGEST_SAVE_S))
        elif kind == "upload":
            done = event.get("status") == "done" and bool(event.get("revision"))
            self._uploads[step] = "done" if done else str(event.get("status"))


def read_uploads(run_dir: Path) -> tuple[float, bool, bool]:
    """`Uploads.read` of a file that is looked at once."""
    return Uploads(run_dir).read()


def process_lives(status: Status | None) -> bool:
    """Whether the trainer that a status names is alive: a zombie is over, a pid of another beginning is another."""
    if status is None or not status.pid:
        return False
    try:
        text = Path(f"/proc/{int(status.pid)}/stat").read_text(errors="replace")
    except (OSError, ValueError):
        return False
    rest = text.rpartition(")")[2].split()
    if len(rest) < 20 or rest[0] in "ZX":
        return False
    return status.start_ticks is None or rest[19] == str(status.start_ticks)


def boot_id() -> str:
    """A name for the time since the machine booted, in which its monotonic clock counts on; empty if unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(errors="replace").strip()
    except OSError:
        return ""


def container_age_s(proc: Path = Path("/proc")) -> float | None:
    """Seconds since the container's first process began; None where that cannot be told."""
    try:
        uptime = float((proc / "uptime").read_text().split()[0])
        ticks = int((proc / "1/stat").read_text(errors="replace").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
    age = uptime - ticks / os.sysconf("SC_CLK_TCK")
    # a container may be shown an uptime of its own, which begins with it and says nothing here
    return age if age > 0 else None


def away_s(
    before: dict[str, Any], *, now: float, wall: Callable[[], float] = time.time, boot: Callable[[], str] = boot_id
) -> float:
    """Seconds since a guard wrote `before`, at the monotonic moment `now`.

    By the monotonic clock while the machine did not boot in between, which no clock that is put right can move; else
    by the wall clock, and never less than nothing.
    """
    mono = finite(before.get("mono"), -1.0)
    same = before.get("boot_id")
    if mono >= 0 and isinstance(same, str) and same and same == boot():
        return max(0.0, now - mono)
    stamp = wall()
    return max(0.0, stamp - finite(before.get("wall"), stamp))
