"""Whether the process that a status.json names is still that process, and still alive.

A number alone lies twice: it is reused after a reboot or a wrap, and a dead child that nobody reaped still answers
`kill -0` (PID 1 of a container often reaps nothing). So the boot id, the start ticks and the state letter of
/proc/PID/stat decide. Where there is no /proc (macOS) nothing but the number is known.
"""

from __future__ import annotations

import os
from pathlib import Path

BOOT_ID = "/proc/sys/kernel/random/boot_id"


def judge_alive(stat: str, boot_now: str, *, start_ticks: int | None, boot_id: str | None) -> bool:
    """Read the text of /proc/PID/stat (empty when there is none) against what was noted at the start.

    >>> line = "7 (py (x) y) S 1 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 4242 0 0"
    >>> judge_alive(line, "b", start_ticks=4242, boot_id="b"), judge_alive(line, "b", start_ticks=1, boot_id="b")
    (True, False)
    """
    if boot_id and boot_now and boot_now.strip() != boot_id.strip():
        return False
    # the name in brackets may hold spaces and brackets itself: fields are counted from the last one
    fields = stat.rpartition(")")[2].split()
    if len(fields) < 20 or fields[0] in ("Z", "X", "x"):
        return False
    return start_ticks is None or fields[19] == str(start_ticks)


def process_alive(pid: int, start_ticks: int | None, boot_id: str | None) -> bool:
    """The same for a process of this machine."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        stat = ""
    try:
        boot_now = Path(BOOT_ID).read_text(encoding="ascii")
    except OSError:
        boot_now = ""
    return judge_alive(stat, boot_now, start_ticks=start_ticks, boot_id=boot_id)
