"""The list of events on the screen."""

from __future__ import annotations

import pytest
from textual.app import App, ComposeResult

from tui.alerts import Event
from tui.themes import DEFAULT_THEME, THEMES
from tui.widgets.events import EventList, event_line

OLD = Event("a", "best", "best eval", "stage5: best eval_loss 1.1180 at step 200", step=200, at=40.0)
NEW = Event("b", "crashed", "crashed", "other: crashed at step 457", "error", step=457, at=90.0)


class Room(App[None]):
    def __init__(self, *events: Event) -> None:
        super().__init__()
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = DEFAULT_THEME
        self.list = EventList(clock=lambda: 100.0)
        self.first = events
        self.opened: list[Event] = []

    def compose(self) -> ComposeResult:
        yield self.list

    def on_mount(self) -> None:
        self.list.show(self.first)
        self.list.focus()

    def on_event_list_opened(self, message: EventList.Opened) -> None:
        self.opened.append(message.event)

    def lines(self) -> list[str]:
        return [str(self.list.get_option_at_index(n).prompt) for n in range(self.list.option_count)]


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (100, "   1m      200  · best eval      stage5: best eval_loss 1.1180 at step 200"),
        (65, "   1m      200  · best eval stage5: best eval_loss 1.1180 at step 200"),
        (40, "   1m · best eval stage5: best eval_loss 1.1180 at step 200"),
    ],
)
def test_a_line_gives_up_what_matters_least_when_there_is_little_room(width: int, expected: str) -> None:
    assert str(event_line(OLD, 100.0, width)) == expected


async def test_the_newest_stands_first_and_enter_tells_which_is_meant() -> None:
    app = Room(OLD, NEW)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        assert [line.split("· ")[-1].split("✗ ")[-1].split(" ")[0] for line in app.lines()] == ["crashed", "best"]
        await pilot.press("down", "enter")
        await pilot.pause()
        assert app.opened == [OLD]


async def test_the_cursor_stays_on_its_event_when_a_newer_one_comes() -> None:
    app = Room(OLD)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        app.list.show([OLD, NEW])
        await pilot.press("enter")
        await pilot.pause()
        assert app.opened == [OLD]


async def test_without_events_it_says_so_and_enter_does_nothing() -> None:
    app = Room()
    async with app.run_test(size=(40, 10)) as pilot:
        await pilot.press("down", "enter")
        await pilot.pause()
        assert app.lines() == ["Nothing has happened since tunewatch was opened."]
        assert app.opened == []
