"""What the link costs, against OpenSSH's own tools in the same run: on loopback, and at 150 ms round trip by a proxy.

    python -m tests.bench.bench_ssh          # under a minute; ratios are what counts, the machine is shared

Rates are MB/s and the ratio is ours / scp, the best of a few rounds of each in turn (more is better). Latencies are
milliseconds from the append on the box to the number on the real application's screen. CPU is the share of one core.
What broken links cost stands in bench_link.py.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from remote.feed import RunFeed
from remote.mirror import Mirror
from tests.support.proxy import FaultProxy
from tests.support.sshd import Sshd

MB = 1 << 20


def timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def line(name: str, ours: float, reference: float | None, unit: str, *, more_is_better: bool = True) -> None:
    if reference is None:
        print(f"{name:<42} {ours:10.2f} {unit:<5} {'':>10}")
        return
    ratio = ours / reference if more_is_better else reference / ours
    print(f"{name:<42} {ours:10.2f} {unit:<5} {reference:10.2f}  ratio {ratio:5.2f}")


def scp(box: Sshd, port: int, source: str, target: str) -> None:
    options = ["-q", "-P", str(port), "-i", str(box.key), "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR"]
    options += ["-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes"]
    subprocess.run(["scp", *options, source, target], check=True)


def transfers(box: Sshd, folder: Path, port: int, size: int, label: str, rounds: int) -> None:
    data = os.urandom(MB) * (size // MB)
    (box.home / "big").write_bytes(data)
    (folder / "up").write_bytes(data)
    remote = f"{box.user}@{box.host}:{box.home}"
    with box.connect(folder / "state", port=port) as host:
        host.ping()
        host.get("big", folder / "got")  # both sides have the file in memory from here on
        rows: dict[str, list[float]] = {"down": [], "scp down": [], "up": [], "scp up": [], "mirror": []}
        for _ in range(rounds):
            rows["down"].append(timed(lambda: host.get("big", folder / "got")))
            rows["scp down"].append(timed(lambda: scp(box, port, f"{remote}/big", str(folder / "got2"))))
            rows["up"].append(timed(lambda: host.put(folder / "up", "got-up")))
            rows["scp up"].append(timed(lambda: scp(box, port, str(folder / "up"), f"{remote}/got-up2")))
            shutil.rmtree(folder / "copy", ignore_errors=True)
            mirror = Mirror(host, "big", folder / "copy" / "big")

            def pull(mirror: Mirror = mirror) -> None:
                while mirror.pull(0.3).behind:
                    pass

            rows["mirror"].append(timed(pull))
        best = {name: size / MB / min(times) for name, times in rows.items()}
        line(f"download {size // MB} MB, {label}", best["down"], best["scp down"], "MB/s")
        line(f"upload {size // MB} MB, {label}", best["up"], best["scp up"], "MB/s")
        line(f"mirror {size // MB} MB, {label}", best["mirror"], best["scp down"], "MB/s")


async def append_to_number(box: Sshd, folder: Path) -> None:
    """From the write on the box to the number on the screen of the real application, the run in front."""
    from tui.app import TunewatchApp
    from tui.session import Session, WatchPlan

    rng = random.Random(1)
    log, state = box.home / "live.txt", folder / "state"
    log.write_bytes(b"{'loss': 9.5, 'grad_norm': 1.0, 'epoch': 0.0}\n")
    session = Session(make_feed=lambda text: RunFeed(text, home=state, connect=lambda _: box.connect(state)))
    app = TunewatchApp(session, plan=WatchPlan("box:live.txt"))
    waits = []
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()

        def shown() -> str:
            return "\n".join(strip.text for strip in app.screen._compositor.render_strips())

        async def until(number: str) -> None:
            began = time.monotonic()
            while number not in shown():
                if time.monotonic() > began + 30:
                    raise SystemExit(f"{number} never came to the screen:\n{shown()}")
                await asyncio.sleep(0.01)

        await until("9.5")
        for number in range(20):
            await asyncio.sleep(rng.uniform(0.3, 1.0))
            loss = f"{rng.randrange(1, 9)}.{rng.randrange(100, 999)}"
            with log.open("ab") as out:
                out.write(f"{{'loss': {loss}, 'grad_norm': 1.0, 'epoch': 0.{number + 1:02d}}}\n".encode())
            appended = time.monotonic()
            await until(loss)
            waits.append(time.monotonic() - appended)
        app.session.stop()
    waits.sort()
    line("append to screen p50 (at most 250)", 1000 * statistics.median(waits), 250, "ms", more_is_better=False)
    line("append to screen p95 (at most 600)", 1000 * waits[int(0.95 * len(waits))], 600, "ms", more_is_better=False)


def idle_cpu(box: Sshd, folder: Path, hosts: int, period: float, seconds: float) -> float:
    feeds = [
        RunFeed("box:live.txt", home=folder / f"state{n}", connect=lambda _, n=n: box.connect(folder / f"state{n}"))
        for n in range(hosts)
    ]
    for feed in feeds:
        feed.settle()
    began, cpu = time.monotonic(), time.process_time()
    while time.monotonic() - began < seconds:
        tick = time.monotonic()
        for feed in feeds:
            feed.tick()
        while (left := period - (time.monotonic() - tick)) > 0:
            time.sleep(min(0.25 if hosts == 1 else period, left))
            if hosts == 1:
                feeds[0].stirred()  # as the poller does for the run in front
    share = 100 * (time.process_time() - cpu) / (time.monotonic() - began)
    for feed in feeds:
        feed.close()
    return share


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="tw-bench-"))
    try:
        with Sshd(folder / "box") as box:
            print(f"{'name':<42} {'ours':>10} {'':<5} {'reference':>10}  ratio")
            transfers(box, folder, box.port, 100 * MB, "loopback", 3)
            with FaultProxy((box.host, box.port)) as proxy:
                proxy.delay_s = 0.075
                transfers(box, folder, proxy.port, 4 * MB, "150 ms", 1)
            asyncio.run(append_to_number(box, folder))
            one, fleet = idle_cpu(box, folder, 1, 1.0, 4), idle_cpu(box, folder, 50, 10.0, 10)
            line("idle CPU, one host in front (at most 1)", one, 1, "%", more_is_better=False)
            line("idle CPU, 50 hosts behind it (at most 5)", fleet, 5, "%", more_is_better=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
