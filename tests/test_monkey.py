"""A thousand keys at random, garbage pasted, clicks anywhere, the terminal down to 40x10 and back: nothing breaks.

    TUNEWATCH_MONKEYS=20 python -m pytest tests/test_monkey.py     more monkeys, by hand

Every key of the table is pressed on every screen that the monkey finds, with two runs, a log of some thousand lines and
a measured box. Only what leaves the program is left out: quitting, and the pictures of an export, which take long.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace
from typing import Any

import pytest
from textual import events
from textual.widgets import Input

from tests.support.tui import app_with, frozen, history, snapshot, strike, until
from tests.test_tui_more import HEALTH
from tui.app import SnapshotArrived, TunewatchApp
from tui.deeds import DeedEnd
from tui.keys import KEYS
from tui.screens.runs import RunsScreen

BIG = (120, 40)
SIZES = ((40, 10), (80, 24), (30, 5), BIG, (200, 60), (1, 1))
GARBAGE = (
    "\x00\x1b[31m\x1b]0;title\x07", "(((((" * 30, "state:running gpu:A100 loss<1.2", "[bold]markup[/bold] [@click=x]",
    "é" * 4000, "\n".join("line" for _ in range(300)), "*[", "nan", "-1", "1e999", "\\", "🙂‍🧱\u202e\u0301",
)  # fmt: skip
OTHER_KEYS = (
    "up", "down", "left", "right", "enter", "enter", "escape", "escape", "tab", "shift+tab", "pageup", "pagedown",
    "backspace", "delete", "ctrl+a", "ctrl+k", "a", "5", "9", "full_stop", "x", "n", "ctrl+p",
)  # fmt: skip


MONKEYS = range(20261123, 20261123 + int(os.environ.get("TUNEWATCH_MONKEYS", "1")))
"""The dice of each monkey."""


@pytest.mark.slow
@pytest.mark.parametrize("dice", MONKEYS)
async def test_a_thousand_random_keys_leave_a_screen_that_works(dice, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("TUNEWATCH_HOME", "HOME", "XDG_DOWNLOAD_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setattr("tui.screens.deed.run_deed", lambda deed, say: DeedEnd(True, 0, "stopped", "stopped"))
    left: list[object] = []
    monkeypatch.setattr(TunewatchApp, "exit", lambda *a, **k: left.append(a))
    log = tmp_path / "log.txt"
    log.write_text("".join(f"{n} INFO step {n}\n{{'loss': '{n / 7:.3f}'}}\n" for n in range(3000)))
    chance = random.Random(dice)
    keys = [k for key in KEYS if key.action not in ("quit", "export") for k in key.keys.split(",")]
    one = frozen(snapshot(log_path=str(log), health=HEALTH))
    two = replace(one, target="runs/stage5/2", name="stage5/2")
    app = app_with(one, two)
    monkeypatch.setattr(type(app.session), "known", lambda self: [])
    pressed: list[str] = []
    async with app.run_test(size=BIG) as pilot:
        for number in range(1000):
            key = chance.choice(keys if chance.random() < 0.6 else OTHER_KEYS)
            pressed.append(key)
            # most keys come faster than the screen can follow, some are waited for to the end of their animation
            await (pilot.press(key) if number % 10 == 0 else strike(key, pilot))
            await _happen(number, chance, app, pilot)
        await pilot.resize_terminal(40, 10)
        await pilot.pause()
        await pilot.resize_terminal(*BIG)
        for _ in range(40):
            await pilot.press("escape")
            if len(app.screen_stack) <= 2:
                break
        assert len(app.screen_stack) <= 2, f"stuck on {app.screen} after {pressed[-30:]}"
        app.action_show_runs()
        await until(lambda: isinstance(app.screen, RunsScreen), pilot, seconds=60)
        # the list is found as it was left: with the filter that was typed last
        app.screen.query_one("#filter", Input).value = ""
        await until(lambda: app.screen.query_one("DataTable").row_count == 2, pilot, seconds=60)
        assert app.is_running


async def _happen(number: int, chance: random.Random, app: TunewatchApp, pilot: Any) -> None:
    """What else happens while somebody types."""
    if number % 40 == 7:
        await pilot.resize_terminal(*chance.choice(SIZES))
    if number % 30 == 11:
        app.screen.post_message(events.Paste(chance.choice(GARBAGE)))
        await pilot.pause()
    if number % 25 == 3 and min(app.size) > 2:
        await pilot.click(offset=(chance.randrange(app.size.width), chance.randrange(app.size.height)))
    if number % 50 == 25:
        grown = frozen(snapshot(history(chance.randint(1, 1200)), health=HEALTH))
        app.post_message(SnapshotArrived(replace(grown, log_path=str(next(iter(app.snapshots.values())).log_path))))
