"""M7 to M10: the old run is drained, its last step carried over, the new one started and watched.

From the first line of M7 on the run may stand still, so nothing here asks whether, only how. Every function is one
state, may be done again after a crash, and returns what the journal has to remember of it.
"""

from __future__ import annotations

import json
import math
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from remote.bootstrap import Phases
from remote.checkpoint_transfer import Cargo, SourceSpoiledError, carry, carry_file
from remote.deeds import DeedStep
from remote.desk import Note
from remote.migrate_ready import arm_guard, from_now, hub_of, newest, source_of
from remote.move import Move
from remote.recovery_policy import mirror_of
from remote.remote_run import lay_out_run, start_run
from remote.stop import stop_run
from remote.target import Target
from remote.transport import Transport, shell_path
from runner.box.limits import LEASE, RELEASE
from runner.errors import (
    NotFoundError,
    ProviderError,
    RefusedError,
    RunExit,
    UnconfirmedError,
    UnreachableError,
)
from runner.rundir import CHECKPOINTS, CONFIG, FENCE, LOG, METRICS, STOP_REQUEST, Status

BY_ITSELF = (RunExit.FINISHED, RunExit.AUTO_STOPPED, RunExit.LIMIT)
"""Exit codes of a run that is over; one that was stopped or crashed has more to do."""
STALL_S = 300.0
"""At least so long without a step before the new run counts as stalled."""
HALT_S = 180.0
WAKE_S = 15.0
"""An old run that has ended within this time is noticed the moment it does."""
LOOK_S = 0.1
"""Between two looks for the new trainer's first step: so long training seems to stand still at most."""
_TAIL = 1 << 16


class RunOverError(RefusedError):
    """The run ended by itself before it was moved."""


class NoProgressError(ProviderError):
    """The new trainer does not train."""


# -- M7 ---------------------------------------------------------------------------------------------------------------


def drain(move: Move, note: Note) -> dict[str, Any]:
    """M7: no trainer of the old epoch lives when this returns, and what it saved last is named."""
    desk, data = move.desk, move.deed.data
    facts: dict[str, Any] = {}
    set_limits(move, note)
    lay_out(move, note)
    first = Cargo.from_json(data["cargo"])
    try:
        host = None if move.is_dead(move.old_id) else move.host(move.old_id)
        if host is not None:
            move.end(move.old_id, door=True)
    except UnreachableError as error:
        facts["drain_at"] = data.get("drain_at") or desk.clock()
        _halt(move, note, error)
        host = None
    facts.setdefault("drain_at", data.get("drain_at") or desk.clock())
    begun = desk.mono()
    # a run whose box was lost stood still long before this
    facts["stood_before"] = bool(data.get("stood_before")) or host is None or (
        move.request.recovery is not None and not move.lives(move.old_id, move.request.old_dir)
    )  # fmt: skip
    if host is None:
        _keep_halted(move, note)
        note.detail = f"the old box is gone; the run goes on from step {first.step}"
        return {**facts, "cargo2": first.to_json(), "old_alive": False, "lost_steps": None, "drain_s": 0.0}
    status = _stopped(move, host, note)
    with ThreadPoolExecutor(1, thread_name_prefix="fence") as beside:
        fenced = beside.submit(_fence, move, host)
        last, torn = newest(move, move.old_id, move.request.old_dir)
        fenced.result()
    if last is None or last.step < first.step:
        last = first
    at = status.step if status is not None and status.step is not None else last.step
    lost = max(0, at - last.step)
    note.detail = f"stopped at step {at}" + (f", {lost} steps are done again" if lost else ", nothing is lost")
    if torn:
        note.detail += f"; passed over {torn[0]}"
    return {**facts, "cargo2": last.to_json(), "old_alive": True, "lost_steps": lost, "stopped_step": at,
            "drain_s": desk.mono() - begun}  # fmt: skip


