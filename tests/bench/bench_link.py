"""What a broken link costs: no byte, no key press, and seconds until it is noticed and until it is back.

    python -m tests.bench.bench_link         # about a minute; against budgets, on a shared machine

Real sshd behind the tests' fault proxy, the pollers and the application of the screens. "Plain TCP" runs in a network
namespace of its own whose only interface is taken down: packets vanish, nobody resets anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from remote.feed import RunFeed
from remote.mirror import Mirror
from runner.errors import UnreachableError
from tests.support.proxy import FaultProxy
from tests.support.sshd import Sshd
from tui.session import Session, WatchPlan
from tui.snapshot import RunSnapshot

LINE = b"{'loss': 1.25, 'grad_norm': 0.5, 'learning_rate': 2e-05, 'epoch': 0.1}\n"
FAULTS = 200
HOSTS = 8
DARK_S = 9.0


def line(name: str, ours: float, reference: float, unit: str) -> None:
    """One result; the reference is the most that is allowed."""
    print(
        f"{name:<58} {ours:9.2f} {reference:9.1f} {unit:<3} {ours / reference if reference else 0.0:6.2f}", flush=True
    )


def p95(values: list[float]) -> float:
    """The value that 95 of 100 stay within."""
    return sorted(values)[min(len(values) - 1, int(0.95 * len(values)))]


def bytes_over_faults(box: Sshd, folder: Path) -> None:
    """A log that grows while its link is reset, swallowed, refused, cut to slivers and slowed, 200 times."""
    rng = random.Random(7)
    log, copy = box.home / "log.txt", folder / "copy" / "log.txt"
    log.write_bytes(b"")
    with FaultProxy((box.host, box.port)) as proxy, box.connect(folder / "state", port=proxy.port) as host:
        mirror = Mirror(host, "log.txt", copy)

        def pull() -> bool:
            with contextlib.suppress(UnreachableError):
                return not mirror.pull(0.05, timeout=0.5).behind
            return False

        for number in range(FAULTS):
            with log.open("ab") as out:
                # ends in the middle of a line, often in the middle of a character
                out.write((f"{number} äöü€ ".encode() * rng.randrange(1, 400))[: rng.randrange(1, 4000)])
            fault = rng.choice(("reset", "reset", "reset", "refuse", "blackhole", "slice", "rate"))
            if fault == "reset":
                threading.Timer(rng.uniform(0, 0.03), proxy.reset).start()
            elif fault in ("refuse", "blackhole"):
                proxy.mode = fault  # type: ignore[assignment]
                threading.Timer(rng.uniform(0, 0.1), proxy.reset).start()
            elif fault == "slice":
                proxy.slice = rng.randrange(1, 200)
            else:
                proxy.rate = 200_000.0
            pull()
            proxy.mode, proxy.slice, proxy.rate = "pass", None, None
        until = time.monotonic() + 60
        while copy.stat().st_size < log.stat().st_size and time.monotonic() < until:
            pull()
        proxy.reset()
    wrong = abs(log.stat().st_size - copy.stat().st_size) + sum(
        a != b for a, b in zip(log.read_bytes(), copy.read_bytes(), strict=False)
    )
    size = log.stat().st_size / 1e6
    print(f"{f'bytes lost or repeated of {size:.1f} MB over {FAULTS} faults':<58} {wrong:9d} {0:9d}", flush=True)


class Watchers:
    """Hosts under the screens' own pollers, and when each link changed its word."""

    def __init__(self, folder: Path, connect: Callable[[int, Path], object], hosts: int) -> None:
        self.words: dict[str, tuple[str, float]] = {}
        self.session = Session(
            make_feed=lambda text: RunFeed(
                text,
                home=folder,
                connect=lambda target: connect(int(target.host or 0), folder),  # type: ignore[return-value, arg-type]
            )
        )
        self.session.start(self._post)
        for number in range(hosts):
            self.session.watch(WatchPlan(f"{number}:live.txt"))
        self.hosts = hosts

    def _post(self, snapshot: RunSnapshot) -> None:
        before = self.words.get(snapshot.target)
        word = "live" if snapshot.link.word == "live" else "not"
        if before is None or before[0] != word:
            self.words[snapshot.target] = (word, time.monotonic())

    def seconds_until(self, word: str, began: float, patience: float = 90.0) -> list[float]:
        """How long after `began` each link had that word."""
        until = time.monotonic() + patience
        while sum(w == word for w, _ in self.words.values()) < self.hosts:
            if time.monotonic() > until:
                raise SystemExit(f"some link never became '{word}': {self.words}")
            time.sleep(0.02)
        return [max(0.0, at - began) for _, at in self.words.values()]


