"""Renting from the market, the box of a run, settings that cannot be used: what stands where the eye is."""

from __future__ import annotations

import pytest

from runner.errors import UsageError
from tests.support.tui import BIG, app_with, frozen, plain, snapshot, told, until
from tests.test_tui_live import _own_home  # noqa: F401 - the fixture is used by being here
from tui.screens.box import box_text
from tui.screens.deed import DeedScreen

HEALTH = {
    "at": 10.0,
    "gpus": (
        {"index": 0, "name": "A100-SXM4-40GB", "util": 97.0, "used_mib": 30720.0, "total_mib": 40960.0,
         "temp_c": 88.0, "power_w": 290.0, "limit_w": 400.0, "throttle": "thermal"},
    ),
    "cpu": 35.0, "load1": 4.2, "cores": 16, "ram_used": 20_000_000_000, "ram_total": 64_000_000_000,
    "disk_free": 3_000_000_000, "disk_total": 100_000_000_000, "net_in": 2e6, "net_out": 1e6, "oom_kills": 0,
}  # fmt: skip


def test_the_box_tells_its_limits_its_age_and_nothing_it_does_not_know():
    text = box_text(HEALTH, {}, now=22.0).plain
    for wanted in ("A100-SXM4-40GB", "97%", "30.0 of 40.0 GiB", "290 of 400 W", "88 °C", "thermal", "3.0 GB free",
                   "measured 12s ago", "load 4.2 on 16 cores"):  # fmt: skip
        assert wanted in text
    assert "not measured" in box_text({}, {}, now=0.0).plain
    assert "memory" not in box_text({"at": 0.0, "cpu": 1.0}, {}, now=0.0).plain


async def test_the_box_opens_over_the_run():
    async with app_with(frozen(snapshot(health=HEALTH))).run_test(size=BIG) as pilot:
        await pilot.pause()
        await pilot.press("g")
        await until(lambda: "A100-SXM4-40GB" in plain(pilot.app), pilot)


async def test_enter_on_an_offer_asks_to_move_a_run_that_is_on_a_rented_box():
    one = frozen(snapshot())
    app = app_with(one)
    app.session.instances[one.target] = 31457957
    async with app.run_test(size=BIG) as pilot:
        await pilot.pause()
        await pilot.press("M", "down", "enter")
        await until(lambda: isinstance(app.screen, DeedScreen), pilot)
        assert app.screen.deed.command[:3] == ("migrate", one.name, "--to")
        assert "the new one has proved" in plain(app)


async def test_a_read_only_session_rents_nothing(monkeypatch):
    monkeypatch.setenv("TUNEWATCH_READ_ONLY", "1")
    async with app_with(frozen(snapshot(dph=0.0))).run_test(size=BIG) as pilot:
        await pilot.pause()
        await pilot.press("o", "down", "enter")
        await until(lambda: any("read-only" in n.message for n in told(pilot)), pilot)


@pytest.mark.parametrize(
    ("text", "said"),
    [("[look]\ntheem = 'x'\n", "look.theme"), ("[watch]\nfront = 'fast'\n", "a number"), ("[look\n", "not TOML")],
)
def test_settings_that_cannot_be_used_are_refused_with_line_and_key(tmp_path, monkeypatch, text, said):
    from tui.opening import new_session

    monkeypatch.setenv("TUNEWATCH_HOME", str(tmp_path))
    (tmp_path / "settings.toml").write_text(text)
    with pytest.raises(UsageError) as refused:
        new_session()
    assert said in str(refused.value)


async def test_a_theme_that_does_not_exist_is_told_and_the_default_is_used(tmp_path, monkeypatch):
    from tui.app import TunewatchApp
    from tui.opening import new_session

    monkeypatch.setenv("TUNEWATCH_HOME", str(tmp_path))
    monkeypatch.delenv("TEXTUAL_THEME", raising=False)
    (tmp_path / "settings.toml").write_text('[look]\ntheme = "pink"\n')
    app = TunewatchApp(new_session())
    monkeypatch.setattr(type(app.session), "known", lambda self: [])
    async with app.run_test(size=BIG) as pilot:
        await until(lambda: any("no theme 'pink'" in n.message for n in told(pilot)), pilot)
        assert app.theme == "tunewatch"
