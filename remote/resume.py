"""Going on where a box was lost for a while: it runs again (outbid and back, stopped and started), its run with it.

The box was halted with everything on its disk. What follows is one deed, each step of which can be done again, so one
that was cut is gone on with by the same command or by reconcile:

1. The box is asked for again (a start, or another bid), and runs.
2. We are let in again: the provider may have written its list of keys anew.
3. The guard is armed again with what is left of budget and deadline.
4. The run is started under the supervisor from its newest whole checkpoint, one epoch later, unless it lives.

It never rents anything, and a run that is over, or that went on elsewhere, is not started.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from remote.access import Opener, own_key, wait_for_ssh
from remote.contract import Change, request_of
from remote.deeds import DeedResult
from remote.desk import Desk, Note
from remote.journal import Deed
from remote.labels import read_label
from remote.launch import Launch, arm_box
from remote.migrate_abort import back
from remote.migrate_switch import BY_ITSELF
from remote.money import bill
from remote.move import Move, Request, launch_of
from remote.provider import Instance, RateLimitedError, RejectedError, find
from remote.recovery_policy import last_words
from runner.errors import NotFoundError, RefusedError, TunewatchError, UnreachableError

RUNNING_S = 600.0
"""A box that was asked for again runs within so long, or is not waited for any more."""
HALTED_S = 90.0
"""So long after the request it may still be listed as halted."""


@dataclass(frozen=True, slots=True)
class Resumption:
    """What is about to go on."""

    row: Instance
    run: str
    run_dir: str
    launch: Launch
    """As it was launched, with what is left of its limits."""
    epoch: int
    """The newest epoch that is known of the run."""

    @property
    def text(self) -> str:
        """For the question."""
        return f"{self.run} goes on there from its newest whole checkpoint, guarded by what is left of its limits."


def plan_resume(desk: Desk, instance_id: int) -> Resumption:
    """Whether the run of a box can go on there. Raises NotFoundError, or RefusedError with the reason."""
    row = find(desk.listing(), instance_id)
    if row is None:
        raise NotFoundError(f"There is no instance {instance_id}.", hint="See: tunewatch instances.")
    if row.own:
        raise RefusedError(f"{row.called} is a machine of your own: nothing there was taken away.")
    box = desk.journal.box(instance_id)
    if box is None or not box.run or not box.data.get("run_dir"):
        whose = "" if box is not None or read_label(row.label) is not None else " It was not rented by tunewatch."
        raise RefusedError(f"No run of instance {instance_id} is known here.{whose}", hint="tunewatch adopt finds one.")
    newest = desk.journal.box_of_run(box.run)
    if newest is not None and newest.instance != instance_id:
        raise RefusedError(
            f"{box.run} went on on instance {newest.instance}: here it must not train.",
            hint=f"tunewatch kill {instance_id} ends this box.",
        )
    for record in desk.journal.open_deeds(run=box.run):
        if record.kind in ("launch", "migrate", "kill"):
            raise RefusedError(f"A {record.kind} of {box.run} is not finished.", hint="Run: tunewatch reconcile.")
    status = last_words(desk.journal, box)
    if status is not None and status.ended and status.rc in BY_ITSELF:
        raise RefusedError(f"{box.run} is over ({status.reason}): there is nothing to go on with.")
    launch = launch_of(desk.journal, instance_id)
    wishes, now = launch.wishes, desk.clock()
    deadline, budget = box.data.get("deadline_at"), box.data.get("budget_usd")
    if isinstance(deadline, (int, float)):
        wishes = replace(wishes, deadline_s=deadline - now)
        if deadline <= now:
            raise RefusedError(f"The deadline of {box.run} is past.", hint="tunewatch launch begins anew.")
    if isinstance(budget, (int, float)):
        wishes = replace(wishes, budget_usd=float(budget))
        cost = bill(desk.journal, instance_id, now, current=row).total
        if cost >= budget:
            raise RefusedError(
                f"{box.run} has cost ${cost:.2f} of ${budget:.2f}.", hint="tunewatch launch begins anew."
            )
    epoch = int(box.data.get("epoch") or 0)
    return Resumption(row, box.run, str(box.data["run_dir"]), replace(launch, wishes=wishes), epoch)


def resume_run(
    desk: Desk, instance_id: int, open_pair: Opener, environment: Mapping[str, str] | None = None, *,
    change: Change | None = None,
) -> DeedResult:  # fmt: skip
    """Do it, or go on with one that was cut; `change` is what brings a halted box back.

    Raises what went wrong. The box is not given back then: its guard, which stands again with its container, ends it
    when nobody tends to it.
    """
    env = dict(os.environ if environment is None else environment)
    plan = plan_resume(desk, instance_id)
    deed = _take(desk, plan, change)
    with deed:
        try:
            _carry_on(desk, deed, plan, open_pair, env)
        except (TunewatchError, KeyboardInterrupt) as error:
            why = error.message if isinstance(error, TunewatchError) else "interrupted"
            deed.close("failed", instance=instance_id, why=why)
            raise
    return desk.result(ok=True, state="running", run=plan.run, instance_id=instance_id)


def _take(desk: Desk, plan: Resumption, change: Change | None) -> Deed:
    for record in desk.journal.open_deeds("resume", plan.run):
        return desk.journal.resume(record.id)
    asked = {} if change is None else {"change": change.kind, "bid": change.usd_per_h}
    return desk.journal.begin("resume", plan.run, epoch=plan.epoch, instance_id=plan.row.id, **asked)


def _carry_on(desk: Desk, deed: Deed, plan: Resumption, open_pair: Opener, env: Mapping[str, str]) -> None:
    instance = plan.row.id
    if plan.row.status != "running" or plan.row.halted or deed.data.get("change") == "bid":
        bid = deed.data.get("bid")
        change = Change("bid" if bid is not None else "start", plan.row, "", usd_per_h=bid)
        with desk.step(change.kind, plan.row.called):
            deed.intent(change.kind, instance=instance)
            # asked again after a crash, it changes nothing more: the same bid, a box that runs
            request_of(desk, change)()
            deed.done(change.kind, instance=instance, box={"bid": bid} if bid is not None else None)
        with desk.step("boot") as note:
            row = _running(desk, instance, note)
    else:
        row = plan.row
    with desk.step("SSH") as note:
        try:
            _, public = own_key(desk.journal.home)
            desk.patiently(
                lambda: desk.provider.attach_key(instance, public), for_s=60.0,
                again_on=(UnreachableError, RateLimitedError),
            )  # fmt: skip
        except RejectedError as error:
            note.say(error.message)  # whether the key is there all the same shows at once
        host, pair = wait_for_ssh(desk, row, open_pair, note)
        note.detail = f"{pair.kind} {pair.host}:{pair.port}"
        deed.done("ssh", instance=instance, box={"ssh_kind": pair.kind})
    request = Request(plan.run, instance, plan.run_dir, row.label, plan.launch, plan.epoch)
    move = Move(desk, deed, request, open_pair, env)
    move.keep(instance, host)
    try:
        status = move.status(instance, plan.run_dir)
        if status is not None and status.ended and status.rc in BY_ITSELF:
            raise RefusedError(
                f"{plan.run} is over ({status.reason}): there is nothing to go on with.",
                hint=f"The box runs and bills: tunewatch kill {instance} ends it.",
            )
        box = move.box(instance)
        with desk.step("guard") as note:
            arm_box(desk, deed, plan.launch, row, move.host(instance), box, plan.run_dir, note)
        with desk.step("run") as note:
            deed.intent("run", instance=instance)
            back(move, note)
            deed.done("run", instance=instance, box={"state": "running", "asked_stop": None})
    finally:
        move.close()
    deed.close("running", instance=instance)


def _running(desk: Desk, instance: int, note: Note) -> Instance:
    """Wait until a box that was asked for again runs; raises RefusedError when it does not."""
    begun = desk.mono()
    while True:
        row = find(desk.listing(for_s=120.0), instance)
        age = desk.mono() - begun
        word = "not listed" if row is None else row.status_word or row.status
        if row is not None and row.status == "running" and not row.halted and row.ssh:
            note.detail = f"running after {age:.0f} s"
            return row
        note.say(f"{word} since {age:.0f} s")
        if (row is not None and row.halted and age > HALTED_S) or age > RUNNING_S:
            raise RefusedError(
                f"Instance {instance} is still {word} after {age:.0f} s: its GPU is somebody else's.",
                hint="Its disk bills meanwhile. Go on elsewhere: tunewatch migrate; or end it: tunewatch kill.",
            )
        desk.sleep(3.0)
