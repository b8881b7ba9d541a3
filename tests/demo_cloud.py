"""The whole path of renting on the stand-in, as a person would type it: offers, launch, watch, bill, kill.

    make demo-cloud            about four minutes; no account, no network, no money
    make demo-cloud ARGS="--set max_steps=100"    shorter

Everything but the market is real: the boxes are sshd processes with their own home, the run is the miniature study.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.fake_vast import FakeVast, ScaledClock
from tests.fake_vast.market import random_offers, seed_offers

BOOT = ((0.0, None), (1.0, "created"), (2.0, "loading"), (4.0, "running"))
TUNEWATCH = [sys.executable, "-m", "tui"]


def say(command: list[str]) -> None:
    print(f"\n$ tunewatch {' '.join(command)}", flush=True)


def run(*command: str, env: dict[str, str], check: bool = True) -> None:
    say(list(command))
    subprocess.run([*TUNEWATCH, *command], env=env, check=check)


def ask(*command: str, env: dict[str, str]) -> Any:
    done = subprocess.run([*TUNEWATCH, *command, "--json"], env=env, check=False, capture_output=True, text=True)
    if not done.stdout.strip():
        raise SystemExit(f"tunewatch {' '.join(command)}: {done.stderr}")
    return json.loads(done.stdout)


def follow(name: str, env: dict[str, str]) -> None:
    """Watch until the run is over, one line a few seconds."""
    say(["watch", name, "--once", "--json", "   # each few seconds"])
    until = time.monotonic() + 900
    while time.monotonic() < until:
        look = ask("watch", name, "--once", env=env)
        run_, progress, stop = look["run"], look["progress"], look["autostop"]
        evals = look["evals"]
        last = f"eval_loss {evals[-1]['eval_loss']:.4f} @ {evals[-1]['step']}" if evals else "no eval yet"
        steps = f"{progress['step'] or 0:>5}/{progress['max_steps'] or '?'}"
        print(f"  {run_['state']:<9} {steps}  {last}  auto-stop {stop['state']}", flush=True)
        if run_["state"] not in ("starting", "running", "silent"):
            return
        time.sleep(4)
    raise SystemExit("the run did not end within 15 minutes")


def main() -> None:
    extra = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="tunewatch-demo-") as folder:
        root = Path(folder)
        world = {"offers": seed_offers(20.0) + random_offers(60), "boot": BOOT}
        with FakeVast(clock=ScaledClock(), boxes=root / "boxes", python=sys.executable, **world) as fake:
            env = {
                **os.environ,
                "NO_PROXY": "127.0.0.1,localhost",
                "TUNEWATCH_HOME": str(root / "home"),
                "TUNEWATCH_VAST_URL": fake.url,
                "VAST_API_KEY": fake.world.account_key,
            }
            run("offers", "--limit", "6", env=env)
            # kept when finished, so that its bill and its end can be shown; the budget and the deadline stand
            limits = ("--budget", "1", "--deadline", "1h", "--keep")
            run("launch", "demo", "--offer", "7000002", *limits, "--detach", "--yes", *extra, env=env)
            (box,) = ask("instances", env=env)
            follow(box["run"], env)
            run("instances", env=env)
            run("kill", box["run"], "--yes", env=env)
            run("instances", "--history", env=env)
            run("reconcile", env=env)
            fake.world.tick()
            (truth,) = fake.world.boxes.values()
            (bill,) = ask("instances", "--history", env=env)
            living = len(fake.world.living())
            print(f"\nbill ${bill['usd_so_far']:.5f}, the market charged ${truth.usd:.5f}; living boxes: {living}")


if __name__ == "__main__":
    main()
