"""Every screen at both sizes, in the dark and the light theme and without colour, cell by cell as text.

`pytest --snapshot-update tests/test_screens_frames.py` writes them anew. A frame is what stands there and, line by line
below it, a letter for the look of each cell; the last lines say what the letters mean. A difference can be read as
text, for which pictures (tests/test_tui_pictures.py) are too large in such a number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from string import ascii_letters, digits
from typing import Any

import pytest
from rich.style import Style
from textual.widgets import DataTable, Input

from runner.history import EvalPoint
from tests.support.tui import app_with, demo_history, frozen, history, until
from tests.support.tui import snapshot as made
from tests.test_tui_more import HEALTH
from tests.test_tui_pictures import BIG, SMALL, _fixed  # noqa: F401 - the fixture is used by being here
from tui.alerts import Event, Volume
from tui.app import TunewatchApp
from tui.screens.compare import CompareScreen
from tui.screens.logs import LogsScreen
from tui.widgets.events import EventList

LETTERS = ascii_letters + digits + "!#$%&*+=?@^~"
TIMELESS = {name: value for name, value in HEALTH.items() if name != "at"}
"""A measurement that is always of this moment."""
LOG = (
    "2026-02-15 10:45:18,123 INFO train: 50,000 examples\n"
    "2026-02-15 10:45:19,001 WARNING transformers: use_cache=True\n"
    "{'loss': '1.204', 'grad_norm': '1.31'}\n"
    "{'eval_loss': '1.400', 'eval_runtime': '7.736'}\n"
    "RuntimeError: CUDA out of memory\n"
)


def waiting() -> Any:
    """A run that waits for its rule, on a box that was measured."""
    return frozen(made(health=TIMELESS))


def stopped() -> Any:
    """A run that auto-stop ended."""
    run = history(1000)
    evals = (*run.evals[:3], *(EvalPoint(s, 1.4, 7.7) for s in range(500, 1100, 100)))
    one = frozen(made(replace(run, evals=evals, ended="stopped"), state="stopped", reason="the auto-stop rule fired"))
    return replace(one, target="runs/stage5/20260216-081500", name="stage5/20260216-081500")


async def pressed(pilot: Any, *keys: str) -> None:
    """Press keys, one after the other."""
    for key in keys:
        await pilot.press(key)
        await pilot.pause()


async def the_list(pilot: Any) -> None:
    """The list of runs, two of them marked."""
    await pressed(pilot, "R")
    await until(lambda: pilot.app.screen.query_one(DataTable).row_count == 2, pilot, seconds=60)
    await pressed(pilot, "space", "down", "space")


async def compared(pilot: Any) -> None:
    """The two over each other, with a cursor."""
    await the_list(pilot)
    await pressed(pilot, "c", "left", "left")
    await until(lambda: isinstance(pilot.app.screen, CompareScreen), pilot, seconds=60)


async def the_log(pilot: Any) -> None:
    """The whole log, searched."""
    await pressed(pilot, "L")
    await until(lambda: isinstance(pilot.app.screen, LogsScreen), pilot, seconds=60)
    await until(lambda: pilot.app.screen.view.row_count == 5, pilot, seconds=60)
    await pressed(pilot, "slash", *"eval", "enter")
    await until(lambda: pilot.app.screen.search is not None and pilot.app.screen.search.done, pilot, seconds=60)
    await until(lambda: pilot.app.screen.view.cursor == 3, pilot, seconds=60)


async def the_events(pilot: Any) -> None:
    """What happened."""
    for number, (kind, severity) in enumerate((("best", "information"), ("disk", "warning"), ("nan", "error"))):
        event = Event("runs/a", kind, kind, f"a: {kind}", severity, Volume.LIST, 100 * number, 10.0)
        pilot.app.notices.events.append(event)
    await pressed(pilot, "e")
    shown = pilot.app.screen.query_one(EventList)
    shown._clock = lambda: 70.0
    shown.show(shown.events)


async def the_results(pilot: Any) -> None:
    """The stages of a study."""
    one = replace(waiting(), history=demo_history())
    pilot.app.screen.take(one)
    await pressed(pilot, "r")


def by_keys(*keys: str) -> Callable[[Any], Any]:
    """A screen that keys alone lead to."""

    async def go(pilot: Any) -> None:
        await pressed(pilot, *keys)

    return go


SCREENS: dict[str, Callable[[Any], Any]] = {
    "run": by_keys(),
    "runs": the_list,
    "comparison": compared,
    "market": by_keys("o"),
    "log": the_log,
    "events": the_events,
    "what-if": by_keys("w"),
    "results": the_results,
    "box": by_keys("g"),
    "box pane": by_keys("7", "z"),
    "help": by_keys("question_mark"),
}


def frame(app: TunewatchApp) -> str:
    """The screen as text, the look of its cells, and what the letters of the looks mean."""
    looks: dict[str, str] = {}
    text, cells = [], []
    for strip in app.screen._compositor.render_strips():
        text.append("".join(segment.text for segment in strip).rstrip())
        line = ""
        for segment in strip:
            style = said(segment.style)
            letter = looks.setdefault(style, LETTERS[len(looks)] if len(looks) < len(LETTERS) else "·")
            line += letter * segment.cell_length
        cells.append(line)
    legend = [f"{letter} {style}" for style, letter in looks.items()]
    return "\n".join(chain(text, ["-- looks"], (shortened(line) for line in cells), ["-- legend"], legend))


def said(style: Style | None) -> str:
    """A style in words that stay the same from one version of the libraries to the next."""
    if style is None:
        return "plain"
    colours = [c.get_truecolor().hex if c is not None else "-" for c in (style.color, style.bgcolor)]
    marks = [name for name in ("bold", "dim", "italic", "underline", "reverse") if getattr(style, name)]
    return " ".join((f"{colours[0]} on {colours[1]}", *marks))


def shortened(line: str) -> str:
    """Runs of one letter by their number: `a37 b a2`.

    >>> shortened("aaab")
    'a3 b'
    """
    runs: list[list[Any]] = []
    for letter in line:
        if runs and runs[-1][0] == letter:
            runs[-1][1] += 1
        else:
            runs.append([letter, 1])
    return " ".join(f"{letter}{number}" if number > 1 else letter for letter, number in runs)


async def at_rest(app: TunewatchApp, pilot: Any) -> str:
    """The frame, once nothing changes it any more."""
    app.clear_notifications()
    for box in app.screen.query(Input):
        box.cursor_blink = False
    before, same = "", 0
    for _ in range(600):
        await pilot.pause()
        now = frame(app)
        before, same = now, same + 1 if now == before else 0
        if same == 2:
            return now
    raise AssertionError("the screen does not come to rest")


@pytest.fixture
def log(tmp_path, monkeypatch) -> Path:
    """The log of the run, in the folder where tunewatch was started."""
    monkeypatch.chdir(tmp_path)
    Path("log.txt").write_text(LOG)
    return Path("log.txt")


@pytest.mark.parametrize("size", [BIG, SMALL], ids=["big", "small"])
@pytest.mark.parametrize("name", SCREENS)
async def test_every_screen_in_two_themes_and_without_colour(name, size, snapshot, log, monkeypatch):
    monkeypatch.setattr("tui.screens.runs.time.time", lambda: 1_771_154_000.0)
    for colour in ("coloured", "NO_COLOR"):
        if colour == "NO_COLOR":
            monkeypatch.setenv("NO_COLOR", "1")
        app = app_with(replace(waiting(), log_path=str(log)), stopped())
        monkeypatch.setattr(type(app.session), "known", lambda self: [])
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await SCREENS[name](pilot)
            assert await at_rest(app, pilot) == snapshot(name=f"{colour} {app.theme}")
            if colour == "coloured":
                app.theme = "tunewatch-light"
                assert await at_rest(app, pilot) == snapshot(name=f"{colour} {app.theme}")
