"""All keys, from the one table."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from tui.keys import groups


class HelpScreen(ModalScreen[None]):
    """The key table over whatever screen is open."""

    DEFAULT_CSS = """
    HelpScreen { align: center middle; background: $background 60%; }
    HelpScreen > VerticalScroll {
        width: 76; max-width: 96%; height: auto; max-height: 90%;
        border: round $border; background: $surface; padding: 0 2;
        border-title-color: $foreground; border-subtitle-color: $text-muted;
        scrollbar-size-vertical: 1;
    }
    HelpScreen Static { width: 1fr; height: auto; }
    """
    BINDINGS: ClassVar = [Binding("escape,question_mark,q,f1,enter", "dismiss", "Close")]

    def compose(self) -> ComposeResult:
        """One scrolling list."""
        with VerticalScroll() as box:
            box.border_title = "keys"
            box.border_subtitle = "Esc closes"
            yield Static(self._text(), markup=False)

    def _text(self) -> Text:
        variables = self.app.theme_variables
        out = Text()
        for heading, keys in groups():
            out.append(f"\n{heading}\n", f"bold {variables.get('primary', '')}")
            for key in keys:
                out.append(f"  {key.label():<9}", variables.get("accent", ""))
                out.append(f" {key.sentence}\n")
        return out