def _fence(move: Move, host: Transport) -> None:
    """From now on a runner of the old epoch ends with 12 on the old box."""
    host.put(json.dumps({"epoch": move.request.epoch}).encode(), f"{move.request.old_dir}/{FENCE}")


def silence(move: Move, note: Note) -> Status | None:
    """End the trainer of an old box that counted as dead when the run was drained and is back by now, awake or frozen.

    It is fenced first, so it ends with 12 and is not started again. Returns its last status, None where there is
    nothing to ask. Raises UnconfirmedError when it does not end, and the link's errors.
    """
    if move.deed.data.get("old_alive", True) or move.is_dead(move.old_id):
        return None
    note.say(f"instance {move.old_id} is back; ending what wakes up there")
    host = move.host(move.old_id)
    _fence(move, host)
    reason, run_dir = "the run goes on elsewhere", move.request.old_dir
    if move.lives(move.old_id, run_dir) and not stop_run(host, run_dir, name=move.request.run, reason=reason).ok:
        raise UnconfirmedError(
            f"Instance {move.old_id} is back, and its trainer does not end.",
            hint="tunewatch migrate RUN --resume tries again.",
        )
    return move.status(move.old_id, move.request.old_dir)


def lay_out(move: Move, note: Note) -> None:
    """What the new trainer needs beside the last checkpoint is put there while the old one still trains."""
    note.say("laying out the run on the new box")
    lay_out_run(move.host(move.new_id), move.box(move.new_id), move.order, move.recipe(), environment=move.env)


def set_limits(move: Move, note: Note, *, idle: bool = False) -> None:
    """Give the guard of the new box the run's own limits, before training stands still: it looks every few seconds.

    A deadline is a moment and does not begin anew with a new box. That of idleness would count the time in which the
    box was made ready, so it is set once the trainer has done steps.
    """
    wishes, desk = move.request.launch.wishes, move.desk
    row, old = move.row(move.new_id), desk.journal.box(move.old_id)
    if row is None:
        raise UnreachableError(f"Instance {move.new_id} is gone.")
    host = move.host(move.new_id)
    at = old.data.get("deadline_at") if old is not None else None
    left = None
    if wishes.deadline_s is not None and isinstance(at, (int, float)):
        left = from_now(host, move.new_dir, max(1.0, at - desk.clock()))
    # the lease counts from its last change
    host.put(f"{desk.clock()}".encode(), f"{move.new_dir}/{LEASE}")
    wishes = replace(wishes, deadline_s=left, idle_s=wishes.idle_s if idle else None)
    arm_guard(move, row, host, move.new_dir, wishes, note)


def _stopped(move: Move, host: Transport, note: Note) -> Status | None:
    """Stop the old trainer with a checkpoint, whoever is asked how often; raises RunOverError when there is nothing
    left to move, UnconfirmedError when it cannot be ended.
    """
    run_dir = move.request.old_dir
    status = move.status(move.old_id, run_dir)
    if status is None:
        return None
    if not status.ended:
        note.say(f"step {status.step}, asking for a checkpoint and the end")
        _wake_supervisor(host, run_dir, status)
        status = move.status(move.old_id, run_dir)
    if status is not None and not status.ended:

        def told(step: DeedStep) -> None:
            note.say(f"{step.name}: {step.detail}" if step.detail else step.name)

        done = stop_run(host, run_dir, name=move.request.run, reason="migration", progress=told)
        if not done.ok:
            raise UnconfirmedError(
                f"The old trainer of {move.request.run} does not end, so no new one is started.",
                hint="tunewatch migrate RUN --resume goes on; --abort leaves the run on its old box.",
            )
        status = move.status(move.old_id, run_dir)
    if status is not None and status.ended and status.rc in BY_ITSELF:
        raise RunOverError(
            f"{move.request.run} ended by itself on its old box ({status.reason}); there is nothing left to move."
        )
    return status


