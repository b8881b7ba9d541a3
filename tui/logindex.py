r"""An append-only log file as numbered lines: a million of them open at once, eight bytes of memory each.

The model behind the Logs screen; it knows bytes and offsets and nothing of Textual. It works on the local file: the
run's own or the mirror of a remote one.

Rules of this file:

- The tail is found first, backwards from the end, so the newest lines show while the rest is still being numbered.
  Until then (`numbered` is False) line 0 is the first line of the tail.
- Only offsets stay in memory, in `array("Q")`. Lines are read when they are looked at.
- Reading is `pread`, never `mmap`: a mapped file that is truncated by its writer ends the reader with SIGBUS, and a
  log may be truncated at any moment. Measured on 95 MB, a scan by `pread` in 256 KiB blocks is as fast as a mapped one.
- Everything that takes long is cut into slices, so a key press waits a few milliseconds at worst. All methods may be
  called from the scanning thread and from the screen at the same time.
- A file that shrinks, is replaced, or is rewritten in place starts again with a new `generation`; numbers of lines of
  an older generation mean nothing.
"""

from __future__ import annotations

import os
import threading
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from enum import StrEnum
from itertools import accumulate, count
from operator import add
from pathlib import Path
from typing import NamedTuple

from runner.errors import NotFoundError
from tui.logtext import clean, shown

BLOCK = 1 << 18
"""Bytes read at once: small enough that a slice holds the interpreter for a few milliseconds."""
TAIL = 1 << 20
"""Bytes of tail that show before the rest is numbered."""
LONGEST = 1 << 16
"""Bytes of one line that are looked at for display; the rest is said in numbers."""
_PROBE = 64


class Change(StrEnum):
    """What `refresh` found since it was called last."""

    NONE = "none"
    GREW = "grew"
    RESTARTED = "restarted"
    """Shrunk, replaced or rewritten: everything known is void."""
    MISSING = "missing"
    """The name is gone; what was read stays readable."""


class Line(NamedTuple):
    """One line as it is shown."""

    text: str
    cut: int
    """Bytes of the line that are not in `text`; 0 nearly always."""
    bar: bool
    """Whether it is the last frame of a progress bar that overwrote itself."""


