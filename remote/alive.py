"""Whether the process on a host that a status.json names is still that process, and still alive.

A number alone lies twice: it is reused after a reboot or a wrap, and a dead child that nobody reaped still answers
`kill -0` (PID 1 of a container often reaps nothing). So the boot id, the start ticks and the state letter of
/proc/PID/stat decide. For a process of this machine: `runner.box.proc.is_alive`.
"""

from __future__ import annotations

from runner.box.proc import read_stat

BOOT_ID = "/proc/sys/kernel/random/boot_id"


def judge_alive(stat: str, boot_now: str, *, start_ticks: int | None, boot_id: str | None) -> bool:
    """Read the text of /proc/PID/stat (empty when there is none) against what was noted at the start.

    >>> line = "7 (py (x) y) S 1 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 4242 0 0"
    >>> judge_alive(line, "b", start_ticks=4242, boot_id="b"), judge_alive(line, "b", start_ticks=1, boot_id="b")
    (True, False)
    """
    if boot_id and boot_now and boot_now.strip() != boot_id.strip():
        return False
    found = read_stat(stat)
    return found is not None and found.lives(start_ticks)