def _wake_supervisor(host: Transport, run_dir: str, status: Status) -> None:
    """Ask for the end and wait for it on the box itself, for a while: training stands still for what follows.

    The supervisor's next look at the run directory may be a second away, so it is woken. The name of its program is
    compared, a process that only has its number is not touched, and one that has ended has no words any more.
    """
    request = json.dumps({"reason": "migration", "deadline": None})
    pid = int(status.supervisor_pid or 0)
    lives = f"grep -qsa runner.box.supervise /proc/{pid}/cmdline"
    host.run(
        f"cd {shell_path(run_dir)} || exit; printf %s {shlex.quote(request)} >.{STOP_REQUEST}.part && "
        f"mv .{STOP_REQUEST}.part {STOP_REQUEST}; {lives} && kill -TERM {pid} || exit 0; "
        f"i=0; while {lives} && [ $i -lt {WAKE_S / 0.03:.0f} ]; do sleep 0.03; i=$((i+1)); done",
        timeout=WAKE_S + 60.0,
    )  # fmt: skip


def _keep_halted(move: Move, note: Note) -> None:
    """A host that is gone may come back: its box is told to stay halted, so that no trainer of ours wakes up in it."""
    row = move.row(move.old_id)
    if row is None or row.halted:
        return
    move.deed.intent("halt", instance=move.old_id)
    try:
        move.desk.patiently(lambda: move.desk.provider.stop(move.old_id), for_s=30.0)
    except (ProviderError, UnreachableError) as error:
        # what comes back there is fenced off from the Hub by its epoch, and the box is destroyed a few minutes from now
        note.say(f"instance {move.old_id} cannot be told to stay halted: {error.message}")
        return
    move.deed.done("halt", instance=move.old_id)


def _halt(move: Move, note: Note, error: UnreachableError) -> None:
    """A box that is said to run and cannot be asked: the provider has to end what runs there, or nothing is started."""
    desk = move.desk
    note.say(f"{error.message} Asking the provider to halt the old box.")
    move.deed.intent("halt", instance=move.old_id)
    try:
        desk.patiently(lambda: desk.provider.stop(move.old_id), for_s=60.0)
        until = desk.mono() + HALT_S
        while not move.is_dead(move.old_id):
            if desk.mono() > until:
                raise UnconfirmedError(
                    f"Instance {move.old_id} cannot be reached and does not halt: its trainer may be alive.",
                    hint="No second one is started. tunewatch migrate RUN --resume tries again, --abort gives up.",
                )
            desk.sleep(2.0)
    except (ProviderError, UnreachableError) as failed:
        raise UnconfirmedError(
            f"Instance {move.old_id} cannot be reached, and the provider does not halt it: {failed.message}",
            hint="No second trainer is started. tunewatch migrate RUN --resume tries again, --abort gives up.",
        ) from failed
    move.deed.done("halt", instance=move.old_id)


# -- M8 ---------------------------------------------------------------------------------------------------------------


def sync(move: Move, note: Note) -> dict[str, Any]:
    """M8: the last checkpoint and the run's own files; if the old box fails now, the rehearsed one is used."""
    desk, data = move.desk, move.deed.data
    last, first = Cargo.from_json(data["cargo2"]), Cargo.from_json(data["cargo"])
    begun = desk.mono()
    moved, way, carried = 0, "there already", 0.0
    with ThreadPoolExecutor(1, thread_name_prefix="carry files") as beside:
        # the run's own files are as they will stay: they travel beside the checkpoint
        files = beside.submit(_carry_files, move, note) if data.get("old_alive") else beside.submit(_from_mirror, move)
        if last.step != first.step:
            dest = f"{move.new_dir}/{CHECKPOINTS}/checkpoint-{last.step}"
            try:
                done = carry(
                    desk, last, source_of(move, last), move.end(move.new_id), dest, note,
                    usd_per_h=move.usd_per_h(), hub=hub_of(move, last, alive=bool(data.get("old_alive"))),
                )  # fmt: skip
                moved, way, carried = done.bytes, done.way, done.seconds
            except (SourceSpoiledError, NotFoundError, UnreachableError) as error:
                # asks the new box: when it is the one that fails, this raises, and the move is undone
                move.host(move.new_id).ping()
                note.say(f"{error.message} Going on from step {first.step}.")
                last = first
        kept = files.result()
    small = sum(kept.values()) / 1e3
    brought = f"{moved / 1e6:.1f} MB by {way}" if moved else way
    note.detail = f"step {last.step}, {brought}, {small:.0f} kB of log and metrics"
    stopped = data.get("stopped_step")
    lost = max(0, int(stopped) - last.step) if isinstance(stopped, int) else data.get("lost_steps")
    return {"cargo2": last.to_json(), "lost_steps": lost, "sync_s": desk.mono() - begun, "sync_bytes": moved,
            "carry_s": carried, "metrics_at": kept.get(METRICS, 0)}  # fmt: skip


