"""The whole of renting from the screens: launched, watched, moved, stopped and killed, by keys and by mouse.

The market is a stand-in behind real HTTP, its boxes are real sshd processes, every deed is the true command in a
process of its own; the trainer is the quick one of the migration tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import DataTable, Input, Static

from remote.launch import launch
from tests.fake_vast import FakeVast, faults
from tests.fake_vast.market import offer_row
from tests.support.rented import BOOT, Laptop
from tests.support.standin import standin_recipe
from tests.support.tui import plain, until
from tests.support.vast import as_laptop
from tui.app import TunewatchApp
from tui.screens.deed import DeedScreen
from tui.screens.launch import LaunchScreen
from tui.screens.live import LiveScreen
from tui.screens.offers import OffersScreen
from tui.session import Session, WatchPlan

pytestmark = pytest.mark.slow

BIG = (120, 40)
LONG = 300.0
"""Seconds for a deed with boxes in it, on a machine that is busy."""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeVast]:
    offers = [offer_row(1, machine_id=1), offer_row(2, machine_id=2, dph_base=0.2, gpu_name="H100 SXM")]
    with FakeVast(boxes=tmp_path / "boxes", boot=BOOT, offers=offers, credit=500.0) as fake:
        as_laptop(monkeypatch, fake, tmp_path / "home")
        monkeypatch.delenv("TUNEWATCH_READ_ONLY", raising=False)
        yield fake
        for box in fake.world.living():
            fake.world.destroy(box, "the test")


def recipe(folder: Path) -> Path:
    """A run that would take a week, so that a cheaper box pays."""
    path, _ = standin_recipe(folder, step_s=0.1, steps=5_000_000, save_every=20)
    return path


async def ended(pilot: Any) -> Any:
    """The end of the deed in the dialog that is open."""
    await until(lambda: isinstance(pilot.app.screen, DeedScreen) and pilot.app.screen.end is not None, pilot, LONG)
    return pilot.app.screen.end


async def name_typed_back(pilot: Any) -> None:
    """The name, and Enter."""
    await until(lambda: isinstance(pilot.app.screen, DeedScreen), pilot)
    await until(lambda: pilot.app.focused is not None and pilot.app.focused.id == "cancel", pilot)
    await pilot.press(*pilot.app.screen.deed.name)
    await until(lambda: isinstance(pilot.app.focused, Input), pilot)
    await until(lambda: not pilot.app.screen.query_one("#go").disabled, pilot)
    await pilot.press("enter")


def at_step(app: Any, step: int) -> bool:
    screen = app.screen
    return isinstance(screen, LiveScreen) and screen.snapshot is not None and (screen.snapshot.step or 0) >= step


async def test_a_run_is_launched_watched_moved_and_killed_without_leaving_the_screen(world, tmp_path):
    app = TunewatchApp(Session(interval=0.3))
    async with app.run_test(size=BIG) as pilot:
        # launched, by keys
        await pilot.press("n")
        await until(lambda: isinstance(app.screen, LaunchScreen), pilot)
        await until(lambda: app.focused is not None and app.focused.id == "recipe", pilot)
        app.screen.query_one("#recipe", Input).value = str(recipe(tmp_path))
        await until(lambda: not app.screen.query_one("#next").disabled, pilot)
        await pilot.press("enter")
        await until(lambda: app.screen.page == "checks" and not app.screen._busy, pilot, 60)
        await until(lambda: app.focused is not None and app.focused.id == "next", pilot)
        await pilot.press("enter")
        await until(lambda: app.screen.page == "offer" and not app.screen._busy and app.screen._rows, pilot, 60)
        table = app.screen.query_one("#offers", DataTable)
        table.move_cursor(row=[row.offer_id for row in app.screen._rows].index("1"))
        await until(lambda: app.screen.offer is not None and app.screen.offer.offer_id == "1", pilot)
        await pilot.press("enter")
        await until(lambda: app.screen.page == "review", pilot)
        await pilot.click("#next")
        await name_typed_back(pilot)
        await until(lambda: "▸" in plain(app) or app.screen.end is not None, pilot, LONG)
        end = await ended(pilot)
        assert (end.ok, end.state) == (True, "running"), end.text
        assert {"rent", "boot", "SSH", "guard", "first log line"} <= {
            row.name for row, _ in app.screen.phases.rows if not isinstance(row, str)
        }
        # watched
        await until(lambda: app.focused is not None and app.focused.id == "watch", pilot)
        await pilot.press("enter")
        await until(lambda: at_step(app, 25), pilot, LONG)
        target = app.screen.target
        [first] = world.world.living()
        # moved, by mouse
        await pilot.press("M")
        await until(lambda: isinstance(app.screen, OffersScreen) and not app.screen._busy, pilot, 60)
        rows = app.screen.query_one(DataTable)
        await until(lambda: "2" in [row.key.value for row in rows.ordered_rows], pilot, 60)
        rows.move_cursor(row=[row.key.value for row in rows.ordered_rows].index("2"))
        await pilot.press("enter")
        await until(lambda: isinstance(app.screen, DeedScreen), pilot, 60)
        assert app.screen.deed.command[0] == "migrate"
        await pilot.click("#name")
        await pilot.press(*app.screen.deed.name)
        await until(lambda: not app.screen.query_one("#go").disabled, pilot)
        await pilot.click("#go")
        end = await ended(pilot)
        assert (end.ok, end.state) == (True, "running"), end.text
        await until(lambda: [box.id for box in world.world.living()] != [first.id], pilot, LONG)
        [second] = world.world.living()
        await pilot.click("#cancel")
        await until(lambda: not isinstance(app.screen, DeedScreen), pilot)
        # killed, by keys, from the run as it is known by its name
        assert second.label.split(":")[2] == target
        app.open_run(WatchPlan(target))
        await until(lambda: at_step(app, 1), pilot, LONG)
        await pilot.press("K")
        await name_typed_back(pilot)
        end = await ended(pilot)
        assert (end.ok, end.state) == (True, "destroyed"), end.text
        assert "✓ destroyed" in plain(app)
    assert world.world.living() == []


async def test_a_run_is_stopped_by_mouse_and_a_kill_that_is_not_proved_says_in_red_that_it_may_bill(world, tmp_path):
    laptop = Laptop(world, tmp_path)
    laptop.recipe = recipe(tmp_path)
    name = "standin/20260215-104518"
    assert launch(laptop.desk(), laptop.request(1, name=name), laptop.open_pair, {}).ok
    app = TunewatchApp(Session(interval=0.3), plan=WatchPlan(name))
    async with app.run_test(size=BIG) as pilot:
        await until(lambda: at_step(app, 5), pilot, LONG)
        # stopped: the focus is on Cancel, so a careless Enter does nothing
        await pilot.press("S")
        await until(lambda: isinstance(app.screen, DeedScreen) and app.focused.id == "cancel", pilot)
        assert "saves a checkpoint and stops training" in plain(app)
        await pilot.press("enter")
        await until(lambda: isinstance(app.screen, LiveScreen), pilot)
        await pilot.press("S")
        await until(lambda: isinstance(app.screen, DeedScreen), pilot)
        await pilot.click("#go")
        end = await ended(pilot)
        assert (end.ok, end.state) == (True, "stopped"), end.text
        await pilot.click("#cancel")
        await until(lambda: isinstance(app.screen, LiveScreen), pilot)
        await until(lambda: app.screen.snapshot.state == "stopped", pilot, LONG)
        # the provider takes the request and the box does not go; this laptop was told not to look for long
        settings = laptop.home / "settings.toml"
        settings.write_text("[kill]\nproof = 6\n")
        world.faults.add("destroy", faults.HTML_OK, times=50)
        await pilot.press("K")
        await name_typed_back(pilot)
        end = await ended(pilot)
        assert (end.ok, end.state) == (False, "unconfirmed"), end.text
        last = app.screen.query_one("#end", Static)
        assert "⚠ unconfirmed: it may still bill" in str(last.content)
        assert app.theme_variables["error"].lower() in str(getattr(last.content, "style", "")).lower(), "in red"
        assert len(world.world.living()) == 1
        await pilot.click("#cancel")
        await until(lambda: isinstance(app.screen, LiveScreen), pilot)
        # and once more, when the provider is well again
        settings.unlink()
        world.faults.clear()
        await pilot.press("K")
        await name_typed_back(pilot)
        end = await ended(pilot)
        assert (end.ok, end.state) == (True, "destroyed"), end.text
    assert world.world.living() == []
