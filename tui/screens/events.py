"""Everything that happened since the program was opened, newest first; Enter goes to the run, at that step."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static

from tui.alerts import Event
from tui.snapshot import RunSnapshot
from tui.widgets.events import EventList

if TYPE_CHECKING:
    from tui.app import TunewatchApp


class EventsScreen(ModalScreen[Event | None]):
    """The events over whatever screen is open; its result is the one that was chosen."""

    DEFAULT_CSS = """
    EventsScreen { align: center middle; background: $background 60%; }
    EventsScreen > Vertical {
        width: 100; max-width: 96%; height: 70%;
        border: round $border; background: $surface; padding: 0 1;
        border-title-color: $foreground; border-subtitle-color: $text-muted;
    }
    EventsScreen #whole { display: none; width: 1fr; height: auto; max-height: 6; border-top: solid $border-blurred; }
    EventsScreen EventList, EventsScreen EventList:focus { border: none; background: transparent; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,e,q", "dismiss", "Close")]

    def compose(self) -> ComposeResult:
        """One list."""
        with Vertical() as box:
            box.border_title = "events"
            box.border_subtitle = "Enter goes there, Esc closes"
            yield EventList()
            yield Static(id="whole", markup=False)

    def on_mount(self) -> None:
        """Show what there is."""
        self._show()

    def take(self, snapshot: RunSnapshot) -> None:
        """A run was read: there may be news."""
        if self.is_running:
            self._show()

    def _show(self) -> None:
        events = cast("TunewatchApp", self.app).notices.events
        shown = self.query_one(EventList)
        if len(events) != len(shown.events):
            shown.show(events)

    @on(OptionList.OptionHighlighted)
    def _pointed(self, event: OptionList.OptionHighlighted) -> None:
        """The whole sentence of the one under the cursor: a line has no room for it."""
        shown = self.query_one(EventList).events
        one = shown[event.option_index] if event.option_index < len(shown) else None
        whole = self.query_one("#whole", Static)
        whole.display = one is not None and self.size.height >= 20
        whole.update(one.text if one is not None else "")

    @on(EventList.Opened)
    def _opened(self, message: EventList.Opened) -> None:
        self.dismiss(message.event)
