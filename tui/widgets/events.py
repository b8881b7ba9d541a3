"""The list of events, newest first; Enter or a click tells which one is meant."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.text import Text
from textual import on
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from tui import words
from tui.alerts import Event

MARKS = {"information": "·", "warning": "!", "error": "✗"}
"""Severity for who does not see colours."""
COLOURS = {"information": "foreground", "warning": "warning", "error": "error"}
NOTHING = "Nothing has happened since tunewatch was opened."


def event_line(event: Event, now: float, width: int, colour: str = "") -> Text:
    """One event on one line: age, step, title, words. `now` is monotonic, in seconds."""
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"{words.age(max(0.0, now - event.at)):>5} ", "dim")
    if width >= 60:
        line.append(f"{f'{event.step:,}' if event.step is not None else '–':>8}  ", "dim")
    line.append(f"{MARKS[event.severity]} ", colour)
    line.append(f"{event.title:<14} " if width >= 70 else f"{event.title} ", f"bold {colour}".strip())
    return line.append(event.text)


class EventList(OptionList):
    """Shows events; `show` replaces them, keeping the one under the cursor."""

    DEFAULT_CSS = """
    EventList {
        height: 1fr; padding: 0; text-wrap: nowrap; text-overflow: ellipsis; scrollbar-size-vertical: 1;
        &, &:focus { background: transparent; border: none; }
        & > .option-list--option-highlighted, &:focus > .option-list--option-highlighted {
            background: $primary 30%; color: $foreground; text-style: none;
        }
    }
    """

    @dataclass
    class Opened(Message):
        """The person wants to go to where an event happened."""

        event: Event

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.events: list[Event] = []
        """Newest first."""
        self._clock = clock

    def action_page_up(self) -> None:
        """One screen up; without room no line is laid out, and there is no page to move by."""
        if self.scrollable_content_region.area:
            super().action_page_up()  # type: ignore[no-untyped-call]

    def action_page_down(self) -> None:
        """One screen down."""
        if self.scrollable_content_region.area:
            super().action_page_down()  # type: ignore[no-untyped-call]

    def show(self, events: Sequence[Event]) -> None:
        """Show these, given oldest first."""
        at = self.highlighted
        meant = self.events[at] if at is not None and at < len(self.events) else None
        self.events = list(reversed(events))
        self._draw()
        if self.events:
            # an Event is a value: the same happening is equal to itself
            self.highlighted = self.events.index(meant) if meant in self.events else 0

    def _draw(self) -> None:
        now, colours = self._clock(), self.app.theme_variables
        width = max(20, self.scrollable_content_region.width - 2)
        self.clear_options()
        if not self.events:
            self.add_option(Option(Text(NOTHING, style="dim"), disabled=True))
        self.add_options([Option(event_line(e, now, width, colours.get(COLOURS[e.severity], ""))) for e in self.events])

    def on_mount(self) -> None:
        """Begin with what is known."""
        self._draw()

    def on_resize(self) -> None:
        """Fit the new width."""
        at = self.highlighted
        self._draw()
        self.highlighted = at

    @on(OptionList.OptionSelected)
    def _selected(self, message: OptionList.OptionSelected) -> None:
        message.stop()
        if message.option_index < len(self.events):
            self.post_message(self.Opened(self.events[message.option_index]))
