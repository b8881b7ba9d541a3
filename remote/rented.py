"""What is rented at one moment, box by box, for a screen that stays open: the rate, the bill, the limits, the guard.

Nothing here acts: `survey` says what the journal and one listing of the account amount to, `IdleWatch` how long a GPU
has done nothing, `GuardRounds` what the guard on a box reports. Who looks decides what follows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remote.access import InstanceTransport
from remote.arming import Overdue, alarm
from remote.contract import tell_price
from remote.journal import BoxRecord, Journal
from remote.labels import read_label
from remote.money import bill, finish
from remote.provider import Instance
from runner.atomic import read_object
from runner.box.limits import REPORT
from runner.errors import NotFoundError, RefusedError
from runner.rundir import STATUS, read_status

IDLE_PERCENT = 5.0
"""GPU use up to which it counts as idle; the guard on the box counts the same."""
BREAK_S = 90.0
"""After a longer pause between two looks (a laptop that slept) idle time is counted anew."""
SLACK_S = 120.0
"""The guard on the box has the first move for so long."""
PROOFS = 2


@dataclass(frozen=True, slots=True)
class RentedBox:
    """One box on the account, or one the journal holds for living."""

    instance: int
    run: str
    gpu: str
    status: str
    """The provider's word, or "unconfirmed", or "not listed"."""
    usd_per_h: float
    """At this moment."""
    usd_so_far: float
    ours: bool = True
    late: str = ""
    """Why it should have ended; empty within its limits."""
    guard: str = ""
    """What is wrong with its guard; empty when it stands well or was not read."""
    own: str = ""
    """The name of a machine of one's own; empty for a rented box."""

    @property
    def troubled(self) -> bool:
        """Whether it bills, or may bill, in a way that nobody wanted."""
        return bool(self.late or self.guard) or self.status in ("unconfirmed", "not listed")

    @property
    def name(self) -> str:
        """What it is called in a sentence."""
        called = f"Host {self.own}" if self.own else f"Instance {self.instance}"
        return f"{called} ({self.run})" if self.run else called


def survey(
    journal: Journal,
    rows: Sequence[Instance] | None,
    now: float,
    *,
    late: Iterable[Overdue] = (),
    guards: Mapping[int, str] | None = None,
    absent: Collection[int] = (),
) -> tuple[RentedBox, ...]:
    """Every box that bills or may bill at `now` (seconds since the epoch).

    `rows` is the newest listing, None before the first: then the journal's meter counts on. `absent` are boxes that
    enough listings did not show; they bill nothing, whatever the journal still says.
    """
    reasons = {box.instance: box.reason for box in late}
    alarms = guards or {}
    records = {box.instance: box for box in journal.boxes(living=True) if box.instance not in absent}
    found = []
    for row in rows or ():
        record = records.pop(row.id, None)
        label = read_label(row.label)
        run = record.run if record is not None else (label.run if label is not None else "")
        status = "unconfirmed" if record is not None and record.state == "unconfirmed" else row.status
        cost = bill(journal, row.id, now, current=row)
        found.append(
            RentedBox(
                row.id, run, row.gpu_name, status, row.billing_usd_per_h, cost.total,
                record is not None or label is not None, reasons.get(row.id, ""), alarms.get(row.id, ""), row.own,
            )
        )  # fmt: skip
    for record in records.values():
        cost = bill(journal, record.instance, now)
        word = "unconfirmed" if record.state == "unconfirmed" else ("not listed" if rows is not None else "unknown")
        found.append(
            RentedBox(
                record.instance, record.run, str(record.data.get("gpu_name") or ""), word, cost.usd_per_h,
                cost.total, True, reasons.get(record.instance, ""), alarms.get(record.instance, ""),
                record.called.removeprefix("host ") if record.called.startswith("host ") else "",
            )
        )  # fmt: skip
    return tuple(found)


class Absences:
    """Counts the listings in a row that did not show a box of the journal."""

    def __init__(self) -> None:
        self._missed: dict[int, int] = {}
        self._seen_at: dict[int, float] = {}

    def take(self, journal: Journal, rows: Sequence[Instance], now: float) -> set[int]:
        """Count one complete listing; returns the boxes that `PROOFS` of them lacked, by number and by label.

        A box of a deed that is not finished is not counted: a new one may be listed late, and an old one is proved
        gone by the deed itself.
        """
        shown, labels = {row.id for row in rows}, {row.label for row in rows}
        busy = of_open_deeds(journal)
        for box in journal.boxes(living=True):
            if box.instance in shown or box.instance in busy or (box.label and box.label in labels):
                self._missed.pop(box.instance, None)
                self._seen_at[box.instance] = now
            else:
                self._missed[box.instance] = self._missed.get(box.instance, 0) + 1
        return {instance for instance, count in self._missed.items() if count >= PROOFS}

    def settle(self, journal: Journal, gone: Iterable[int], now: float) -> list[BoxRecord]:
        """Write down that boxes are gone, billed up to when they were seen last; returns those that are news."""
        news = []
        for instance in gone:
            box = journal.box(instance)
            if box is None or box.gone:
                continue
            finish(journal, instance, self._seen_at.get(instance, now))
            news.append(journal.put_box(instance, state="destroyed", destroyed_at=now))
            journal.note("gone", run=box.run, instance=instance, how="not listed twice")
        return news


