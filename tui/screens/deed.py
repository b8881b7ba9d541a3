"""The dialog before a deed: what happens, what is lost, what keeps billing; then its phases, then how it ended.

The focus is on Cancel. What destroys needs the name typed back. While the deed runs the dialog may be left: the deed
goes on, and its end is told as a notice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.notifications import SeverityLevel
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static

from tui.deeds import Deed, DeedEnd, run_deed

if TYPE_CHECKING:
    from tui.app import TunewatchApp


class DeedScreen(ModalScreen[None]):
    """One deed, asked for and shown."""

    DEFAULT_CSS = """
    DeedScreen { align: center middle; background: $background 60%; }
    DeedScreen > Vertical {
        width: 78; max-width: 96%; height: auto; max-height: 90%;
        border: round $warning; background: $surface; padding: 1 2;
        border-title-color: $warning; border-subtitle-color: $text-muted;
    }
    DeedScreen #says { width: 1fr; height: auto; margin-bottom: 1; }
    DeedScreen #command { color: $text-muted; width: 1fr; height: auto; margin-bottom: 1; }
    DeedScreen Input { border: round $border-blurred; background: $surface; height: 3; }
    DeedScreen Input:focus { border: round $border; }
    DeedScreen #buttons { height: 3; align-horizontal: right; }
    DeedScreen Button { margin-left: 2; min-width: 12; }
    DeedScreen #steps { height: auto; max-height: 14; display: none; }
    DeedScreen #steps Static { width: 1fr; height: auto; }
    DeedScreen.-running #steps { display: block; }
    DeedScreen.-running #name { display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Cancel")]

    def __init__(self, deed: Deed) -> None:
        super().__init__()
        self.deed = deed
        self.end: DeedEnd | None = None
        self._lines: list[str] = []
        self._begun = False

    def compose(self) -> ComposeResult:
        """The question; the phases come below it."""
        with Vertical() as box:
            box.border_title = self.deed.title
            yield Static("\n".join(self.deed.says), id="says", markup=False)
            yield Static(f"$ {self.deed.as_typed()}", id="command", markup=False)
            if self.deed.name:
                yield Input(placeholder=f"type {self.deed.name} to go on", id="name")
            with VerticalScroll(id="steps"):
                yield Static("", id="lines", markup=False)
            with Horizontal(id="buttons"):
                yield Button("Cancel", id="cancel")
                yield Button(self.deed.verb, id="go", variant="error", disabled=bool(self.deed.name))

    def on_mount(self) -> None:
        """A careless Enter cancels."""
        self.query_one("#cancel", Button).focus()

    @on(Input.Changed, "#name")
    def _typed(self, event: Input.Changed) -> None:
        self.query_one("#go", Button).disabled = event.value.strip() != self.deed.name

    @on(Button.Pressed, "#cancel")
    def action_leave(self) -> None:
        """Cancel before it begins; leave it to itself after."""
        if self._begun and self.end is None:
            self.app.notify(f"{self.deed.title} goes on; its end will be told here.")
        self.dismiss()

    @on(Button.Pressed, "#go")
    def _go(self) -> None:
        if self._begun or (self.deed.name and self.query_one("#name", Input).value.strip() != self.deed.name):
            return
        self._begun = True
        self.add_class("-running")
        self.query_one("#go", Button).display = False
        self.query_one("#cancel", Button).label = "Leave"
        self._work()

    @work(thread=True, exit_on_error=True)
    def _work(self) -> None:
        app = self.app
        end = run_deed(self.deed, lambda line: app.call_from_thread(self._said, line))
        app.call_from_thread(self._ended, end)

    def _said(self, line: str) -> None:
        self._lines.append(line)
        if self.is_attached:
            self.query_one("#lines", Static).update("\n".join(self._lines))
            self.query_one("#steps").scroll_end(animate=False)

    def _ended(self, end: DeedEnd) -> None:
        self.end = end
        app = cast("TunewatchApp", self.app)
        severity: SeverityLevel = "information" if end.ok else "error"
        if not self.is_attached:
            app.notify(end.text, title=self.deed.title, severity=severity, timeout=30)
            return
        colour = app.theme_variables.get("success" if end.ok else "error", "")
        told = Text("\n".join(self._lines))
        told.append(f"\n{end.text}", f"bold {colour}")
        self.query_one("#lines", Static).update(told)
        self.query_one("#cancel", Button).label = "Close"
        self.query_one("#cancel", Button).focus()
