"""Pictures of the launch wizard and of a deed under way. `pytest --snapshot-update` draws them anew.

What they would ask of a provider, of a journal and of a clock is fixed here; that they ask is in other tests.
"""

from __future__ import annotations

from typing import Any

import pytest

from remote.deeds import DeedStep
from remote.doctor import Check
from remote.launch_check import Unfinished
from tests.support.tui import app_with, frozen, snapshot, until
from tests.test_tui_pictures import BIG, SMALL, _fixed  # noqa: F401 - the fixture is used by being here
from tui.deeds import DeedEnd, kill_deed
from tui.screens.deed import DeedScreen, Phases
from tui.screens.launch import LaunchScreen

SIZES = pytest.mark.parametrize("size", [BIG, SMALL], ids=["big", "small"])
THEMES = pytest.mark.parametrize("theme", ["tunewatch-light", "tunewatch-cvd"])
CHECKS = (
    Check("recipe", "good", "stage5: mistralai/Ministral-3-3B-Base-2512, 6,000 steps at most, stops after 4 evals "
          "without gain"),
    Check("account", "bad", "$3.10 left, $5.00 needed", "At zero every box stops: add credit."),
    Check("parcel", "good", "72 files, 1.9 MB to send"),
    Check("disk", "good", "110 GB are rented with the box; the price contains them"),
    Check("variables", "good", "HF_TOKEN (by name)"),
    Check("Hub repository", "note", "me/mine is not there yet, or this token may not see it; it is made"),
)  # fmt: skip
CUT = Unfinished("d1", "stage5/20260215-104518", "stage5", "7000001", "boot", 31457957, 0.7411, True)


def wizard(monkeypatch: pytest.MonkeyPatch, *, cut: Unfinished | None = None, theme: str = "") -> Any:
    monkeypatch.setattr("tui.screens.launch._checks", lambda draft: iter(CHECKS))
    monkeypatch.setattr("tui.screens.launch._cut", lambda: cut)
    monkeypatch.setattr("tui.screens.launch._quoted", lambda *_: list(frozen(snapshot()).quotes))
    monkeypatch.setattr("remote.launch_check.recipes_here", lambda _: ("demo", "stage4", "stage5", "mine.toml"))
    monkeypatch.setattr("remote.launch_check.travelling", lambda _: ("HF_TOKEN",))
    app = app_with(frozen(snapshot(dph=0.0)))
    if theme:
        app.theme = theme
    return app


async def opened(pilot: Any) -> LaunchScreen:
    pilot.app.push_screen(LaunchScreen())
    await until(lambda: isinstance(pilot.app.screen, LaunchScreen) and not pilot.app.screen._busy, pilot)
    screen = pilot.app.screen
    assert isinstance(screen, LaunchScreen)
    return screen


async def filled(pilot: Any) -> LaunchScreen:
    screen = await opened(pilot)
    screen.query_one("#recipe").value = "stage5"  # type: ignore[attr-defined]
    screen.query_one("#hub").value = "me/mine"  # type: ignore[attr-defined]
    screen.query_one("#budget").value = "5"  # type: ignore[attr-defined]
    await until(lambda: not screen.query_one("#next").disabled, pilot)
    return screen


@SIZES
def test_the_recipe_and_a_launch_that_was_cut(snap_compare, size, monkeypatch):
    async def before(pilot):
        await filled(pilot)

    assert snap_compare(wizard(monkeypatch, cut=CUT), terminal_size=size, run_before=before)


@SIZES
def test_the_checks(snap_compare, size, monkeypatch):
    async def before(pilot):
        screen = await filled(pilot)
        screen._turn_to("checks")
        await until(lambda: len(screen.found) == len(CHECKS) and not screen._busy, pilot)

    assert snap_compare(wizard(monkeypatch), terminal_size=size, run_before=before)


@SIZES
def test_the_offers_of_the_wizard(snap_compare, size, monkeypatch):
    async def before(pilot):
        screen = await filled(pilot)
        screen._checked = screen.draft
        screen._turn_to("offer")
        await until(lambda: screen._rows and screen.offer is not None and not screen._busy, pilot)

    assert snap_compare(wizard(monkeypatch), terminal_size=size, run_before=before)


