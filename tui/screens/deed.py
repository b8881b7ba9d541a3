"""The dialog before a deed: what happens, what is lost, what keeps billing; then its phases, then how it ended.

The focus is on Cancel. What destroys needs the name typed back. While the deed runs the dialog may be left, and the
program too: the deed goes on, and its end is told as a notice for as long as somebody is there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, cast

from rich.text import Text
from textual import events, on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.notifications import SeverityLevel
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static

from remote.deeds import DeedStep
from tui.deeds import COMPLAINT, Deed, DeedEnd, Told, run_deed

if TYPE_CHECKING:
    from tui.app import TunewatchApp

TICK_S = 0.5
"""Seconds between two turns of the timers."""


def begin_deed(app: App[Any], deed: Deed, told: Callable[[Told], None], ended: Callable[[DeedEnd], None]) -> None:
    """Run a deed beside the screen; `told` and `ended` are called on the screen's own thread, while there is one.

    The thread is a daemon and the command is not its child's keeper: leaving the program waits for neither.
    """

    def say(one: Told) -> None:
        if app.is_running:
            app.call_later(told, one)

    def act() -> None:
        try:
            end = run_deed(deed, say)
        except OSError as error:
            end = DeedEnd(False, 1, "failed", f"the command cannot be started: {error.strerror or error}.")
        if app.is_running:
            app.call_later(ended, end)

    threading.Thread(target=act, name=f"deed {deed.title}", daemon=True).start()


class Phases:
    """The phases of a deed as lines: those done with their seconds, the one under way with a timer."""

    def __init__(self) -> None:
        self.rows: list[tuple[Told, float]] = []
        """Each with the moment (monotonic, s) at which it was told."""

    def take(self, told: Told, now: float) -> None:
        """What is newly told of a phase that is under way, or its end, takes the place of its beginning."""
        if isinstance(told, DeedStep):
            for number in range(len(self.rows) - 1, -1, -1):
                row, began = self.rows[number]
                if isinstance(row, DeedStep) and row.ok is None and row.name == told.name:
                    self.rows[number] = (told, began)
                    return
        self.rows.append((told, now))

    def over(self, text: str) -> None:
        """The deed has ended with these words: what says the same among the phases is said once, at the end."""
        starts = [n for n, (row, _) in enumerate(self.rows) if isinstance(row, str) and row.startswith(COMPLAINT)]
        if starts and all(isinstance(row, str) for row, _ in self.rows[starts[-1] :]):
            told = " ".join(row.strip() for row, _ in self.rows[starts[-1] :] if isinstance(row, str))
            if told.removeprefix(COMPLAINT) in text:
                del self.rows[starts[-1] :]
        for number, (row, at) in enumerate(self.rows):
            if isinstance(row, DeedStep) and row.ok is False and row.detail and row.detail.rstrip(".") in text:
                self.rows[number] = (replace(row, detail=""), at)

    def render(self, now: float, colours: dict[str, str]) -> Text:
        """One line for each; told apart by their marks, not by colour alone."""
        names = [row.name for row, _ in self.rows if isinstance(row, DeedStep)]
        width = min(max(map(len, names), default=0), 26)
        out = Text()
        for number, (row, at) in enumerate(self.rows):
            out.append("\n" if number else "")
            if isinstance(row, str):
                out.append(row)
                continue
            mark, colour = {True: ("✓", "success"), False: ("✗", "error"), None: ("▸", "accent")}[row.ok]
            seconds = now - at if row.ok is None else row.seconds
            out.append(f"{mark} ", f"bold {colours.get(colour, '')}".strip())
            out.append(f"{row.name:<{width}} ", "bold" if row.ok is None else "")
            out.append(f"{_seconds(seconds):>7}  ", "dim")
            out.append(row.detail, colours.get("error", "") if row.ok is False else "dim")
        return out

    @property
    def under_way(self) -> bool:
        """Whether a timer has to turn."""
        return any(isinstance(row, DeedStep) and row.ok is None for row, _ in self.rows)


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f} s" if value < 100 else f"{int(value) // 60}m{int(value) % 60:02d}s"


class DeedScreen(ModalScreen[None]):
    """One deed, asked for and shown."""

    DEFAULT_CSS = """
    DeedScreen { align: center middle; background: $background 60%; }
    DeedScreen > Vertical {
        width: 78; max-width: 96%; height: auto; max-height: 96%;
        border: round $warning; background: $surface; padding: 1 2;
        border-title-color: $warning; border-subtitle-color: $text-muted;
    }
    DeedScreen.-wide > Vertical { width: 100; }
    DeedScreen #says { width: 1fr; height: auto; margin-bottom: 1; }
    DeedScreen #command { color: $text-muted; width: 1fr; height: auto; margin-bottom: 1; }
    DeedScreen Input { border: round $border-blurred; background: $surface; height: 3; }
    DeedScreen Input:focus { border: round $border; }
    DeedScreen #buttons { height: 3; align-horizontal: right; }
    DeedScreen Button { margin-left: 2; min-width: 12; }
    DeedScreen #steps { height: auto; max-height: 16; display: none; }
    DeedScreen #steps Static { width: 1fr; height: auto; }
    DeedScreen #watch { display: none; }
    DeedScreen #end { display: none; width: 1fr; height: auto; margin-top: 1; text-style: bold; }
    DeedScreen.-running #steps { display: block; }
    DeedScreen.-running #name, DeedScreen.-running #says { display: none; }
    DeedScreen.-over #end { display: block; }
    DeedScreen.-short > Vertical { padding: 0 1; }
    DeedScreen.-short #steps { max-height: 10; }
    DeedScreen.-short #buttons { height: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Cancel"),
        Binding("left", "app.focus_previous", "Previous", show=False),
        Binding("right", "app.focus_next", "Next", show=False),
    ]

    def __init__(self, deed: Deed) -> None:
        super().__init__()
        self.deed = deed
        self.end: DeedEnd | None = None
        self.phases = Phases()
        self._begun = False

    def compose(self) -> ComposeResult:
        """The question; the phases come below it."""
        with Vertical() as box:
            box.border_title = self.deed.title
            yield Static("\n".join(self.deed.says), id="says", markup=False)
            yield Static(f"$ {self.deed.as_typed()}", id="command", markup=False)
            if self.deed.name:
                yield Input(placeholder=f"type {self.deed.name} to go on", id="name", select_on_focus=False)
            with VerticalScroll(id="steps", can_focus=False):
                yield Static("", id="lines", markup=False)
            yield Static("", id="end", markup=False)
            with Horizontal(id="buttons"):
                yield Button("Cancel", id="cancel")
                yield Button("Watch it", id="watch", variant="primary")
                yield Button(self.deed.verb, id="go", variant="error", disabled=bool(self.deed.name))

    def on_mount(self) -> None:
        """A careless Enter cancels."""
        self.query_one("#cancel", Button).focus()
        self.set_class(self.size.height < 30, "-short")
        self.set_class(self.size.width >= 110, "-wide")
        for button in self.query(Button):
            button.compact = self.size.height < 30
        self._timer = self.set_interval(TICK_S, self._turn, pause=True)

    def on_key(self, event: events.Key) -> None:
        """What is typed goes into the name, wherever the focus is."""
        # a key that the field itself took does not come here; one that was on its way when the focus moved does
        if not self.deed.name or self._begun:
            return
        if event.character and event.is_printable and event.character != " ":
            name = self.query_one("#name", Input)
            name.focus()
            name.insert_text_at_cursor(event.character)
            event.stop()

    @on(Input.Changed, "#name")
    def _typed(self, event: Input.Changed) -> None:
        self.query_one("#go", Button).disabled = event.value.strip() != self.deed.name

    @on(Input.Submitted, "#name")
    def _entered(self) -> None:
        """The name and Enter, as on the command line: whoever has typed the name has answered."""
        self._go()

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
        self.query_one("#cancel", Button).focus()
        self._timer.resume()
        begin_deed(self.app, self.deed, self._said, self._ended)

    def _said(self, told: Told) -> None:
        self.phases.take(told, monotonic())
        if self.is_attached:
            self._turn()
            self.query_one("#steps").scroll_end(animate=False)

    def _turn(self) -> None:
        lines = self.phases.render(monotonic(), self.app.theme_variables)
        self.query_one("#lines", Static).update(lines)

    def _ended(self, end: DeedEnd) -> None:
        self.end = end
        app = cast("TunewatchApp", self.app)
        severity: SeverityLevel = "information" if end.ok else "error"
        self.phases.over(end.text)
        if not self.is_attached:
            app.notify(end.text, title=self.deed.title, severity=severity, timeout=30)
            return
        self._timer.pause()
        self._turn()
        mark = "✓" if end.ok else "⚠" if end.state == "unconfirmed" else "✗"
        colour = app.theme_variables.get("success" if end.ok else "error", "")
        self.query_one("#end", Static).update(Text(f"{mark} {end.text}", f"bold {colour}"))
        self.add_class("-over")
        self.query_one("#steps").scroll_end(animate=False)
        self.query_one("#cancel", Button).label = "Close"
        self.query_one("#cancel", Button).focus()
        if end.ok and self._started():
            self.query_one("#watch").display = True
            self.query_one("#watch", Button).focus()

    def _started(self) -> str:
        """The run that this deed has begun somewhere, by its name; empty for deeds that begin none."""
        if self.end is None or self.end.state != "running" or self.deed.command[0] not in ("launch", "migrate"):
            return ""
        return str(self.end.document.get("run") or "")

    @on(Button.Pressed, "#watch")
    def _watch(self) -> None:
        from tui.session import WatchPlan

        run, app = self._started(), cast("TunewatchApp", self.app)
        self.dismiss()
        app.session.forget(run)  # a run that moved is on another box than the one that was watched
        app.call_later(app.open_run, WatchPlan(run))
