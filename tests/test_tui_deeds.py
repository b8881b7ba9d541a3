"""Deeds from the screens ask before they do anything, and their end is told in the words of the command."""

from __future__ import annotations

import pytest
from textual.widgets import Input

from tests.support.tui import BIG, TARGET, app_with, frozen, plain, snapshot, told, until
from tui.screens.live import LiveScreen


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEWATCH_HOME", str(tmp_path / "home"))


async def test_stop_asks_with_the_focus_on_cancel_and_does_nothing_when_cancelled(monkeypatch):
    ran = []
    monkeypatch.setattr("tui.screens.deed.run_deed", lambda deed, say: ran.append(deed))
    async with app_with(frozen(snapshot())).run_test(size=BIG) as pilot:
        await pilot.pause()
        await pilot.press("S")
        await pilot.pause()
        assert pilot.app.focused.id == "cancel"
        assert "goes on billing $0.74 an hour" in plain(pilot.app)
        assert f"$ tunewatch stop {TARGET}" in plain(pilot.app)
        await pilot.press("enter")
        await pilot.pause()
        assert isinstance(pilot.app.screen, LiveScreen)
    assert ran == []


async def test_kill_needs_the_name_typed_back_and_shows_an_unconfirmed_end_in_words(monkeypatch):
    from tui.deeds import DeedEnd

    def act(deed, say):
        say("✓ stop  2.0s")
        say("✗ destroy  no answer")
        return DeedEnd(False, 7, "unconfirmed", "unconfirmed: it may still bill.")

    monkeypatch.setattr("tui.screens.deed.run_deed", act)
    app = app_with(frozen(snapshot()))
    app.session.instances[TARGET] = 31457957
    async with app.run_test(size=BIG) as pilot:
        await pilot.pause()
        await pilot.press("K")
        await pilot.pause()
        button = app.screen.query_one("#go")
        assert button.disabled
        app.screen.query_one("#name", Input).value = "20260215-10451"
        await pilot.pause()
        assert button.disabled
        app.screen.query_one("#name", Input).value = "20260215-104518"
        await until(lambda: not button.disabled, pilot)
        await pilot.click("#go")
        await until(lambda: "unconfirmed: it may still bill." in plain(app), pilot)
        assert "✗ destroy  no answer" in plain(app)


async def test_kill_of_a_run_on_no_rented_box_is_refused_with_the_reason(monkeypatch):
    async with app_with(frozen(snapshot())).run_test(size=BIG) as pilot:
        await pilot.pause()
        await pilot.press("K")
        await until(lambda: any("on no box that tunewatch rented" in n.message for n in told(pilot)), pilot)
        monkeypatch.setenv("TUNEWATCH_READ_ONLY", "1")
        await pilot.press("S")
        await until(lambda: any("read-only here" in n.message for n in told(pilot)), pilot)
        assert isinstance(pilot.app.screen, LiveScreen)


def test_a_deed_is_the_command_of_the_same_name_and_its_end_is_read_from_it(monkeypatch):
    """The real command, refused by the read-only switch: the sentence of the command line is the one of the dialog."""
    from tui.deeds import run_deed, stop_deed

    monkeypatch.setenv("TUNEWATCH_READ_ONLY", "1")
    told = []
    end = run_deed(stop_deed(snapshot()), told.append)
    assert (end.ok, end.code) == (False, 4)
    assert any("read-only" in line for line in told)
