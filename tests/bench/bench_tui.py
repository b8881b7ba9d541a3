"""The screens against their references: start, redraw, keys while catching up, idle. `python -m tests.bench.bench_tui`

Lines: name  ours  reference  ratio. A reference is the empty Textual app, the bare import, or the budget of the design.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 9
KEYS = 400
PAINTED = """
    def _display(self, screen, frame):  # the first whole frame of the screen that a person is to see, and out
        super()._display(screen, frame)
        if frame is not None and screen is self.screen and (screen.id == '_default') == EMPTY: os._exit(0)
"""
EMPTY = f"""
import os
from textual.app import App
EMPTY = True
class Empty(App):{PAINTED}
Empty().run(headless=True, size=(120, 40))
"""
OURS = f"""
import os, sys
from tui.opening import quicken
quicken()
from tui.app import TunewatchApp
from tui.session import Session, WatchPlan
EMPTY = False
class Ours(TunewatchApp):{PAINTED}
Ours(Session(), plan=WatchPlan(sys.argv[1])).run(headless=True, size=(120, 40))
"""


def line(name: str, ours: float, reference: float, unit: str) -> None:
    """One result."""
    print(f"{name:<58} {ours:9.1f} {reference:9.1f} {unit:<3} {ours / reference:6.2f}")


def core_ms(words: list[str]) -> float:
    """Milliseconds of a core that a process takes, with all that it starts; what else the machine does is left out."""
    # compiled once, as on any machine, also where the environment of the bench forbids it or came without
    given = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    compiled = {"PYTHONPYCACHEPREFIX": str(Path(os.environ["TUNEWATCH_HOME"]).with_name("compiled"))}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *words],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=given | compiled,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000


def against(ours: list[str], reference: list[str]) -> tuple[float, float]:
    """The median cost of two commands that take turns, in ms of a core."""
    pairs = [(core_ms(ours), core_ms(reference)) for _ in range(ROUNDS + 1)][1:]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


def make_run(root: Path, steps: int = 2000) -> Path:
    """A run directory with some thousand steps."""
    from runner.metrics import MetricsWriter
    from runner.rundir import RunDir

    run = RunDir.create("bench", root)
    run.open_log()
    writer = MetricsWriter(run.metrics)
    writer.write("start", max_steps=10 * steps, rule=None)
    noise = random.Random(1)
    for step in range(1, steps + 1):
        if step % 5 == 0:
            writer.write("train", step=step, loss=1 + noise.random(), step_s=0.5)
        if step % 200 == 0:
            writer.write("eval", step=step, eval_loss=1.0 + 50 / step, eval_runtime=1.0)
    return run.path


def start_up(root: Path) -> None:
    """First frame against an empty application; help against the import of Textual."""
    run = make_run(root)
    line("first frame of a run / empty Textual app (<= 1.5)", *against(["-c", OURS, str(run)], ["-c", EMPTY]), "ms")
    line(
        "tunewatch --help / import textual.app (<= 2)",
        *against(["-m", "tui", "--help"], ["-c", "import textual.app"]),
        "ms",
    )


def redraw() -> None:
    """Four charts of 100,000 steps each, raw and smoothed, drawn anew."""
    from tui.axes import ChartSpec, series, smooth
    from tui.chart import render_chart
    from tui.themes import THEMES, palette_of

    noise = random.Random(2)
    curves = []
    for _ in range(4):
        raw = series([(i, 1 + 2 / (1 + i / 5000) + 0.1 * noise.gauss(0, 1)) for i in range(100_000)], "raw")
        curves.append(ChartSpec((raw, smooth(raw, 0.9))))
    palette = palette_of(
        {"background": THEMES[0].background or "#000000", "foreground": "#ffffff", **THEMES[0].variables}
    )
    render_chart(curves[0], 76, 12, palette)
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for spec in curves:
            render_chart(spec, 76, 12, palette)
        times.append(time.process_time() - start)
    line("four charts over 100,000 steps / budget", min(times) * 1000, 100.0, "ms")


def big_log(root: Path, megabytes: int = 60) -> Path:
    """A Trainer's log of many frames."""
    path = root / "big.log"
    total = megabytes * 12_000
    with path.open("w") as out:
        for step in range(1, total):
            out.write(f"\r {step * 100 // total:3d}%|####      | {step}/{total} [00:{step % 60:02d}<01:00,  1.00it/s]")
            if step % 50 == 0:
                out.write(f"\r{' ' * 60}\r{{'loss': '{1 + 100 / step:.4g}', 'grad_norm': '1.1', 'epoch': '0.1'}}\n")
    return path