class LogIndex:
    """The lines of one file.

    `open` raises NotFoundError when there is none; call `scan` until it returns False, `refresh` about twice a second.
    """

    def __init__(self, path: Path, *, block: int = BLOCK, tail: int = TAIL) -> None:
        self.path = path
        self.generation = 0
        self.size = 0
        """Bytes, at the last `refresh`."""
        self._block = block
        self._tail_bytes = tail
        self._lock = threading.RLock()
        self._fd = -1
        self._probe = b""
        self._starts = array("Q")
        self._end = 0
        """Bytes behind which nothing was numbered yet (of the first array)."""
        self._tail: array[int] | None = None
        self._tail_end = 0
        self.tail_line = 0
        """The number of the line that was line 0 until the file was numbered; 0 before that."""

    # -- the file ------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the file and find its tail; returns within milliseconds whatever the size."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise NotFoundError(f"The log {self.path} cannot be read: {error.strerror}.") from error
        with self._lock:
            self.close()
            self._fd = fd
            self._restart(os.fstat(fd).st_size)

    def close(self) -> None:
        """Let go of the file; lines can no longer be read."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -1

    def refresh(self) -> Change:
        """Look whether the file grew, shrank, was replaced or is gone. Costs one stat; reads 64 bytes."""
        with self._lock:
            if self._fd < 0:
                return Change.MISSING
            ours = os.fstat(self._fd)
            try:
                named = os.stat(self.path)  # noqa: PTH116  (the pair of fstat above)
            except OSError:
                return Change.MISSING
            if (named.st_ino, named.st_dev) != (ours.st_ino, ours.st_dev):
                try:
                    self.open()
                except NotFoundError:
                    return Change.MISSING
                return Change.RESTARTED
            if ours.st_size < self.size or self._read(0, len(self._probe)) != self._probe:
                self._restart(ours.st_size)
                return Change.RESTARTED
            if ours.st_size == self.size:
                return Change.NONE
            self.size = ours.st_size
            self._remember_start()
            return Change.GREW

    def _restart(self, size: int) -> None:
        self.generation += 1
        self.size = size
        self._probe = b""
        self._remember_start()
        self._starts = array("Q", [0])
        self._end = 0
        self._tail = None
        self.tail_line = 0
        if size > 2 * self._tail_bytes:
            start = self._line_start_before(size - self._tail_bytes)
            if start is not None:
                self._tail, self._tail_end = array("Q", [start]), start
                while self._tail_end < size:
                    self._tail_end = self._number(self._tail, self._tail_end, size)

    def _remember_start(self) -> None:
        # a file rewritten in place with at least as many bytes betrays itself by its first ones
        if len(self._probe) < _PROBE:
            self._probe = self._read(0, min(_PROBE, self.size))

    def _line_start_before(self, offset: int) -> int | None:
        """The start of the first line at or after `offset`, if one begins before the end."""
        newline = self._read(offset, self._tail_bytes).find(b"\n")
        return None if newline < 0 or offset + newline + 1 >= self.size else offset + newline + 1

    def _read(self, start: int, length: int) -> bytes:
        with self._lock:
            return os.pread(self._fd, length, start) if self._fd >= 0 else b""

    # -- numbering -----------------------------------------------------------------------------------------------

    def scan(self) -> bool:
        """Number one block more; True while there is more to do. The tail goes first, so new lines show at once."""
        with self._lock:
            if self._tail is not None:
                if self._tail_end < self.size:
                    self._tail_end = self._number(self._tail, self._tail_end, self.size)
                    return True
                limit = self._tail[0]
                self._end = self._number(self._starts, self._end, limit)
                if self._end >= limit:
                    # the last start found is that of the tail's first line
                    self._starts.pop()
                    self.tail_line = len(self._starts)
                    self._starts.extend(self._tail)
                    self._end, self._tail = self._tail_end, None
                return True
            if self._end < self.size:
                self._end = self._number(self._starts, self._end, self.size)
                return self._end < self.size
            return False

    def _number(self, starts: array[int], offset: int, limit: int) -> int:
        """Append the starts of the lines that begin in one block from `offset`; return how far it reached."""
        block = self._read(offset, min(self._block, limit - offset))
        if not block:  # shrunk under our feet; the next refresh starts again
            return limit
        lengths = list(map(len, block.split(b"\n")))
        lengths.pop()
        # all in C: 0.16 s for a million lines
        starts.extend(array("Q", map(add, accumulate(lengths), count(offset + 1))))
        return offset + len(block)

    @property
    def numbered(self) -> bool:
        """Whether line numbers are those of the file: False while only the tail is known."""
        return self._tail is None

    @property
    def progress(self) -> float:
        """Share of the file that is numbered, 0 to 1."""
        with self._lock:
            known = self._end if self._tail is None else self._end + self._tail_end - self._tail[0]
            return known / self.size if self.size else 1.0

    @property
    def line_count(self) -> int:
        """Lines known; a last line without newline counts, the nothing after a final newline does not."""
        with self._lock:
            starts, end = (self._starts, self._end) if self._tail is None else (self._tail, self._tail_end)
            return len(starts) - (starts[-1] >= end) if starts else 0

    @property
    def settled_count(self) -> int:
        """Lines that end in a newline, and so will never change."""
        with self._lock:
            starts = self._starts if self._tail is None else self._tail
            return max(0, len(starts) - 1)

    # -- lines ---------------------------------------------------------------------------------------------------

    def _bounds(self, number: int) -> tuple[int, int]:
        """Start and end of a line in bytes, newline left out. Raises IndexError."""
        with self._lock:
            starts, end = (self._starts, self._end) if self._tail is None else (self._tail, self._tail_end)
            if not 0 <= number < len(starts):
                raise IndexError(f"line {number} of {len(starts)}")
            return starts[number], (starts[number + 1] - 1 if number + 1 < len(starts) else end)

    def line(self, number: int) -> Line:
        """Return line `number` (from 0) as it is shown. Raises IndexError."""
        start, end = self._bounds(number)
        raw, cut, bar = self._bounded(start, end)
        return Line(shown(clean(raw)), cut, bar)

    def raw(self, number: int, limit: int = 1 << 22) -> bytes:
        """Return the bytes of a line as they stand in the file, at most `limit`. Raises IndexError."""
        start, end = self._bounds(number)
        return self._read(start, min(limit, end - start))

    def _bounded(self, start: int, end: int) -> tuple[bytes, int, bool]:
        """Return at most LONGEST bytes of a line that decide what it shows, bytes cut, and whether it is a bar."""
        if end - start <= LONGEST:
            raw = self._read(start, end - start)
            return raw, 0, b"\r" in raw.rstrip(b"\r")
        # of a line of endless bar frames only the last counts, and that stands at its end
        tail = self._read(end - LONGEST, LONGEST)
        if b"\r" in tail.rstrip(b"\r"):
            last = clean(tail[tail.index(b"\r") :])
            if last.strip():
                return last, 0, True
        return self._read(start, LONGEST), end - start - LONGEST, False

    def block(self, first: int, stop: int) -> tuple[bytes, int]:
        """Return the cleaned text of the lines from `first`, and the number of the line after them.

        As many lines as fit one block, at least one, never past `stop`; a line longer than 16 blocks is given as it is
        shown. Bytes that have vanished from the file are empty lines.
        """
        with self._lock:
            starts = self._starts if self._tail is None else self._tail
            stop = min(stop, self.line_count)
            begin, end = self._bounds(first)
            if end - begin > 16 * self._block:
                return clean(self._bounded(begin, end)[0]).replace(b"\n", b" "), first + 1
            last = _last_line_within(starts, first, stop, begin + self._block)
            end = self._bounds(last)[1]
            return clean(self._read(begin, end - begin)), last + 1

    def number_at(self, offset: int) -> int:
        """Return the line that holds the byte at `offset`."""
        with self._lock:
            return max(0, bisect_right(self._starts if self._tail is None else self._tail, offset) - 1)

    def raw_blocks(self, first: int, stop: int) -> Iterator[tuple[int, bytes]]:
        """Walk over the file's bytes from line `first` to `stop` in whole lines: (number of the first, bytes)."""
        while first < min(stop, self.line_count):
            with self._lock:
                starts = self._starts if self._tail is None else self._tail
                begin = starts[first]
                last = _last_line_within(starts, first, min(stop, self.line_count), begin + self._block)
                data = self._read(begin, self._bounds(last)[1] - begin)
            yield first, data
            first = last + 1


def _last_line_within(starts: array[int], first: int, stop: int, offset: int) -> int:
    """The last line from `first` on, before `stop`, that ends at or before `offset`; `first` when none does."""
    return max(first, bisect_right(starts, offset, first, min(stop + 1, len(starts))) - 2)
