"""What happened to a run between two snapshots: the list behind toasts, bell and the events screen. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from runner.autostop import Phase
from tui import words
from tui.snapshot import RunSnapshot

Severity = Literal["information", "warning", "error"]
LINK_PATIENCE_S = 120.0
"""A link is reported as lost after this long; shorter breaks mend themselves."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened."""

    target: str
    title: str
    text: str
    severity: Severity = "information"
    loud: bool = False
    """Whether it deserves a toast and the bell."""
    step: int | None = None


def changes(before: RunSnapshot | None, after: RunSnapshot) -> list[Event]:
    """The events that lie between two snapshots of one run; none at the first look, which tells old news."""
    if before is None:
        return []
    out: list[Event] = []
    name = after.name or after.target

    def say(title: str, text: str, severity: Severity = "information", *, loud: bool = False) -> None:
        out.append(Event(after.target, title, f"{name}: {text}", severity, loud, after.step))

    old, new = before.ruling.state, after.ruling.state
    if before.ruling.rule == after.ruling.rule:
        if new.phase is Phase.FIRED and old.phase is not Phase.FIRED:
            said = "stopped" if after.declared else "would stop"
            text = f"{said} at step {new.stopped_at}, best {words.loss(new.best)} at step {new.best_step}"
            say("auto-stop", text, loud=True)
        elif new.best is not None and (old.best is None or new.best < old.best) and before.history.evals:
            say("best eval", f"{words.loss(new.best)} at step {new.best_step}")
        if new.armed_at is not None and old.armed_at is None and new.phase is not Phase.FIRED:
            say("armed", f"auto-stop judges from step {new.armed_at} on")
    if after.state != before.state:
        out.extend(_of_state(before, after, name))
    if any(not math.isfinite(e.eval_loss) for e in after.history.evals[len(before.history.evals) :]):
        say("not a number", "an eval_loss is not finite", "error", loud=True)
    lost, was = after.link.age_s or 0.0, before.link.age_s or 0.0
    if lost > LINK_PATIENCE_S >= was and after.link.word != "live":
        say("link lost", f"no answer for {words.age(lost)}; the run may be perfectly well", "warning", loud=True)
    for note in after.history.notes[len(before.history.notes) :]:
        failed = "fail" in note.text.lower()
        say(note.kind, note.text, "error" if failed else "information", loud=failed)
    for warning in after.warnings:
        if warning not in before.warnings:
            say("warning", warning, "warning")
    return out


def _of_state(before: RunSnapshot, after: RunSnapshot, name: str) -> list[Event]:
    step = after.step
    if after.state == "crashed":
        return [Event(after.target, "crashed", f"{name}: {after.reason}", "error", True, step)]
    if after.state in ("finished", "stopped"):
        text = f"{name}: {after.state} at step {step}" + (f", {after.reason}" if after.reason else "")
        return [Event(after.target, after.state, text, "information", True, step)]
    severity: Severity = "warning" if after.state in ("silent", "unreachable") else "information"
    text = f"{name}: {before.state} → {after.state}" + (f", {after.reason}" if after.reason else "")
    return [Event(after.target, after.state, text, severity, False, step)]
