"""Kill: stop the run with a checkpoint, destroy the box, prove it gone. Any number of times, with the same outcome.

Saving comes first and never stands in the way: the run saves, its log and results are brought home; a box that does not
answer is destroyed all the same, and the steps say what was not saved. Only boxes of ours (by journal or label) are
touched.

A machine of one's own is given back instead: its run is ended, nothing on it is deleted. One that does not answer stays
unconfirmed, because there is no provider to end what runs on it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from remote import own_host
from remote.access import Opener, reach
from remote.arming import keep_report, read_guard
from remote.bring_home import bring_home, target_of
from remote.deeds import DeedResult
from remote.desk import Desk
from remote.destroy import destroy
from remote.hosts import PREFIX, host_id
from remote.journal import Deed, Journal
from remote.labels import read_label
from remote.lock import HeldError
from remote.provider import Instance, find, is_own, upper
from remote.stop import stop_run
from remote.transport import Transport
from runner.errors import NotFoundError, RefusedError, TunewatchError, UnreachableError


@dataclass(frozen=True, slots=True)
class Victim:
    """What is to be ended."""

    instance_id: int
    run: str
    label: str
    run_dir: str | None


def name_victim(journal: Journal, name: str) -> Victim:
    """Find the box meant by a run's name, an instance id, vast:ID or host:NAME; raises NotFoundError."""
    if name.startswith(PREFIX):
        name = str(host_id(name.removeprefix(PREFIX)))
    digits = name.removeprefix("vast:").partition(":")[0]
    if digits.isdigit():
        box = journal.box(int(digits))
        if box is None:
            return Victim(int(digits), "", "", None)
        return Victim(box.instance, box.run, box.label, box.data.get("run_dir"))
    known = sorted({box.run for box in journal.boxes() if box.run})
    matches = [run for run in known if run == name] or [run for run in known if run.endswith("/" + name)]
    if len(matches) == 1:
        box = journal.box_of_run(matches[0])
        if box is not None:
            return Victim(box.instance, box.run, box.label, box.data.get("run_dir"))
    if len(matches) > 1:
        raise NotFoundError(f"'{name}' fits several runs: {', '.join(matches)}.", hint="Name one of them.")
    raise NotFoundError(
        f"No rented box belongs to '{name}'.", hint="See: tunewatch instances. A run without a box ends with stop."
    )


def kill(
    desk: Desk,
    victim: Victim,
    *,
    open_pair: Opener | None,
    checkpoint: bool = True,
    for_s: float = 180.0,
    grace_s: float | None = None,
    before: Callable[[Transport, Victim], None] | None = None,
) -> DeedResult:
    """End a rental; returns "destroyed" or "unconfirmed", the latter with the deed left open for reconcile.

    `grace_s` bounds the wait for the checkpoint (None: as the run was started with). `before` may fetch what is still
    wanted from the box between the stop and the end. Raises NotFoundError for an instance that neither journal nor
    provider know, RefusedError for one that is not ours.
    """
    desk = desk.at(victim.instance_id)
    # a host is not metered up to now before its guard was asked when the run ended
    rows = desk.provider.instances() if is_own(victim.instance_id) else desk.listing()
    row = find(rows, victim.instance_id)
    box = desk.journal.box(victim.instance_id)
    if box is None and (row is None or read_label(row.label) is None):
        if row is None:
            raise NotFoundError(f"There is no {desk.called(victim.instance_id)}.", hint="See: tunewatch instances.")
        raise RefusedError(
            f"{upper(desk.called(victim.instance_id))} was not rented by tunewatch.",
            hint=f"Take it under watch first: tunewatch adopt {victim.instance_id}.",
        )
    if box is None and row is not None:
        label = read_label(row.label)
        desk.journal.put_box(row.id, run=label.run if label else "", label=row.label, state="orphan")
        victim = Victim(row.id, label.run if label else "", row.label, None)
    _no_rival(desk, victim)
    deed = _take(desk, victim)
    with deed:
        if row is not None and row.own:
            if not _end_on_host(desk, deed, row, victim, open_pair, before, grace_s if checkpoint else 1.0):
                return desk.result(ok=False, state="unconfirmed", run=victim.run or None, instance_id=row.id)
        elif row is not None and checkpoint and open_pair is not None and victim.run_dir and row.status == "running":
            _save(desk, deed, row, victim, open_pair, before, grace_s)
        word = "give back" if is_own(victim.instance_id) else "destroy"
        with desk.step(word, desk.called(victim.instance_id)) as note:
            state = destroy(desk, deed, victim.instance_id, note, for_s=for_s, label=victim.label)
        if state == "destroyed":
            deed.close("destroyed", instance=victim.instance_id)
        return desk.result(ok=state == "destroyed", state=state, run=victim.run or None, instance_id=victim.instance_id)


