"""The box of a run: GPUs with their limits, processor, memory, disk, network. What is not known is not shown."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from tui import words
from tui.snapshot import RunSnapshot

Colours = Mapping[str, str]
BAR = 24


class BoxScreen(ModalScreen[None]):
    """The last measurement of the box over whatever screen is open, renewed with every snapshot."""

    DEFAULT_CSS = """
    BoxScreen { align: center middle; background: $background 60%; }
    BoxScreen > VerticalScroll {
        width: 84; max-width: 96%; height: auto; max-height: 90%;
        border: round $border; background: $surface; padding: 1 2;
        border-title-color: $foreground; border-subtitle-color: $text-muted;
    }
    BoxScreen Static { width: 1fr; height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,g,q,enter", "dismiss", "Close")]

    def __init__(self, snapshot: RunSnapshot) -> None:
        super().__init__()
        self.snapshot = snapshot

    def compose(self) -> ComposeResult:
        """One text."""
        with VerticalScroll() as box:
            box.border_title = f"{self.snapshot.name}: the box"
            box.border_subtitle = "Esc closes"
            yield Static(self._text(), id="box", markup=False)

    def take(self, snapshot: RunSnapshot) -> None:
        """A newer measurement."""
        if self.is_running and snapshot.target == self.snapshot.target:
            self.snapshot = snapshot
            self.query_one("#box", Static).update(self._text())

    def _text(self) -> Text:
        return box_text(self.snapshot.health, self.app.theme_variables, time.monotonic())


def box_text(health: Mapping[str, Any], colours: Colours, now: float) -> Text:
    """The measurement as bars and numbers, with its age. `now` is monotonic, in seconds."""
    if not health:
        return Text("The box of this run is not measured: it is this machine, or it has not answered yet.", style="dim")
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
        down, up = health["net_in"] / 1e6, (health.get("net_out") or 0.0) / 1e6
        out.append(f"{'network':<9}↓ {down:.1f} MB/s  ↑ {up:.1f} MB/s\n")
    if health.get("oom_kills"):
        out.append(f"{health['oom_kills']} processes were killed for memory\n", colours.get("error", ""))
    out.append(f"\nmeasured {words.age(max(now - float(health.get('at', now)), 0.0))} ago", "dim")
    return out


def _gpu(gpu: Mapping[str, Any], colours: Colours) -> Text:
    out = Text()
    out.append(f"GPU {gpu.get('index', 0)}  {gpu.get('name', '')}\n", f"bold {colours.get('primary', '')}")
    if gpu.get("util") is not None:
        _row(out, "util", gpu["util"] / 100, f"{gpu['util']:.0f}%", colours, full_is_bad=False)
    used, total = gpu.get("used_mib"), gpu.get("total_mib")
    if used is not None and total:
        _row(out, "memory", used / total, f"{used / 1024:.1f} of {total / 1024:.1f} GiB", colours)
    if gpu.get("power_w") is not None and gpu.get("limit_w"):
        said = f"{gpu['power_w']:.0f} of {gpu['limit_w']:.0f} W"
        _row(out, "power", gpu["power_w"] / gpu["limit_w"], said, colours, full_is_bad=False)
    if gpu.get("temp_c") is not None:
        hot = colours.get("warning", "") if gpu["temp_c"] >= 85 else ""
        out.append(f"{'heat':<9}").append(f"{gpu['temp_c']:.0f} °C\n", hot)
    if gpu.get("throttle"):
        out.append(f"{'slowed':<9}").append(f"{gpu['throttle']}\n", colours.get("warning", ""))
    return out


def _row(out: Text, name: str, share: float, said: str, colours: Colours, *, full_is_bad: bool = True) -> None:
    full = round(min(max(share, 0.0), 1.0) * BAR)
    colour = colours.get("warning" if full_is_bad and share > 0.9 else "secondary", "")
    out.append(f"{name:<9}").append("━" * full, colour).append("─" * (BAR - full), "dim").append(f"  {said}\n")


def _share(value: float | None, total: float | None) -> float | None:
    return None if value is None or not total else value / total


def _cpu(health: Mapping[str, Any]) -> str:
    load = "" if health.get("load1") is None else f", load {health['load1']:.1f} on {health.get('cores') or '?'} cores"
    return f"{health.get('cpu') or 0.0:.0f}%{load}"


def _pair(health: Mapping[str, Any], used: str, total: str) -> str:
    if health.get(used) is None or not health.get(total):
        return ""
    return f"{health[used] / 1e9:.1f} of {health[total] / 1e9:.1f} GB"


def _used(health: Mapping[str, Any]) -> float | None:
    free, total = health.get("disk_free"), health.get("disk_total")
    return None if free is None or not total else 1 - free / total


def _free(health: Mapping[str, Any]) -> str:
    return "" if health.get("disk_free") is None else f"{health['disk_free'] / 1e9:.1f} GB free"
