"""Another rule applied from the screen: the true command beside it, a run that answers, refuses, or says nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from textual.widgets import Static

from runner.autostop import StopRule
from runner.requests import pending
from tests.support.answering import answering
from tests.support.tui import RULE, app_with, frozen, history, plain, snapshot, told, until
from tui.app import SnapshotArrived, TunewatchApp
from tui.deeds import DeedEnd, rule_deed, run_deed
from tui.screens.live import LiveScreen
from tui.screens.logs import LogsScreen
from tui.screens.whatif import WhatIfScreen, how_it_ended
from tui.session import Session, WatchPlan

SMALL = (80, 24)


def watched(run_dir: Path, **changes: Any) -> Any:
    return frozen(snapshot(replace(history(812), obeys=("rule", "save"), **changes), target=str(run_dir)))


def answer(pilot: Any) -> str:
    return str(pilot.app.screen.query_one("#answer", Static).content)


async def opened(pilot: Any) -> None:
    await pilot.press("w")
    await until(lambda: isinstance(pilot.app.screen, WhatIfScreen), pilot)
    await until(lambda: pilot.app.focused is not None and pilot.app.focused.id == "patience", pilot)


async def test_keys_apply_a_rule_and_the_answer_of_the_run_stands_below_the_fields(tmp_path):
    with answering(tmp_path / "run", RULE) as done:
        app = app_with(watched(tmp_path / "run"))
        async with app.run_test(size=SMALL) as pilot:
            await opened(pilot)
            await pilot.press("up", "up", "enter", "enter")
            await until(lambda: app.screen.has_class("-asking"), pilot)
            await pilot.press("right", "enter")
            await until(lambda: "acknowledged at step 812" in answer(pilot), pilot, 120)
            new = StopRule(6, 0.003, 600)
            assert answer(pilot) == f"✓ requested → acknowledged at step 812: {new.in_words()}"
            app.post_message(SnapshotArrived(watched(tmp_path / "run", rule=new)))
            await until(lambda: app.screen.query_one("#apply").disabled, pilot)
    assert [dict(one.body) for one in done] == [
        {"patience": 6, "min_delta": 0.003, "min_steps": 600, "count_from": "min_steps"}
    ]
    assert pending(tmp_path / "run") == []


async def test_the_mouse_applies_too_and_the_screen_may_be_left_meanwhile(tmp_path):
    with answering(tmp_path / "run", RULE):
        app = app_with(watched(tmp_path / "run"))
        async with app.run_test(size=(120, 40)) as pilot:
            await opened(pilot)
            await pilot.press("down")
            await until(lambda: not app.screen.query_one("#apply").disabled, pilot)
            await pilot.click("#apply")
            await until(lambda: app.screen.has_class("-asking"), pilot)
            await pilot.click("#apply-now")
            await until(lambda: app.screen.has_class("-under-way") or "✓" in answer(pilot), pilot, 60)
            await pilot.press("escape")
            await until(lambda: isinstance(app.screen, LiveScreen), pilot)
            await until(lambda: any("acknowledged at step 812" in n.message for n in told(pilot)), pilot, 120)


async def test_a_run_directory_that_was_deleted_meanwhile_is_a_sentence_where_the_eye_is(tmp_path):
    app = app_with(watched(tmp_path / "gone"))
    async with app.run_test(size=SMALL) as pilot:
        await opened(pilot)
        await pilot.press("up", "enter", "enter")
        await until(lambda: app.screen.has_class("-asking"), pilot)
        await pilot.press("right", "enter")
        await until(lambda: answer(pilot).startswith("✗"), pilot, 120)
        assert "gone" in answer(pilot)
        assert not app.screen.has_class("-under-way"), "and the work goes on"


async def test_read_only_and_a_recording_say_why_nothing_is_applied(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEWATCH_READ_ONLY", "1")
    app = app_with(watched(tmp_path / "run"))
    async with app.run_test(size=SMALL) as pilot:
        await opened(pilot)
        assert "read-only here" in answer(pilot)
        assert not app.screen.query_one("#apply").display
        await pilot.press("escape")
        app.session.recorded = True
        await opened(pilot)
        assert "this is a recording" in answer(pilot)


def test_the_command_without_an_answer_says_requested_and_leaves_the_request(tmp_path):
    with answering(tmp_path / "run", RULE, deaf=True):
        deed = rule_deed("run", str(tmp_path / "run"), StopRule(6, 0.003, 600))
        end = run_deed(replace(deed, command=(*deed.command, "--timeout", "1")), lambda _: None)
        assert (end.ok, end.state) == (False, "running")
        assert how_it_ended(end)[0].startswith("… requested; the run has not answered yet")
        [left] = pending(tmp_path / "run")
        assert left.body["patience"] == 6


def test_how_a_request_ended_is_told_apart(tmp_path):
    with answering(tmp_path / "run", RULE):
        end = run_deed(rule_deed("run", str(tmp_path / "run"), RULE), lambda _: None)
        assert how_it_ended(end) == ("That is the rule in force already.", "quiet")
    refused = DeedEnd(False, 4, "failed", "The run refused at step 3: the run is stopping already.")
    assert how_it_ended(refused) == ("✗ The run refused at step 3: the run is stopping already.", "strong")


async def test_a_run_directory_deleted_while_it_is_watched_is_said_above_the_curves_and_the_curves_stay(tmp_path):
    run_dir = tmp_path / "runs/stage5/20260215-104518"
    with answering(run_dir, RULE, deaf=True):
        (run_dir / "log.txt").write_text("# tunewatch run 3f1c2b1e-0000-4000-8000-000000000000\n")
        app = TunewatchApp(Session(interval=0.2), plan=WatchPlan(str(run_dir)))
        app.live_prices = False
        async with app.run_test(size=SMALL) as pilot:
            await until(lambda: getattr(app.screen, "snapshot", None) and app.screen.snapshot.step == 812, pilot)
            run_dir.rename(tmp_path / "elsewhere")
            await until(lambda: "It is gone, deleted or moved" in plain(app), pilot)
            assert app.screen.snapshot.step == 812
            await pilot.press("w")
            await until(lambda: isinstance(app.screen, WhatIfScreen), pilot)
            await pilot.press("escape", "L")
            await until(lambda: isinstance(app.screen, LogsScreen), pilot)
            await pilot.press("escape")
            (tmp_path / "elsewhere").rename(run_dir)
            await until(lambda: "It is gone" not in plain(app), pilot)
            assert app.screen.snapshot.step == 812
