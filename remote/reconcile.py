"""Reconcile: what the journal says against what the provider says, brought together in one pass.

- A kill that was cut is finished: it had been confirmed.
- A launch that was cut is carried on, undone or left, as the caller decides.
- A box that the journal knows and two listings do not show is gone; its bill is closed.
- A box with our label that the journal does not know is offered: adopt, destroy or leave.
- A box that was proved gone and is listed again is believed to the provider, and offered.
- A box that runs past the budget or deadline it was launched with is ended: its guard should have done that.
- A box without our label is never touched.

Nothing is concluded from a listing that failed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from remote.access import Opener
from remote.arming import Overdue, overdue
from remote.deeds import DeedResult
from remote.desk import Desk
from remote.destroy import GAP_S
from remote.journal import DeedRecord
from remote.kill import Victim, kill
from remote.labels import read_label
from remote.launch import resume_launch, undo_launch
from remote.lock import HeldError
from remote.money import finish
from remote.provider import Instance, upper
from runner.errors import TunewatchError

Choice = Literal["adopt", "destroy", "leave"]
"""For a cut launch, "adopt" means to carry it on."""


@dataclass(frozen=True, slots=True)
class Found:
    """Something that needs a decision."""

    kind: Literal["orphan", "unfinished", "returned"]
    instance: int | None
    run: str
    usd_per_h: float
    text: str
    deed: str | None = None


Decide = Callable[[Found], Choice]


@dataclass
class Reconciled:
    """What one pass did and what it left."""

    left: list[Found] = field(default_factory=list)
    """Boxes that bill and that nobody decided about."""
    gone: list[int] = field(default_factory=list)
    adopted: list[int] = field(default_factory=list)
    destroyed: list[int] = field(default_factory=list)
    unconfirmed: list[int] = field(default_factory=list)
    foreign: int = 0

    @property
    def ok(self) -> bool:
        """Nothing bills that is not under watch."""
        return not self.left and not self.unconfirmed

    def to_json(self) -> dict[str, Any]:
        """Beside the shape of every deed."""
        return {
            "left": [
                {"kind": f.kind, "instance": f.instance, "run": f.run, "usd_per_h": f.usd_per_h} for f in self.left
            ],
            "gone": self.gone, "adopted": self.adopted, "destroyed": self.destroyed,
            "unconfirmed": self.unconfirmed, "foreign": self.foreign,
        }  # fmt: skip


def reconcile(
    desk: Desk, decide: Decide, open_pair: Opener, environment: Mapping[str, str] | None = None
) -> tuple[DeedResult, Reconciled]:
    """One pass; doing it again changes nothing more. Raises only when the account cannot be looked at."""
    report = Reconciled()
    with desk.step("list what is rented") as note:
        rows = {row.id: row for row in desk.listing()}
        note.detail = f"{len(rows)} on the account"
    for record in desk.journal.open_deeds():
        if desk.journal.under_way(record.id):
            with desk.step(record.kind, record.run) as note:
                note.detail = f"{record.run} is under way in another process; left to it"
            continue
        try:
            if record.kind == "kill":
                _finish_kill(desk, record, report, open_pair)
            elif record.kind == "launch":
                _settle_launch(desk, record, report, decide, open_pair, environment, rows)
            elif record.kind == "migrate":
                _settle_move(desk, record, report, decide, open_pair, environment, rows)
            elif record.kind == "resume":
                _go_on(desk, record, report, open_pair, environment)
            else:
                # a change of the contract, an adoption: whatever came of it stands in the listing
                with desk.journal.resume(record.id) as deed:
                    deed.close("cut")
        except HeldError:
            continue
        except TunewatchError as error:
            with desk.step(record.kind, record.run) as note:
                note.ok, note.detail = False, error.message
    rows = {row.id: row for row in desk.listing()}
    _missing(desk, rows, report)
    _unknown(desk, rows, report, decide, open_pair)
    _late(desk, rows, report, open_pair)
    state: Literal["done", "unconfirmed"] = "done" if report.ok else "unconfirmed"
    return desk.result(ok=report.ok, state=state, run=None, instance_id=None), report


def _finish_kill(desk: Desk, record: DeedRecord, report: Reconciled, open_pair: Opener) -> None:
    data = record.data
    instance_id = data.get("instance_id")
    if not isinstance(instance_id, int):
        with desk.journal.resume(record.id) as deed:
            deed.close("nothing to destroy")
        return
    asked = data.get("step") == "destroy"
    victim = Victim(instance_id, record.run, str(data.get("label") or ""), data.get("run_dir"))
    # once the destruction was asked for there is nobody left to save anything
    done = kill(desk, victim, open_pair=open_pair, checkpoint=not asked)
    (report.destroyed if done.ok else report.unconfirmed).append(instance_id)


def _settle_launch(
    desk: Desk, record: DeedRecord, report: Reconciled, decide: Decide, open_pair: Opener,
    environment: Mapping[str, str] | None, rows: Mapping[int, Instance],
) -> None:  # fmt: skip
    instance_id = record.data.get("instance_id")
    label = str(record.data.get("label") or "")
    row = rows.get(instance_id) if isinstance(instance_id, int) else None
    if row is None:
        row = next((r for r in rows.values() if label and r.label == label), None)
    rate = row.billing_usd_per_h if row is not None else 0.0
    found = Found(
        "unfinished", row.id if row is not None else None, record.run, rate,
        f"The launch of {record.run} was cut at '{record.data.get('step', 'begin')}'"
        + (f"; {row.called} bills ${row.billing_usd_per_h:.4f}/h." if row is not None else "."),
        record.id,
    )  # fmt: skip
    choice = decide(found) if row is not None else "destroy"
    if choice == "leave":
        report.left.append(found)
        return
    if choice == "adopt":
        try:
            done = resume_launch(desk, record.id, open_pair, environment)
        except TunewatchError:
            _note_undone(desk, record, report)
            raise
        if done.instance_id is not None:
            report.adopted.append(done.instance_id)
        return
    done = undo_launch(desk, record.id, open_pair)
    if done.instance_id is not None:
        (report.destroyed if done.ok else report.unconfirmed).append(done.instance_id)


def _settle_move(
    desk: Desk, record: DeedRecord, report: Reconciled, decide: Decide, open_pair: Opener,
    environment: Mapping[str, str] | None, rows: Mapping[int, Instance],
) -> None:  # fmt: skip
    """A migration that was cut goes on, is undone, or waits: its two boxes belong to it until then."""
    from remote.migrate import abort_migration, resume_migration

    new, old = record.data.get("instance_id"), record.data.get("old_instance_id")
    rate = sum(rows[i].billing_usd_per_h for i in (new, old) if isinstance(i, int) and i in rows)
    found = Found(
        "unfinished", new if isinstance(new, int) else None, record.run, rate,
        f"The migration of {record.run} was cut at '{record.data.get('step', 'begin')}'; its boxes bill ${rate:.4f}/h.",
        record.id,
    )  # fmt: skip
    choice = decide(found)
    if choice == "leave":
        report.left.append(found)
        return
    act = resume_migration if choice == "adopt" else abort_migration
    done = act(desk, record.id, open_pair, environment)
    if done.instance_id is not None:
        (report.adopted if done.ok else report.unconfirmed).append(done.instance_id)


def _go_on(
    desk: Desk, record: DeedRecord, report: Reconciled, open_pair: Opener, environment: Mapping[str, str] | None
) -> None:
    """A run that was to go on on its box, and was cut: that had been confirmed, so it goes on."""
    from remote.resume import resume_run

    instance = int(record.data["instance_id"])
    try:
        resume_run(desk, instance, open_pair, environment)
    except TunewatchError:
        if desk.journal.deed(record.id).closed is None:
            with desk.journal.resume(record.id) as deed:
                deed.close("cut", instance=instance)
        raise
    report.adopted.append(instance)


def _note_undone(desk: Desk, record: DeedRecord, report: Reconciled) -> None:
    """A launch that could not be carried on has destroyed its box, or says that it could not."""
    instance_id = desk.journal.deed(record.id).data.get("instance_id")
    box = desk.journal.box(instance_id) if isinstance(instance_id, int) else None
    if box is not None:
        (report.destroyed if box.gone else report.unconfirmed).append(box.instance)


def _missing(desk: Desk, rows: Mapping[int, Instance], report: Reconciled) -> None:
    """Boxes the journal holds for living and the provider does not list: gone, when a second listing agrees."""
    mine = {*report.unconfirmed, *_of_open_deeds(desk)}
    candidates = [b for b in desk.journal.boxes(living=True) if b.instance not in rows and b.instance not in mine]
    if not candidates:
        return
    with desk.step("prove what is gone") as note:
        desk.sleep(GAP_S)
        again = {row.id: row for row in desk.listing()}
        labels = {row.label for row in again.values()}
        for box in candidates:
            if box.instance in again or (box.label and box.label in labels):
                continue
            finish(desk.journal, box.instance, desk.clock())
            desk.journal.put_box(box.instance, state="destroyed", destroyed_at=desk.clock())
            desk.journal.note("gone", run=box.run, instance=box.instance, how="not listed twice")
            report.gone.append(box.instance)
        note.detail = f"{len(report.gone)} gone"


def _unknown(desk: Desk, rows: Mapping[int, Instance], report: Reconciled, decide: Decide, open_pair: Opener) -> None:
    """Boxes with our label that nobody watches."""
    known = {box.instance: box for box in desk.journal.boxes()}
    busy = _of_open_deeds(desk)
    awaited = {record.data.get("label") for record in desk.journal.open_deeds()}
    laptop = desk.journal.laptop()
    settled = {*report.destroyed, *report.adopted, *report.unconfirmed, *(found.instance for found in report.left)}
    for row in rows.values():
        label, record = read_label(row.label), known.get(row.id)
        if row.id in settled or row.id in busy or (row.label and row.label in awaited):
            continue
        if label is None and record is None:
            report.foreign += 1
            continue
        if record is not None and not record.gone and record.state not in ("orphan", "unconfirmed", "renting"):
            continue
        run = label.run if label is not None else (record.run if record is not None else "")
        returned = record is not None and record.gone
        whose = "this laptop" if label is not None and label.laptop == laptop else "another laptop"
        found = Found(
            "returned" if returned else "orphan", row.id, run, row.billing_usd_per_h,
            f"{upper(row.called)} ({run or 'no run'}, {'used' if row.own else 'rented'} by {whose}) bills "
            f"${row.billing_usd_per_h:.4f}/h "
            + ("although it was proved gone." if returned else "and the journal does not know it."),
        )  # fmt: skip
        choice = decide(found)
        if choice == "leave":
            report.left.append(found)
            continue
        called = {"called": row.called} if row.own else {}
        desk.journal.put_box(row.id, run=run, label=row.label, state="adopted", dph_total=row.dph_total, **called)
        if choice == "adopt":
            desk.journal.note("adopted", run=run, instance=row.id)
            report.adopted.append(row.id)
            continue
        done = kill(desk, Victim(row.id, run, row.label, None), open_pair=open_pair, checkpoint=False)
        (report.destroyed if done.ok else report.unconfirmed).append(row.id)


def _late(desk: Desk, rows: Mapping[int, Instance], report: Reconciled, open_pair: Opener) -> None:
    """Boxes past the limits they were launched with: their guard should have ended them, so the laptop does."""

    def end(late: Overdue) -> None:
        with desk.step("past its limit", f"{desk.called(late.instance)}: {late.reason}"):
            box = desk.journal.box(late.instance)
        if box is None:
            return
        victim = Victim(late.instance, box.run, box.label, box.data.get("run_dir"))
        done = kill(desk, victim, open_pair=open_pair)
        (report.destroyed if done.ok else report.unconfirmed).append(late.instance)

    busy = _of_open_deeds(desk)
    for late in overdue(desk.journal, desk.clock()):
        row = rows.get(late.instance)
        # a stopped box keeps what could not be uploaded; its owner decides about that
        if row is not None and row.status == "running" and late.instance not in busy:
            end(late)


def _of_open_deeds(desk: Desk) -> set[int]:
    """Instances that a deed under way, or one that was left for later, answers for."""
    keys = ("instance_id", "old_instance_id")
    found = (record.data.get(key) for record in desk.journal.open_deeds() for key in keys)
    return {instance for instance in found if isinstance(instance, int)}
