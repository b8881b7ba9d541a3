"""How a person left the screens: theme, order and filter of the lists, axes and panes of each run; for the next start.

One small file, `layout.json` in tunewatch's own folder. What a person decided once stands in settings.toml, which only
that person writes; this is what they did last. Whatever of it cannot be read is a default, and a disk that refuses
costs nothing but the memory.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

FILE = "layout.json"
KEPT = 200
"""Runs that are remembered; of more the ones that were looked at longest ago are forgotten."""
MODES = ("step", "time", "log", "tokens")


class RunLayout(NamedTuple):
    """How the screen of one run was left."""

    x_mode: str = "step"
    smoothing: int | None = None
    """Index into `tui.curves.SMOOTHING`; None: its default."""
    log_y: tuple[str, ...] = ()
    pane: str = ""
    """The chosen pane; empty: the first."""
    solo: bool = False
    """Whether that pane stood alone."""


class ListLayout(NamedTuple):
    """How a list was left."""

    order: str = ""
    """Column of its order; empty: its default."""
    filter: str = ""


class Layout:
    """What is remembered. Without a home it is forgotten at the end."""

    def __init__(self, home: Path | None = None) -> None:
        self._path = home / FILE if home is not None else None
        self._known = self._read()

    @property
    def theme(self) -> str:
        """Name of the theme; empty when none was chosen."""
        return _text(self._known.get("theme"))

    def keep_theme(self, name: str) -> None:
        """Begin with this theme the next time."""
        self._change({"theme": name})

    def list_of(self, place: str) -> ListLayout:
        """How the list of a place of the key table was left."""
        found = _table(_table(self._known.get("lists")).get(place))
        return ListLayout(_text(found.get("order")), _text(found.get("filter")))

    def keep_list(self, place: str, left: ListLayout) -> None:
        """Begin with the list like this the next time."""
        if left != self.list_of(place):
            self._change({"lists": {place: left._asdict()}})

    def run_of(self, target: str) -> RunLayout:
        """How a run was left. A run that is new begins with the axis and the smoothing that were used last."""
        runs = _table(self._known.get("runs"))
        if target in runs:
            return _run(_table(runs[target]))
        last = _run(_table(self._known.get("last")))
        # not every run counts tokens, and what stood alone was about another run
        return RunLayout("step" if last.x_mode == "tokens" else last.x_mode, last.smoothing)

    def keep_run(self, target: str, left: RunLayout) -> None:
        """Begin with the run like this the next time."""
        if left != self.run_of(target):
            written = left._asdict()
            self._change({"runs": {target: {**written, "at": time.time()}}, "last": written})

    def _read(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        try:
            content = self._path.read_bytes()
        except OSError:
            return {}
        import json  # a first start has nothing to read, and does not wait for it

        try:
            return _table(json.loads(content))
        except (ValueError, RecursionError):
            return {}

    def _change(self, news: dict[str, Any]) -> None:
        """Write what is new beside what the file holds by now: another screen may have written, too."""
        known = self._read() or self._known
        for key, value in news.items():
            known[key] = {**_table(known.get(key)), **value} if key in ("lists", "runs") else value
        runs = _table(known.get("runs"))
        if len(runs) > KEPT:
            newest = sorted(runs, key=lambda name: _number(_table(runs[name]).get("at")), reverse=True)
            known["runs"] = {name: runs[name] for name in newest[:KEPT]}
        self._known = known
        if self._path is None:
            return
        import json

        from runner.atomic import write_atomic

        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(self._path, json.dumps(known, ensure_ascii=False).encode(), durable=False)
        except (OSError, UnicodeEncodeError):
            return


def _run(found: dict[str, Any]) -> RunLayout:
    mode, smoothing, panes = found.get("x_mode"), found.get("smoothing"), found.get("log_y")
    whole = isinstance(smoothing, int) and not isinstance(smoothing, bool)
    return RunLayout(
        mode if mode in MODES else "step",
        smoothing if whole else None,
        tuple(map(_text, panes)) if isinstance(panes, (list, tuple)) else (),
        _text(found.get("pane")),
        found.get("solo") is True,
    )


def _table(found: object) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


def _text(found: object) -> str:
    return found if isinstance(found, str) else ""


def _number(found: object) -> float:
    return float(found) if isinstance(found, (int, float)) else 0.0
