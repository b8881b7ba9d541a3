"""Everything that happened since the program was opened, newest first."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

if TYPE_CHECKING:
    from tui.app import TunewatchApp

COLOURS = {"information": "foreground", "warning": "warning", "error": "error"}


class EventsScreen(ModalScreen[None]):
    """The events over whatever screen is open."""

    DEFAULT_CSS = """
    EventsScreen { align: center middle; background: $background 60%; }
    EventsScreen > VerticalScroll {
        width: 90; max-width: 96%; height: auto; max-height: 80%;
        border: round $border; background: $surface; padding: 1 2;
        border-title-color: $foreground; border-subtitle-color: $text-muted;
    }
    EventsScreen Static { width: 1fr; height: auto; }
    """
    BINDINGS: ClassVar = [Binding("escape,e,q,enter", "dismiss", "Close")]

    def compose(self) -> ComposeResult:
        """One scrolling list."""
        with VerticalScroll() as box:
            box.border_title = "events"
            box.border_subtitle = "Esc closes"
            yield Static(self._text(), markup=False)

    def _text(self) -> Text:
        app = cast("TunewatchApp", self.app)
        if not app.events:
            return Text("Nothing has happened since tunewatch was opened.", style="dim")
        out = Text()
        for event in reversed(app.events):
            out.append(f"{event.step if event.step is not None else '–':>7}  ", "dim")
            out.append(f"{event.title}  ", f"bold {app.theme_variables.get(COLOURS[event.severity], '')}")
            out.append(f"{event.text}\n")
        return out
