"""A laptop for the tests of renting: a desk on the stand-in, a recipe that writes a log, and crashes on demand."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from remote.access import Opener, opener, own_key
from remote.arming import Wishes
from remote.deeds import DeedStep
from remote.desk import Desk
from remote.journal import Journal, Row
from remote.launch import Launch, onstart
from remote.provider import Instance, Provider, SshPair
from remote.remote_run import Order
from remote.rent import Plan
from remote.transport import HostKeyChangedError, Transport
from remote.vast import VastProvider
from tests.fake_vast import FakeVast
from tests.fake_vast.market import offer_row

TRAINER = """
import os, signal, sys, time
for step in range(1, 100000):
    print({'loss': round(2 - step / 1000, 4), 'learning_rate': 1e-05, 'epoch': step / 100}, flush=True)
    time.sleep(0.05)
"""
BOOT = ((0.0, None), (0.1, "created"), (0.2, "loading"), (0.3, "running"))
OFFERS = 200


class Crash(BaseException):
    """The laptop's process ends here; nothing may catch it."""


@dataclass
class CrashAt:
    """A hook for the journal: ends the process before or after the n-th row."""

    row: int
    seen: int = 0
    rows: list[str] = field(default_factory=list)

    def __call__(self, row: Row) -> None:
        self.seen += 1
        self.rows.append(f"{row.step} {row.phase}")
        if self.seen == self.row:
            raise Crash(f"{row.step} {row.phase}")


def unreachable(instance: Instance, pair: SshPair) -> Transport:
    """A box that lets nobody in, for good: the end of the way where no real box is behind the stand-in."""
    raise HostKeyChangedError(f"{pair.host}:{pair.port} does not answer.")


class Laptop:
    """One home directory; `desk` opens it anew, like a process that starts."""

    def __init__(self, fake: FakeVast, folder: Path, *, provider: Provider | None = None, real: bool = True) -> None:
        self.fake = fake
        self.folder = folder
        self.home = folder / "home"
        self.real = real
        self.said: list[DeedStep] = []
        self.provider = provider or VastProvider(
            api_key=fake.world.account_key, url=fake.url, thresholds={}, timeout_s=60.0, create_timeout_s=60.0
        )
        work = folder / "work"
        work.mkdir(parents=True, exist_ok=True)
        (work / "train.py").write_text(TRAINER)
        self.recipe = folder / "mine.toml"
        self.recipe.write_text(
            f'kind = "command"\n[foreign]\ncommand = ["python3", "-u", "train.py"]\nworkdir = "{work}"\n'
        )

    def desk(self, *, before: CrashAt | None = None, after: CrashAt | None = None) -> Desk:
        clock = self.fake.world.clock
        if self.real:
            journal = Journal(self.home, before_row=before, after_row=after)
            # polls are ten times as quick as for a market across the world
            return Desk(self.provider, journal, self.said.append, sleep=lambda s: time.sleep(min(s, 5.0) / 10))
        journal = Journal(self.home, clock=clock, before_row=before, after_row=after)
        sleep = clock.sleep  # type: ignore[attr-defined]
        return Desk(self.provider, journal, self.said.append, clock=clock, mono=clock, sleep=sleep)

    @property
    def open_pair(self) -> Opener:
        return opener(self.home) if self.real else unreachable

    def request(self, offer: int, *, name: str = "mine/20260215-104518", **more: object) -> Launch:
        _, public = own_key(self.home)
        wishes = Wishes(budget_usd=2.0, deadline_s=3600.0)
        boot_s = 240.0 if self.real else 60.0
        plan = {"disk_gb": 60.0, "image": "", "onstart": onstart(public), "boot_deadline_s": boot_s} | more
        return Launch(Order(str(self.recipe), name=name), Plan(name, offer, **plan), wishes)  # type: ignore[arg-type]

    def check_agreement(self) -> None:
        """The journal's living boxes are exactly the provider's, and no deed is open."""
        journal = Journal(self.home)
        living = {box.id for box in self.fake.world.living()}
        assert {box.instance for box in journal.boxes(living=True)} == living
        assert journal.open_deeds() == []
        journal.close()


@contextmanager
def real_world(folder: Path, **options: object) -> Iterator[FakeVast]:
    """A stand-in whose boxes are real, and boot in a third of a second."""
    os.environ["NO_PROXY"] = "127.0.0.1,localhost"
    offers = [offer_row(number, machine_id=number) for number in range(1, OFFERS + 1)]
    with FakeVast(boxes=folder, boot=BOOT, offers=offers, credit=500.0, **options) as fake:  # type: ignore[arg-type]
        yield fake
