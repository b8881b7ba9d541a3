"""The laptop's side of the guard: write its limits, prove its key before anything is started, start it, read it back.

A limit is enforced twice: by the guard on the box, and here by whoever looks at the journal (`overdue`), each without
the other.
"""

from __future__ import annotations

import json
import secrets
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from remote.desk import Desk, Note
from remote.journal import BoxRecord, Journal
from remote.money import bill
from remote.provider import Instance
from remote.transport import Transport, shell_path
from runner.box.limits import CONFIG, REPORT, Limits
from runner.errors import NotFoundError, ProviderError, TunewatchError

RESERVE_H = 168.0
"""A stopped box may wait for its owner for a week; the budget pays its disk for so long."""
RESERVE_SHARE = 0.3
"""But never more than this share of the budget is kept back."""

REPORT_LOOKS = 240
"""A quarter of a second apart, until a guard that was started has to have reported: a new box has a cold disk."""

REFUSED = 3
"""Trials of its key in a row that failed, a minute apart, until a guard is said to be toothless."""

STARTER = "onstart.sh"
"""In our folder on the box: what brings its guard back when the container starts anew."""

_HOOK = r"""
script=$(readlink -f "$HOME/onstart.sh") && [ -f "$script" ] && [ -w "$script" ] || exit 1
grep -qF "$MINE" "$script" && exit 0
cp -p "$script" "$script.tunewatch" || exit 1
{
  first=$(head -n 1 "$script")
  case $first in
    '#!'*) printf '%s\n%s\n' "$first" "$LINE"; tail -n +2 "$script" ;;
    *) printf '%s\n' "$LINE"; cat "$script" ;;
  esac
} > "$script.tunewatch" && mv "$script.tunewatch" "$script"
"""

PythonCommand = Callable[[str], str]
"""From `module arguments` to the shell command that runs it with the shipped code."""


def flags(words: str) -> str:
    """The interpreter's flags for a module: what needs the standard library alone looks for nothing else first.

    A box's site-packages cost each of these programs ten to twenty milliseconds, and a move waits for several.
    """
    return " -S" if words.startswith("runner.box.") else ""


class GuardError(ProviderError):
    """The box cannot end its own rental, so nothing is started on it unattended."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user limited. USD and seconds from now; None for no limit."""

    budget_usd: float | None = None
    deadline_s: float | None = None
    idle_s: float | None = None
    lease_s: float | None = None
    keep: bool = False
    """Keep the box when the run has finished."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for the journal."""
        return asdict(self)


def limits_for(
    instance: Instance, wishes: Wishes, *, url: str, spent_usd: float, known_usd_per_h: float | None = None
) -> Limits:
    """What goes into guard.json. `known_usd_per_h` is the agreed price, for a row that does not tell its own."""
    price = instance.dph_total if instance.dph_total > 0 or instance.own else known_usd_per_h or 0.0
    if price <= 0 and not instance.own and wishes.budget_usd is not None:
        raise GuardError(
            f"The provider does not tell the price of {instance.called}: a budget cannot be guarded.",
            hint="Try again in a minute.",
        )
    reserve = 0.0
    if wishes.budget_usd is not None:
        reserve = min(RESERVE_H * instance.disk_usd_per_h, RESERVE_SHARE * wishes.budget_usd)
    return Limits(
        instance_id=instance.id,
        url=url,
        usd_per_h=price,
        disk_usd_per_h=instance.disk_usd_per_h,
        spent_usd=spent_usd,
        down_usd_per_gb=instance.inet_down_cost,
        up_usd_per_gb=instance.inet_up_cost,
        budget_usd=wishes.budget_usd,
        reserve_usd=reserve,
        deadline_s=wishes.deadline_s,
        idle_s=wishes.idle_s,
        lease_s=wishes.lease_s,
        keep_when_finished=wishes.keep,
        rental=not instance.own,
    )


