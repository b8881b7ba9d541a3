"""What a person wants to hear of while looking elsewhere. Pure: two looks at a run in, events out.

    fired      the auto-stop rule stopped the run (or, for a run that declared none, would have)
    best       a new lowest eval_loss
    nan        a loss or gradient norm that is no number
    crashed, finished, stopped    how the run ended
    link       the host has not answered for over two minutes; and that it is back
    budget     the money is spent, or will be before the run ends
    upload     a checkpoint did not reach the Hub
    idle       every GPU has done nothing for five minutes while the run trains
    disk       the disk of the box fills
    warning    a sentence of the reader of log or link
    billing    something about what is rented: past its limit, ended, a guard that fails (told by tui.rental_alerts)
    moved      a run whose box was lost goes on elsewhere

Rules of this file: what *happened* is told when it is seen to happen, never at the first look at a run, which shows old
news; what *is* wrong now (link, budget, idle, disk) is told at the first look too. Nothing is told twice: a trouble is
told again only after it was over. Seconds are monotonic; no clock is read here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal

from runner.autostop import Phase, StopState
from runner.history import RunHistory
from tui import words

if TYPE_CHECKING:
    from tui.snapshot import RunSnapshot

Severity = Literal["information", "warning", "error"]
Kind = Literal[
    "fired", "best", "nan", "crashed", "finished", "stopped", "state",
    "link", "budget", "upload", "idle", "disk", "warning", "billing", "moved",
]  # fmt: skip

LINK_S = 120.0
"""A link is lost after this long without an answer; shorter breaks mend themselves."""
IDLE_S = 300.0
IDLE_PERCENT = 5.0
CALM_S = 600.0
"""A trouble is over when it was not seen for this long: what wavers about a limit is told once."""
DISK_LEVELS = (0.10, 0.05, 0.02)
"""Free shares of the disk at which it is said again."""


class Volume(IntEnum):
    """How an event makes itself heard; each does what those before it do."""

    LIST = 0
    """Stands in the list of events."""
    TOAST = 1
    BELL = 2
    """Bell, desktop notice, webhook."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to one run."""

    target: str
    kind: Kind
    title: str
    text: str
    """One sentence with the run's name in it."""
    severity: Severity = "information"
    volume: Volume = Volume.LIST
    step: int | None = None
    at: float = 0.0
    """Monotonic seconds of the look that showed it."""

    @property
    def loud(self) -> bool:
        """Whether it deserves more than a line in the list."""
        return self.volume > Volume.LIST


@dataclass(frozen=True, slots=True)
class Look:
    """What the detection needs of a run at one moment."""

    target: str
    name: str = ""
    history: RunHistory = field(default_factory=RunHistory)
    state: str = "starting"
    """A word of `watch --json`."""
    reason: str = ""
    stop: StopState = field(default_factory=StopState)
    declared: bool = False
    """Whether the run itself obeys the rule."""
    link: str = "live"
    link_age_s: float | None = 0.0
    usd_spent: float | None = None
    usd_at_end: float | None = None
    budget: float | None = None
    """USD."""
    health: Mapping[str, Any] = field(default_factory=dict)
    """The fields of `remote.health.Health`."""
    warnings: tuple[str, ...] = ()
    at: float = 0.0


def look_at(snapshot: RunSnapshot, *, budget: float | None = None) -> Look:
    """Take from a snapshot what the detection needs; `budget` in USD."""
    return Look(
        snapshot.target,
        snapshot.name,
        snapshot.history,
        snapshot.state,
        snapshot.reason,
        snapshot.ruling.state,
        snapshot.declared,
        snapshot.link.word,
        snapshot.link.age_s,
        snapshot.usd_spent,
        snapshot.usd_at_end,
        budget,
        snapshot.health,
        snapshot.warnings,
        snapshot.at,
    )


