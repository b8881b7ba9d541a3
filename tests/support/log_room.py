"""The screen of a log in an application of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from textual.app import App
from textual.pilot import Pilot

from runner.history import EvalPoint, RunHistory
from tui.screens.logs import LogsScreen
from tui.themes import DEFAULT_THEME, THEMES
from tui.widgets.log_view import LogView

HISTORY = RunHistory(
    max_steps=400,
    evals=(
        EvalPoint(100, 1.118, printed="1.118"),
        EvalPoint(200, 1.372, printed="1.372"),
        EvalPoint(300, 1.372, printed="1.372"),
    ),
)


class Room(App[None]):
    """An app with nothing but the screen under test."""

    def __init__(self, path: Path | None, history: RunHistory = HISTORY) -> None:
        super().__init__()
        self.logs = LogsScreen(path, target="box:/x", name="stage5", history=history)
        self.chosen: list[LogsScreen.EvalChosen] = []
        self.results: list[int | None] = []
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = DEFAULT_THEME

    def on_mount(self) -> None:
        self.push_screen(self.logs, self.results.append)

    def on_logs_screen_eval_chosen(self, message: LogsScreen.EvalChosen) -> None:
        self.chosen.append(message)

    @property
    def view(self) -> LogView:
        return self.logs.view

    def state(self) -> str:
        return str(self.logs.query_one("#state").render())

    def rows(self) -> list[str]:
        strips = [self.view.render_line(y) for y in range(self.view.size.height)]
        return [strip.text.rstrip() for strip in strips]


async def until(pilot: Pilot[None], holds: Callable[[], bool]) -> None:
    """Wait until something holds; the test's own time limit ends it if it never does."""
    while not holds():
        await pilot.pause()
        await asyncio.sleep(0.01)
    await pilot.pause()


async def ready(pilot: Pilot[None], app: Room) -> None:
    await until(pilot, lambda: app.logs.is_running and app.view.row_count > 0 and not app.logs._busy)


def numbered(path: Path, count: int, text: str = "line") -> Path:
    path.write_text("".join(f"{text} {n}\n" for n in range(count)))
    return path