def arm(desk: Desk, host: Transport, run_dir: str, limits: Limits, python: PythonCommand, note: Note) -> None:
    """Write the limits, prove the key, start the guard, and read back that it stands; raises GuardError.

    Doing it again is harmless: the guard that stands reads the new limits, and counts from them on.
    """
    limits = replace(limits, arming=secrets.token_hex(8))
    host.run(f"mkdir -p {shell_path(run_dir)}", timeout=20)
    host.put(json.dumps(asdict(limits)).encode(), f"{run_dir}/{CONFIG}", mode=0o600)
    proof = host.run(python(f"runner.box.guard --run-dir {shell_path(run_dir)} --prove"), timeout=60)
    said = _document(proof.stdout)
    if proof.rc != 0 or said.get("ok") is not True:
        detail = said.get("detail") or proof.complaint or f"exit {proof.rc}"
        raise GuardError(
            f"The box cannot switch itself off: {detail}.",
            hint="It is not left to run unattended. Without a guard only an open laptop would end it.",
        )
    note.say(str(said.get("detail") or "its own key works"))
    log = shell_path(f"{run_dir}/guard.log")
    host.run(f"setsid sh -c {shlex.quote(standing(run_dir, python, limits))} </dev/null >>{log} 2>&1 &", timeout=20)
    for _ in range(REPORT_LOOKS):
        report = read_guard(host, run_dir)
        if report.get("armed") is True and report.get("instance_id") == limits.instance_id:
            shown = report.get("limits")
            if isinstance(shown, dict) and shown == asdict(limits):
                note.detail = in_words(limits)
                return
        desk.sleep(0.25)
    raise GuardError("The guard was started on the box and does not report.")


def standing(run_dir: str, python: PythonCommand, limits: Limits) -> str:
    """The shell line that keeps a guard standing: one that was killed or crashed is followed by another.

    It ends when the guard has done its work (0), has nothing to guard (2), or finds another (75). On a machine of its
    owner's nothing bills, and a guard that was sent away stays away.
    """
    watch = python(f"runner.box.guard --run-dir {shell_path(run_dir)} --watch")
    if not limits.rental:
        return watch
    return f"while :; do ({watch}); case $? in 0|2|75) break;; esac; sleep 5; done"


def stand_again(host: Transport, root: str, run_dir: str, python: PythonCommand, limits: Limits) -> None:
    """Leave what the start script of the container runs (`remote.images.onstart`), so that its guard comes back with
    it. `root` is our folder on the box.
    """
    again = standing(run_dir, python, limits)
    host.put(
        f"#!/bin/sh\n# the container began anew: its guard stands again\n({again} </dev/null >>{shell_path(run_dir)}"
        "/guard.log 2>&1 &)\n".encode(),
        f"{root}/{STARTER}",
        mode=0o700,
    )


def hook_start(host: Transport, root: str) -> bool:
    """Let the start script of a box that somebody else rented run ours too; False when there is none to change.

    The provider keeps that script as `onstart.sh` in the home directory and runs it at every start of the container.
    One line is put at its head, before anything in it could end it; all else stays as it was. Doing it again is
    harmless.
    """
    mine = f"{root}/{STARTER}"
    line = f"[ -x {shell_path(mine)} ] && {shell_path(mine)} # tunewatch: its guard stands again"
    return host.run(f"MINE={shell_path(mine)} LINE={shlex.quote(line)}\n{_HOOK}", timeout=20).rc == 0


def read_guard(host: Transport, run_dir: str) -> dict[str, Any]:
    """What the guard last wrote; empty when there is nothing to read."""
    try:
        return _document(host.read_from(f"{run_dir}/{REPORT}", 0).data)
    except NotFoundError:
        return {}


