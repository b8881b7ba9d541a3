"""What a person would stumble over: a run that moved, a failure said three times, an offer's risks off the screen."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import DataTable, Input, Static

from remote.deeds import DeedStep
from remote.market import load_offers
from runner.history import StageResult
from tests.support.tui import QuietSession, app_with, frozen, history, snapshot, until
from tui.app import RentalArrived, SnapshotArrived
from tui.rental_view import MOVED, Alarm, RentalSnapshot
from tui.run_rows import RunRow
from tui.screens.deed import Phases
from tui.screens.live import LiveScreen
from tui.screens.offers import OffersScreen
from tui.screens.runs import RunsScreen
from tui.widgets.box_text import pane_text
from tui.widgets.panes import stage_line


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWATCH_HOME", str(tmp_path))


async def test_a_run_that_goes_on_elsewhere_is_followed_and_stands_once_in_the_list(monkeypatch):
    old, new, run = "vast:7:/x/a/7", "vast:8:/x/a/7", "a/7"
    rows = [RunRow(new, run, "stage5", 8, 2.0), RunRow("vast:5:/x/a/5", "a/5", "stage5", 5, 1.0)]
    monkeypatch.setattr(QuietSession, "known", lambda self: rows)
    lost = replace(frozen(snapshot()), target=old, name=run, state="unreachable", reason="Instance 7 was outbid.")
    app = app_with(lost)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(lambda: isinstance(app.screen, LiveScreen), pilot)
        said = Alarm(f"{MOVED}{run}", "recovery", f"{run} goes on elsewhere: outbid.", "information", True, run)
        app.post_message(RentalArrived(RentalSnapshot(alarms=(said,))))
        await until(lambda: isinstance(app.screen, LiveScreen) and app.screen.target == run, pilot)
        for target in (run, new, old):
            app.post_message(SnapshotArrived(replace(lost, target=target, state="running", reason="")))
        await until(lambda: old in app.snapshots, pilot)
        await pilot.press("R")
        await until(lambda: isinstance(app.screen, RunsScreen) and len(app.screen.rows) == 2, pilot)
        assert set(app.screen.rows) == {new, "vast:5:/x/a/5"}
        assert app.screen.rows[new].state == "running"
        assert "2 runs, 1 running" in str(app.screen.query_one("#head", Static).content)


def test_what_failed_is_said_once_at_the_end_and_with_what_to_do():
    phases, why = Phases(), "The provider has no offer 7 any more."
    for told in (
        DeedStep("offer", False, why, 0.2),
        DeedStep("look", False, "another thing", 0.1),
        f"tunewatch: {why}",
        "  Look again: tunewatch offers.",
    ):
        phases.take(told, 10.0)
    phases.over(f"{why} Look again: tunewatch offers.")
    assert phases.render(20.0, {}).plain.splitlines() == ["✗ offer   0.2 s  ", "✗ look    0.1 s  another thing"]
    kept = Phases()
    kept.take("tunewatch: a warning on the way", 10.0)
    kept.take(DeedStep("boot", True, "up", 1.0), 11.0)
    kept.over("running")
    assert "a warning on the way" in kept.render(20.0, {}).plain


async def test_a_budget_slides_and_the_offer_under_the_cursor_is_told_in_full():
    app = app_with(frozen(snapshot()))
    app.session.offers = load_offers()
    async with app.run_test(size=(100, 40)) as pilot:
        await pilot.press("o")
        await until(lambda: isinstance(app.screen, OffersScreen), pilot)
        screen: Any = app.screen
        screen.limits = replace(screen.limits, budget=5.0)
        await pilot.press("b", "up", "up", "down")
        line = screen.query_one("#limit", Input)
        await until(lambda: line.value == "5.5", pilot)
        assert screen.limits.budget == 5.5, "each step is in force at once"
        assert "●" in str(line.border_subtitle)
        await pilot.press("enter")
        table = screen.query_one(DataTable)
        await until(lambda: "under $5.5" in [str(column.label) for column in table.ordered_columns], pilot)
        await until(lambda: not screen._busy, pilot)

        def whole() -> str:
            shown = screen.query_one("#detail", Static)
            return str(shown.content) if shown.display else ""

        await pilot.press("down")
        await until(lambda: "offer " in whole() and "under $5.5: " in whole(), pilot, 60)
        assert "against staying: " in whole()
        await pilot.press("up")
        await until(lambda: "stay: this box" in whole(), pilot)
        await pilot.resize_terminal(80, 16)
        await until(lambda: not whole(), pilot, 60)


def test_nothing_of_a_study_or_a_box_is_cut_off_where_there_is_little_room():
    done = tuple(StageResult(name, 0.9, {}) for name in ("stage1", "stage2", "stage4", "non_prefill"))
    study = replace(history(900, max_steps=2000), stages=done, ended="stopped")
    narrow, wide = (stage_line(study, {}, width) for width in (78, 118))
    assert narrow is not None
    assert wide is not None
    assert len(narrow) <= 78
    assert "compare 0.900" in narrow.plain
    assert "non_prefill 0.900" in wide.plain
    health = {"disk_free": 1_234_500_000_000, "disk_total": 4e12, "net_in": 123.4e6, "net_out": 123.4e6}
    lines = pane_text(health, {}, 0.0, 44, running=True).plain.splitlines()
    assert [line.strip() for line in lines[:2]] == ["disk 1234.5 GB free", "net ↓ 123.4 ↑ 123.4 MB/s"]
    beside = pane_text(health, {}, 0.0, 60, running=True).plain.splitlines()
    assert beside[0] == "disk 1234.5 GB free   net ↓ 123.4 ↑ 123.4 MB/s"


def test_every_picture_and_page_that_the_pages_point_to_is_there():
    root = Path(__file__).parent.parent
    pages = [root / "README.md", *(root / "docs").glob("*.md")]
    for page in pages:
        for where in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert "://" in where or (page.parent / where).exists(), f"{page.name}: {where}"
    shown = {name for page in pages for name in re.findall(r"pictures/([\w-]+\.png)", page.read_text(encoding="utf-8"))}
    assert shown == {path.name for path in (root / "docs/pictures").glob("*.png")}, "a picture nobody shows"
