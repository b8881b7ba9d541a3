"""The launch wizard against a real server in the place of the provider: pages, checks, dry run, what was cut."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import Button, Input, Static

from remote.journal import Journal
from remote.launch import launch
from remote.launch_check import dry_run, unfinished_launches
from runner.errors import RefusedError
from tests.fake_vast import FakeVast
from tests.support.rented import Crash, CrashAt, Laptop, real_world
from tests.support.tui import app_with, frozen, plain, snapshot, told, until
from tests.support.vast import as_laptop
from tui.launch_draft import Draft
from tui.market import LiveMarket
from tui.screens.deed import DeedScreen
from tui.screens.launch import LaunchScreen
from tui.screens.live import LiveScreen

BIG, SMALL = (120, 40), (80, 24)
SLOW = 120.0
"""Seconds for what starts a process of its own, on a machine that is busy."""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeVast]:
    with FakeVast() as made:
        as_laptop(monkeypatch, made, tmp_path / "home")
        for name in ("HF_TOKEN", "HF_ENDPOINT", "TUNEWATCH_READ_ONLY"):
            monkeypatch.delenv(name, raising=False)
        yield made


def wizard_app() -> Any:
    app = app_with(frozen(snapshot(dph=0.0)))
    app.market = LiveMarket()
    return app


def screen(pilot: Any) -> LaunchScreen:
    assert isinstance(pilot.app.screen, LaunchScreen)
    return pilot.app.screen


def trouble(pilot: Any) -> str:
    box = pilot.app.screen.query_one("#trouble", Static)
    return str(box.content) if box.display else ""


async def on_page(pilot: Any, page: str) -> None:
    await until(lambda: screen(pilot).page == page and not screen(pilot)._busy, pilot, SLOW)


async def test_keys_lead_from_recipe_to_review_and_a_dry_run_rents_nothing(fake, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_value_that_nobody_may_see")
    app = wizard_app()
    async with app.run_test(size=SMALL) as pilot:
        await pilot.pause()
        await pilot.press("n")
        await until(lambda: isinstance(app.screen, LaunchScreen), pilot)
        await until(lambda: app.focused is not None and app.focused.id == "recipe", pilot)
        await pilot.press(*"stage5")
        await until(lambda: not app.screen.query_one("#next").disabled, pilot)
        await pilot.press("enter")
        await on_page(pilot, "checks")
        assert [(one.name, one.finding) for one in screen(pilot).found] == [
            ("recipe", "good"), ("account", "good"), ("parcel", "good"), ("disk", "good"), ("variables", "good"),
            ("Hub token", "good"),
        ]  # fmt: skip
        await until(lambda: app.focused is not None and app.focused.id == "next", pilot)
        await pilot.press("enter")
        await on_page(pilot, "offer")
        await until(lambda: screen(pilot).offer is not None, pilot)
        await pilot.press("down", "enter")
        await on_page(pilot, "review")
        offer = screen(pilot).offer.offer_id
        assert offer in {"7000001", "7000002", "7000003"}
        assert f"$ tunewatch launch stage5 --offer {offer} --detach" in plain(app)
        assert "HF_TOKEN (names alone" in plain(app)
        assert "hf_value" not in plain(app)
        assert "optimistic / base" in plain(app)
        assert app.focused.id == "cancel"
        await pilot.click("#dry")
        await until(lambda: isinstance(app.screen, DeedScreen) and app.focused.id == "cancel", pilot)
        await pilot.press("right", "enter")
        await until(lambda: app.screen.end is not None, pilot, SLOW)
        assert app.screen.end.ok, app.screen.end.text
        assert [row.name for row, _ in app.screen.phases.rows if not isinstance(row, str)] == [
            "recipe", "offer", "image", "parcel", "variables", "limits",
        ]  # fmt: skip
        assert "hf_value" not in plain(app)
        await pilot.press("enter")
        await until(lambda: isinstance(app.screen, LaunchScreen), pilot)
        await pilot.press("escape", "escape")
        await until(lambda: screen(pilot).page == "checks", pilot)
    assert fake.count("create") == 0
    assert fake.world.boxes == {}


@pytest.mark.parametrize(
    ("field", "typed", "says"),
    [
        ("recipe", "stage55", "There is no recipe 'stage55'"),
        ("set", "max_stepps=5", "max_steps"),
        ("set", "patience=0", "patience must be at least 1 evaluation"),
        ("set", "min_delta=-1", "min_delta must be a loss of 0 or more"),
        ("budget", "lots", "'lots' is no amount of money"),
        ("deadline", "soon", "soon"),
    ],
)
async def test_what_cannot_be_is_a_sentence_on_the_page_and_there_is_no_next(fake, field, typed, says):
    app = wizard_app()
    async with app.run_test(size=SMALL) as pilot:
        app.push_screen(LaunchScreen())
        await until(lambda: isinstance(app.screen, LaunchScreen), pilot)
        app.screen.query_one("#recipe", Input).value = "stage5"
        app.screen.query_one(f"#{field}", Input).value = typed
        await until(lambda: says in trouble(pilot), pilot)
        assert app.screen.query_one("#next", Button).disabled
        await pilot.press("enter")
        await pilot.pause()
        assert screen(pilot).page == "recipe"


async def test_an_account_that_cannot_pay_stops_at_the_checks(fake):
    app = wizard_app()
    async with app.run_test(size=BIG) as pilot:
        app.push_screen(LaunchScreen())
        await until(lambda: isinstance(app.screen, LaunchScreen), pilot)
        app.screen.query_one("#recipe", Input).value = "demo"
        app.screen.query_one("#budget", Input).value = "500"
        app.screen.query_one("#hub", Input).value = "me/mine"
        await until(lambda: not app.screen.query_one("#next").disabled, pilot)
        await pilot.click("#next")
        await on_page(pilot, "checks")
        bad = {one.name: one.found for one in screen(pilot).found if one.finding == "bad"}
        assert bad == {
            "account": "$25.00 left, $500.00 needed", "Hub token": "no HF_TOKEN; uploads to me/mine need one",
        }  # fmt: skip
        assert "add credit" in trouble(pilot)
        assert app.screen.query_one("#next", Button).disabled
        await pilot.click("#back")
        await until(lambda: screen(pilot).page == "recipe", pilot)


async def test_an_offer_that_vanished_since_the_list_is_a_sentence_in_the_dialog(fake):
    app = wizard_app()
    async with app.run_test(size=BIG) as pilot:
        app.push_screen(LaunchScreen())
        await until(lambda: isinstance(app.screen, LaunchScreen), pilot)
        app.screen.query_one("#recipe", Input).value = "demo"
        await until(lambda: not app.screen.query_one("#next").disabled, pilot)
        await pilot.click("#next")
        await on_page(pilot, "checks")
        await pilot.click("#next")
        await on_page(pilot, "offer")
        await until(lambda: screen(pilot).offer is not None, pilot)
        gone = screen(pilot).offer.offer_id
        del fake.world.offers[int(gone)]
        await pilot.click("#next")
        await on_page(pilot, "review")
        await until(lambda: not app.screen.query_one("#next").disabled, pilot)
        app.screen.query_one("#next", Button).press()  # a click may meet the toast that the vanished offer brings
        await until(lambda: isinstance(app.screen, DeedScreen), pilot)
        app.screen.query_one("#name", Input).value = gone
        await until(lambda: not app.screen.query_one("#go").disabled, pilot)
        await pilot.click("#go")
        await until(lambda: app.screen.end is not None, pilot, SLOW)
        assert not app.screen.end.ok
        assert gone in app.screen.end.text
        assert fake.world.boxes == {}


async def test_without_a_key_the_examples_cannot_be_rented_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEWATCH_HOME", str(tmp_path / "home"))
    app = app_with(frozen(snapshot(dph=0.0)))
    from remote.market import load_offers

    app.session.offers = load_offers()
    async with app.run_test(size=BIG) as pilot:
        app.push_screen(LaunchScreen(app.snapshots[next(iter(app.snapshots))].quotes[0]))
        await until(lambda: isinstance(app.screen, LaunchScreen), pilot)
        chosen = next(o for o in app.session.offers if o.example)
        from tui.market import bare_row

        app.screen.offer = app.screen.given = bare_row(chosen)
        app.screen._turn_to("review")
        await until(lambda: "An example cannot be rented" in trouble(pilot), pilot)
        assert app.screen.query_one("#next", Button).disabled


async def test_read_only_opens_no_wizard(fake, monkeypatch):
    monkeypatch.setenv("TUNEWATCH_READ_ONLY", "1")
    app = wizard_app()
    async with app.run_test(size=SMALL) as pilot:
        await pilot.pause()
        await pilot.press("n")
        await until(lambda: any("read-only" in n.message for n in told(pilot)), pilot)
        assert isinstance(app.screen, LiveScreen)


def test_a_dry_run_raises_what_the_launch_would_raise(tmp_path):
    with real_world(tmp_path / "boxes") as fake:
        laptop = Laptop(fake, tmp_path)
        desk = laptop.desk()
        assert dry_run(desk, laptop.request(1), {}).ok
        with pytest.raises(RefusedError, match="over the cap"):
            dry_run(desk, laptop.request(1, max_usd_per_h=0.001), {})
        desk.journal.close()
        assert fake.world.boxes == {}


async def settled(run: str, button: str) -> Any:
    """The end of the deed behind one of the two buttons of a launch that was cut."""
    app = wizard_app()
    async with app.run_test(size=BIG) as pilot:
        await pilot.pause()
        await pilot.press("n")
        await until(lambda: isinstance(app.screen, LaunchScreen) and app.screen.cut is not None, pilot, SLOW)
        assert f"The launch of {run} was cut at" in plain(app)
        await pilot.click(button)
        await until(lambda: isinstance(app.screen, DeedScreen), pilot)
        for box in app.screen.query("#name"):
            box.value = run.rpartition("/")[2]
        await until(lambda: not app.screen.query_one("#go").disabled, pilot)
        await pilot.click("#go")
        await until(lambda: app.screen.end is not None, pilot, 240)
        return app.screen.end


@pytest.mark.slow
async def test_a_launch_that_was_cut_stands_on_the_first_page_and_is_undone_or_carried_on(tmp_path, monkeypatch):
    """The laptop's process ends in the middle of a launch; the screen finds it in the journal."""
    with real_world(tmp_path / "boxes") as fake:
        laptop = Laptop(fake, tmp_path)
        for name, value in {
            "TUNEWATCH_HOME": str(laptop.home), "VAST_API_KEY": fake.world.account_key,
            "TUNEWATCH_VAST_URL": fake.url,
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        for offer, run, button, state in (
            (1, "mine/20260215-104518", "#undo", "destroyed"),
            (2, "mine/20260215-104519", "#resume", "running"),
        ):
            desk = laptop.desk(after=CrashAt(5))
            with pytest.raises(Crash):
                launch(desk, laptop.request(offer, name=run), laptop.open_pair, {})
            desk.journal.close()
            end = await settled(run, button)
            assert (end.ok, end.state) == (True, state), end.text
            journal = Journal(laptop.home)
            assert unfinished_launches(journal) == ()
            assert {box.instance for box in journal.boxes(living=True)} == {box.id for box in fake.world.living()}
            journal.close()
        assert len(fake.world.living()) == 1


def test_the_words_of_a_draft():
    draft = Draft("stage5", "max_steps=9", "me/mine", "5", "10h", "30m", frozen(snapshot()).quotes[0])
    assert draft.trouble() == ""
    assert draft.command() == (
        "launch", "stage5", "--offer", "1", "--detach", "--set", "max_steps=9", "--hf-repo-id", "me/mine",
        "--budget", "5", "--deadline", "10h", "--idle", "30m",
    )  # fmt: skip
    assert draft.limits() == "It ends itself at 5 USD or 10h or 30m without a step."
    assert draft.deed().name == "1"
    assert draft.estimate() == "0.90 / 1.04 / 1.90 h, $0.67 / $0.77 / $1.41 (optimistic / base / pessimistic)"
