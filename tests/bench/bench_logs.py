"""A log of a million lines: opening, searching, filtering and memory, beside `wc -l`, `grep -c` and Textual's own Log.

Lines of `name  ours  reference  ratio`; seconds unless the name says MB. Model and commands are measured in processor
time (best of three, warm file, `LC_ALL=C`), so that a busy machine does not hide a regression; the app in wall time.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from textual.app import App, ComposeResult
from textual.widgets import Log

from tui.logindex import LogIndex
from tui.logscan import Filter, LineScan, Search, StepSearch
from tui.logtext import Pattern
from tui.screens.logs import LogsScreen

LINES = 1_000_000


def make(path: Path, lines: int = LINES) -> None:
    """Write a log such as a trainer leaves: progress lines, a dict each hundred, bars, a rare warning."""
    noise = random.Random(1)
    with path.open("w") as file:
        for n in range(lines):
            if n % 100 == 99:
                bar = f"\r {n // 1000}%|# | {n // 100}/10000 [21:47<4:20:10,  2.82s/it]\r{' ' * 50}\r"
                file.write(f"{bar}{{'loss': '{1 + noise.random():.4g}', 'epoch': '{n / 1e5:.4g}'}}\n")
            elif n % 1000 == 500:
                file.write(f"2026-02-15 10:45:18,123 WARNING trainer: gradient norm is high at micro step {n}\n")
            else:
                file.write(f"2026-02-15 10:45:18,{n % 1000:03d} INFO trainer: micro step {n} tokens 8192 ok {n * 7}\n")


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def processor(work: Callable[[], object]) -> float:
    """Processor time of one call, in this process or in the commands that it runs."""

    def used() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    start = used()
    work()
    return used() - start


def command(*words: str) -> float:
    """Processor time of a command; its output goes into a pipe, because grep stops at the first hit for /dev/null."""
    environment = {**os.environ, "LC_ALL": "C"}
    run = lambda: subprocess.run(words, capture_output=True, env=environment, check=False)  # noqa: E731
    return min(processor(run) for _ in range(3))


def exhaust(make_scan: Callable[[], LineScan | StepSearch]) -> float:
    """Processor time of a whole scan, the best of three; its longest slice is kept in `longest`."""
    took = []
    for _ in range(3):
        scan, slices, more = make_scan(), [], True
        while more:
            start = time.process_time()
            more = scan.slice()
            slices.append(time.process_time() - start)
        took.append((sum(slices), max(slices)))
    longest[0] = max(longest[0], min(took)[1])
    return min(took)[0]


longest = [0.0]
"""The longest slice so far: as long as a key could have waited for the interpreter on an idle machine."""


def row(name: str, ours: float, reference: float | None = None) -> None:
    """Print one line of the table."""
    right = f"{reference:10.3f}  {ours / reference:6.2f}" if reference else f"{'-':>10}  {'-':>6}"
    print(f"{name:<44} {ours:10.3f}  {right}", flush=True)


class OurApp(App[None]):
    """The Logs screen alone."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.logs = LogsScreen(path)

    def on_mount(self) -> None:
        """Open it."""
        self.push_screen(self.logs)


