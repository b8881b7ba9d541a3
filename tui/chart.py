"""Draws a `ChartSpec` as text: curves out of dots or blocks, everything else laid over their cells.

Braille comes from `tui.dots`, the glyphs of a terminal without it from plotext. This is the only module that imports
plotext, and it does so at the first chart that needs it. plotext 6 keeps one global figure, so `render_chart` must be
called from one thread (the screen's). Its area is drawn without axes, so that one cell is one cell of `Geometry`; grid,
lines, marks, shades, cursor and labels are ours, because plotext has no cursor and paints white behind most of its own
decorations.

Layers, from below: shades · grid · level and vertical lines · cursor · curves · marks · labels of the lines.
"""

from __future__ import annotations

import re
import sys
from types import ModuleType
from typing import Any

from rich.style import Style
from rich.text import Text

from tui.axes import ChartSpec, Geometry, Role, Series, layout
from tui.dots import Line, braille
from tui.palette import Palette

PLOTEXT_NAMES = (
    "add_theme",
    "figure.axes",
    "figure.build",
    "figure.clear",
    "figure.draw",
    "figure.legend",
    "figure.plot_size",
    "figure.ruler",
    "figure.signal",
    "figure.theme",
    "marker",
    "pixel",
    "terminal.limit",
)
"""Every name of plotext that this file uses; a contract test looks each up in the installed version."""

_ANSI = re.compile(r"\x1b\[([0-9;]*)m")
_THEME = "tunewatch"


def render_chart(spec: ChartSpec, width: int, height: int, palette: Palette) -> Text:
    """Draw `spec` on `width` x `height` cells. Pure: equal arguments give equal text."""
    geometry = layout(spec, width, height)
    if geometry is None:
        return _nothing(spec.empty, width, height, palette)
    cells = _Cells(geometry, palette)
    cells.shade(spec)
    cells.rules(spec)
    cells.curves(spec)
    cells.marks(spec)
    cells.labels(spec)
    return cells.text()


