"""Cursor, zoom, pan, smoothing and axes of the charts of one screen, by keys and by mouse: all charts move together.

A screen that derives from `ChartKeys` has `ChartPane`s, and draws in `redraw` what the person chose, which is `view`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from textual import on
from textual.screen import Screen

from tui.layout import RunLayout
from tui.widgets.chart_pane import ChartPane

if TYPE_CHECKING:
    from tui.axes import Geometry
    from tui.curves import View


class ChartKeys(Screen[None]):
    """The actions of the key table that change the view."""

    chosen: str = ""
    """The pane that `y` is about when no chart has the focus."""

    @cached_property
    def view(self) -> View:
        """What the person chose to see; made when there is something to see."""
        from tui.curves import View

        return View()

    if TYPE_CHECKING:

        def redraw(self) -> None:
            """Draw every chart by `view`; each screen does it."""

        def counts_tokens(self) -> bool:
            """Whether tokens can be an axis; each screen knows its runs."""

    def look(self, view: View) -> None:
        """See it this way from now on."""
        self.view = view
        self.redraw()

    def _drawn(self) -> tuple[ChartPane, Geometry] | None:
        """A chart on the screen with its cells; they all have the same columns."""
        for pane in self.query(ChartPane):
            geometry = pane.geometry() if pane.display and pane.size.width else None
            if geometry is not None:
                return pane, geometry
        return None

    def action_cursor(self, by: int) -> None:
        """Move the cursor by one column, on all charts."""
        drawn = self._drawn()
        if drawn is None:
            return
        geometry = drawn[1]
        at = geometry.columns - 1 if self.view.cursor is None else geometry.column_of(self.view.cursor)
        column = min(max((at if at is not None else geometry.columns // 2) + by, 0), geometry.columns - 1)
        self.look(replace(self.view, cursor=geometry.x_at(column)))

    def action_zoom(self, direction: int) -> None:
        """Zoom around the cursor, or around the newest step."""
        drawn = self._drawn()
        if drawn is not None:
            self._zoom(direction, self.view.cursor if self.view.cursor is not None else drawn[1].x_hi)

    def _zoom(self, direction: int, around: float) -> None:
        drawn = self._drawn()
        if drawn is None:
            return
        geometry = drawn[1]
        factor = 0.7 if direction > 0 else 1 / 0.7
        around = min(max(around, geometry.x_lo), geometry.x_hi)
        lo = around - (around - geometry.x_lo) * factor
        hi = around + (geometry.x_hi - around) * factor
        self.look(replace(self.view, window=self._within(lo, hi)))

    def _within(self, lo: float, hi: float) -> tuple[float, float] | None:
        """A window inside what there is to see; None when it is all of it."""
        from tui.axes import layout

        drawn = self._drawn()
        spec = drawn[0].spec if drawn is not None else None
        full = layout(replace(spec, x_range=None), 100, 10) if spec is not None else None
        if full is None or (lo <= full.x_lo and hi >= full.x_hi):
            return None
        width = max(hi - lo, (full.x_hi - full.x_lo) * 1e-4)
        lo = min(max(lo, full.x_lo), max(full.x_hi - width, full.x_lo))
        return lo, min(lo + width, full.x_hi)

    def action_pan(self, by: int) -> None:
        """Move the window by a quarter of its width."""
        self._pan(by * 0.25)

    def _pan(self, share: float) -> None:
        drawn = self._drawn()
        if drawn is None or self.view.window is None:
            return
        geometry = drawn[1]
        width = geometry.x_hi - geometry.x_lo
        self.look(replace(self.view, window=self._within(geometry.x_lo + share * width, geometry.x_hi + share * width)))

    def action_reset_view(self) -> None:
        """All steps, no cursor."""
        self.look(replace(self.view, window=None, cursor=None))

    def action_smooth(self, by: int) -> None:
        """More or less smoothing."""
        self.look(self.view.smoother(by))

    def action_x_mode(self) -> None:
        """X as step, time, logarithm, tokens where they are counted."""
        self.look(self.view.next_x_mode(tokens=self.counts_tokens()))

    def action_log_y(self) -> None:
        """Logarithmic y of the focused chart, else of the chosen one."""
        focused = self.focused
        name = focused.id if isinstance(focused, ChartPane) and focused.id else self.chosen
        self.look(replace(self.view, log_y=self.view.log_y ^ {name}))

    @on(ChartPane.Pointed)
    def _pointed(self, event: ChartPane.Pointed) -> None:
        self.look(replace(self.view, cursor=event.x))

    @on(ChartPane.Zoomed)
    def _zoomed(self, event: ChartPane.Zoomed) -> None:
        self._zoom(event.direction, event.x)

    @on(ChartPane.Dragged)
    def _dragged(self, event: ChartPane.Dragged) -> None:
        self._pan(event.share)


def view_of(left: RunLayout) -> View:
    """The view that was left; window and cursor belong to the moment."""
    from tui.curves import SMOOTHING, View

    view = View(x_mode=left.x_mode, log_y=frozenset(left.log_y))  # type: ignore[arg-type]  # checked when it was read
    if left.smoothing is None or not 0 <= left.smoothing < len(SMOOTHING):
        return view
    return replace(view, smoothing=left.smoothing)
