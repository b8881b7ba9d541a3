"""A chart in a frame: draws its spec, answers the mouse, keeps the picture until something changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text
from textual import events
from textual.app import RenderResult
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

if TYPE_CHECKING:
    from tui.axes import ChartSpec, Geometry
    from tui.palette import Palette

# what draws a chart is imported when there is one to draw: the first frame has none


class ChartPane(Widget, can_focus=True):
    """One chart. The screen sets `spec` and `palette`; the pane tells of the mouse."""

    DEFAULT_CSS = """
    ChartPane {
        border: round $border-blurred;
        border-title-color: $foreground;
        border-subtitle-color: $text-muted;
        border-title-style: none;
        padding: 0 1 0 0;
        height: 1fr;
    }
    ChartPane:focus { border: round $border; }
    """

    spec: reactive[ChartSpec | None] = reactive(None)
    palette: reactive[Palette | None] = reactive(None)

    class Pointed(Message):
        """A click: the cursor goes to data x."""

        def __init__(self, x: float) -> None:
            super().__init__()
            self.x = x

    class Zoomed(Message):
        """The wheel: zoom in (1) or out (-1) around data x."""

        def __init__(self, direction: int, x: float) -> None:
            super().__init__()
            self.direction = direction
            self.x = x

    class Dragged(Message):
        """The window moves by a share of its width."""

        def __init__(self, share: float) -> None:
            super().__init__()
            self.share = share

    def __init__(self, title: str = "", *, id: str, classes: str = "") -> None:  # noqa: A002 - Textual's own name
        super().__init__(id=id, classes=classes)
        if title:
            self.border_title = title
        self._drawn: tuple[object, Text] | None = None
        self._drag_from: int | None = None
        self._dragged = False

    def render(self) -> RenderResult:
        """Draw, unless nothing has changed since the last time."""
        if self.palette is None or self.spec is None:
            return Text("")
        from tui.chart import render_chart

        width, height = self.content_size
        key = (self.spec, width, height, self.palette)
        if self._drawn is None or not _same(self._drawn[0], key):
            self._drawn = (key, render_chart(self.spec, width, height, self.palette))
        return self._drawn[1]

    def geometry(self) -> Geometry | None:
        """The cells as they are drawn now."""
        if self.spec is None:
            return None
        from tui.axes import layout

        return layout(self.spec, *self.content_size)

    def x_under(self, event: events.MouseEvent) -> float | None:
        """The data x under the mouse, None beside the plot."""
        geometry = self.geometry()
        offset = event.get_content_offset(self)
        if geometry is None or offset is None:
            return None
        column = offset.x - geometry.gutter - 1
        return geometry.x_at(column) if 0 <= column < geometry.columns else None

    def on_mouse_down(self, event: events.MouseDown) -> None:
        """Begin a drag."""
        if event.button == 1:
            self._drag_from, self._dragged = event.x, False
            self.capture_mouse()

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Pan with the mouse held."""
        geometry = self.geometry()
        if self._drag_from is None or geometry is None or event.x == self._drag_from:
            return
        share = (self._drag_from - event.x) / geometry.columns
        self._drag_from, self._dragged = event.x, True
        self.post_message(self.Dragged(share))

    def on_mouse_up(self, event: events.MouseUp) -> None:
        """A press without a move is a click on data x."""
        self.release_mouse()
        if self._drag_from is not None and not self._dragged:
            x = self.x_under(event)
            if x is not None:
                self.post_message(self.Pointed(x))
        self._drag_from = None

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Zoom in."""
        self._wheel(event, 1)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Zoom out."""
        self._wheel(event, -1)

    def _wheel(self, event: events.MouseEvent, direction: int) -> None:
        x = self.x_under(event)
        if x is not None:
            event.stop()
            self.post_message(self.Zoomed(direction, x))


def _same(a: object, b: object) -> bool:
    """Equal keys; curves of many points are compared by identity first, which is how tuples compare."""
    return a == b
