"""Run the stand-in as a program: prints the lines a shell can `eval`, then serves until it is ended.

    python -m tests.fake_vast --folder DIR [--rate 60] [--offers 200] [--port 0]

`--rate` makes its billing clock faster than life; boots last the same either way.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from tests.fake_vast.clock import ScaledClock
from tests.fake_vast.market import random_offers, seed_offers
from tests.fake_vast.server import FakeVast


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fake_vast")
    parser.add_argument("--folder", type=Path, required=True, help="where the boxes have their disks")
    parser.add_argument("--rate", type=float, default=1.0, help="billing seconds per second")
    parser.add_argument("--offers", type=int, default=60, help="offers beside the study's three")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--python", default=sys.executable, help="what python3 is on a box")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    boot = tuple(
        (after * options.rate, status)
        for after, status in ((0, None), (0.5, "created"), (1, "loading"), (2, "running"))
    )
    fake = FakeVast(
        clock=ScaledClock(options.rate),
        boxes=options.folder,
        python=options.python,
        port=options.port,
        offers=seed_offers(60.0) + random_offers(options.offers),
        boot=boot,
    )
    end = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: end.set())
    with fake:
        print(f"export TUNEWATCH_VAST_URL={fake.url}")
        print(f"export VAST_API_KEY={fake.world.account_key}", flush=True)
        end.wait()


if __name__ == "__main__":
    main()