def _no_rival(desk: Desk, victim: Victim) -> None:
    """A launch or migration that is carried out at this moment owns its boxes."""
    for record in desk.journal.open_deeds():
        theirs = {
            record.data.get("instance_id"),
            record.data.get("old_instance_id"),
            record.data.get("new_instance_id"),
        }
        if (
            record.kind in ("launch", "migrate", "resume")
            and victim.instance_id in theirs
            and desk.journal.under_way(record.id)
        ):
            raise HeldError(
                f"The {record.kind} of {record.run} is under way in another process.",
                hint="End it there with Ctrl-C: it undoes what it rented." if record.kind != "resume" else "",
            )


def _take(desk: Desk, victim: Victim) -> Deed:
    """Continue an unfinished kill of the same box, or begin one; close the open launch it makes pointless."""
    journal = desk.journal
    for record in (*journal.open_deeds("launch"), *journal.open_deeds("resume")):
        if record.data.get("instance_id") == victim.instance_id and not journal.under_way(record.id):
            with journal.resume(record.id) as launch:
                launch.close("killed", instance=victim.instance_id)
    for record in journal.open_deeds("kill"):
        if record.data.get("instance_id") == victim.instance_id and not journal.under_way(record.id):
            return journal.resume(record.id)
    return journal.begin("kill", victim.run, instance_id=victim.instance_id, label=victim.label, run_dir=victim.run_dir)


def _end_on_host(
    desk: Desk, deed: Deed, row: Instance, victim: Victim, open_pair: Opener | None,
    before: Callable[[Transport, Victim], None] | None, grace_s: float | None,
) -> bool:  # fmt: skip
    """End what runs on a machine of one's own; False when that cannot be known."""
    if victim.run_dir is None:
        return True
    deed.intent("stop", instance=row.id)
    try:
        if open_pair is None:
            raise UnreachableError(f"{upper(row.called)} was not asked.")
        with desk.step("reach the host"):
            host, _ = reach(row, open_pair)
        with closing(host):
            own_host.settle_end(desk, row, host, victim.run_dir)
            how = own_host.quiet(host, victim.run_dir, name=victim.run, progress=desk.progress, grace_s=grace_s)
            if before is not None:
                before(host, victim)
    except TunewatchError as error:
        deed.failed("stop", instance=row.id, box={"state": "unconfirmed"}, why=error.message)
        with desk.step("give back") as note:
            note.ok, note.detail = False, f"{row.called} does not answer: its run may still train"
        return False
    deed.done("stop", instance=row.id, how=how)
    return True


def _save(
    desk: Desk, deed: Deed, row: Instance, victim: Victim, open_pair: Opener,
    before: Callable[[Transport, Victim], None] | None, grace_s: float | None,
) -> None:  # fmt: skip
    """Stop with a checkpoint; whatever goes wrong is said and does not keep the box alive."""
    if victim.run_dir is None:
        return
    deed.intent("stop", instance=victim.instance_id)
    try:
        with desk.step("reach the box") as note:
            host, pair = reach(row, open_pair)
            note.detail = pair.kind
        with closing(host):
            keep_report(desk.journal, victim.instance_id, read_guard(host, victim.run_dir))
            stopped = stop_run(
                host, victim.run_dir, name=victim.run, reason="kill", progress=desk.progress, timeout=grace_s,
                instance_id=victim.instance_id,
            )  # fmt: skip
            desk.steps.extend(stopped.steps)
            if before is not None:
                before(host, victim)
            _bring_home(desk, host, victim, victim.run_dir)
    except TunewatchError as error:
        deed.failed("stop", instance=victim.instance_id, why=error.message)
    else:
        deed.done("stop", instance=victim.instance_id, how=stopped.state)


def _bring_home(desk: Desk, host: Transport, victim: Victim, run_dir: str) -> None:
    """Log, metrics and results would go with the disk; what cannot be fetched, or kept here, does not keep the box."""
    with desk.step("bring log and results home") as note:
        try:
            target = target_of(desk.journal, victim.run, victim.instance_id, run_dir)
            count, size = bring_home(host, target, desk.journal.home, clock=desk.mono)
        except TunewatchError as error:
            note.ok, note.detail = False, error.message
        except OSError as error:
            note.ok, note.detail = False, f"{error.filename or desk.journal.home} on this machine: {error.strerror}"
        else:
            note.detail = f"{count} files, {size / 1e6:.1f} MB"