async def _reviewed(pilot: Any) -> None:
    screen = await filled(pilot)
    screen.offer = frozen(snapshot()).quotes[0]
    screen._turn_to("review")
    await until(lambda: pilot.app.focused is not None and pilot.app.focused.id == "cancel", pilot)


@SIZES
def test_the_review(snap_compare, size, monkeypatch):
    assert snap_compare(wizard(monkeypatch), terminal_size=size, run_before=_reviewed)


@THEMES
def test_the_review_in_other_themes(snap_compare, theme, monkeypatch):
    assert snap_compare(wizard(monkeypatch, theme=theme), terminal_size=SMALL, run_before=_reviewed)


STEPS = (
    DeedStep("checkpoint", True, "step 1,240 saved and sealed", 6.4),
    DeedStep("destroy", False, "the provider answered with a page instead of an answer", 31.2),
    DeedStep("prove it gone", None, "listing 2 of 2"),
)


def test_what_is_told_twice_of_a_phase_is_one_line_and_its_timer_goes_on():
    phases = Phases()
    phases.take(DeedStep("boot", None), 10.0)
    phases.take("a line of the command's own", 11.0)
    phases.take(DeedStep("boot", None, "loading"), 14.0)
    assert phases.under_way
    assert phases.render(20.0, {}).plain.splitlines() == ["▸ boot  10.0 s  loading", "a line of the command's own"]
    phases.take(DeedStep("boot", True, "up", 130.0), 140.0)
    phases.take(DeedStep("boot", None), 141.0)
    assert phases.render(141.5, {}).plain.splitlines() == [
        "✓ boot   2m10s  up", "a line of the command's own", "▸ boot   0.5 s  ",
    ]  # fmt: skip


async def test_the_name_is_typed_although_the_focus_is_on_cancel(monkeypatch):
    began: list[Any] = []
    monkeypatch.setattr("tui.screens.deed.begin_deed", lambda app, deed, *_: began.append(deed))
    one = frozen(snapshot())
    app = app_with(one)
    async with app.run_test(size=SMALL) as pilot:
        app.push_screen(DeedScreen(kill_deed(one)))
        await until(lambda: app.focused is not None and app.focused.id == "cancel", pilot)
        await pilot.press(*app.screen.deed.name)
        await until(lambda: not app.screen.query_one("#go").disabled, pilot)
        await pilot.press("enter")
        await until(lambda: began, pilot)


def deed_app(monkeypatch: pytest.MonkeyPatch, end: DeedEnd | None) -> tuple[Any, Any]:
    """A kill under way, or at its end."""
    monkeypatch.setattr("tui.screens.deed.begin_deed", lambda *_: None)
    monkeypatch.setattr("tui.screens.deed.monotonic", lambda: 100.0)
    one = frozen(snapshot())
    app = app_with(one)

    async def before(pilot):
        app.push_screen(DeedScreen(kill_deed(one)))
        await until(lambda: isinstance(app.screen, DeedScreen), pilot)
        screen = app.screen
        screen.query_one("#name").value = screen.deed.name
        await until(lambda: not screen.query_one("#go").disabled, pilot)
        screen._go()
        for step in STEPS:
            screen._said(step)
        screen.phases.rows[-1] = (screen.phases.rows[-1][0], 87.5)
        screen._turn()
        if end is not None:
            screen._said(DeedStep("prove it gone", False, "still listed", 12.5))
            screen._ended(end)
        await pilot.pause()

    return app, before


@SIZES
def test_a_kill_under_way(snap_compare, size, monkeypatch):
    app, before = deed_app(monkeypatch, None)
    assert snap_compare(app, terminal_size=size, run_before=before)


@SIZES
def test_a_kill_that_is_not_proved(snap_compare, size, monkeypatch):
    text = "unconfirmed: it may still bill. tunewatch reconcile looks again."
    app, before = deed_app(monkeypatch, DeedEnd(False, 7, "unconfirmed", text))
    assert snap_compare(app, terminal_size=size, run_before=before)


def test_a_kill_that_is_not_proved_without_colour(snap_compare, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    text = "unconfirmed: it may still bill. tunewatch reconcile looks again."
    app, before = deed_app(monkeypatch, DeedEnd(False, 7, "unconfirmed", text))
    assert snap_compare(app, terminal_size=SMALL, run_before=before)
