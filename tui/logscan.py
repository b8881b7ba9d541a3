r"""Going through a whole log in slices: regex search, include and exclude filters, and the line of a step.

Each of these keeps where it is and what it found, does one block per `slice`, and may be dropped at any moment: that is
how it is cancelled. When the file grows they go on from where they stopped. Found line numbers are ascending.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

from tui.logindex import LogIndex
from tui.logtext import Pattern


class LineScan(ABC):
    """Base: visit every line of one generation of the index that will not change any more, block after block."""

    def __init__(self, index: LogIndex) -> None:
        self.index = index
        self.generation = index.generation
        self.found = array("Q")
        """Lines that count, ascending. The last line is not in it while it has no newline: see `live`."""
        self.live = False
        """Whether the last, unfinished line counts too."""
        self.done = False
        """Whether every line known so far was visited."""
        self._next = 0
        self._live_seen = (-1, -1)

    def stale(self) -> bool:
        """Whether the file started again, so that all found numbers are void."""
        return self.generation != self.index.generation

    @property
    def progress(self) -> float:
        """Share of the known lines that were visited, 0 to 1."""
        total = self.index.settled_count
        return min(1.0, self._next / total) if total else 1.0

    def slice(self) -> bool:
        """Visit one block; True while there is more. Waits (True) until the index is numbered."""
        if self.stale():
            return False
        if not self.index.numbered:
            return True
        stop = self.index.settled_count
        self.done = False
        if self._next < stop:
            cleaned, following = self.index.block(self._next, stop)
            found = self._wanted(cleaned, self._next, following)
            if self.stale():
                return False
            self.found.extend(array("Q", found))
            self._next = following
            if following < stop:
                return True
        self._look_at_live_line(stop)
        self.done = True
        return False

    def _look_at_live_line(self, number: int) -> None:
        seen = (number, self.index.size)
        if seen == self._live_seen:
            return
        self._live_seen = seen
        self.live = False
        if self.index.line_count > number:
            cleaned, _ = self.index.block(number, number + 1)
            self.live = bool(self._wanted(cleaned, number, number + 1))

    @abstractmethod
    def _wanted(self, cleaned: bytes, first: int, following: int) -> list[int]:
        """Say which of the lines `first` to `following` of a cleaned block belong to the result."""

    def __len__(self) -> int:
        return len(self.found) + self.live

    def at(self, row: int) -> int:
        """Return the line of found row `row` (from 0). Raises IndexError."""
        if row == len(self.found) and self.live:
            return self._next
        if row < 0:
            raise IndexError(row)
        return self.found[row]

    def row_at_or_after(self, line: int) -> int:
        """The first found row whose line is `line` or later; `len(self)` when there is none."""
        row = bisect_left(self.found, line)
        return row if row < len(self.found) or (self.live and line <= self._next) else len(self)


class Search(LineScan):
    """Lines that match a pattern; the count is one per line, as `grep -c` counts."""

    def __init__(self, index: LogIndex, pattern: Pattern) -> None:
        super().__init__(index)
        self.pattern = pattern

    def _wanted(self, cleaned: bytes, first: int, following: int) -> list[int]:
        return self.pattern.hits(cleaned, first)

    def step(self, line: int, forward: bool, within: LineScan | None = None) -> tuple[int, bool] | None:
        """Return the next hit after (or before) `line` and whether it went round the end; None without a hit.

        `within` is the filter that is on: hits that it hides are passed over.
        """
        hit = self._beyond(line, forward, within)
        if hit is not None:
            return hit, False
        hit = self._beyond(-1 if forward else 1 << 62, forward, within)
        return None if hit is None else (hit, True)

    def ordinal(self, line: int) -> int:
        """The 1-based number of the hit at `line`, 0 when that line is none."""
        row = self.row_at_or_after(line)
        return row + 1 if row < len(self) and self.at(row) == line else 0

    def _beyond(self, line: int, forward: bool, within: LineScan | None) -> int | None:
        # two ascending lists are met by jumping from one to the other in turn
        hit = _neighbour(self, line, forward)
        while hit is not None and within is not None:
            edge = hit - 1 if forward else hit + 1
            visible = _neighbour(within, edge, forward)
            if visible is None or visible == hit:
                return visible
            hit = _neighbour(self, visible - 1 if forward else visible + 1, forward)
        return hit


def _neighbour(scan: LineScan, line: int, forward: bool) -> int | None:
    if forward:
        row = scan.row_at_or_after(line + 1)
        return scan.at(row) if row < len(scan) else None
    row = scan.row_at_or_after(line) - 1
    return scan.at(row) if row >= 0 else None


class Filter(LineScan):
    """Lines that match `include` (when given) and do not match `exclude` (when given).

    With `bars=False` lines that are nothing but a progress bar, and the blank ones tqdm leaves, are left out too.
    """

    def __init__(
        self, index: LogIndex, include: Pattern | None = None, exclude: Pattern | None = None, *, bars: bool = True
    ) -> None:
        super().__init__(index)
        self.include = include
        self.exclude = exclude
        self.bars = bars

    def _wanted(self, cleaned: bytes, first: int, following: int) -> list[int]:
        keep = list(range(first, following)) if self.include is None else self.include.hits(cleaned, first)
        drop: set[int] = set()
        if self.exclude is not None and keep:
            drop.update(self.exclude.hits(cleaned, first))
        if not self.bars:
            drop.update(n for n, line in enumerate(cleaned.split(b"\n"), first) if _only_bar(line))
        return [n for n in keep if n not in drop] if drop else keep


def _only_bar(line: bytes) -> bool:
    return (b"%|" in line and b"{" not in line) or not line.strip()


_FRAME = re.compile(rb"(?<![\d/])(\d{1,9})/(\d{1,9}) \[")
_DICT = re.compile(rb"\{['\"](?:eval_)?loss['\"]:")


class StepLine(NamedTuple):
    """Where a step is in the log."""

    line: int
    step: int
    """The step that the line stands for; later than asked for when the log has none nearer."""


class StepSearch:
    """Find the line of a step: its dict, or else the progress bar that reached it.

    A dict of the Trainer carries no step. tqdm draws the training bar again right after it, so the dict of step n
    stands directly before the first frame `n/max_steps`; where that frame came before the dict, both share one line
    (facts of the tqdm format, held by tests over recorded bytes). A line that names the step itself (`step=400`,
    `"step": 400`) is taken where no bar does. `max_steps` tells the training bar from others; without it the largest
    total counts.
    """

    def __init__(self, index: LogIndex, step: int, max_steps: int | None = None) -> None:
        self.index = index
        self.generation = index.generation
        self.step = step
        self.max_steps = max_steps
        self._named = re.compile(rb"\bstep['\"]?\s*[=:]\s*['\"]?%d(?!\d)" % step)
        self._next = 0
        self._by_total: dict[int, StepLine] = {}
        self._named_at: int | None = None

    def slice(self) -> bool:
        """Look at one block; True while there is more to look at."""
        if self.generation != self.index.generation:
            return False
        if not self.index.numbered:
            return True
        for first, data in self.index.raw_blocks(self._next, self.index.line_count):
            self._look(first, data)
            self._next = first + data.count(b"\n") + 1
            return self._next < self.index.line_count and not self._settled
        return False

    @property
    def _settled(self) -> bool:
        return self.max_steps is not None and self.max_steps in self._by_total

    def result(self) -> StepLine | None:
        """The line found so far; final once `slice` returned False."""
        if self.max_steps in self._by_total:
            return self._by_total[self.max_steps]
        if self._named_at is not None:
            return StepLine(self._named_at, self.step)
        if self._by_total and self.max_steps is None:
            return self._by_total[max(self._by_total)]
        return None

    def _look(self, first: int, data: bytes) -> None:
        if self._named_at is None:
            self._look_for_name(first, data)
        for start, n, total in _frames(data):
            if total >= n >= self.step and total not in self._by_total:
                self._by_total[total] = StepLine(self._dict_line(first, data, start, total), n)

    def _look_for_name(self, first: int, data: bytes) -> None:
        digits = b"%d" % self.step
        at = data.find(digits)
        while at >= 0:
            if self._named.search(data, max(0, at - 12), at + len(digits) + 1):
                self._named_at = first + data.count(b"\n", 0, at)
                return
            at = data.find(digits, at + 1)

    def _dict_line(self, first: int, data: bytes, at: int, total: int) -> int:
        """The line of the dict that belongs to the training bar's frame at `at`; its own line when there is none."""
        number = first + data.count(b"\n", 0, at)
        before_on_line = data[data.rfind(b"\n", 0, at) + 1 : at]
        drawn_again = not any(t == total for _, _, t in _frames(before_on_line))
        if number and drawn_again and _DICT.search(self.index.raw(number - 1)):
            return number - 1
        end = data.find(b"\n", at)
        rest = data[data.find(b" [", at) + 2 : len(data) if end < 0 else end]
        # loggers of other people may write between the bar and the dict, but not the bar itself
        for line in range(number, min(number + 4, self.index.line_count)):
            text = rest if line == number else self.index.raw(line)
            frame = next((start for start, _, t in _frames(text) if t == total), len(text))
            if (found := _DICT.search(text)) and found.start() < frame:
                return line
            if frame < len(text):
                break
        return number


