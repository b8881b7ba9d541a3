r"""The last lines of a log as a terminal would show them: `\r` bars collapse to what they were last.

`LogTail` reads a growing local file by byte offset and keeps a bounded number of lines; it belongs to the polling
thread. `collapse` is the pure part.
"""

from __future__ import annotations

import re
from collections import deque
from pathlib import Path

_CSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_BAR = re.compile(r"^\s*(?:[^|{}]{0,60}:\s*)?\d{1,3}%\|")
LONGEST = 2000
"""Letters of one line that are kept."""


def collapse(line: str) -> str:
    """What stays visible of one line after its carriage returns; escape sequences are dropped."""
    line = _CSI.sub("", line)
    parts = [part for part in line.split("\r") if part.strip()]
    shown = _CONTROL.sub("", (parts[-1] if parts else "").rstrip()[:LONGEST])
    # a bar that was wiped with blanks leaves them before whatever was written next
    return shown.lstrip() if shown.startswith(" " * 12) else shown


def is_bar(line: str) -> bool:
    """Whether a collapsed line is a progress bar."""
    return bool(_BAR.match(line))


class LogTail:
    """The newest `keep` lines of one growing file."""

    def __init__(self, keep: int = 400, first_bytes: int = 1 << 16) -> None:
        self._lines: deque[str] = deque(maxlen=keep)
        self._first_bytes = first_bytes
        self._path: Path | None = None
        self._offset = 0
        self._rest = b""
        self._shown: tuple[str, ...] = ()

    def read(self, path: Path | None) -> tuple[str, ...]:
        """Take in what was appended; the same tuple comes back while nothing was. A missing file has no lines."""
        if path is None:
            return self._shown
        if path != self._path:
            self._path, self._offset, self._rest = path, 0, b""
            self._lines.clear()
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                if size < self._offset:
                    self._offset, self._rest = 0, b""
                    self._lines.clear()
                if size == self._offset:
                    return self._shown
                start = max(self._offset, size - self._first_bytes)
                file.seek(start)
                data = file.read(size - start)
                cut = start > self._offset
                self._offset = size
        except OSError:
            return self._shown
        self._take(data, cut=cut)
        return self._shown

    def _take(self, data: bytes, *, cut: bool) -> None:
        if cut:
            # the beginning was skipped: the first piece is not a whole line
            self._rest, data = b"", data[data.find(b"\n") + 1 :]
        whole = self._rest + data
        *lines, self._rest = whole.split(b"\n")
        for raw in lines:
            self._push(raw)
        live = collapse(self._rest[-8192:].decode("utf-8", "replace"))
        self._shown = (*self._lines, live) if live else tuple(self._lines)

    def _push(self, raw: bytes) -> None:
        line = collapse(raw[-65536:].decode("utf-8", "replace"))
        if not line:
            return
        if is_bar(line) and self._lines and is_bar(self._lines[-1]):
            self._lines[-1] = line
        else:
            self._lines.append(line)
