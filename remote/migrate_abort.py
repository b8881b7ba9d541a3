"""Undoing a migration: the run belongs to the old box again, and the new one is destroyed and proved gone.

The order keeps the one-trainer rule: first nothing trains on the new box (it is fenced and its trainer was seen to end,
or the box is proved gone), then the old run is started again from its newest whole checkpoint, one epoch later, and
only if the move had come so far as to stop it. A run is never left with nothing: when the old box is lost, the new one
is kept.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace

from remote.bootstrap import Phases
from remote.desk import Note
from remote.destroy import destroy
from remote.migrate_ready import PINNED, newest
from remote.migrate_switch import BY_ITSELF
from remote.move import Move
from remote.remote_run import start_run
from remote.stop import stop_run
from remote.target import Target
from remote.transport import shell_path
from runner.errors import NotFoundError, TunewatchError, UnconfirmedError
from runner.rundir import FENCE

SETTLE_S = 2.0
"""A trainer whose start was cut may still be on its way: the fence is there before, a second look is taken after."""


class NoWayBackError(UnconfirmedError):
    """The old box is lost, so the new one must not be destroyed."""


def undo(move: Move, why: str) -> bool:
    """Undo what was done; returns whether everything is proved. May be repeated until it does.

    Raises NoWayBackError when the run has nowhere to go back to; the deed stays open then, and can only go on.
    """
    deed = move.deed
    if deed.record.closed is not None:
        return True
    begun = {row.step for row in move.desk.journal.rows(deed_id=deed.id)}
    drained, started = "M7" in begun, "M9" in begun
    if drained and move.is_dead(move.old_id):
        raise NoWayBackError(
            f"The old box {move.old_id} is lost, so the new one is kept.",
            hint="tunewatch migrate RUN --resume goes on with the new one.",
            exists=f"instance {deed.data.get('instance_id')}",
        )
    deed.intent("abort", aborting=True, why=why)
    new = _new_box(move)
    quiet = not started or new is None or _quiet(move, new)
    if drained and quiet:
        with move.desk.step("back to the old box") as note:
            back(move, note)
    if new is not None:
        with move.desk.step("undo", f"destroying instance {new}") as note:
            state = destroy(move.desk, deed, new, note, label=str(deed.data.get("label") or ""))
        if state != "destroyed":
            return False
    if drained and not quiet:
        # the new box could not be asked; it is proved gone now
        with move.desk.step("back to the old box") as note:
            back(move, note)
    if "wake" in begun and not drained:
        with suppress(TunewatchError):
            # it had been halted, and was started only to be read
            move.desk.provider.stop(move.old_id)
    with suppress(TunewatchError):
        move.host(move.old_id).run(f"rm -rf {shell_path(f'{move.request.old_dir}/{PINNED}')}", timeout=30.0)
    deed.close("aborted", why=why)
    return True


def _new_box(move: Move) -> int | None:
    """The box to destroy; one whose rental was not answered is looked for by its label."""
    found = move.deed.data.get("instance_id")
    if isinstance(found, int):
        return found
    label = move.deed.data.get("label")
    row = next((row for row in move.desk.listing() if label and row.label == label), None)
    if row is None:
        return None
    move.deed.done("create", instance=row.id, instance_id=row.id, box={"label": label, "state": "unconfirmed"})
    return row.id


def _quiet(move: Move, new: int) -> bool:
    """Fence the new box and end its trainer; whether it was seen that none lives there."""
    with move.desk.step("stop the new trainer") as note:
        try:
            body = json.dumps({"epoch": move.request.epoch + 1}).encode()
            move.host(new).put(body, f"{move.new_dir}/{FENCE}")
            if move.status(new, move.new_dir) is None:
                move.desk.sleep(SETTLE_S)
            if not move.lives(new, move.new_dir):
                note.detail = "none lives"
                return True
            done = stop_run(move.host(new), move.new_dir, name=move.request.run, reason="the move is undone")
            note.ok, note.detail = done.ok, done.steps[-1].detail
        except TunewatchError as error:
            note.ok, note.detail = False, error.message
            return False
    return done.ok


def back(move: Move, note: Note) -> None:
    """Start the run again where it was, one epoch after the one that failed, unless it lives or has ended by itself."""
    run_dir = move.request.old_dir
    status = move.status(move.old_id, run_dir)
    if status is None:
        raise NotFoundError(f"There is no run {move.request.run} on its old box.")
    if move.lives(move.old_id, run_dir):
        note.detail = "it trains there still"
        return
    if status.rc in BY_ITSELF and not status.reason.startswith("fenced"):
        note.detail = f"it has ended there by itself: {status.reason}"
        return
    cargo, _ = newest(move, move.old_id, run_dir)
    if cargo is None:
        raise NotFoundError(f"There is no whole checkpoint of {move.request.run} on its old box.")
    host, box = move.host(move.old_id), move.box(move.old_id)
    phases = Phases(lambda step: note.say(f"{step.name}: {step.detail}" if step.detail else step.name))
    epoch = max(move.request.epoch, status.epoch) + 1
    start_run(
        host, box, replace(move.order, resume=cargo.path, epoch=epoch), move.recipe(),
        target=Target("vast", run_dir, instance_id=move.old_id), home=move.desk.journal.home,
        grace_s=move.request.launch.grace_s, environment=move.env, phases=phases,
    )  # fmt: skip
    move.desk.journal.put_box(move.old_id, epoch=epoch, state="running", asked_stop=None)
    note.detail = f"from step {cargo.step}, epoch {epoch}"
