"""What a box has cost so far, what it costs at this moment, and where each dollar went.

Money follows the provider's rules: GPU time while the GPU is held, disk from creation to destruction in every state but
offline, traffic per GB in every state. Time is the provider's start of the contract plus what was observed since: each
listing adds a stretch to the meter. Where two listings disagree on the status, the change is put in the middle.

The provider's own bill, once read, is the truth up to its moment; the meter counts on from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from remote.journal import Journal, MeterRow
from remote.provider import Charge, Instance

GPU_HELD = ("running", "frozen", "rebooting")
"""Statuses in which the GPU is billed; frozen is, although nothing runs."""


@dataclass(frozen=True, slots=True)
class Bill:
    """USD of one box so far, by kind."""

    instance: int
    gpu: float
    disk: float
    down: float
    up: float
    usd_per_h: float
    """What it costs at this moment."""
    since: float | None
    """Start, in seconds since the epoch."""
    until: float | None
    """Up to when it is counted."""
    charged: float | None = None
    """What the provider said, for the part of the time up to `charged_at`."""
    charged_at: float | None = None

    @property
    def total(self) -> float:
        """All kinds together."""
        return self.gpu + self.disk + self.down + self.up

    def to_json(self) -> dict[str, Any]:
        """The lines of the bill."""
        return {
            "gpu": self.gpu, "disk": self.disk, "down": self.down, "up": self.up, "total": self.total,
            "usd_per_h": self.usd_per_h, "charged": self.charged, "charged_at": self.charged_at,
        }  # fmt: skip


def observe(journal: Journal, instances: Iterable[Instance], now: float) -> None:
    """Add what a listing shows at `now` to the meter of every box in it."""
    for instance in instances:
        rows = journal.meter(instance.id)
        gpu_rate = max(0.0, instance.dph_total - instance.disk_usd_per_h)
        disk_rate = instance.disk_usd_per_h
        if rows:
            last = rows[-1]
            start, before = last.stop, last.status
            rates = (last.gpu_usd_h, last.disk_usd_h)
            if instance.dph_total <= 0 and not instance.own:
                gpu_rate, disk_rate = rates  # a row that does not tell its price is no box for nothing
        else:
            start = min(now, instance.start_date) if instance.start_date is not None else now
            before, rates = instance.status, (gpu_rate, disk_rate)
        if now < start:
            continue
        if before == instance.status and rates == (gpu_rate, disk_rate):
            journal.add_meter(MeterRow(instance.id, start, now, instance.status, gpu_rate, disk_rate))
            continue
        middle = (start + now) / 2
        journal.add_meter(MeterRow(instance.id, start, middle, before, *rates))
        journal.add_meter(MeterRow(instance.id, middle, now, instance.status, gpu_rate, disk_rate))


def finish(journal: Journal, instance_id: int, now: float) -> None:
    """The box is gone since about `now`: count its last status up to then."""
    rows = journal.meter(instance_id)
    if rows and now > rows[-1].stop:
        last = rows[-1]
        journal.add_meter(MeterRow(instance_id, last.stop, now, last.status, last.gpu_usd_h, last.disk_usd_h))


def add_traffic(journal: Journal, instance_id: int, *, down_gb: float = 0.0, up_gb: float = 0.0) -> None:
    """Count GB that went into (`down_gb`) or out of (`up_gb`) the box."""
    box = journal.box(instance_id)
    known = box.data if box is not None else {}
    journal.put_box(
        instance_id,
        down_gb=float(known.get("down_gb", 0.0)) + down_gb,
        up_gb=float(known.get("up_gb", 0.0)) + up_gb,
    )


def keep_charges(journal: Journal, charges: Sequence[Charge]) -> None:
    """Keep the provider's bill; lines of several days of one box are added up."""
    by_box: dict[int, list[Charge]] = {}
    for charge in charges:
        by_box.setdefault(charge.instance_id, []).append(charge)
    for instance_id, lines in by_box.items():
        items: dict[str, float] = {}
        for line in lines:
            for kind, usd in line.items.items():
                items[kind] = items.get(kind, 0.0) + usd
        journal.put_charged(instance_id, max(line.end for line in lines), sum(line.usd for line in lines), items)


def bill(journal: Journal, instance_id: int, now: float | None = None, *, current: Instance | None = None) -> Bill:
    """The bill of a box. With `now`, the last observed status is counted on to that moment."""
    rows = journal.meter(instance_id)
    box = journal.box(instance_id)
    known = box.data if box is not None else {}
    charged = journal.charged(instance_id)
    after = charged[0] if charged is not None else float("-inf")
    gone = box is not None and box.gone
    if rows and now is not None and now > rows[-1].stop and not gone:
        last = rows[-1]
        rows = [*rows, MeterRow(instance_id, last.stop, now, last.status, last.gpu_usd_h, last.disk_usd_h)]
    gpu = disk = 0.0
    for row in rows:
        hours = max(0.0, row.stop - max(row.start, after)) / 3600
        if row.status in GPU_HELD:
            gpu += hours * row.gpu_usd_h
        if row.status != "offline":
            disk += hours * row.disk_usd_h
    down_cost = current.inet_down_cost if current is not None else float(known.get("inet_down_cost", 0.0))
    up_cost = current.inet_up_cost if current is not None else float(known.get("inet_up_cost", 0.0))
    down, up = float(known.get("down_gb", 0.0)) * down_cost, float(known.get("up_gb", 0.0)) * up_cost
    if charged is not None:
        items = charged[2]
        gpu += items.get("gpu", 0.0)
        disk += items.get("disk", 0.0)
        # our own count of traffic runs on after the provider's reading; whichever is larger has seen more of it
        down, up = max(down, items.get("bwd", 0.0)), max(up, items.get("bwu", 0.0))
    rate = 0.0
    if rows and not gone:
        rate = (rows[-1].gpu_usd_h if rows[-1].status in GPU_HELD else 0.0) + (
            rows[-1].disk_usd_h if rows[-1].status != "offline" else 0.0
        )
    return Bill(
        instance_id, gpu, disk, down, up, rate,
        rows[0].start if rows else None, rows[-1].stop if rows else None,
        charged[1] if charged else None, charged[0] if charged else None,
    )  # fmt: skip
