"""Makes the pictures of README and docs: `make shots`. Real screens of the recorded sample, as PNG.

The recording is played to fixed moments with a clock of ours, so that the same tree makes the same pictures.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
sys.path.insert(0, str(ROOT))
os.environ.pop("NO_COLOR", None)
os.environ["LANG"] = os.environ["LC_ALL"] = "C.UTF-8"
Steps = Callable[[Any], Awaitable[None]]


def keys(*names: str) -> Steps:
    """Press keys, one after the other."""

    async def press(pilot: Any) -> None:
        for name in names:
            await pilot.press(name)
            await pilot.pause()

    return press


async def shoot(
    name: str, share: float, size: tuple[int, int], steps: Steps | None = None, *, theme: str = "", home: bool = False
) -> None:
    """One picture: the sample played to `share` of its length, then some keys."""
    from remote.market import load_offers
    from tui.app import TunewatchApp
    from tui.export import png_of
    from tui.replay import SAMPLE, ReplayFeed
    from tui.session import Session, WatchPlan
    from tui.svg import settled

    now = [0.0]
    feed = ReplayFeed(SAMPLE, speed=1.0, clock=lambda: now[0])
    now[0] = share * feed.length_s
    offers = load_offers()
    here = next(o for o in offers if o.speed == 1.0)
    session = Session(offers, interval=3600.0, make_feed=lambda target: feed)
    plan = WatchPlan(str(SAMPLE), "stage5/20261123-101500", offer_id=here.id)
    app = TunewatchApp(session, plan=None if home else plan)
    if theme:
        app.theme = theme
    if home:
        session.watch(plan)
    async with app.run_test(size=size) as pilot:
        for _ in range(400):
            await pilot.pause()
            if app.snapshots:
                break
            await asyncio.sleep(0.05)
        await pilot.pause()
        if steps is not None:
            await steps(pilot)
        for _ in range(6):
            await pilot.pause()
            await asyncio.sleep(0.05)
        svg = settled(app.export_screenshot(title="tunewatch"))
    session.stop()
    png = png_of(svg, 1280)
    if png is None:
        raise SystemExit("PNG needs resvg_py: pip install 'tunewatch[dev]'")
    (PICTURES / f"{name}.png").write_bytes(png)
    print(f"{name}: {size[0]}x{size[1]}, {len(png) // 1024} KiB")  # noqa: T201 - a script that says what it made


MEASURED = {
    "gpus": (
        {"index": 0, "name": "NVIDIA A100-SXM4-40GB", "util": 97.0, "used_mib": 30720.0, "total_mib": 40960.0,
         "temp_c": 71.0, "power_w": 352.0, "limit_w": 400.0},
    ),
    "cpu": 35.0, "load1": 4.2, "cores": 16, "ram_used": 20_000_000_000, "ram_total": 64_000_000_000,
    "disk_free": 6_400_000_000, "disk_total": 100_000_000_000, "net_in": 2e6, "net_out": 11e6, "oom_kills": 0,
}  # fmt: skip
"""A measurement of a box for the picture of it: the sample was recorded on a laptop without a GPU."""


async def box(pilot: Any) -> None:
    """The run as if its box were measured."""
    from dataclasses import replace

    from tui.app import SnapshotArrived

    [one] = pilot.app.snapshots.values()
    pilot.app.post_message(SnapshotArrived(replace(one, health=MEASURED)))
    await pilot.pause()
    await pilot.press("g")


async def question(pilot: Any) -> None:
    """What is asked before a box is destroyed."""
    from dataclasses import replace

    from tui.deeds import kill_deed
    from tui.screens.deed import DeedScreen

    [one] = pilot.app.snapshots.values()
    pilot.app.push_screen(DeedScreen(kill_deed(replace(one, name="stage5/20261123-101500", dph=0.7411))))


async def events(pilot: Any) -> None:
    """What a run has gone through while it was watched."""
    from tui.alerts import Alerts, look_at
    from tui.snapshot import RunSnapshot

    [one] = pilot.app.snapshots.values()
    alerts, seen = Alerts(), RunSnapshot(one.target, one.name, state="running")
    alerts.take(look_at(seen))
    pilot.app.notices.events += alerts.take(look_at(one))
    await pilot.press("e")


KEYS_HEAD = """# Keys

Every action is in the command palette too (`Ctrl+P`), and every deed is a command. This page is written by `make shots`
from the table that the program itself reads.

"""


async def main() -> None:
    """All pictures, and the page of keys."""
    from tui.keys import markdown

    PICTURES.mkdir(exist_ok=True)
    (ROOT / "docs" / "keys.md").write_text(KEYS_HEAD + markdown(), encoding="utf-8")
    big, small = (120, 40), (80, 24)
    with tempfile.TemporaryDirectory() as home:
        os.environ["TUNEWATCH_HOME"] = home
        os.chdir(home)
        await shoot("live-120x40", 0.72, big)
        await shoot("live-80x24", 0.72, small, keys("2"))
        await shoot("light-120x40", 1.0, big, theme="tunewatch-light")
        await shoot("what-if-120x40", 1.0, big, keys("w", "down", "down"))
        await shoot("results-120x40", 1.0, big, keys("r"))
        await shoot("market-120x40", 0.5, big, keys("o", "down", "down"))
        await shoot("log-120x40", 0.72, big, keys("L"))
        await shoot("runs-120x40", 0.72, big, home=True)
        await shoot("box-120x40", 0.72, big, box)
        await shoot("kill-120x40", 0.72, big, question)
        await shoot("events-120x40", 1.0, big, events)
        await shoot("launch-120x40", 0.72, big, keys("n"), home=True)
        await shoot("help-120x40", 0.72, big, keys("question_mark"))


if __name__ == "__main__":
    asyncio.run(main())
