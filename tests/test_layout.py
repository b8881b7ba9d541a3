"""How the screens were left is how they are found, whatever became of the file in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import DataTable

from tests.support.tui import TARGET, QuietSession, frozen, snapshot, until
from tui.app import TunewatchApp
from tui.layout import FILE, KEPT, Layout, ListLayout, RunLayout
from tui.market import LiveMarket
from tui.screens.filtering import FilterLine
from tui.screens.live import LiveScreen
from tui.screens.runs import RunsScreen
from tui.session import WatchPlan

LEFT = RunLayout("time", 5, ("eval", "loss"), "stop", True)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNEWATCH_HOME", str(tmp_path))
    monkeypatch.delenv("TEXTUAL_THEME", raising=False)
    return tmp_path


def opened(home: Path, *, first: bool = True) -> TunewatchApp:
    """The program, started anew on this home."""
    run = frozen(snapshot(dph=0.7411))
    app = TunewatchApp(QuietSession(layout=Layout(home)), plan=WatchPlan(run.target) if first else None)
    app.market = LiveMarket(enabled=False)
    app.live_prices = False
    app.snapshots[run.target] = run
    return app


def test_what_is_kept_comes_back_and_two_screens_keep_each_other_s(home: Path) -> None:
    one, two = Layout(home), Layout(home)
    one.keep_run("a", LEFT)
    two.keep_theme("tunewatch-cvd")
    two.keep_list("runs", ListLayout("best", "state:running"))
    two.keep_list("offers", ListLayout("hours", ""))
    again = Layout(home)
    assert again.run_of("a") == LEFT
    assert again.theme == "tunewatch-cvd"
    assert again.list_of("runs") == ListLayout("best", "state:running")
    assert again.list_of("offers") == ListLayout("hours", "")


def test_a_new_run_begins_with_the_axis_and_the_smoothing_used_last_and_with_nothing_else(home: Path) -> None:
    layout = Layout(home)
    layout.keep_run("a", LEFT)
    assert layout.run_of("b") == RunLayout("time", 5)
    layout.keep_run("a", LEFT._replace(x_mode="tokens"))
    assert layout.run_of("b") == RunLayout("step", 5)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"\xff\xfe\x00", b"[" * 100_000, b'{"runs": [], "lists": 3, "theme": {}, "last": "x"}',
        b'{"runs": {"a": {"x_mode": "sideways", "smoothing": true, "log_y": 3, "pane": 7, "solo": "yes"}}}',
    ],
    ids=["empty", "cut", "list", "bytes", "deep", "types", "values"],
)  # fmt: skip
async def test_a_file_that_cannot_be_read_is_the_defaults_and_is_written_anew(home: Path, content: bytes) -> None:
    (home / FILE).write_bytes(content)
    layout = Layout(home)
    assert layout.run_of("a") == RunLayout()
    assert (layout.theme, layout.list_of("runs")) == ("", ListLayout())
    layout.keep_run("a", LEFT)
    assert Layout(home).run_of("a") == LEFT


def test_values_of_a_later_program_are_no_values_of_this_one(home: Path) -> None:
    layout = Layout(home)
    layout.keep_run("a", RunLayout("step", 99, ("nowhere",), "nowhere", False))
    screen = LiveScreen("a", left=layout.run_of("a"))
    assert (screen.chosen, screen.view.smoothing) == ("loss", 3)


def test_the_runs_looked_at_longest_ago_are_forgotten(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, now = Layout(home), [0.0]
    monkeypatch.setattr("tui.layout.time.time", lambda: now[0])
    for number in range(KEPT + 3):
        now[0] = float(number)
        layout.keep_run(f"run {number}", LEFT)
    kept = json.loads((home / FILE).read_text())["runs"]
    assert len(kept) == KEPT
    assert "run 2" not in kept
    assert f"run {KEPT + 2}" in kept


def test_a_disk_that_refuses_costs_nothing_but_the_memory(home: Path) -> None:
    blocked = home / "file"
    blocked.write_text("")
    layout = Layout(blocked / "below")
    layout.keep_run("a", LEFT)
    assert layout.run_of("a") == LEFT


async def test_a_run_is_found_as_it_was_left(home: Path) -> None:
    app = opened(home)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(lambda: isinstance(app.screen, LiveScreen), pilot)
        for key in ("x", "right_square_bracket", "2", "y", "T", "z"):
            await pilot.press(key)
        await until(lambda: app.screen.has_class("-solo"), pilot)
    assert Layout(home).run_of(TARGET) == RunLayout("time", 4, ("eval",), "eval", True)
    again = opened(home)
    async with again.run_test(size=(120, 40)) as pilot:
        screen: Any = again.screen
        await until(lambda: screen.has_class("-solo"), pilot)
        assert (screen.view.x_mode, screen.view.smoothing, screen.view.log_y) == ("time", 4, frozenset({"eval"}))
        assert screen.chosen == "eval"
        assert screen.query_one("#eval").has_focus
        assert again.theme == "tunewatch-light"
        # nothing was pressed: nothing is written
        before = (home / FILE).stat().st_mtime_ns
        await pilot.press("left", "plus")
        assert (home / FILE).stat().st_mtime_ns == before


async def test_the_list_of_runs_is_found_as_it_was_left(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QuietSession, "known", lambda self: [])
    app = opened(home, first=False)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(lambda: isinstance(app.screen, RunsScreen) and app.screen.rows, pilot)
        await pilot.press("s", "slash", *"state:stopped", "enter")
        await until(lambda: app.screen.query_one(DataTable).row_count == 0, pilot)
    again = opened(home, first=False)
    async with again.run_test(size=(120, 40)) as pilot:
        screen: Any = again.screen
        await until(lambda: screen.rows, pilot)
        assert screen.query_one(FilterLine).value == "state:stopped"
        assert screen.query_one(FilterLine).has_class("-open")
        await until(lambda: screen.query_one(DataTable).row_count == 0, pilot)
        assert screen.order == "state"
        # Esc in the line shows everything again, for the next time, too
        await pilot.press("slash", "escape")
        await until(lambda: screen.query_one(DataTable).row_count == 1, pilot)
        assert not screen.query_one(FilterLine).has_class("-open")
    assert Layout(home).list_of("runs") == ListLayout("state", "")
