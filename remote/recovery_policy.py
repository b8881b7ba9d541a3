"""When a run whose box was lost may be moved by itself: the policy, what has been used up of it, and what is lost.

Off unless a person turned it on, for this laptop (settings.toml) or for one run (`tunewatch migrate RUN --auto on`).
The policy of a run and the count of its recoveries stand beside its boxes in the journal, so a laptop that starts anew,
and one that crashed in the middle, counts on.

A loss is what the provider itself says for long enough, never a link that is silent:

- outbid   an interruptible box was halted, and nobody here asked for it
- offline  its host is gone
- ended    the contract is over; ending: it will be within the hour
- gone     the account no longer lists a box that was halted or offline when it was seen last

A box that was running and vanished was destroyed by somebody's hand or by its own guard, and a run that a person
stopped, that finished, or that came to its limit has nothing left to recover: none of them is moved.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from remote.feed import resolve
from remote.journal import BoxRecord, Journal
from remote.mirror import mirror_folder
from remote.money import bill
from remote.notices import notices
from remote.provider import Instance
from remote.settings import Settings
from remote.target import Target, parse_target
from runner.errors import NotFoundError, RefusedError, RunExit
from runner.rundir import STATUS, Status, read_status

Cause = Literal["outbid", "offline", "ended", "ending", "gone"]
LOST = ("stopped", "exited", "offline")
"""Statuses under which a box trains nothing."""
ENDING_S = 3600.0
"""A contract that ends within so long is left while its box still trains."""
RECENT_S = 48 * 3600.0
"""A box that is gone for longer is no matter of today."""
OVER = (RunExit.FINISHED, RunExit.AUTO_STOPPED, RunExit.STOPPED, RunExit.LIMIT)
BY_THE_BOX = ("SIGTERM", "SIGINT")
"""Reasons of a stop that nobody asked for: a container that is taken down tells its processes so."""


def times(count: int) -> str:
    """A number of recoveries in words: "1 time", "2 times"."""
    return f"{count} time" if count == 1 else f"{count} times"


@dataclass(frozen=True, slots=True)
class Policy:
    """What may be done without asking."""

    on: bool = False
    most: int = 2
    """Recoveries of one run at most, failed ones counted."""
    usd_per_h: float = 1.0
    """The new box costs at most so much, its disk in it."""
    usd_total: float = 20.0
    """What the run has cost on all its boxes, and what the new one is expected to add, stays below."""
    after_s: float = 180.0
    """A box counts as lost when the provider has said so for so long."""

    def in_words(self) -> str:
        """One sentence."""
        if not self.on:
            return "A lost box is not replaced by itself."
        return (
            f"A lost box is replaced by itself after {self.after_s:.0f} s, at most {times(self.most)}, by one of at "
            f"most ${self.usd_per_h:.4f}/h, up to ${self.usd_total:.2f} in all."
        )


@dataclass(frozen=True, slots=True)
class Loss:
    """A run without the box it trained on."""

    run: str
    instance: int
    cause: Cause
    text: str
    """What happened, one sentence."""
    since: float
    """Seconds since the epoch."""


def policy_of(journal: Journal, run: str, settings: Settings) -> Policy:
    """The policy of a run: what was said for it last, else the settings of this laptop."""
    told = [box.data.get("recover") for box in journal.boxes() if box.run == run]
    known = [words for words in told if isinstance(words, dict)]
    said = max(known, key=lambda words: float(words.get("at") or 0.0), default=None)
    general = Policy(
        bool(settings["recover.auto"]), int(settings["recover.most"]), settings.number("recover.price"),
        settings.number("recover.total"), settings.number("recover.after"),
    )  # fmt: skip
    if said is None:
        return general
    return Policy(**{**asdict(general), **{k: v for k, v in said.items() if k != "at"}})


def set_policy(journal: Journal, run: str, now: float, **said: Any) -> None:
    """Remember a policy for one run; what is not given stays as it was. Raises NotFoundError without a box of it."""
    box = journal.box_of_run(run)
    if box is None:
        raise NotFoundError(f"No rented box belongs to '{run}'.")
    before = box.data.get("recover")
    known = dict(before) if isinstance(before, Mapping) else {}
    journal.put_box(box.instance, recover={**known, **said, "at": now})
    journal.note("recovery policy", run=run, instance=box.instance, **said)


def used(journal: Journal, run: str) -> int:
    """Recoveries of a run that were begun, on all its boxes."""
    return max((int(box.data.get("recoveries") or 0) for box in journal.boxes() if box.run == run), default=0)


def spent(journal: Journal, run: str, now: float) -> float:
    """USD of all boxes the run ever had."""
    return sum(bill(journal, box.instance, now).total for box in journal.boxes() if box.run == run)


def losses(
    journal: Journal, rows: Sequence[Instance], now: float, *, gone: Collection[int] = (), after_s: float | None = None
) -> list[Loss]:
    """What is lost at `now` (seconds since the epoch), by one complete listing and the journal's meter.

    `gone` are boxes that enough listings did not show. `after_s` overrides how long a loss has to have lasted.
    """
    listed = {row.id: row for row in rows}
    found = []
    for box in journal.boxes():
        if not box.run or not box.data.get("run_dir") or newest_box(journal, box.run) != box.instance:
            continue
        row = listed.get(box.instance)
        loss = _gone(journal, box, now, gone) if row is None else _of_row(journal, box, row, now)
        if loss is not None and (loss.cause == "ending" or now - loss.since >= (after_s or 0.0)):
            found.append(loss)
    return found


def newest_box(journal: Journal, run: str) -> int | None:
    """The box a run is on, or was on last."""
    box = journal.box_of_run(run)
    return None if box is None else box.instance


def _of_row(journal: Journal, box: BoxRecord, row: Instance, now: float) -> Loss | None:
    said = {notice.kind: notice for notice in notices([row], [box], now=now)}
    for cause in ("outbid", "ended", "offline"):
        if cause in said:
            return Loss(box.run, box.instance, cause, said[cause].text, _since(journal, box.instance, now))
    if "ending" in said and row.end_date is not None and row.end_date - now <= ENDING_S and row.status == "running":
        return Loss(box.run, box.instance, "ending", said["ending"].text, now)
    return None


def _gone(journal: Journal, box: BoxRecord, now: float, gone: Collection[int]) -> Loss | None:
    destroyed = box.data.get("destroyed_at")
    recent = isinstance(destroyed, (int, float)) and now - destroyed < RECENT_S
    if box.instance not in gone and not (box.gone and recent):
        return None
    meter = journal.meter(box.instance)
    if not meter or meter[-1].status not in LOST:
        return None
    text = f"Instance {box.instance} was {meter[-1].status} and is no longer on the account."
    return Loss(box.run, box.instance, "gone", text, _since(journal, box.instance, now))


def _since(journal: Journal, instance: int, now: float) -> float:
    """Since when the meter has a box in a status in which it trains nothing."""
    since = now
    for row in reversed(journal.meter(instance)):
        if row.status not in LOST:
            break
        since = row.start
    return since


def last_words(journal: Journal, box: BoxRecord) -> Status | None:
    """The newest status of the run that reached this laptop."""
    run_dir = box.data.get("run_dir")
    if not isinstance(run_dir, str):
        return None
    return read_status(mirror_of(journal.home, box.instance, run_dir) / STATUS)


def mirror_of(home: Path, instance: int, run_dir: str) -> Path:
    """The laptop's copy of a run's files."""
    return mirror_folder(Target("vast", run_dir, instance_id=instance), home)


def is_over(status: Status | None) -> bool:
    """Whether a run ended by itself, or because somebody wanted it to: then there is nothing to recover."""
    if status is None or not status.ended or status.rc not in OVER:
        return False
    return status.rc != RunExit.STOPPED or not any(word in status.reason for word in BY_THE_BOX)


def why_not(journal: Journal, loss: Loss, policy: Policy, now: float) -> str:
    """Why a lost run is not moved, by what is known here; empty when it may be."""
    box = journal.box(loss.instance)
    if box is None:
        return f"The journal has no box {loss.instance}."
    if not policy.on:
        return f"{policy.in_words()} tunewatch migrate {loss.run} --auto on allows it."
    for record in journal.open_deeds():
        if record.run == loss.run and record.kind in ("launch", "migrate", "kill", "resume"):
            return f"A {record.kind} of {loss.run} is not finished."
    if any(row.kind == "kill" for row in journal.rows(instance=box.instance)):
        return f"{loss.run} was ended from here."
    if box.data.get("asked_stop"):
        return f"{loss.run} was stopped from here."
    status = last_words(journal, box)
    if is_over(status):
        return f"{loss.run} is over: {status.reason if status is not None else ''}."
    count = used(journal, loss.run)
    if count >= policy.most:
        return f"{loss.run} was recovered {times(count)} already, and {times(policy.most)} is the most."
    deadline, budget = box.data.get("deadline_at"), box.data.get("budget_usd")
    if isinstance(deadline, (int, float)) and now >= deadline:
        return f"The deadline of {loss.run} is past."
    cost = spent(journal, loss.run, now)
    cap = min(policy.usd_total, float(budget)) if isinstance(budget, (int, float)) else policy.usd_total
    if cost >= cap:
        return f"{loss.run} has cost ${cost:.2f} of ${cap:.2f}."
    return ""


def refuse_if_over(status: Status | None, run: str) -> None:
    """The same question, asked of the box itself once it can be read; raises RefusedError."""
    if status is not None and is_over(status):
        raise RefusedError(
            f"{run} had ended before its box was lost ({status.reason}): it is not recovered.",
            hint=f"tunewatch migrate {run} --to OFFER moves it all the same.",
        )


def note_asked_stop(text: str, home: Path) -> None:
    """A person stops the run called `text`: whatever happens to its box from now on, it is not started again."""
    target = resolve(parse_target(text), home)
    if target.kind != "vast" or target.instance_id is None or not (home / "journal.db").exists():
        return
    journal = Journal(home)
    try:
        if journal.box(target.instance_id) is not None:
            journal.put_box(target.instance_id, asked_stop=journal.clock())
    finally:
        journal.close()