class Alerts:
    """Remembers, run by run, what was seen and told last."""

    def __init__(self) -> None:
        self._last: dict[str, Look] = {}
        self._standing: dict[str, dict[str, float]] = {}
        """Troubles that were told and are not over, by run, with the time they were seen last."""
        self._told: dict[str, set[str]] = {}
        """Happenings that were told, by run."""
        self._idle_since: dict[str, float] = {}

    def take(self, look: Look) -> list[Event]:
        """Return the events between the last look at this run and this one."""
        before = self._last.get(look.target)
        told = self._told.setdefault(look.target, set())
        if before is not None and before.history.run_id != look.history.run_id and before.history.run_id is not None:
            before = None  # another run at the same place
            told.clear()
        self._last[look.target] = look
        events: list[Event] = []
        if before is not None:
            for key, event in happened(before, look):
                if key not in told:
                    told.add(key)
                    events.append(event)
        events += self._troubles(look)
        return events

    def forget(self, target: str) -> None:
        """Drop what is remembered of a run that is watched no longer."""
        for store in (self._last, self._standing, self._told, self._idle_since):
            store.pop(target, None)

    def _troubles(self, look: Look) -> list[Event]:
        if _idle(look):
            since = self._idle_since.setdefault(look.target, look.at)
        else:
            self._idle_since.pop(look.target, None)
            since = look.at
        now = dict(troubles(look, idle_s=look.at - since))
        standing = self._standing.setdefault(look.target, {})
        # of one kind only the worst is told: a disk at 4 % is below both 10 and 5
        fresh = {event.kind: event for key, event in now.items() if key not in standing}
        events = list(fresh.values())
        if look.link == "live":
            if standing.pop("link", None) is not None:
                events.append(_event(look, "link", "link back", "the host answers again", volume=Volume.TOAST))
            # while the link is down nothing is known of the rest: over is only what was looked for and not seen
            for key in [key for key, seen in standing.items() if look.at - seen > CALM_S]:
                del standing[key]
        standing.update(dict.fromkeys(now, look.at))
        return events


def happened(before: Look, after: Look) -> Iterator[tuple[str, Event]]:
    """What happened between two looks at one run, each with a key that is the same when it is seen again."""
    yield from _verdict(before, after)
    bad = _not_a_number(before.history, after.history)
    if bad is not None:
        what, step = bad
        text = f"{what} is not a number" + (f" at step {step}" if step is not None else "")
        yield f"nan {what}", _event(after, "nan", "not a number", text, "error", Volume.BELL, step)
    if after.state != before.state:
        yield f"state {after.state} {after.history.step} {before.state}", _of_state(before, after)
    known = set(before.history.notes)
    for note in after.history.notes:
        if note.kind == "upload" and note not in known and "fail" in note.text.lower():
            event = _event(after, "upload", "upload failed", note.text, "error", Volume.BELL, note.step)
            yield f"upload {note.step} {note.text}", event
    for warning in after.warnings:
        if warning not in before.warnings:
            yield f"warning {warning}", _event(after, "warning", "warning", warning, "warning")


def troubles(look: Look, *, idle_s: float = 0.0) -> Iterator[tuple[str, Event]]:
    """What is wrong with a run now, each with a key that stays the same while it lasts."""
    if look.link != "live" and (look.link_age_s or 0.0) > LINK_S:
        text = f"no answer for {words.age(look.link_age_s)}; the run may be perfectly well"
        yield "link", _event(look, "link", "link lost", text, "warning", Volume.BELL)
    if look.state in ("finished", "stopped", "crashed"):
        return
    spent, end = look.usd_spent, look.usd_at_end
    if look.budget is not None and spent is not None and spent > look.budget:
        text = f"{words.usd(spent)} spent, the budget is {words.usd(look.budget)}"
        yield f"spent {look.budget}", _event(look, "budget", "over budget", text, "error", Volume.BELL)
    elif look.budget is not None and end is not None and end > look.budget:
        text = f"{words.usd(end)} at the end, the budget is {words.usd(look.budget)}"
        yield f"end {look.budget}", _event(look, "budget", "will go over budget", text, "warning", Volume.TOAST)
    if idle_s >= IDLE_S:
        text = f"no GPU has done anything for {words.age(idle_s)}, and it is billed"
        yield "idle", _event(look, "idle", "GPU idle", text, "warning", Volume.BELL)
    free, total = look.health.get("disk_free"), look.health.get("disk_total")
    if isinstance(free, (int, float)) and isinstance(total, (int, float)) and total > 0:
        text = f"{free / 1e9:.1f} GB free on the box, {free / total:.0%} of its disk"
        for level in (level for level in DISK_LEVELS if free / total < level):
            loud = Volume.BELL if level <= 0.05 else Volume.TOAST
            yield f"disk {level}", _event(look, "disk", "disk fills", text, "warning", loud)