async def keys_while_catching_up(root: Path) -> None:
    """Time from a key to its effect while the poller reads a large log: on the clock, and of a core.

    All threads of one interpreter take turns, so beside other work the second is what the first is on a quiet machine.
    """
    from tui.app import TunewatchApp
    from tui.session import Session, WatchPlan

    log = big_log(root)
    app = TunewatchApp(Session(), plan=WatchPlan(str(log)))
    waits: list[float] = []
    works: list[float] = []
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        screen = app.screen
        for number in range(KEYS):
            want = not screen.has_class("-solo")
            from textual.events import Key

            start, worked = time.perf_counter(), time.process_time()
            app.post_message(Key("z", "z"))
            while screen.has_class("-solo") != want and time.perf_counter() - start < 5:  # noqa: ASYNC110 - timed
                await asyncio.sleep(0.001)
            waits.append(time.perf_counter() - start)
            works.append(time.process_time() - worked)
            if number % 10 == 0:
                await asyncio.sleep(0.05)
        app.session.stop()
    for spent, name in ((sorted(waits), ""), (sorted(works), ", of a core")):
        line(f"a key while catching up, median{name} / budget", statistics.median(spent) * 1000, 100.0, "ms")
        line(f"a key while catching up, p99{name} / budget", spent[int(KEYS * 0.99)] * 1000, 100.0, "ms")


async def idle(root: Path, runs: int = 5, seconds: float = 6.0) -> None:
    """CPU of the whole process while five runs are watched and nothing happens."""
    from tui.app import TunewatchApp
    from tui.session import Session, WatchPlan

    paths = [make_run(root / str(i), 500) for i in range(runs)]
    app = TunewatchApp(Session(), plan=WatchPlan(str(paths[0])))
    async with app.run_test(size=(120, 40)) as pilot:
        for path in paths[1:]:
            app.session.watch(WatchPlan(str(path)))
        await pilot.pause()
        await asyncio.sleep(3.0)
        before = resource.getrusage(resource.RUSAGE_SELF)
        start = time.perf_counter()
        await asyncio.sleep(seconds)
        after = resource.getrusage(resource.RUSAGE_SELF)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        line("idle CPU with five runs / budget", 100 * used / (time.perf_counter() - start), 3.0, "%")
        app.session.stop()


async def many_runs() -> None:
    """A thousand runs in the list."""
    from tests.support.tui import app_with
    from tui.run_rows import RunRow
    from tui.screens.runs import RunsScreen

    app = app_with(open_first=False)
    rows = [RunRow(f"vast:{i}:/root/x", f"stage5/{i:06d}", noted=float(i)) for i in range(1000)]
    type(app.session).known = lambda self: []  # type: ignore[method-assign]
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        screen = app.screen
        assert isinstance(screen, RunsScreen)
        start = time.perf_counter()
        screen._loaded(rows)
        await pilot.pause()
        line("a list of 1,000 runs filled / budget", (time.perf_counter() - start) * 1000, 1000.0, "ms")


def main() -> None:
    """Every measurement, in under a minute."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["TUNEWATCH_HOME"] = str(root / "home")
        print(f"{'name':<58} {'ours':>9} {'reference':>9} {'':<3} {'ratio':>6}")
        start_up(root)
        redraw()
        asyncio.run(keys_while_catching_up(root))
        asyncio.run(idle(root))
        asyncio.run(many_runs())


if __name__ == "__main__":
    main()
