"""What is rented, as the screens say it: one frozen value, the words of the top line, and what has to be heard."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tui import words

if TYPE_CHECKING:
    from remote.arming import Overdue
    from remote.journal import BoxRecord
    from remote.notices import Notice
    from remote.rented import RentedBox

SILENT_S = 60.0
"""An answer older than this is said to be old."""

MOVED, MOVING = "recovery done ", "recovery begun "
"""Begin the keys of the alarms that a lost run goes on elsewhere, or is about to; its name follows."""

Severity = Literal["information", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Alarm:
    """One thing about what is rented that a person has to hear, once while it lasts."""

    key: str
    title: str
    text: str
    severity: Severity = "error"
    loud: bool = True
    """Whether it rings."""
    target: str = ""
    """The run or box it is about."""
    brief: str = ""
    """The same for a line of a screen that shows what it is about."""


@dataclass(frozen=True, slots=True)
class RentalSnapshot:
    """Everything the screens say about what is rented, at one moment."""

    boxes: tuple[RentedBox, ...] = ()
    age_s: float | None = None
    """Seconds since the provider last answered; None before its first answer."""
    trouble: str = ""
    """Why the provider does not answer."""
    alarms: tuple[Alarm, ...] = ()
    acting: bool = False
    """Whether limits are enforced from here."""
    why_not: str = ""
    """Why they are not."""

    def moving(self, run: str) -> str:
        """Why a run that seems lost is not: it is being brought elsewhere; empty when it is not."""
        return next((alarm.brief or alarm.text for alarm in self.alarms if alarm.key == MOVING + run), "")

    @property
    def usd_per_h(self) -> float:
        """What everything on the account costs at this moment."""
        return sum(box.usd_per_h for box in self.boxes)

    @property
    def usd_so_far(self) -> float:
        """What the boxes that exist have cost."""
        return sum(box.usd_so_far for box in self.boxes)

    @property
    def colour(self) -> str:
        """A colour of the theme: error when something bills that should not, warning when nobody knows."""
        if any(box.troubled for box in self.boxes):
            return "error"
        return "warning" if self.stale else "accent"

    @property
    def stale(self) -> bool:
        """Whether what is shown is not what the provider says now."""
        return bool(self.trouble) or self.age_s is None or self.age_s > SILENT_S

    @property
    def forms(self) -> tuple[str, ...]:
        """What the top line says, the longest form first; empty when nothing is rented."""
        if not self.boxes:
            return ()
        rate = f"{rate_words(self.usd_per_h)}/h"
        if self.stale and (self.trouble or self.age_s is not None):
            known = "not asked yet" if self.age_s is None else f"known {words.age(self.age_s)} ago"
            return f"{rate} billing, {known}", f"{rate} billing?", f"{rate}?"
        return f"{rate} billing", f"{rate}"

    @property
    def sentence(self) -> str:
        """The provider's silence in one sentence; empty while it answers."""
        if not self.trouble:
            return ""
        known = "nothing is known yet" if self.age_s is None else f"last known {words.age(self.age_s)} ago"
        return f"The provider does not answer, {known}: {self.trouble}"


def rate_words(usd: float) -> str:
    """A rate for people: cents, or more digits where cents would say nothing."""
    return f"${usd:.2f}" if usd >= 0.1 or usd == 0 else f"${usd:.4f}"


@dataclass(frozen=True, slots=True)
class Act:
    """How the end of one box stands."""

    state: Literal["ending", "ended", "failed"]
    text: str
    name: str
    target: str


def alarms(
    snapshot: RentalSnapshot, acts: Iterable[tuple[int, Act]], said: Iterable[Notice], *, failures: int = 0
) -> tuple[Alarm, ...]:
    """Everything that stands wrong, and every deed of this session. `failures` of the provider in a row."""
    found = [_of_act(instance, act) for instance, act in acts]
    for box in snapshot.boxes:
        target = box.run or f"vast:{box.instance}"
        if box.late and not snapshot.acting and box.status == "running":
            text = f"{box.name} bills past its limit: {box.late}. It is not ended from here: {snapshot.why_not}."
            found.append(Alarm(f"late {box.instance}", "past its limit", text, target=target))
        if box.guard:
            found.append(Alarm(f"guard {box.instance}", "guard", f"{box.name}: {box.guard}", target=target))
        if box.status == "unconfirmed":
            text = f"{box.name} is not proved gone and may still bill {rate_words(box.usd_per_h)}/h."
            found.append(Alarm(f"unconfirmed {box.instance}", "may still bill", text, target=target))
    for notice in said:
        loud = notice.kind in ("outbid", "credit", "ended")
        text = f"{notice.text} {notice.advice}"
        key = f"notice {notice.kind} {notice.instance}"
        found.append(Alarm(key, notice.kind, text, "warning", loud, f"vast:{notice.instance or ''}"))
    if snapshot.trouble and failures > 1:
        found.append(Alarm("provider", "provider", snapshot.sentence, "warning", loud=False))
    return tuple(found)


def box_name(box: Overdue | BoxRecord) -> str:
    """What a box is called in a sentence."""
    called = box.called or f"instance {box.instance}"
    called = called[:1].upper() + called[1:]
    return f"{called} ({box.run})" if box.run else called


def _of_act(instance: int, act: Act) -> Alarm:
    said = {
        "ending": f"{act.name} is past its limit and is being ended: {act.text}.",
        "ended": f"{act.name} was ended and is proved gone: {act.text}.",
        "failed": f"{act.name} is past its limit and MAY STILL BILL: {act.text}",
    }[act.state]
    severity: Severity = "error" if act.state == "failed" else "warning"
    return Alarm(f"{act.state} {instance}", "past its limit", said, severity, True, act.target or f"vast:{instance}")


def gone_alarm(box: BoxRecord) -> Alarm:
    """A box that was proved gone without anybody ending it from here: its guard did, or its host."""
    name = box_name(box)
    return Alarm(f"gone {box.instance}", "gone", f"{name} is gone and bills no more.", "information", True, box.run)
