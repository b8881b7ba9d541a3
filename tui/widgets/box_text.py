"""What was measured of a box, as text: the whole of it for its screen, six lines of it for a pane, a cell for a list.

Pure. What is not known is not shown, and every measurement has its age beside it. `health` has the fields of
`remote.health.Health`; `now` is monotonic, in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from tui import words

Health = Mapping[str, Any]
Colours = Mapping[str, str]
BAR = 24
IDLE_PERCENT = 5.0
"""GPU use below which a GPU under a running trainer is called idle, as the alerts do."""
TIGHT = 0.10
"""Free share of the disk below which it is said that it fills."""
HOT_C = 85.0
OLD_S = 45.0
"""A measurement older than this may be of another state of the box."""


def box_text(health: Health, colours: Colours, now: float) -> Text:
    """The measurement as bars and numbers, with its age."""
    if not health:
        return Text("The box of this run is not measured: it has not answered yet, or the run is over.", style="dim")
    out = Text()
    for gpu in health.get("gpus") or ():
        out.append_text(_gpu(gpu, colours))
    if health.get("gpu_note"):
        out.append(f"{health['gpu_note']}\n", "dim")
    rows: list[tuple[str, float | None, str]] = [
        ("cpu", _share(health.get("cpu"), 100.0), _cpu(health)),
        ("memory", _share(health.get("ram_used"), health.get("ram_total")), _pair(health, "ram_used", "ram_total")),
        ("disk", _used(health), _free(health)),
    ]
    out.append("\n")
    for name, share, said in rows:
        if share is not None:
            _row(out, name, share, said, colours)
    if health.get("net_in") is not None:
        out.append(f"{'network':<9}{_net(health)}\n")
    if health.get("oom_kills"):
        out.append(f"{health['oom_kills']} processes were killed for memory\n", colours.get("error", ""))
    out.append(f"\nmeasured {_age(health, now)} ago", "dim")
    return out


def pane_text(health: Health, colours: Colours, now: float, width: int, *, running: bool) -> Text:
    """The same in a line for each thing, the troubles first; `running` is whether a trainer should be at work."""
    out = Text(no_wrap=True, overflow="ellipsis")
    for trouble in troubles(health, running=running):
        out.append(f"⚠ {trouble}\n", colours.get("warning", ""))
    bar = min(12, max(width - 38, 4))
    for gpu in health.get("gpus") or ():
        out.append(f"{gpu_name(gpu)} ", colours.get("primary", ""))
        if gpu.get("util") is not None:
            _bar(out, gpu["util"] / 100, bar, colours.get("secondary", ""))
            out.append(f" {gpu['util']:.0f}%")
        said = [_watts(gpu).replace(" of ", "/"), "" if gpu.get("temp_c") is None else f"{gpu['temp_c']:.0f} °C"]
        out.append(f"  {'  '.join(s for s in said if s)}\n", _heat(gpu, colours))
        if gpu.get("total_mib"):
            share = (gpu.get("used_mib") or 0.0) / gpu["total_mib"]
            out.append("  memory ", "dim")
            _bar(out, share, bar, colours.get("warning" if share > 0.95 else "secondary", ""))
            out.append(f" {_gib(gpu)}\n")
    if health.get("gpu_note"):
        out.append(f"{health['gpu_note']}\n", "dim")
    used, start = _used(health), len(out)
    if used is not None:
        out.append("disk ", "dim").append(_free(health), colours.get("warning", "") if 1 - used < TIGHT else "")
    if health.get("net_in") is not None:
        down, up = health["net_in"] / 1e6, (health.get("net_out") or 0.0) / 1e6
        rate = f"↓ {down:.1f} ↑ {up:.1f} MB/s"
        # a large disk and a fast line do not stand beside each other in a narrow pane
        beside = len(out) - start + len("   net ") + len(rate) <= width
        out.append("   " if beside and used is not None else "\n" if used is not None else "")
        out.append("net ", "dim").append(rate)
    out.append("\n")
    if health.get("cpu") is not None:
        out.append("cpu ", "dim").append(f"{health['cpu']:.0f}%   ")
    out.append("ram ", "dim").append(_pair(health, "ram_used", "ram_total"))
    return out


def troubles(health: Health, *, running: bool) -> list[str]:
    """What a person should see without reading numbers: GPUs idle under a running trainer, slowed down, disk full."""
    said = []
    gpus = health.get("gpus") or ()
    loads = [gpu.get("util") for gpu in gpus]
    if running and loads and all(load is not None and load < IDLE_PERCENT for load in loads):
        said.append(f"the GPU{'s idle' if len(loads) > 1 else ' idles'} while the run trains")
    said += [f"GPU {gpu.get('index', 0)} is slowed down: {gpu['throttle']}" for gpu in gpus if gpu.get("throttle")]
    used = _used(health)
    if used is not None and 1 - used < TIGHT:
        said.append(f"the disk fills: {_free(health)}, {1 - used:.0%}")
    if health.get("oom_kills"):
        said.append(f"{health['oom_kills']} processes were killed for memory")
    return said


def gpu_cell(health: Health, *, running: bool) -> str:
    """The GPUs in one cell of a list: name, number, use; empty when none is known."""
    gpus = health.get("gpus") or ()
    if not gpus:
        return ""
    name = f"{len(gpus)}x {gpu_name(gpus[0])}" if len(gpus) > 1 else gpu_name(gpus[0])
    loads = [gpu["util"] for gpu in gpus if gpu.get("util") is not None]
    return f"{name} {sum(loads) / len(loads):.0f}%" if running and loads else name


def gpu_name(gpu: Health) -> str:
    """The name without what every such name has."""
    name = str(gpu.get("name") or f"GPU {gpu.get('index', 0)}")
    for prefix in ("NVIDIA ", "GeForce ", "Tesla "):
        name = name.removeprefix(prefix)
    return name


def measured_words(health: Health, now: float) -> str:
    """The age of the measurement, with a word when it is old."""
    age = now - float(health.get("at", now))
    return f"{_age(health, now)} ago{', old' if age > OLD_S else ''}"


def _age(health: Health, now: float) -> str:
    return words.age(max(now - float(health.get("at", now)), 0.0))


def _gpu(gpu: Health, colours: Colours) -> Text:
    out = Text()
    out.append(f"GPU {gpu.get('index', 0)}  {gpu.get('name', '')}\n", f"bold {colours.get('primary', '')}")
    if gpu.get("util") is not None:
        _row(out, "util", gpu["util"] / 100, f"{gpu['util']:.0f}%", colours, full_is_bad=False)
    used, total = gpu.get("used_mib"), gpu.get("total_mib")
    if used is not None and total:
        _row(out, "memory", used / total, _gib(gpu), colours)
    if gpu.get("power_w") is not None and gpu.get("limit_w"):
        _row(out, "power", gpu["power_w"] / gpu["limit_w"], _watts(gpu), colours, full_is_bad=False)
    if gpu.get("temp_c") is not None:
        out.append(f"{'heat':<9}").append(f"{gpu['temp_c']:.0f} °C\n", _heat(gpu, colours))
    if gpu.get("throttle"):
        out.append(f"{'slowed':<9}").append(f"{gpu['throttle']}\n", colours.get("warning", ""))
    return out


def _row(out: Text, name: str, share: float, said: str, colours: Colours, *, full_is_bad: bool = True) -> None:
    out.append(f"{name:<9}")
    _bar(out, share, BAR, colours.get("warning" if full_is_bad and share > 0.9 else "secondary", ""))
    out.append(f"  {said}\n")


def _bar(out: Text, share: float, width: int, colour: str) -> None:
    full = round(min(max(share, 0.0), 1.0) * width)
    out.append("━" * full, colour).append("─" * (width - full), "dim")


def _heat(gpu: Health, colours: Colours) -> str:
    hot = gpu.get("temp_c") is not None and gpu["temp_c"] >= HOT_C
    return colours.get("warning", "") if hot or gpu.get("throttle") else ""


def _gib(gpu: Health) -> str:
    return f"{(gpu.get('used_mib') or 0.0) / 1024:.1f} of {gpu['total_mib'] / 1024:.1f} GiB"


def _watts(gpu: Health) -> str:
    if gpu.get("power_w") is None:
        return ""
    return f"{gpu['power_w']:.0f} of {gpu['limit_w']:.0f} W" if gpu.get("limit_w") else f"{gpu['power_w']:.0f} W"


def _share(value: float | None, total: float | None) -> float | None:
    return None if value is None or not total else value / total


def _cpu(health: Health) -> str:
    load = "" if health.get("load1") is None else f", load {health['load1']:.1f} on {health.get('cores') or '?'} cores"
    return f"{health.get('cpu') or 0.0:.0f}%{load}"


def _net(health: Health) -> str:
    return f"↓ {health['net_in'] / 1e6:.1f} MB/s  ↑ {(health.get('net_out') or 0.0) / 1e6:.1f} MB/s"


def _pair(health: Health, used: str, total: str) -> str:
    if health.get(used) is None or not health.get(total):
        return ""
    return f"{health[used] / 1e9:.1f} of {health[total] / 1e9:.1f} GB"


def _used(health: Health) -> float | None:
    free, total = health.get("disk_free"), health.get("disk_total")
    return None if free is None or not total else 1 - free / total


def _free(health: Health) -> str:
    return "" if health.get("disk_free") is None else f"{health['disk_free'] / 1e9:.1f} GB free"
