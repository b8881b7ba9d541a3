"""The box of a run: GPUs with their limits, processor, memory, disk, network. What is not known is not shown."""

from __future__ import annotations

import time
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from tui.snapshot import RunSnapshot
from tui.widgets.box_text import box_text


class BoxScreen(ModalScreen[None]):
    """The last measurement of the box over whatever screen is open, renewed with every snapshot."""

    DEFAULT_CSS = """
    BoxScreen { align: center middle; background: $background 60%; }
    BoxScreen > VerticalScroll {
        width: 84; max-width: 96%; height: auto; max-height: 90%;
        border: round $border; background: $surface; padding: 1 2;
        border-title-color: $foreground; border-subtitle-color: $text-muted;
    }
    BoxScreen Static { width: 1fr; height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,g,q,enter", "dismiss", "Close")]

    def __init__(self, snapshot: RunSnapshot) -> None:
        super().__init__()
        self.snapshot = snapshot

    def compose(self) -> ComposeResult:
        """One text."""
        with VerticalScroll() as box:
            box.border_title = f"{self.snapshot.name}: the box"
            box.border_subtitle = "Esc closes"
            yield Static(self._text(), id="box", markup=False)

    def take(self, snapshot: RunSnapshot) -> None:
        """A newer measurement."""
        if self.is_running and snapshot.target == self.snapshot.target:
            self.snapshot = snapshot
            self.query_one("#box", Static).update(self._text())

    def _text(self) -> Text:
        return box_text(self.snapshot.health, self.app.theme_variables, time.monotonic())