def _verdict(before: Look, after: Look) -> Iterator[tuple[str, Event]]:
    old, new = before.stop, after.stop
    if new.phase is Phase.FIRED and old.phase is not Phase.FIRED:
        why = "an eval is not a number" if new.reason == "non-finite" else "no more gain"
        did = "stopped it" if after.declared else "would stop it"
        text = f"auto-stop {did} at step {new.stopped_at}: {why}, best {words.loss(new.best)} at step {new.best_step}"
        yield (
            f"fired {new.stopped_at}",
            _event(after, "fired", "auto-stop", text, volume=Volume.BELL, step=new.stopped_at),
        )
    lower = new.best is not None and (old.best is None or new.best < old.best)
    if lower and before.history.evals and new.best_step is not None:
        text = f"best eval_loss {words.loss(new.best)} at step {new.best_step}"
        if old.best is not None:
            text += f", was {words.loss(old.best)}"
        yield f"best {new.best_step}", _event(after, "best", "best eval", text, volume=Volume.TOAST, step=new.best_step)


def _of_state(before: Look, after: Look) -> Event:
    why = f": {after.reason}" if after.reason else ""
    if after.state == "crashed":
        return _event(after, "crashed", "crashed", f"crashed at step {after.history.step}{why}", "error", Volume.BELL)
    if after.state == "finished":
        return _event(after, "finished", "finished", f"finished at step {after.history.step}{why}", volume=Volume.BELL)
    if after.state == "stopped":
        return _event(after, "stopped", "stopped", f"stopped at step {after.history.step}{why}", volume=Volume.BELL)
    severity: Severity = "warning" if after.state in ("silent", "unreachable") else "information"
    return _event(after, "state", after.state, f"{before.state} → {after.state}{why}", severity)


def _not_a_number(before: RunHistory, after: RunHistory) -> tuple[str, int | None] | None:
    """The first kind of value that is not finite and newer than `before`; what it is and its step."""
    for point in after.evals[len(before.evals) :]:
        if not math.isfinite(point.eval_loss):
            return "eval_loss", point.step
    last = before.train[-1] if before.train else None
    for train in reversed(after.train):
        # the series is thinned by its reader, so its length says nothing about what is new
        if train == last or (last is not None and None not in (train.step, last.step) and train.step <= last.step):  # type: ignore[operator]
            break
        if train.loss is not None and not math.isfinite(train.loss):
            return "the training loss", train.step
        # transformers prints a loss of 0 for a step that was not a number; the gradient norm does not lie
        if train.grad_norm is not None and not math.isfinite(train.grad_norm):
            return "the gradient norm", train.step
    return None


def _idle(look: Look) -> bool:
    gpus = look.health.get("gpus")
    if look.state != "running" or look.link != "live" or not isinstance(gpus, (list, tuple)) or not gpus:
        return False
    loads = [gpu.get("util") if isinstance(gpu, Mapping) else getattr(gpu, "util", None) for gpu in gpus]
    return all(isinstance(load, (int, float)) and load < IDLE_PERCENT for load in loads)


def _event(
    look: Look,
    kind: Kind,
    title: str,
    text: str,
    severity: Severity = "information",
    volume: Volume = Volume.LIST,
    step: int | None = None,
) -> Event:
    name = look.name or look.target
    return Event(look.target, kind, title, f"{name}: {text}", severity, volume, step or look.history.step, look.at)
