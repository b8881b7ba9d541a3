"""What a run's screen said when it was last looked at: shown on the first frame, until the run itself is read again.

One small file for each run under `seen/` of tunewatch's own folder. It holds the words of the top line and of the two
panes of text, as they stood, and when; nothing is worked out from it.
"""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    from tui.snapshot import RunSnapshot

EVERY_S = 5.0
"""Seconds between two notes of one run."""
KEPT = 200
"""Runs that are remembered."""
WIDTH = 43
"""Columns that the panes' words are made for: the room there is on a screen of 120, beside a scroll bar."""


class LastSeen(NamedTuple):
    """The words of a run's screen, and when they were true."""

    at: float
    """Seconds since the epoch."""
    parts: tuple[tuple[tuple[str, ...], str, int, bool], ...]
    """The parts of the top line: forms, colour, priority, bold (`tui.widgets.status_line.Part`)."""
    panes: dict[str, str]
    """The words of a pane, by its id."""


def recall(target: str) -> LastSeen | None:
    """What is remembered of a run; None for nothing, or nothing that can be read."""
    try:
        found = json.loads(_path(target).read_bytes())
        parts = tuple((tuple(map(str, p[0])), str(p[1]), int(p[2]), bool(p[3])) for p in found["parts"])
        return LastSeen(float(found["at"]), parts, {str(k): str(v) for k, v in found["panes"].items()})
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


class Memory:
    """Notes what the screens of runs say; called from the threads that poll."""

    def __init__(self) -> None:
        self._noted: dict[str, tuple[float, str]] = {}

    def note(self, snapshot: RunSnapshot) -> None:
        """Remember a snapshot with something in it, now and then. A disk that refuses costs nothing but the memory."""
        now = time.monotonic()
        at, state = self._noted.get(snapshot.target, (float("-inf"), ""))
        if not snapshot.estimated or not snapshot.history.bytes_read:
            return
        if now - at < EVERY_S and state == snapshot.state:
            return
        from runner.atomic import write_atomic

        self._noted[snapshot.target] = (now, snapshot.state)
        path = _path(snapshot.target)
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            if not path.exists():
                _make_room(path.parent)
            write_atomic(path, json.dumps(_words(snapshot), ensure_ascii=False).encode(), durable=False)
        except OSError:
            return


def _words(snapshot: RunSnapshot) -> dict[str, Any]:
    from tui import quote_words, stop_words
    from tui.widgets.status_line import parts

    line = parts(snapshot)[:-1]  # without the link, which is what a memory has not
    panes = {
        "stop": stop_words.panel(snapshot, {}, WIDTH).plain,
        "quotes": quote_words.panel(snapshot, {}, WIDTH).plain,
    }
    return {"target": snapshot.target, "at": time.time(), "parts": line, "panes": panes}


def _make_room(folder: Path) -> None:
    """Forget the runs that were looked at longest ago."""
    old = sorted(folder.glob("*.json"), key=lambda p: p.stat().st_mtime, reverse=True)
    for path in old[KEPT - 1 :]:
        path.unlink(missing_ok=True)


def _path(target: str) -> Path:
    from remote.home import home

    return home() / "seen" / f"{hashlib.sha256(target.encode()).hexdigest()[:16]}.json"