def behind_a_proxy(box: Sshd, folder: Path) -> None:
    """Sockets stay open, not a byte passes: noticed by the deadline of a question, back when it passes again."""
    (box.home / "live.txt").write_bytes(LINE)
    noticed: list[float] = []
    back: list[float] = []
    with contextlib.ExitStack() as stack:
        proxies = [stack.enter_context(FaultProxy((box.host, box.port))) for _ in range(HOSTS)]
        watchers = Watchers(
            folder / "state-p", lambda n, home: box.connect(home, port=proxies[n].port, name=f"box{n}"), HOSTS
        )
        watchers.seconds_until("live", 0.0)
        for _ in range(2):
            time.sleep(1.0)
            began = time.monotonic()
            for proxy in proxies:
                proxy.mode = "blackhole"
            noticed += watchers.seconds_until("not", began)
            time.sleep(max(0.0, began + DARK_S - time.monotonic()))
            began = time.monotonic()
            for proxy in proxies:
                proxy.mode = "pass"
            back += watchers.seconds_until("live", began)
        watchers.session.stop()
    line("dead link noticed behind a proxy, p95 / budget", p95(noticed), 20.0, "s")
    line(f"back after {DARK_S:.0f} s in a proxy's blackhole, p95 / budget", p95(back), 3.0, "s")


def loopback(up: bool) -> None:
    """Take the interface of this namespace up or down (Linux ioctl SIOCSIFFLAGS)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh14x", b"lo", 0x49 if up else 0x08))


def plain_tcp() -> None:
    """The same without a proxy, in a namespace whose loopback goes away: run by `plain_tcp_apart`."""
    folder = Path(tempfile.mkdtemp(prefix="tw-plain-"))
    loopback(True)
    noticed: list[float] = []
    back: list[float] = []
    try:
        with Sshd(folder / "box") as box:
            (box.home / "live.txt").write_bytes(LINE)
            watchers = Watchers(folder / "state", lambda n, home: box.connect(home, name=f"box{n}"), HOSTS)
            watchers.seconds_until("live", 0.0)
            for _ in range(2):
                time.sleep(1.0)
                began = time.monotonic()
                loopback(False)
                noticed += watchers.seconds_until("not", began)
                time.sleep(max(0.0, began + DARK_S - time.monotonic()))
                began = time.monotonic()
                loopback(True)
                back += watchers.seconds_until("live", began)
            watchers.session.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    line("dead link noticed on plain TCP, p95 / budget", p95(noticed), 8.0, "s")
    line(f"back after {DARK_S:.0f} s without a network, p95 / budget", p95(back), 3.0, "s")


def plain_tcp_apart() -> subprocess.Popen[str]:
    """Begin `plain_tcp` where packets can be made to vanish without touching this machine's network."""
    flags = "-n" if os.geteuid() == 0 else "-rn"
    return subprocess.Popen(
        ["unshare", flags, sys.executable, "-m", "tests.bench.bench_link", "--plain"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def tell(apart: subprocess.Popen[str]) -> None:
    """Wait for it, and say what it measured or why it could not."""
    out, err = apart.communicate(timeout=180)
    why = (err.strip().splitlines() or ["?"])[-1]
    print(out.rstrip() if apart.returncode == 0 else f"plain TCP: not measured, no network namespace here ({why})")


async def keys(box: Sshd, folder: Path) -> None:
    """From a key to its effect in the real application: while the link is well, and while it is a blackhole."""
    from textual.events import Key

    from tui.app import TunewatchApp

    (box.home / "live.txt").write_bytes(LINE * 200)
    os.environ["TUNEWATCH_HOME"] = str(folder / "state-k")
    with FaultProxy((box.host, box.port)) as proxy:
        session = Session(
            make_feed=lambda text: RunFeed(
                text, home=folder / "state-k", connect=lambda _: box.connect(folder / "state-k", port=proxy.port)
            )
        )
        app = TunewatchApp(session, plan=WatchPlan("box:live.txt"))
        async with app.run_test(size=(120, 40)) as pilot:
            await pilot.pause()
            screen = app.screen

            async def waits(count: int, pause: float) -> list[tuple[float, float]]:
                """Seconds by the clock, and of the processor, of which other programs can take nothing."""
                found = []
                for _ in range(count):
                    want = not screen.has_class("-solo")
                    began, worked = time.perf_counter(), time.process_time()
                    app.post_message(Key("z", "z"))
                    while screen.has_class("-solo") != want and time.perf_counter() - began < 10:  # noqa: ASYNC110
                        await asyncio.sleep(0.001)
                    found.append((time.perf_counter() - began, time.process_time() - worked))
                    await asyncio.sleep(pause)
                return found

            await asyncio.sleep(2.0)
            well = await waits(100, 0.02)
            proxy.mode = "blackhole"
            dark = await waits(200, 0.05)
            app.session.stop()
    for name, found in (("well", well), ("in a blackhole", dark)):
        walls, works = (sorted(row[kind] for row in found) for kind in (0, 1))
        line(f"a key, link {name}, median / budget", 1000 * statistics.median(walls), 100.0, "ms")
        line(f"a key, link {name}, p99 / budget", 1000 * walls[int(0.99 * len(walls))], 100.0, "ms")
        line(f"a key, link {name}, p99, processor time alone", 1000 * works[int(0.99 * len(works))], 100.0, "ms")


def main() -> None:
    """Every measurement."""
    if "--plain" in sys.argv:
        plain_tcp()
        return
    folder = Path(tempfile.mkdtemp(prefix="tw-link-"))
    try:
        with Sshd(folder / "box") as box:
            print(f"{'name':<58} {'ours':>9} {'at most':>9} {'':<3} {'ratio':>6}")
            bytes_over_faults(box, folder)
            asyncio.run(keys(box, folder))
            apart = plain_tcp_apart()
            behind_a_proxy(box, folder)
            tell(apart)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