def step_near(index: LogIndex, line: int, max_steps: int | None, *, reach: int = 400) -> int | None:
    """The step that a line stands for, None where no training bar is within `reach` lines before it.

    The opposite of `StepSearch`: a bar's own line has its last frame; the line of a dict has the frame that is drawn
    after it; any other line belongs to the last frame before it.
    """

    def steps(number: int) -> list[int]:
        if not 0 <= number < index.line_count:
            return []
        return [n for _, n, total in _frames(index.raw(number)) if total == max_steps or max_steps is None]

    here = steps(line)
    if not here and 0 <= line < index.line_count and _DICT.search(index.raw(line)):
        # loggers of other people may write between the dict and the bar
        here = next((found[:1] for number in range(line + 1, line + 4) if (found := steps(number))), [])
    for number in range(line - 1, max(line - reach, 0) - 1, -1):
        if here:
            break
        here = steps(number)
    return here[-1] if here else None


def _frames(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Start, n and total of every frame of a bar that is not nested in another one."""
    at = data.find(b" [")
    while at >= 0:
        # one comparison throws out nearly every " [" that is not a bar's
        if data[at - 1 : at].isdigit() and (frame := _FRAME.search(data, max(0, at - 20), at + 2)):
            close = data.find(b"]", at, at + 80)
            # tqdm moves the cursor up after a frame of a nested bar: the bar of an evaluation
            if close < 0 or not data.startswith(b"\x1b[A", close + 1):
                yield frame.start(), int(frame[1]), int(frame[2])
        at = data.find(b" [", at + 2)


def eval_of_line(text: str) -> float | None:
    """The eval_loss that a shown line prints, None when it is not an evaluation. NaN and infinities are values.

    >>> eval_of_line("{'eval_loss': '1.400', 'eval_runtime': '7.736'}")
    1.4
    """
    match = re.search(r"['\"]eval_loss['\"]:\s*['\"]?([-+]?(?:nan|inf|\d[\d.]*(?:e[-+]?\d+)?))", text, re.IGNORECASE)
    return float(match[1]) if match else None
