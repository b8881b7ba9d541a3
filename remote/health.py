"""How the box is: GPUs, processor, memory, disk, network, and its clock, in one question over the link that is there.

No agent: one POSIX shell script whose output is read here. What a box does not have is a fact, not an error: without
nvidia-smi `gpus` is empty and `gpu_note` says why. The clock of the box is measured against ours so that a display
can say it is off; no duration is ever computed from it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_GPU_FIELDS = (
    "index,name,utilization.gpu,memory.used,memory.total,temperature.gpu,power.draw,power.limit,"
    "clocks_throttle_reasons.active"
)

SCRIPT = rf"""
echo "@clock $(date +%s.%N 2>/dev/null || date +%s)"
echo "@mono $(cut -d' ' -f1 /proc/uptime 2>/dev/null)"
echo "@boot $(cat /proc/sys/kernel/random/boot_id 2>/dev/null)"
echo "@load $(cat /proc/loadavg 2>/dev/null || uptime)"
echo "@cores $(getconf _NPROCESSORS_ONLN 2>/dev/null)"
echo "@cpu $(grep '^cpu ' /proc/stat 2>/dev/null)"
grep -E '^(MemTotal|MemAvailable):' /proc/meminfo 2>/dev/null | sed 's/^/@mem /'
echo "@cgroup $(cat /sys/fs/cgroup/memory.max 2>/dev/null) $(cat /sys/fs/cgroup/memory.current 2>/dev/null)"
echo "@oom $(grep -E '^oom_kill ' /sys/fs/cgroup/memory.events 2>/dev/null)"
sed -n '3,$p' /proc/net/dev 2>/dev/null | sed 's/^/@net /'
echo "@disk $(df -Pk "$DIR" 2>/dev/null | tail -n 1)"
if [ -n "$PID" ]; then echo "@pid $(cat /proc/$PID/stat 2>/dev/null)"; fi
if command -v nvidia-smi >/dev/null 2>&1; then
  timeout 8 nvidia-smi --query-gpu={_GPU_FIELDS} --format=csv,noheader,nounits 2>&1 | sed 's/^/@gpu /'
else
  echo "@nogpu"
fi
"""
"""Reads $DIR (for the disk) and $PID (may be empty)."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. A field the driver does not tell is None."""

    index: int
    name: str
    util: float | None
    """Percent."""
    used_mib: float | None
    total_mib: float | None
    temp_c: float | None
    power_w: float | None
    limit_w: float | None
    throttle: str = ""
    """Why it is slowed down, in words; empty when it is not."""


@dataclass(frozen=True, slots=True)
class Health:
    """One measurement of a box."""

    at: float
    """Seconds on the laptop's monotonic clock when it was taken; age = now - at."""
    gpus: tuple[Gpu, ...] = ()
    gpu_note: str = ""
    """Why there are no GPU rows; empty when there are."""
    load1: float | None = None
    cores: int | None = None
    cpu: float | None = None
    """Percent of all cores since the measurement before; None at the first."""
    ram_used: int | None = None
    """Bytes; within the container's limit where there is one."""
    ram_total: int | None = None
    disk_free: int | None = None
    """Bytes on the file system of the run."""
    disk_total: int | None = None
    net_in: float | None = None
    """Bytes per second since the measurement before."""
    net_out: float | None = None
    skew_s: float | None = None
    """Seconds by which the box's clock is ahead of ours; accurate to half a round trip."""
    oom_kills: int | None = None
    """Processes the kernel killed for memory in this container since it started."""
    boot_id: str = ""
    pid_stat: str = ""
    """/proc/PID/stat of the process asked for; empty when it is gone."""
    counters: tuple[float, float, float, float, float] | None = None
    """Busy and total jiffies, bytes in and out, box monotonic seconds: what the next measurement subtracts."""

    def warnings(self) -> list[str]:
        """What a person should know, one sentence each."""
        said = []
        if self.skew_s is not None and abs(self.skew_s) > 5:
            way = "ahead of" if self.skew_s > 0 else "behind"
            said.append(f"The clock of the box is {_span(abs(self.skew_s))} {way} this one; durations do not use it.")
        if self.disk_free is not None and self.disk_total and self.disk_free < max(1 << 30, 0.02 * self.disk_total):
            said.append(f"The disk of the box is nearly full: {self.disk_free / 1e9:.1f} GB left.")
        if self.ram_used is not None and self.ram_total and self.ram_used > 0.95 * self.ram_total:
            said.append("The memory of the box is nearly full; the kernel may kill the trainer.")
        said += [f"GPU {g.index} is slowed down: {g.throttle}." for g in self.gpus if g.throttle]
        return said