def of_open_deeds(journal: Journal, *, under_way: bool = False) -> set[int]:
    """Instances that an unfinished deed answers for; with `under_way` only deeds a living process carries out."""
    keys = ("instance_id", "old_instance_id", "new_instance_id")
    deeds = [d for d in journal.open_deeds() if not under_way or journal.under_way(d.id)]
    found = (record.data.get(key) for record in deeds for key in keys)
    return {instance for instance in found if isinstance(instance, int)}


def unfinished_kills(journal: Journal) -> list[Overdue]:
    """Boxes whose destruction was begun and given up: they may bill although somebody wanted them gone."""
    found = []
    for deed in journal.open_deeds("kill"):
        instance = deed.data.get("instance_id")
        if isinstance(instance, int) and not journal.under_way(deed.id):
            box = journal.box(instance)
            called = box.called if box is not None else ""
            found.append(Overdue(instance, deed.run, "its destruction was begun and is not proved", called))
    return found


class IdleWatch:
    """How long each box's GPUs have done nothing, from the provider's rows and the steps that were seen."""

    def __init__(self) -> None:
        self._busy_at: dict[int, float] = {}
        self._looked: dict[int, float] = {}
        self._steps: dict[int, int | None] = {}

    def take(self, row: Instance, at: float, *, step: int | None = None, begun: bool = True) -> float:
        """Seconds of idleness at `at` (monotonic). A box that says nothing of its GPU is not called idle, nor is one
        whose run has not `begun`: it is being made ready.
        """
        before = self._looked.get(row.id)
        working = not begun or row.status != "running" or row.gpu_util is None or row.gpu_util > IDLE_PERCENT
        stepped = step is not None and step != self._steps.get(row.id)
        if before is None or at - before > BREAK_S or working or stepped:
            self._busy_at[row.id] = at
        self._looked[row.id] = at
        if step is not None:
            self._steps[row.id] = step
        return at - self._busy_at[row.id]

    def late(
        self, journal: Journal, rows: Iterable[Instance], at: float, steps: Mapping[int, int | None]
    ) -> list[Overdue]:
        """Boxes past the idle limit they were rented with, the guard's first move granted."""
        found = []
        for row in rows:
            box = journal.box(row.id)
            begun = box is not None and box.state == "running"
            idle = self.take(row, at, step=steps.get(row.id), begun=begun)
            limit = box.data.get("idle_s") if box is not None and begun else None
            if box is not None and isinstance(limit, (int, float)) and idle > limit + SLACK_S:
                why = f"its GPU has done nothing for {idle / 60:.0f} min, the limit is {limit / 60:.2g} min"
                found.append(Overdue(row.id, box.run, why, box.called))
        return found


@dataclass(frozen=True, slots=True)
class GuardSight:
    """What was read on a box."""

    report: Mapping[str, Any]
    alarm: str
    step: int | None = None


class GuardRounds:
    """Reads the guards' reports over SSH, one connection per box. Reading also renews the lease of the box, and with
    `tell` a price that changed is written into the limits of its guard.
    """

    def __init__(self, home: Path, *, tell: bool = True) -> None:
        self._home = home
        self._tell = tell
        self._rows: dict[int, Instance] = {}
        self._hosts: dict[int, InstanceTransport] = {}

    def read(self, box: BoxRecord, row: Instance) -> GuardSight:
        """Look at one box; raises UnreachableError or RefusedError, which say nothing about its guard."""
        self._rows[row.id] = row
        host = self._hosts.get(row.id)
        if host is None:
            host = self._hosts[row.id] = InstanceTransport(row.id, self._home, lambda wanted: self._rows[wanted])
        folder = box.data.get("guard_dir") or box.data.get("run_dir")
        report, age = {}, None
        with contextlib.suppress(NotFoundError):
            chunk = host.read_from(f"{folder}/{REPORT}", 0)
            report, age = read_object(chunk.data) or {}, chunk.mtime_age_s
        if self._tell and box.data.get("guard"):
            tell_price(host, str(folder), row)
        status = None
        # the run of an adopted box may be a log alone, with no directory of ours around it
        with contextlib.suppress(NotFoundError, RefusedError):
            status = read_status(host.read_from(f"{box.data.get('run_dir')}/{STATUS}", 0).data)
        return GuardSight(report, alarm(report, age), status.step if status is not None else None)

    def close(self) -> None:
        """Close every connection."""
        for host in self._hosts.values():
            host.close()
        self._hosts.clear()
