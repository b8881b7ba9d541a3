"""When a rental ends: the limits the laptop sets, what the box sees, and the rule between them.

guard.json         the limits, written by the laptop and rewritten when a price or a wish changes
guard.status.json  what the guard sees, each period
guard.lease        changed by the laptop while it watches
guard.release      put there by the laptop when it has everything it wants from the disk
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from runner.atomic import read_object
from runner.box.meters import finite

CONFIG = "guard.json"
REPORT = "guard.status.json"
LOCK = "guard.lock"
LEASE = "guard.lease"
"""Rewritten by the laptop while it watches; only its change counts, not its time."""
RELEASE = "guard.release"
"""Put there by the laptop when it has everything it wants from the disk."""
DEFAULT_URL = "https://console.vast.ai"
CRASH_GRACE_S = 900.0
"""A crashed run waits so long for somebody to resume it."""


@dataclass
class Limits:
    """What guard.json holds. None for a limit means that there is none."""

    instance_id: int = 0
    url: str = DEFAULT_URL
    usd_per_h: float = 0.0
    disk_usd_per_h: float = 0.0
    spent_usd: float = 0.0
    """Spent before the guard was armed."""
    down_usd_per_gb: float = 0.0
    up_usd_per_gb: float = 0.0
    budget_usd: float | None = None
    reserve_usd: float = 0.0
    """Of the budget, kept for the disk after a stop."""
    deadline_s: float | None = None
    """Seconds from arming."""
    idle_s: float | None = None
    lease_s: float | None = None
    keep_when_finished: bool = False
    period_s: float = 5.0
    grace_s: float = 60.0
    """At least so long for saving when a limit is reached."""
    linger_s: float = 20.0
    """After the end of the run, so that the laptop reads the last lines."""
    rental: bool = True
    """Whether there is a rental to end; on a machine of its owner's the run is ended and nothing else."""
    upload_s: float = 1800.0
    """At most so long for an upload that is under way when the run ends."""
    arming: str = ""
    """Made anew each time the laptop arms: then `spent_usd` and the time limits count from that moment."""


@dataclass
class View:
    """What is known at one moment; everything `decide` needs."""

    elapsed_s: float
    """Since arming."""
    spent_usd: float
    running: bool
    """A trainer is alive."""
    ended_rc: int | None = None
    """Exit code of the run when it is over; None before."""
    over_for_s: float = 0.0
    idle_for_s: float = 0.0
    lease_age_s: float = 0.0
    save_s: float = 0.0
    """The longest checkpoint so far."""
    down_gb: float = 0.0
    """Into the box since arming; in `spent_usd` already."""
    up_gb: float = 0.0
    uploading: bool = False


def decide(limits: Limits, view: View) -> str | None:
    """The reason to end the rental now, or None. Pure.

    Budget and deadline are acted on early enough for a checkpoint, but never more than a fifth before.
    """
    lead = 2.0 * view.save_s + limits.period_s if view.running else 0.0
    if limits.deadline_s is not None and view.elapsed_s >= limits.deadline_s - min(lead, 0.2 * limits.deadline_s):
        return "deadline"
    if limits.budget_usd is not None:
        usable = max(0.0, limits.budget_usd - limits.reserve_usd)
        left = usable - view.spent_usd
        if left <= min(lead / 3600 * limits.usd_per_h, 0.2 * usable):
            return "budget"
    if limits.lease_s is not None and view.lease_age_s >= limits.lease_s:
        return "lease"
    if limits.idle_s is not None and view.idle_for_s >= limits.idle_s:
        return "idle"
    if view.ended_rc is not None and not view.running:
        if not limits.rental:
            # nothing bills on a machine of its owner's once the run is over, however it ended
            return "over" if view.over_for_s >= limits.linger_s else None
        if view.ended_rc in (0, 10, 12) and not limits.keep_when_finished:
            waited = view.over_for_s >= limits.linger_s
            return "finished" if waited and not (view.uploading and view.over_for_s < limits.upload_s) else None
        # 11 is a stop that somebody asked for: the box is kept on purpose, its limits go on
        if view.ended_rc not in (0, 10, 11, 12) and view.over_for_s >= CRASH_GRACE_S:
            return "crashed"
    return None


def read_limits(run_dir: Path) -> Limits | None:
    """guard.json, or None when it is missing or cannot be taken at its word.

    Unknown keys are passed over. A number that is none (text, NaN, less than nothing) spoils the whole file: read as
    "no limit" it would let a box bill for ever.
    """
    data = read_object_file(run_dir / CONFIG)
    if not data or not isinstance(data.get("instance_id"), int):
        return None
    limits = Limits()
    for spec in fields(Limits):
        default = getattr(limits, spec.name)
        value = data.get(spec.name, default)
        if isinstance(default, (bool, str)):
            if isinstance(value, type(default)):
                setattr(limits, spec.name, value)
        elif value is None and default is None:
            continue
        elif finite(value, -1.0) >= 0.0:
            setattr(limits, spec.name, value)
        else:
            return None
    return limits


def read_object_file(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file, or None."""
    raw = read_bytes(path)
    return None if raw is None else read_object(raw)


def read_bytes(path: Path) -> bytes | None:
    """The content of a file, or None when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None
