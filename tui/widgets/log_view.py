"""The lines of a log on the screen, and where a person is among them: following the end, moving, choosing a line.

The widget scans nothing itself; whoever numbers, searches and filters calls `sync` after each piece of news.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.reactive import reactive

from tui.logscan import Filter, eval_of_line
from tui.widgets.log_canvas import LogCanvas


class LogView(LogCanvas):
    """Shows an index, follows its end, marks hits, and tells which line was chosen."""

    DEFAULT_CSS = """
    LogView {
        height: 1fr; scrollbar-size-horizontal: 0; scrollbar-size-vertical: 1;
        & .log--number { color: $foreground 45%; }
        & .log--eval { color: $success; text-style: bold; }
        & .log--error { color: $error; text-style: bold; }
        & .log--warning { color: $warning; }
        & .log--quiet { color: $foreground 60%; }
        & .log--plain { color: $foreground; }
        & .log--hit { background: $warning 45%; text-style: bold underline; }
        & .log--cursor { background: $primary 30%; }
        & .log--cut { color: $foreground 60%; text-style: italic; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup,ctrl+b", "page(-1)", "Page up", show=False),
        Binding("pagedown,ctrl+f,space", "page(1)", "Page down", show=False),
        Binding("left", "sideways(-1)", "Left", show=False),
        Binding("right", "sideways(1)", "Right", show=False),
        Binding("home,g", "top", "Top", show=False),
        Binding("end,G", "follow", "Follow", show=False),
        Binding("enter", "choose", "Choose", show=False),
    ]

    follow: reactive[bool] = reactive(True)
    """Whether the view stays at the newest line."""

    @dataclass
    class Chosen(Message):
        """A line was chosen with Enter or the mouse."""

        view: LogView
        line: int
        text: str
        eval_loss: float | None
        """Of an evaluation line; None for any other."""
        entered: bool
        """With Enter or a second click: the person wants to go where it leads."""

        @property
        def control(self) -> LogView:
            """The sender, for `on` with a selector."""
            return self.view

    @dataclass
    class Moved(Message):
        """Cursor, following or the part that is shown changed."""

        view: LogView

    @property
    def new_rows(self) -> int:
        """Rows that came since the view stopped following."""
        if self.follow:
            return 0
        known = self._lines_at_leave if self.filter is None else self.filter.row_at_or_after(self._lines_at_leave)
        return max(0, self._rows - known)

    # -- news ----------------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Take in what index and filter have learnt since the last time."""
        top = self._top_line()
        if self._generation != self.index.generation:
            self._generation = self.index.generation
            self.forget()
            self.cursor, self.follow, top = 0, True, 0
            self._numbered = self.index.numbered
        if self.index.numbered and not self._numbered:
            self._numbered = True
            self.cursor += self.index.tail_line
            top += self.index.tail_line
            self._lines_at_leave += self.index.tail_line
            self.forget()
        self._rows = self.index.line_count if self.filter is None else len(self.filter)
        self._resize_virtual()
        if self.follow:
            self._to_end()
        elif self.filter is None:
            self._scroll_row(top)
        elif not self._settled and self._rows:
            # while the filter goes on, rows above the cursor come in: keep it where the eye is
            self._scroll_row(self.row_of(self.cursor) - self._room().height // 2)
            self._settled = self.filter.done
        self.refresh()
        self.post_message(self.Moved(self))

    def set_filter(self, new: Filter | None) -> None:
        """Show only what `new` finds (None: every line); the cursor keeps its line."""
        self.filter = new
        self._settled = False
        self._rows = self.index.line_count if new is None else len(new)
        self.sync()
        if new is None and not self.follow:
            self.show_line(self.cursor)

    def _top_line(self) -> int:
        row = self.scroll_offset.y
        return row if self.filter is None else 0

    def on_resize(self) -> None:
        """Keep the end, or the cursor, in sight."""
        self._page = (None, [])
        self._resize_virtual()
        if self.follow:
            self._to_end()

    def watch_wrap(self) -> None:
        """Fold, or unfold."""
        self.forget()
        self.scroll_to(x=0, animate=False)
        self._resize_virtual()
        if self.follow:
            self._to_end()
        elif self._rows:
            self.show_line(self.cursor)
        self.refresh()

    def watch_follow(self, follow: bool) -> None:
        """Count what comes from now on."""
        self._lines_at_leave = self.index.line_count
        self.post_message(self.Moved(self))

    # -- moving --------------------------------------------------------------------------------------------------

    def show_line(self, line: int) -> None:
        """Put the cursor on a line (or the next one shown) and bring it into sight; stops following."""
        if not self._rows:
            return
        row = self.row_of(line)
        self.follow = False
        self._cursor_to(row)

    def _cursor_to(self, row: int) -> None:
        row = max(0, min(row, self._rows - 1))
        try:
            self.cursor = self.line_at(row)
        except IndexError:
            return
        top, height = self.scroll_offset.y, max(1, self._room().height)
        if row < top:
            self._scroll_row(row)
        elif self.wrap:
            if (row, 0) not in self._page_rows(top) or (row, self._height(row) - 1) not in self._page_rows(top):
                self._scroll_row(row - self._fitting(row) + 1)
        elif row >= top + height:
            # a jump lands in the middle, a step at the edge
            self._scroll_row(row - height + 1 if row - top < 2 * height else row - height // 2)
        self.refresh()
        self.post_message(self.Moved(self))

    def _to_end(self) -> None:
        if self._rows:
            try:
                self.cursor = self.line_at(self._rows - 1)
            except IndexError:
                return
        self._scroll_row(self.max_scroll_y)

    def _scroll_row(self, row: int) -> None:
        self.scroll_to(y=max(0, min(row, self.max_scroll_y)), animate=False, force=True)

    def action_move(self, by: int) -> None:
        """The cursor `by` rows down."""
        self.follow = False
        self._cursor_to(self.row_of(self.cursor) + by)

    def action_page(self, by: int) -> None:
        """One screen down or up."""
        self.follow = False
        page = self._fitting(self.scroll_offset.y + self._room().height) if self.wrap else self._room().height
        self._scroll_row(self.scroll_offset.y + by * max(1, page - 1))
        self._cursor_to(self.row_of(self.cursor) + by * max(1, page - 1))

    def action_sideways(self, by: int) -> None:
        """Half a screen to the right or left."""
        if not self.wrap:
            self.scroll_to(x=self.scroll_offset.x + by * max(1, self._text_width() // 2), animate=False, force=True)
            self.post_message(self.Moved(self))

    def action_top(self) -> None:
        """The first line."""
        self.follow = False
        self._cursor_to(0)

    def action_follow(self) -> None:
        """The newest line, and stay there."""
        self.follow = True
        self.sync()

    def action_choose(self) -> None:
        """Tell which line the person means."""
        self._tell(entered=True)

    def _tell(self, *, entered: bool) -> None:
        text = self.text_of(self.cursor)
        self.post_message(self.Chosen(self, self.cursor, text, eval_of_line(text), entered))

    def on_click(self, event: events.Click) -> None:
        """Select the line under the mouse."""
        offset = event.get_content_offset(self)
        if offset is None:
            return
        top = self.scroll_offset.y
        page = self._page_rows(top) if self.wrap else []
        row = (page[offset.y][0] if offset.y < len(page) else self._rows) if self.wrap else top + offset.y
        if row < self._rows:
            self.follow = False
            self._cursor_to(row)
            self._tell(entered=event.chain > 1)

    def on_mouse_scroll_up(self) -> None:
        """Looking back stops following."""
        self.follow = False

    def on_mouse_scroll_down(self) -> None:
        """Reaching the end starts it again."""
        self.call_after_refresh(self._follow_if_at_end)

    def on_scroll_to(self) -> None:
        """The scroll bar was dragged."""
        self.follow = False
        self.call_after_refresh(self._follow_if_at_end)

    on_scroll_up: Callable[[LogView], None] = on_mouse_scroll_up
    on_scroll_down: Callable[[LogView], None] = on_mouse_scroll_down

    def _follow_if_at_end(self) -> None:
        if self.scroll_target_y >= self.max_scroll_y and not self.follow:
            self.action_follow()
