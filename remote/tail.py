"""A growing local file, read once, byte by byte, into an incremental reader.

Never reads a byte twice for one reader, never skips one, and never works longer than it was told to: what is left is
done on the next call, so a log of gigabytes shows its progress. A file that was truncated, replaced or belongs to
another run starts a fresh reader; nothing of the old one is mixed in.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

_SLICE = 1 << 16
"""Bytes between two looks at the clock: about 2 ms of parsing at 30 MB/s."""
_SEAM = 64
"""Bytes at the head, and before the offset, that must be the same for a file to be the same file."""


class Fed(Protocol):
    """Anything that takes a file's bytes in order, in any chunking."""

    def feed(self, data: bytes) -> object:
        """Take the next bytes."""


R = TypeVar("R", bound=Fed)


class FileTail(Generic[R]):
    """One file and the reader it feeds."""

    def __init__(self, path: Path, make: Callable[[], R]) -> None:
        self.path = path
        self._make = make
        self.reader: R = make()
        self.offset = 0
        self.size = 0
        """Bytes in the file at the last look."""
        self.generation = 0
        """How often the file began anew under us."""
        self._identity: tuple[int, int] | None = None
        self._head = b""
        self._seam = b""
        self._seen: tuple[int, int, int] | None = None

    @property
    def behind(self) -> int:
        """Bytes that are there and not read yet."""
        return max(0, self.size - self.offset)

    def advance(self, seconds: float = 0.2, between: Callable[[], None] | None = None) -> bool:
        """Read for at most about `seconds`; True when the end was reached. A missing file is at its end.

        `between` is called after each slice of a file that needs several: there others can have their turn, for which
        the reading may take longer.
        """
        until = time.monotonic() + seconds
        try:
            info = os.stat(self.path)  # noqa: PTH116 - called four times a second for hours
        except FileNotFoundError:
            return True
        seen = (info.st_ino, info.st_size, info.st_mtime_ns)
        if seen == self._seen and self.offset == info.st_size:
            return True
        with self.path.open("rb") as file:
            info = os.fstat(file.fileno())
            self.size = info.st_size
            if not self._same(file.fileno(), info):
                self._restart()
            self._identity = (info.st_dev, info.st_ino)
            if len(self._head) < _SEAM:
                self._head = os.pread(file.fileno(), min(_SEAM, self.size), 0)
            file.seek(self.offset)
            while data := file.read(_SLICE):
                self.reader.feed(data)
                self.offset += len(data)
                self._seam = (self._seam + data)[-_SEAM:]
                if time.monotonic() >= until:
                    break
                if between is not None and len(data) == _SLICE:
                    left = until - time.monotonic()
                    between()
                    until = time.monotonic() + left
        self._seen = (info.st_ino, info.st_size, info.st_mtime_ns)
        self.size = max(self.size, self.offset)
        return self.offset >= self.size

    def _same(self, handle: int, info: os.stat_result) -> bool:
        """Whether the file still begins, and goes on, the way it was read."""
        if self._identity is None or self.offset == 0:
            return True
        if info.st_size < self.offset:
            return False
        head = os.pread(handle, len(self._head), 0)
        return head == self._head and os.pread(handle, len(self._seam), self.offset - len(self._seam)) == self._seam

    def _restart(self) -> None:
        self.reader = self._make()
        self.offset = 0
        self.generation += 1
        self._head = self._seam = b""