def in_words(limits: Limits) -> str:
    """The limits as a person says them."""
    words = []
    if limits.budget_usd is not None:
        words.append(f"${limits.budget_usd:g}")
    if limits.deadline_s is not None:
        words.append(f"{limits.deadline_s / 3600:.2g} h")
    if limits.idle_s is not None:
        words.append(f"idle {limits.idle_s / 60:.2g} min")
    if limits.lease_s is not None:
        words.append(f"laptop away {limits.lease_s / 3600:.2g} h")
    finish = "kept when finished" if limits.keep_when_finished else "ends when finished"
    if not limits.rental:
        finish = "ends the run, not the machine"
    return ", ".join([*words, finish])


@dataclass(frozen=True, slots=True)
class Overdue:
    """A box past its limit that still bills: the guard should have ended it."""

    instance: int
    run: str
    reason: str
    called: str = ""
    """The box within a sentence; empty for `instance N`."""


def overdue(journal: Journal, now: float, *, slack_s: float = 120.0) -> list[Overdue]:
    """Boxes that should have ended by `now`, by the journal alone; `slack_s` leaves the guard the first move."""
    found = []
    for box in journal.boxes(living=True):
        reason = _overdue(journal, box, now, slack_s)
        if reason:
            found.append(Overdue(box.instance, box.run, reason, box.called))
    return found


def _overdue(journal: Journal, box: BoxRecord, now: float, slack_s: float) -> str:
    deadline, budget = box.data.get("deadline_at"), box.data.get("budget_usd")
    if isinstance(deadline, (int, float)) and now > deadline + slack_s:
        return f"its deadline passed {(now - deadline) / 60:.0f} min ago"
    if isinstance(budget, (int, float)):
        so_far = bill(journal, box.instance, now)
        if so_far.usd_per_h > 0 and so_far.total > budget + so_far.usd_per_h * slack_s / 3600:
            return f"it has cost ${so_far.total:.2f} of ${budget:.2f}"
    return ""


def keep_report(journal: Journal, instance_id: int, report: Mapping[str, Any]) -> None:
    """Take the traffic that the guard counted into the bill, and remember how it stands."""
    down, up = report.get("down_gb"), report.get("up_gb")
    if isinstance(down, (int, float)) and isinstance(up, (int, float)):
        journal.put_box(instance_id, down_gb=float(down), up_gb=float(up), guard=str(report.get("word") or ""))


def alarm(report: Mapping[str, Any], age_s: float | None) -> str:
    """What is wrong with a guard, in one sentence; empty when it stands well. `age_s` is the age of its report."""
    if not report:
        return "No guard stands on this box."
    if report.get("word") == "failing":
        tries = report.get("attempts")
        last = tries[-1] if isinstance(tries, list) and tries else "no detail"
        return f"The guard cannot end the rental ({last}): end it from here with tunewatch kill."
    if age_s is not None and age_s > 90.0 and report.get("word") != "ended":
        return f"The guard has been silent for {age_s:.0f} s."
    refused = report.get("key_refused")
    if isinstance(refused, int) and refused >= REFUSED:
        said = str(report.get("key_said") or "no detail")
        return (
            f"The box could not switch itself off any more ({said}): keep an eye on it, or end it with tunewatch kill."
        )
    return ""


def _document(raw: bytes) -> dict[str, Any]:
    for line in reversed(raw.splitlines() or [b""]):
        try:
            document = json.loads(line)
        except ValueError:
            continue
        if isinstance(document, dict):
            return document
    return {}


def enforce(desk: Desk, end: Callable[[Overdue], None], also: Iterable[Overdue] = ()) -> list[Overdue]:
    """End what is overdue, by the function given; one that fails does not keep the others.

    `also` are boxes past a limit that the journal alone cannot see, such as an idle GPU.
    """
    late = list({box.instance: box for box in (*also, *overdue(desk.journal, desk.clock()))}.values())
    for box in late:
        try:
            end(box)
        except TunewatchError as error:
            desk.journal.note("enforce failed", run=box.run, instance=box.instance, why=error.message)
    return late
