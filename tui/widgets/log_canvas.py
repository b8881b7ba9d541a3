"""The lines of a log drawn as strips: which line is in which row, how it looks, how it is folded.

Reads only the lines it shows and keeps their strips. A line is a line of the file (from 0), a row is what is shown of
them. Where the person is, and how they move, is the view's (`tui.widgets.log_view`).
"""

from __future__ import annotations

import re
from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.cache import LRUCache
from textual.geometry import Size
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from tui.logindex import Line, LogIndex
from tui.logscan import Filter
from tui.logtext import Pattern

NARROW = 60
"""Columns below which line numbers are left out."""
_KINDS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("eval", re.compile(r"['\"]eval_loss['\"]:|['\"]train_loss['\"]:")),
    (
        "error",
        re.compile(r"\b(?:ERROR|CRITICAL|FATAL|FAILED)\b|Traceback \(most|\w(?:Error|Exception)\b|out of memory"),
    ),
    ("warning", re.compile(r"\bWARN(?:ING)?\b|\wWarning\b")),
    ("quiet", re.compile(r"^\s*(?:[^|{}]{0,60}:\s*)?\d{1,3}%\||\bDEBUG\b")),
)
_NOT_A_NUMBER = re.compile(r"loss['\"]:\s*['\"]?[-+]?(?:nan|inf)|grad_norm['\"]:\s*['\"]?nan")


def kind_of(line: Line) -> str:
    """The colour class of a line: eval, error, warning, quiet or plain.

    >>> kind_of(Line("{'eval_loss': '1.400'}", 0, False)), kind_of(Line(" 8%|# | 457/6000 [21:47]", 0, True))
    ('eval', 'quiet')
    """
    if _NOT_A_NUMBER.search(line.text):
        return "error"
    for kind, pattern in _KINDS:
        if pattern.search(line.text):
            return kind
    return "plain"