def _carry_files(move: Move, note: Note) -> dict[str, int]:
    """Log, metrics and what the run has measured so far, so that its curve goes on in the same files."""
    old, new = move.host(move.old_id), move.host(move.new_id)
    names = [LOG, METRICS, CONFIG]
    try:
        there = old.listdir(move.request.old_dir)
    except (UnreachableError, NotFoundError) as error:
        note.say(f"the run's files stay behind: {error.message}")
        return {}
    names += [name for name in there if name.startswith("metrics") and name.endswith(".json")]
    with ThreadPoolExecutor(len(names), thread_name_prefix="carry file") as beside:
        sizes = beside.map(lambda n: carry_file(old, new, f"{move.request.old_dir}/{n}", f"{move.new_dir}/{n}"), names)
        return dict(zip(names, sizes, strict=True))


def _from_mirror(move: Move) -> dict[str, int]:
    """Log and metrics as far as this laptop saw them, where the old box cannot be asked for its own."""
    folder = mirror_of(move.desk.journal.home, move.old_id, move.request.old_dir)
    kept = {}
    for name in (LOG, METRICS):
        try:
            body = (folder / name).read_bytes()
        except OSError:
            continue
        # the rest of a line that was cut will never come
        body = body[: body.rfind(b"\n") + 1]
        move.host(move.new_id).put(body, f"{move.new_dir}/{name}")
        kept[name] = len(body)
    return kept


# -- M9 ---------------------------------------------------------------------------------------------------------------


def start(move: Move, note: Note) -> dict[str, Any]:
    """M9: start the trainer, unless one of this epoch lives already."""
    desk = move.desk
    try:
        silence(move, note)
    except UnreachableError as error:
        _halt(move, note, error)
    host, box = move.host(move.new_id), move.box(move.new_id)
    # from now on there is something on this disk that the guard must not throw away
    host.run(f"rm -f {shell_path(f'{move.new_dir}/{RELEASE}')}", timeout=20.0)
    cargo = Cargo.from_json(move.deed.data["cargo2"])
    status = move.status(move.new_id, move.new_dir)
    if status is None or status.epoch != move.request.epoch:
        resume = f"{move.new_dir}/{CHECKPOINTS}/checkpoint-{cargo.step}"
        target = Target("vast", move.new_dir, instance_id=move.new_id)
        phases = Phases(lambda step: note.say(f"{step.name}: {step.detail}" if step.detail else step.name))
        try:
            start_run(
                host, box, replace(move.order, resume=resume), move.recipe(), target=target, home=desk.journal.home,
                grace_s=move.request.launch.grace_s, environment=move.env, phases=phases,
            )  # fmt: skip
        except RefusedError:
            # the start of an earlier try may have come through in this moment
            status = move.status(move.new_id, move.new_dir)
            if status is None or status.epoch != move.request.epoch or status.ended:
                raise
    note.detail = f"from step {cargo.step}, epoch {move.request.epoch}"
    deadline = move.request.launch.wishes.deadline_s
    old = desk.journal.box(move.old_id)
    fields = {
        "state": "running", "run_dir": move.new_dir, "guard": "watching", "epoch": move.request.epoch,
        "budget_usd": move.request.launch.wishes.budget_usd, "ssh_kind": move.deed.data.get("ssh_kind"),
        "asked_stop": None,
        "deadline_at": old.data.get("deadline_at") if old is not None and deadline is not None else None,
    }  # fmt: skip
    desk.journal.put_box(move.new_id, **fields)
    return {"started_at": desk.clock()}