class TheirApp(App[None]):
    """Textual's Log widget with the same lines."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def compose(self) -> ComposeResult:
        """One Log."""
        yield Log()

    def on_mount(self) -> None:
        """Fill it."""
        self.query_one(Log).write_lines(self.path.read_text().split("\n"))


async def until(holds: Callable[[], bool]) -> None:
    """Let the app work until something holds."""
    while not holds():  # noqa: ASYNC110 - what is measured must not be told by what measures
        await asyncio.sleep(0.001)


async def first_lines(path: Path) -> tuple[float, float]:
    """Seconds from pushing the screen until its newest line is drawn, and until every line has its number."""
    app = OurApp(path)
    start = time.perf_counter()
    async with app.run_test(size=(120, 40)) as pilot:
        await until(lambda: app.logs.is_running and app.logs.view.row_count > 0)
        await pilot.pause()
        drawn = time.perf_counter() - start
        await until(lambda: app.logs.view.row_count == LINES)
        await pilot.pause()
        return drawn, time.perf_counter() - start


async def keys(path: Path, *, busy: bool) -> float:
    """The 99th percentile of 200 cursor keys, in seconds from the key to the drawn screen, while a slow pattern is
    searched for over and over (`busy`) or nothing goes on.
    """
    app = OurApp(path)
    took = []
    async with app.run_test(size=(120, 40)) as pilot:
        await until(lambda: app.logs.is_running and app.logs.view.row_count == LINES)
        await pilot.pause()
        search = None
        for _ in range(200):
            if busy and (search is None or search.done):
                search = Search(app.logs.index, Pattern(r"\d+ ok \d*7$"))
                app.logs.work.look_for(search)
            start, row_before = time.perf_counter(), app.logs.view.cursor
            app.simulate_key("up")
            await until(lambda before=row_before: app.logs.view.cursor == before - 1)
            app.logs.view.render_line(0)
            took.append(time.perf_counter() - start)
    return sorted(took)[-3]


def memory_of(kind: str, path: Path) -> float:
    """Peak resident MB of a fresh process that shows the log, waits until it is there, and searches it."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.bench_logs", kind, str(path)], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


async def show(kind: str, path: Path) -> None:
    """What `memory_of` runs in the fresh process."""
    if kind == "ours":
        app = OurApp(path)
        async with app.run_test(size=(120, 40)) as pilot:
            await until(lambda: app.logs.is_running and app.logs.view.row_count == LINES)
            search = Search(app.logs.index, Pattern("info"))
            app.logs.work.look_for(search)
            await until(lambda: search.done)
            await pilot.pause()
    else:
        async with TheirApp(path).run_test(size=(120, 40)) as pilot:
            await pilot.pause()
    # not getrusage: its maximum is inherited from the parent across exec
    status = Path("/proc/self/status").read_text()  # noqa: ASYNC240
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.txt"
        make(path)
        print(f"{LINES:,} lines, {path.stat().st_size / 1e6:.0f} MB")
        print(f"{'name':<44} {'ours':>10}  {'reference':>10}  {'ratio':>6}")
        counted = command("wc", "-l", str(path))
        index = LogIndex(path)
        row("tail known (model)", processor(index.open), counted)

        def number() -> None:
            while index.scan():
                pass

        row("every line numbered (model) / wc -l", processor(number), counted)
        for name, pattern in (
            ("search a rare word / grep -ci", "warning"),
            ("search a rare regex / grep -ciE", "gradient.*500"),
            ("search an alternation / grep -ciE", "(warning|traceback)"),
            ("search what every line holds / grep -ci", "trainer"),
        ):
            ours = exhaust(lambda p=pattern: Search(index, Pattern(p)))
            row(name, ours, command("grep", "-ciE", pattern, str(path)))
        row("filter out nearly all / grep -vc", exhaust(lambda: Filter(index, None, Pattern("INFO"))),
            command("grep", "-vc", "INFO", str(path)))  # fmt: skip
        row("jump to step 5000", exhaust(lambda: StepSearch(index, 5000, 10_000)))
        row("longest slice of all these", longest[0])
        drawn, whole = asyncio.run(first_lines(path))
        row("app start to newest line drawn", drawn)
        row("app start to all lines numbered", whole, seconds(lambda: asyncio.run(_their_start(path))))
        row(
            "p99 key during a search / while idle",
            asyncio.run(keys(path, busy=True)),
            asyncio.run(keys(path, busy=False)),
        )
        row("peak MB with a search / Textual Log", memory_of("ours", path), memory_of("theirs", path))


async def _their_start(path: Path) -> None:
    async with TheirApp(path).run_test(size=(120, 40)) as pilot:
        await pilot.pause()


if __name__ == "__main__":
    if len(sys.argv) == 3:
        asyncio.run(show(sys.argv[1], Path(sys.argv[2])))
    else:
        main()