class LogCanvas(ScrollView, can_focus=True):
    """Draws the rows of an index, the line of `cursor` among them."""

    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "log--number",
        "log--eval",
        "log--error",
        "log--warning",
        "log--quiet",
        "log--plain",
        "log--hit",
        "log--cursor",
        "log--cut",
    }

    wrap: reactive[bool] = reactive(False)
    """Whether long lines go on in the next row of the screen instead of sideways."""
    pattern: reactive[Pattern | None] = reactive(None)
    """What is highlighted."""

    def __init__(self, index: LogIndex, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.index = index
        self.filter: Filter | None = None
        self.cursor = 0
        """The line that is selected."""
        self._looks: dict[str, Style] = {}
        self._strips: LRUCache[int, Strip] = LRUCache(2048)
        self._page: tuple[object, list[tuple[int, int]]] = (None, [])
        self._generation = index.generation
        self._numbered = index.numbered
        self._rows = 0
        self._lines_at_leave = 0
        self._widest = 0
        self._settled = True

    # -- rows and lines ------------------------------------------------------------------------------------------

    @property
    def row_count(self) -> int:
        """Rows shown in all, as of the last `sync`."""
        return self._rows

    def line_at(self, row: int) -> int:
        """The line of a row. Raises IndexError."""
        if self.filter is not None:
            return self.filter.at(row)
        # while the thread has joined head and tail, and this view does not know yet, rows still count from the tail
        late = self.index.numbered and not self._numbered
        return row + (self.index.tail_line if late else 0)

    def row_of(self, line: int) -> int:
        """The row of a line, or of the next one that is shown."""
        row = line if self.filter is None else self.filter.row_at_or_after(line)
        return max(0, min(row, self._rows - 1))

    def text_of(self, line: int) -> str:
        """The whole shown text of a line, "" when it is gone."""
        try:
            return self.index.line(line).text
        except IndexError:
            return ""

    def forget(self) -> None:
        """Drop everything that was rendered."""
        self._strips.clear()
        self._page = (None, [])

    def _resize_virtual(self) -> None:
        rows, height = self._rows, max(1, self._room().height)
        width = 0
        if self.wrap:
            # the last rows that fill one page: the view can scroll until the first of them is on top
            fitting = self._fitting(rows - 1)
            rows = rows - fitting + height if rows > fitting else min(rows, height)
        else:
            width = self._widest + self._gutter()
        self.virtual_size = Size(width, rows)

    def _fitting(self, last: int) -> int:
        """How many rows, ending with `last`, fit on one page when wrapped; at least one."""
        height, used, fitting = max(1, self._room().height), 0, 0
        while last - fitting >= 0:
            used += self._height(last - fitting)
            if used > height:
                break
            fitting += 1
        return max(1, fitting)

    # -- drawing -------------------------------------------------------------------------------------------------

    def _gutter(self) -> int:
        if self._room().width < NARROW or not self._numbered:
            return 0
        return len(str(max(1, self.index.line_count))) + 2

    def _text_width(self) -> int:
        return max(1, self._room().width - self._gutter())

    def _room(self) -> Size:
        """Columns and rows for text: what the scroll bar leaves."""
        return self.scrollable_content_region.size

    def _look(self, name: str) -> Style:
        """The style of a component; `$x 30%` is blended with what lies beneath. Only marks have a background."""
        style = self._looks.get(name)
        if style is None:
            full = self.get_component_rich_style(f"log--{name}")
            if name in ("hit", "cursor"):
                style = Style(bgcolor=full.bgcolor, bold=full.bold, underline=full.underline)
            else:
                style = Style(color=full.color, bold=full.bold, dim=full.dim, italic=full.italic)
            self._looks[name] = style
        return style

    def _height(self, row: int) -> int:
        strip = self._strip(row)
        return min(max(1, -(-strip.cell_length // self._text_width())), max(1, self._room().height)) if self.wrap else 1

    def _strip(self, row: int) -> Strip:
        """The whole line of a row, without number and cursor."""
        try:
            number = self.line_at(row)
            cached = self._strips.get(number)
            if cached is not None:
                return cached
            line = self.index.line(number)
        except IndexError:
            return Strip([], 0)
        strip = self._drawn(line)
        # a last line without newline may still change
        if number < self.index.settled_count:
            self._strips[number] = strip
        if strip.cell_length > self._widest:
            self._widest = strip.cell_length
            if not self.wrap:
                self.call_later(self._resize_virtual)
        return strip

    def _drawn(self, line: Line) -> Strip:
        style = self._look(kind_of(line))
        segments: list[Segment] = []
        at = 0
        if self.pattern is not None:
            hit = style + self._look("hit")
            for start, end in self.pattern.spans(line.text):
                segments += [Segment(line.text[at:start], style), Segment(line.text[start:end], hit)]
                at = end
        segments.append(Segment(line.text[at:], style))
        if line.cut:
            segments.append(Segment(f" … {line.cut:,} bytes more", self._look("cut")))
        return Strip([s for s in segments if s.text], sum(cell_len(s.text) for s in segments))

    def render_line(self, y: int) -> Strip:
        """Draw one line of the screen."""
        top, width = self.scroll_offset.y, self._room().width
        base = self.visual_style.rich_style
        if self.wrap:
            row, part = self._page_rows(top)[y] if y < len(self._page_rows(top)) else (-1, 0)
        else:
            row, part = (top + y if top + y < self._rows else -1), 0
        if row < 0:
            return Strip.blank(width, base)
        try:
            number = self.line_at(row)
        except IndexError:
            return Strip.blank(width, base)
        text, room = self._strip(row), self._text_width()
        start = part * room if self.wrap else self.scroll_offset.x
        body = text.crop_extend(start, start + room, Style.null())
        if self.wrap and part + 1 == self._height(row) and text.cell_length > start + room:
            body = Strip.join([body.crop(0, room - 1), Strip([Segment("…")], 1)])
        if gutter := self._gutter():
            label = f"{number + 1:>{gutter - 2}}  " if part == 0 else " " * gutter
            body = Strip.join([Strip([Segment(label, self._look("number"))], gutter), body])
        if number == self.cursor and self._rows:
            base += self._look("cursor")
        return Strip([Segment(s.text, base + s.style if s.style else base) for s in body], width)

    def _page_rows(self, top: int) -> list[tuple[int, int]]:
        """For each line of the screen, the row and which part of it, when wrapped."""
        key = (top, self.size, self._rows, self.index.size, self.filter, self._numbered)
        if self._page[0] != key:
            page: list[tuple[int, int]] = []
            row = top
            while len(page) < self._room().height and row < self._rows:
                page += [(row, part) for part in range(self._height(row))]
                row += 1
            self._page = (key, page)
        return self._page[1]

    def notify_style_update(self) -> None:
        """Another theme: draw everything anew."""
        super().notify_style_update()
        self._looks.clear()
        self.forget()

    def watch_pattern(self) -> None:
        """Mark other places."""
        self.forget()
        self.refresh()