# -- M10 --------------------------------------------------------------------------------------------------------------


def confirm(move: Move, note: Note) -> dict[str, Any]:
    """M10: the new trainer has done its steps, or an evaluation, or has come to the run's end.

    Raises NoProgressError when it crashed or stands still: then the old box goes back to work.
    """
    desk = move.desk
    begin = Cargo.from_json(move.deed.data["cargo2"]).step
    host = move.host(move.new_id)
    step_s = float((move.deed.data.get("rehearsal") or {}).get("step_s") or 0.0)
    patience = max(STALL_S, 30.0 * step_s * move.request.confirm_steps)
    moved_at, seen, first_at = desk.mono(), begin, move.deed.data.get("first_step_at")
    while True:
        status = move.status(move.new_id, move.new_dir)
        known = _progress(host, f"{move.new_dir}/{METRICS}", int(move.deed.data.get("metrics_at") or 0), begin)
        if known is None:
            # a foreign trainer without metrics: its supervisor reads the bar of this very process
            known = (status.step or 0) if status is not None and status.epoch == move.request.epoch else 0, False, ""
        step, evaluated, wrong = known
        if step > seen:
            seen, moved_at = step, desk.mono()
            first_at = first_at or desk.clock()
        if wrong:
            raise NoProgressError(f"The new trainer's {wrong} is not a finite number at step {step}.")
        if seen >= begin + move.request.confirm_steps or evaluated:
            break
        if status is not None and status.ended and status.epoch == move.request.epoch:
            if status.rc in BY_ITSELF and status.rc != RunExit.LIMIT:
                break
            if seen == begin or status.state == "crashed":
                raise NoProgressError(f"The new trainer ended: {status.reason or status.rc}.")
            break
        if desk.mono() - moved_at > patience:
            raise NoProgressError(f"The new trainer has done no step for {patience:.0f} s.")
        note.say(f"step {seen}, {seen - begin} of {move.request.confirm_steps} seen")
        desk.sleep(LOOK_S if first_at is None else 0.5)
    drained = move.deed.data.get("drain_at")
    pause = None
    if move.deed.data.get("stood_before"):
        drained = None
    if isinstance(drained, (int, float)) and isinstance(first_at, (int, float)):
        pause = max(0.0, first_at - drained)
    note.detail = f"trained to step {seen}" + (f"; training stood still for {pause:.1f} s" if pause is not None else "")
    return {"first_step_at": first_at, "pause_s": pause, "confirmed_step": seen}


def _progress(host: Transport, path: str, since: int, begin: int) -> tuple[int, bool, str] | None:
    """`(newest step after begin, whether an evaluation after begin was written, which loss is not finite)`.

    Only what was written after byte `since` counts: the file begins with what the old box wrote. None without a file.
    """
    try:
        size = host.stat(path).size
        data = host.read_from(path, max(since, size - _TAIL)).data
    except NotFoundError:
        return None
    step, evaluated, wrong = 0, False, ""
    for line in data.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if not isinstance(event, dict):
            continue
        at = event.get("step")
        if not isinstance(at, int) or at <= begin:
            continue
        if event.get("event") in ("train", "progress", "eval", "save"):
            step = max(step, at)
        for key in ("loss", "eval_loss"):
            value = event.get(key)
            if value in ("nan", "inf", "-inf") or (isinstance(value, float) and not math.isfinite(value)):
                wrong = key
        evaluated = evaluated or (event.get("event") == "eval" and not wrong)
    return step, evaluated, wrong
