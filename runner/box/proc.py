"""What the kernel says about processes: the same one or its pid reused, alive or a zombie, killed for memory or not.

Reads /proc where there is one (Linux); elsewhere identity falls back to the pid alone. Standard library only, and the
syntax of Python 3.9.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")


class Stat(NamedTuple):
    """The fields of /proc/PID/stat that matter here."""

    state: str
    """R, S, D, T ...; Z and X are dead, whatever `kill -0` says."""
    group: int
    start_ticks: int
    """Clock ticks after boot."""

    def lives(self, ticks: int | None = None) -> bool:
        """Whether it is alive, and the process that began at `ticks` where that is known."""
        return self.state not in "ZXx" and ticks in (None, self.start_ticks)


def boot_id() -> str | None:
    """The kernel's id of this boot; None where it has none (not Linux)."""
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text().strip() or None
    except OSError:
        return None


def stat(pid: int) -> Stat | None:
    """Read a process's state; None when there is no such process (or no /proc)."""
    try:
        return read_stat((PROC / str(pid) / "stat").read_text("utf-8", "replace"))
    except OSError:
        return None


def read_stat(text: str) -> Stat | None:
    """The text of a /proc/PID/stat, of this machine or another; None when it is none."""
    # the command name may hold spaces and brackets: fields are counted after the last closing one
    rest = text.rpartition(")")[2].split()
    try:
        return Stat(rest[0], int(rest[2]), int(rest[19]))
    except (IndexError, ValueError):
        return None


def start_ticks(pid: int) -> int | None:
    """When a process began, in clock ticks after boot; None when it cannot be read."""
    found = stat(pid)
    return found.start_ticks if found else None


def is_alive(pid: int | None, ticks: int | None = None, boot: str | None = None) -> bool:
    """Whether this very process still runs: not another one with its pid, not one of an earlier boot, not a zombie."""
    if not pid or pid < 1 or (boot is not None and boot_id() not in (None, boot)):
        return False
    found = stat(pid)
    if found is not None:
        return found.lives(ticks)
    if (PROC / "self/stat").exists():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def group_members(group: int) -> list[int]:
    """The pids of a process group that are alive (zombies left out); empty where there is no /proc."""
    members = []
    for entry in _pids():
        found = stat(entry)
        if found is not None and found.group == group and found.lives():
            members.append(entry)
    return members


def holders(path: str) -> list[int]:
    """The pids that hold a file open, as far as this user may see."""
    try:
        want = Path(path).stat()
    except OSError:
        return []
    return [pid for pid in _pids() if (want.st_ino, want.st_dev) in _open_files(pid)]


def _open_files(pid: int) -> set[tuple[int, int]]:
    """The (inode, device) of what a process has open; empty when that may not be seen."""
    found = set()
    with contextlib.suppress(OSError):
        for entry in os.scandir(PROC / str(pid) / "fd"):
            with contextlib.suppress(OSError):  # a file closed while we look says nothing about the others
                seen = entry.stat()
                found.add((seen.st_ino, seen.st_dev))
    return found


def _pids() -> list[int]:
    try:
        return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]
    except OSError:
        return []


def oom_kills() -> int:
    """How often the kernel has killed a process of this control group for memory; 0 where that is not told."""
    for path, key in _memory_files():
        try:
            text = path.read_text()
        except OSError:
            continue
        for line in text.splitlines():
            name, _, count = line.partition(" ")
            if name == key and count.strip().isdigit():
                return int(count)
    return 0


def _memory_files() -> list[tuple[Path, str]]:
    root = Path("/sys/fs/cgroup")
    files = []
    try:
        lines = (PROC / "self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":  # version 2
            files += [(root / path.lstrip("/") / "memory.events", "oom_kill"), (root / "memory.events", "oom_kill")]
        elif "memory" in controllers.split(","):
            base = root / "memory"
            files += [(base / path.lstrip("/") / "memory.oom_control", "oom_kill")]
            files += [(base / "memory.oom_control", "oom_kill")]
    return files