def read_health(text: str, *, now: float, wall_sent: float, wall_got: float, before: Health | None = None) -> Health:
    """Read the script's output.

    `now` is monotonic; `wall_sent` and `wall_got` are the laptop's wall clock around the question (s since the epoch),
    for the skew alone. `before` is the measurement before, for rates.
    """
    rows: dict[str, list[str]] = {}
    for line in text.splitlines():
        found = re.match(r"@(\w+) ?(.*)", line)
        if found:
            rows.setdefault(found[1], []).append(found[2].strip())

    def first(key: str) -> str:
        return (rows.get(key) or [""])[0]

    clock = _number(first("clock"))
    gpus, note = _gpus(rows)
    total, used = _memory(rows.get("mem", []), first("cgroup").split())
    disk = first("disk").split()
    load = first("load").split()
    counters = _counters(first("cpu").split(), rows.get("net", []), _number(first("mono")))
    cpu = net_in = net_out = None
    if before is not None and before.counters is not None and counters is not None:
        busy, jiffies, got, sent, seconds = (b - a for a, b in zip(before.counters, counters, strict=True))
        # a counter that went down was reset by a reboot: no rate for this once
        if seconds > 0 and jiffies > 0 and busy >= 0:
            cpu = 100 * busy / jiffies
        if seconds > 0 and got >= 0 and sent >= 0:
            net_in, net_out = got / seconds, sent / seconds
    oom = first("oom").split()
    return Health(
        at=now,
        gpus=gpus,
        gpu_note=note,
        load1=_number(load[0]) if load else None,
        cores=int(first("cores")) if first("cores").isdigit() else None,
        cpu=cpu,
        ram_used=used,
        ram_total=total,
        disk_free=int(disk[3]) * 1024 if len(disk) >= 6 and disk[3].isdigit() else None,
        disk_total=int(disk[1]) * 1024 if len(disk) >= 6 and disk[1].isdigit() else None,
        net_in=net_in,
        net_out=net_out,
        skew_s=None if clock is None else clock - (wall_sent + wall_got) / 2,
        oom_kills=int(oom[1]) if len(oom) == 2 and oom[1].isdigit() else None,
        boot_id=first("boot"),
        pid_stat=first("pid"),
        counters=counters,
    )


_THROTTLE = {
    0x4: "power cap", 0x8: "hardware slowdown", 0x20: "software thermal", 0x40: "hardware thermal",
    0x80: "power brake",
}  # fmt: skip
"""Bits of clocks_throttle_reasons.active, after nvml.h; idle (0x1) and chosen clocks (0x2) are no fault."""


def _gpus(rows: dict[str, list[str]]) -> tuple[tuple[Gpu, ...], str]:
    if "nogpu" in rows:
        return (), "nvidia-smi is not on this box"
    found = []
    for line in rows.get("gpu", []):
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) < 9 or not cells[0].isdigit():
            continue
        bits = int(cells[8], 16) if re.fullmatch(r"0x[0-9A-Fa-f]+", cells[8]) else 0
        why = ", ".join(word for bit, word in _THROTTLE.items() if bits & bit)
        util, used, total, temp, power, limit = (_number(cell) for cell in cells[2:8])
        found.append(Gpu(int(cells[0]), cells[1], util, used, total, temp, power, limit, why))
    if found:
        return tuple(found), ""
    said = (rows.get("gpu") or [""])[0]
    return (), f"nvidia-smi says: {said[:120]}" if said else "nvidia-smi said nothing within 8 s"


def _memory(lines: list[str], cgroup: list[str]) -> tuple[int | None, int | None]:
    sizes = {}
    for line in lines:
        name, _, rest = line.partition(":")
        if rest.split() and rest.split()[0].isdigit():
            sizes[name] = int(rest.split()[0]) * 1024
    total, free = sizes.get("MemTotal"), sizes.get("MemAvailable")
    used = total - free if total is not None and free is not None else None
    if len(cgroup) == 2 and all(c.isdigit() for c in cgroup) and (total is None or int(cgroup[0]) < total):
        return int(cgroup[0]), int(cgroup[1])
    return total, used


def _counters(cpu: list[str], net: list[str], mono: float | None) -> tuple[float, float, float, float, float] | None:
    if len(cpu) < 6 or mono is None or not all(c.isdigit() for c in cpu[1:]):
        return None
    jiffies = [int(c) for c in cpu[1:9]]
    got = sent = 0
    for line in net:
        name, _, rest = line.partition(":")
        cells = rest.split()
        if name.strip() != "lo" and len(cells) >= 9 and cells[0].isdigit() and cells[8].isdigit():
            got, sent = got + int(cells[0]), sent + int(cells[8])
    idle = jiffies[3] + jiffies[4]
    return float(sum(jiffies) - idle), float(sum(jiffies)), float(got), float(sent), mono


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
