"""A laptop as a process of its own, to be frozen: it launches runs, gives their guards tight limits, and stays.

    python -m tests.support.frozen FOLDER LIMIT...      with TUNEWATCH_VAST_URL and VAST_API_KEY

It prints `armed` when every guard stands, then renews the leases and lists the account once a second, until it is
stopped. Launched together, in threads, as a person with several windows does.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from remote import access
from remote.access import opener, own_key, reach
from remote.arming import Wishes, limits_for, read_guard
from remote.arming import arm as arm_guard
from remote.desk import Desk
from remote.journal import Journal
from remote.launch import Launch, launch, onstart
from remote.provider import find
from remote.remote_run import Order
from remote.rent import Plan
from remote.vast import VastProvider
from runner.box.limits import Limits
from runner.errors import TunewatchError
from tests.support.rented import TRAINER

LIMITS = ("deadline", "budget", "idle", "lease", "finished")
UNTIL_TOLD = """
import itertools, time
from pathlib import Path
for step in itertools.count(1):
    print({'loss': round(2 - step / 1000, 4), 'learning_rate': 1e-05, 'epoch': step / 100}, flush=True)
    time.sleep(0.05)
    if (Path.home() / 'finish').exists():
        break
"""
LIMIT_S = 6.0


def run_name(limit: str) -> str:
    return f"mine/{limit}"


def tight(limit: str, limits: Limits, report: dict[str, object]) -> Limits:
    """One limit, a few seconds away by the guard's own count."""
    spent = float(report["spent_usd"])  # type: ignore[arg-type]
    now = replace(limits, period_s=0.5, linger_s=2.0, spent_usd=spent)
    if limit == "deadline":
        return replace(now, deadline_s=LIMIT_S)
    if limit == "budget":
        return replace(now, budget_usd=spent + LIMIT_S / 3600 * limits.usd_per_h, reserve_usd=0.0)
    if limit == "idle":
        return replace(now, idle_s=LIMIT_S)
    return replace(now, lease_s=LIMIT_S) if limit == "lease" else now


class Frozen:
    """The laptop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.provider = VastProvider(thresholds={}, timeout_s=60.0, create_timeout_s=60.0)
        self.public = own_key(self.home)[1]
        Journal(self.home).close()
        self.hosts: list[access.InstanceTransport] = []

    def desk(self) -> Desk:
        return Desk(self.provider, Journal(self.home), sleep=lambda s: time.sleep(min(s, 5.0) / 10))

    def recipe(self, limit: str) -> Path:
        work = self.folder / f"work-{limit}"
        work.mkdir()
        (work / "train.py").write_text(UNTIL_TOLD if limit == "finished" else TRAINER)
        path = self.folder / f"{limit}.toml"
        path.write_text(f'kind = "command"\n[foreign]\ncommand = ["python3", "-u", "train.py"]\nworkdir = "{work}"\n')
        return path

    def round(self, offer: int, limit: str) -> None:
        name = run_name(limit)
        wishes = Wishes(lease_s=3600.0 if limit == "lease" else None)
        plan = Plan(name, offer, 60.0, "", onstart(self.public), boot_deadline_s=240.0)
        order = Order(str(self.recipe(limit)), name=name)
        done = launch(self.desk(), Launch(order, plan, wishes, grace_s=5.0), opener(self.home), {})
        desk = self.desk()
        row = find(desk.listing(), done.instance_id or 0)
        assert row is not None
        host, _ = reach(row, opener(self.home))
        with host, desk.step("guard") as note:
            run_dir = f"{host.home()}/tunewatch/runs/{name}"
            limits = limits_for(row, wishes, url=self.provider.url, spent_usd=0.0)
            tightened = tight(limit, limits, read_guard(host, run_dir))
            python = f"cd {host.home()}/tunewatch && PYTHONPATH=$(echo code/*/) python3 -m "
            arm_guard(desk, host, run_dir, tightened, lambda words: python + words, note)
        watched = access.InstanceTransport(row.id, self.home, lambda _: row)
        watched.ping()
        self.hosts.append(watched)

    def stay(self) -> None:
        while True:
            for host in self.hosts:
                try:
                    host.ping(timeout=5)
                except TunewatchError as error:
                    print(f"gone: {error}", file=sys.stderr)
            self.desk().listing()
            time.sleep(1)


def main() -> None:
    folder, limits = Path(sys.argv[1]), sys.argv[2:]
    access.RENEW_S = 0.5
    laptop = Frozen(folder)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(laptop.round, range(1, len(limits) + 1), limits))
    print("armed", flush=True)
    laptop.stay()


if __name__ == "__main__":
    main()