def _nothing(words: str, width: int, height: int, palette: Palette) -> Text:
    lines = [""] * max(height, 1)
    lines[len(lines) // 2] = words[: max(width, 0)].center(max(width, 0)).rstrip()
    return Text("\n".join(lines), style=palette.text, no_wrap=True)


class _Cells:
    """The plot area as rows of [glyph, foreground, background], composed layer by layer."""

    def __init__(self, geometry: Geometry, palette: Palette) -> None:
        self.geo = geometry
        self.palette = palette
        self.plain = palette.marker == "ascii"
        self.rows: list[list[list[str]]] = [
            [[" ", "", ""] for _ in range(geometry.columns)] for _ in range(geometry.rows)
        ]

    def shade(self, spec: ChartSpec) -> None:
        """Backgrounds of the spans, clipped to the window."""
        for span in spec.spans:
            first, last = self._clip(span.lo), self._clip(span.hi)
            if span.hi < self.geo.x_lo or span.lo > self.geo.x_hi:
                continue
            for row in self.rows:
                for cell in row[first : last + 1]:
                    cell[2] = self.palette.shades.get(span.role, "")

    def _clip(self, x: float) -> int:
        share = min(max(self.geo.share_x(x), 0.0), 1.0)
        return round(share * (self.geo.columns - 1))

    def rules(self, spec: ChartSpec) -> None:
        """Grid, vertical lines and the cursor's column."""
        for value, _ in self.geo.y_ticks:
            row = self.geo.row_of(value)
            if row is not None:
                for cell in self.rows[row]:
                    cell[0], cell[1] = "." if self.plain else "┈", self.palette.grid
        for level in spec.hlines:
            row = self.geo.row_of(level.y)
            if row is not None:
                for cell in self.rows[row]:
                    cell[0], cell[1] = "-" if self.plain else "╌", self.palette.roles[level.role]
        for line in spec.vlines:
            self._column(line.x, ":" if self.plain else "┊", self.palette.roles[line.role])
        if spec.cursor is not None:
            self._column(spec.cursor, "|" if self.plain else "│", self.palette.cursor)

    def _column(self, x: float, glyph: str, colour: str) -> None:
        column = self.geo.column_of(x)
        if column is not None:
            for row in self.rows:
                row[column][0], row[column][1] = glyph, colour

    def curves(self, spec: ChartSpec) -> None:
        """The curves, wherever they have a dot. Each is drawn by itself: in a shared cell the last one is seen."""
        for curve, kept in zip(spec.series, self.geo.drawn, strict=True):
            colour = self.palette.roles[curve.role]
            lines = lines_of(curve, kept, self.geo)
            if self.palette.marker == "braille":
                drawn = braille(lines, self.geo.columns, self.geo.rows)
            else:
                drawn = by_plotext(lines, self.geo, "*" if self.plain else "hd")
            for row, line in zip(self.rows, drawn, strict=False):
                for cell, glyph in zip(row, line, strict=False):
                    if glyph != " ":
                        cell[0], cell[1] = glyph, colour

    def marks(self, spec: ChartSpec) -> None:
        """Dots of sparse curves, the marks, and the cursor's reading points."""
        for curve, kept in zip(spec.series, self.geo.drawn, strict=True):
            if curve.points and len(kept) <= self.geo.columns // 2:
                for i, _ in kept:
                    self._glyph(curve.xs[i], curve.ys[i], "o" if self.plain else "●", self.palette.roles[curve.role])
        for mark in spec.marks:
            self._glyph(mark.x, mark.y, "*" if self.plain else mark.glyph, self.palette.roles[mark.role])

    def _glyph(self, x: float, y: float, glyph: str, colour: str) -> None:
        column, row = self.geo.column_of(x), self.geo.row_of(y)
        if column is not None and row is not None:
            self.rows[row][column][0], self.rows[row][column][1] = glyph, colour

    def labels(self, spec: ChartSpec) -> None:
        """Names of the lines: of a vertical one in the first row with room beside it, of a level one at its end."""
        taken: list[list[tuple[int, int]]] = [[] for _ in self.rows]
        for level in spec.hlines:
            at = self.geo.row_of(level.y)
            if at is not None and level.label and len(level.label) + 2 < self.geo.columns:
                start = self.geo.columns - len(level.label)
                taken[at].append((start, self.geo.columns))
                self._write(at, start, level.label, level.role)
        for line in spec.vlines:
            column = self.geo.column_of(line.x)
            if column is None or not line.label or len(line.label) + 2 > self.geo.columns:
                continue
            start = column + 1 if column + 1 + len(line.label) <= self.geo.columns else column - len(line.label)
            end = start + len(line.label)
            free = [r for r in range(min(5, len(self.rows))) if all(end < a or b < start for a, b in taken[r])]
            if free:
                # beside the curve where there is a row for it, over it where there is none
                row = next((r for r in free if not self._busy(r, start, end)), free[0])
                taken[row].append((start, end))
                self._write(row, start, line.label, line.role)

    def _busy(self, row: int, start: int, end: int) -> bool:
        """Whether a curve or a mark passes through these cells."""
        quiet = " .:-|┈╌┊│"
        return any(cell[0] not in quiet for cell in self.rows[row][start:end])

    def _write(self, row: int, start: int, words: str, role: Role) -> None:
        for offset, letter in enumerate(words):
            cell = self.rows[row][start + offset]
            cell[0], cell[1] = letter, self.palette.roles[role]

    def text(self) -> Text:
        """The picture with gutter, axis and the labels below."""
        out = Text(no_wrap=True, end="")
        axis = Style.parse(self.palette.grid)
        words = Style.parse(self.palette.text)
        by_row = {self.geo.row_of(v): label for v, label in self.geo.y_ticks}
        styles: dict[tuple[str, str], Style] = {}
        for number, row in enumerate(self.rows):
            label = by_row.get(number)
            out.append(f"{label or '':>{self.geo.gutter - 1}} ", words)
            out.append("|" if self.plain else ("┤" if label else "│"), axis)
            for glyphs, fore, back in _runs(row):
                key = (fore, back)
                if key not in styles:
                    styles[key] = Style(color=fore or None, bgcolor=back or None)
                out.append(glyphs, styles[key])
            out.append("\n")
        out.append(self._x_labels(), words)
        return out

    def _x_labels(self) -> str:
        line = [" "] * self.geo.width
        free_from = 0
        for value, label in self.geo.x_ticks:
            column = self.geo.column_of(value)
            if column is None:
                continue
            start = min(max(self.geo.gutter + 1 + column - len(label) // 2, 0), self.geo.width - len(label))
            if start < free_from:
                continue
            line[start : start + len(label)] = label
            free_from = start + len(label) + 2
        return "".join(line).rstrip()


def _runs(row: list[list[str]]) -> list[tuple[str, str, str]]:
    """Join neighbouring cells of one style."""
    out: list[tuple[str, str, str]] = []
    glyphs, fore, back = "", row[0][1], row[0][2]
    for glyph, f, b in row:
        if (f, b) != (fore, back) and not (glyph == " " and b == back):
            out.append((glyphs, fore, back))
            glyphs, fore, back = "", f, b
        glyphs += glyph
    out.append((glyphs, fore, back))
    return out


_loaded: Any = None


def _plotext() -> Any:
    """Import plotext once, without its clamp to the size of a terminal that a test does not have."""
    global _loaded
    if _loaded is None:
        # its last import is the manual, 27 pages that are read nowhere here and take two thirds of the whole import
        manual = ModuleType("plotext._doc.doc")
        manual.docs = None  # type: ignore[attr-defined]
        sys.modules.setdefault(manual.__name__, manual)
        import plotext

        plotext.terminal.limit(False, False)
        plotext.add_theme(
            _THEME, canvas="default", text=((200, 200, 200), "default"), sequence=["red"], grid=(60, 60, 60)
        )
        _loaded = plotext
    return _loaded


def by_plotext(lines: list[Line], geo: Geometry, marker: str) -> list[str]:
    """Let plotext draw the lines of one curve on a bare area of the plot's size; `marker` is a name of its own."""
    plotext = _plotext()
    figure = plotext.figure
    figure.clear()
    figure.plot_size(geo.columns, geo.rows)
    figure.theme(_THEME)
    figure.axes(False)
    figure.legend(False)
    for axis in ("x", "y"):
        figure.ruler(axis).ticks([], [])
        figure.ruler(axis).lim(0, 1)
    glyphs = plotext.marker(marker, pixel=plotext.pixel((9, 9, 9)))
    for xs, ys in lines:
        signal = figure.signal(xs, ys, marker=glyphs)
        figure.draw(signal.lines() if len(xs) > 1 else signal)
    return _ANSI.sub("", str(figure.build())).split("\n")


def lines_of(curve: Series, kept: tuple[tuple[int, int], ...], geo: Geometry) -> list[Line]:
    """Each run of a curve in shares of the axes, cut at the ends of the window."""
    runs: dict[int, tuple[list[float], list[float]]] = {}
    for i, run in kept:
        y = curve.ys[i]
        if geo.log_y and y <= 0:
            continue
        xs, ys = runs.setdefault(run, ([], []))
        xs.append(geo.share_x(curve.xs[i]))
        ys.append(geo.share_y(y))
    return [_cut(xs, ys) for xs, ys in runs.values() if xs]


def _cut(xs: list[float], ys: list[float]) -> tuple[list[float], list[float]]:
    """Move the points beyond the window onto its ends, along their line."""
    if len(xs) > 1 and xs[0] < 0 < xs[1]:
        ys[0] += (ys[1] - ys[0]) * (0 - xs[0]) / (xs[1] - xs[0])
        xs[0] = 0.0
    if len(xs) > 1 and xs[-2] < 1 < xs[-1]:
        ys[-1] = ys[-2] + (ys[-1] - ys[-2]) * (1 - xs[-2]) / (xs[-1] - xs[-2])
        xs[-1] = 1.0
    inside = [i for i, x in enumerate(xs) if -1e-9 <= x <= 1 + 1e-9]
    return [min(max(xs[i], 0.0), 1.0) for i in inside], [min(max(ys[i], 0.0), 1.0) for i in inside]
