"""M11 and M12: the old box is destroyed and proved gone, and what the move cost is written beside what was expected.

Every function is one state, may be done again after a crash, and returns what the journal has to remember of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remote.checkpoint_transfer import Cargo, carry
from remote.desk import Note
from remote.destroy import destroy
from remote.migrate_ready import newest
from remote.migrate_rehearse import TAIL
from remote.migrate_switch import set_limits, silence
from remote.money import bill
from remote.move import Move
from runner.atomic import read_object
from runner.errors import TunewatchError, UnconfirmedError
from runner.rundir import CHECKPOINTS, METRICS

TICKS = 100.0
"""Clock ticks of a second in /proc: the same on every Linux."""


def destroy_old(move: Move, note: Note) -> dict[str, Any]:
    """M11: fetch what the old box alone has (the best checkpoint), then destroy it and prove it."""
    facts = _best(move, note)
    try:
        woken = silence(move, note)
        if woken is not None:
            facts["woken_rc"] = woken.rc
    except TunewatchError as error:
        # what wakes there is fenced off from the Hub by its epoch, and its box goes in this very state
        note.say(error.message)
    if move.request.launch.wishes.idle_s is not None:
        try:
            set_limits(move, note, idle=True)
            move.desk.journal.put_box(move.new_id, idle_s=move.request.launch.wishes.idle_s)
        except TunewatchError as error:
            # the other limits stand; an old box that is kept for this one would bill
            facts["idle_not_set"] = error.message
    state = destroy(move.desk, move.deed, move.old_id, note, label=move.request.old_label)
    if state != "destroyed":
        raise UnconfirmedError(
            f"The run trains on instance {move.new_id}; the old instance {move.old_id} is unconfirmed and may still "
            "bill.",
            hint="tunewatch migrate RUN --resume tries again.", exists=f"instance {move.old_id}",
        )  # fmt: skip
    return facts


def _best(move: Move, note: Note) -> dict[str, Any]:
    """The best checkpoint is what the run hands over at its end, and the newest one is not it on a plateau."""
    best = Cargo.from_json(move.deed.data["cargo2"]).best_step
    if best is None or not move.deed.data.get("old_alive") or move.is_dead(move.old_id):
        return {}
    try:
        cargo, _ = newest(move, move.old_id, move.request.old_dir, at_most=best)
        if cargo is None or cargo.step != best:
            return {}
        note.say(f"fetching the best checkpoint, step {best}")
        dest = f"{move.new_dir}/{CHECKPOINTS}/checkpoint-{best}"
        done = carry(move.desk, cargo, move.end(move.old_id, door=True), move.end(move.new_id), dest, note)
    except TunewatchError as error:
        # the run goes on without it; an old box that is kept for it would bill
        return {"best_left": f"step {best}: {error.message}"}
    return {"best_step": best, "best_bytes": done.bytes}


def finish(move: Move, note: Note) -> dict[str, Any]:
    """M12: what it cost and how long training stood, for the record beside what was expected."""
    desk, data = move.desk, move.deed.data
    old, new = bill(desk.journal, move.old_id, desk.clock()), bill(desk.journal, move.new_id, desk.clock())
    until = data.get("first_step_at") or desk.clock()
    ready = max(0.0, float(until) - move.deed.record.opened) / 3600
    row = move.row(move.new_id)
    overlap = ready * (row.dph_total if row is not None else new.usd_per_h)
    pause = data.get("pause_s")
    parts = {"save": data.get("drain_s"), "delta": data.get("sync_s")}
    if isinstance(pause, (int, float)):
        parts["load"] = max(0.0, pause - sum(float(v or 0.0) for v in parts.values()))
    said = ", ".join(f"{name} {float(s or 0.0):.1f} s" for name, s in parts.items())
    note.detail = f"overlap ${overlap:.2f}" + (f"; stood {pause:.1f} s ({said})" if isinstance(pause, float) else "")
    # where the last checkpoint was not saved for this, its time was no part of the pause
    saved_for_it = not data.get("lost_steps") and move.request.recovery is None
    floor = pause_floor(move) if saved_for_it else {}
    if floor and isinstance(pause, float):
        note.detail += f", {pause / max(1e-3, sum(floor.values())):.1f} times what these take by themselves"
    facts = {
        "overlap_usd": overlap, "ready_h": ready, "pause_parts": parts, "lost_steps": data.get("lost_steps"),
        "old_usd": old.total, "new_usd": new.total, **_saving(move, ready, float(pause or 0.0) / 3600),
    }  # fmt: skip
    return {**facts, **({"pause_floor": floor} if floor else {})}


def pause_floor(move: Move) -> dict[str, float]:
    """What the parts of the pause take by themselves, in seconds: `{"save", "delta", "load"}`, each measured elsewhere.

    The trainer's own time for its last checkpoint, that of carrying what was missing of it, and the new trainer's time
    from its process to its first step, by the new box's own clock. Empty where one of them is not known: a trainer
    without metrics, a checkpoint that was not saved for this.
    """
    data = move.deed.data
    step, since = Cargo.from_json(data["cargo2"]).step, int(data.get("metrics_at") or 0)
    try:
        host = move.host(move.new_id)
        raw = host.read_from(f"{move.new_dir}/{METRICS}", max(0, since - TAIL), limit=2 * TAIL, timeout=30.0).data
        status = move.status(move.new_id, move.new_dir)
    except TunewatchError:
        return {}
    events = [event for line in raw.splitlines() if (event := read_object(line)) is not None]
    saved = [e.get("seconds") for e in events if e.get("event") == "save" and e.get("step") == step]
    first = next((e.get("wall") for e in events if e.get("event") in ("train", "progress") and _after(e, step)), None)
    if not saved or not isinstance(saved[0], (int, float)) or not isinstance(first, (int, float)):
        return {}
    if status is None or status.start_ticks is None:
        return {}
    began = status.wall - (status.mono - status.start_ticks / TICKS)
    return {"save": float(saved[0]), "delta": float(data.get("carry_s") or 0.0), "load": max(0.0, first - began)}


def _after(event: Mapping[str, Any], step: int) -> bool:
    at = event.get("step")
    return isinstance(at, int) and at > step


def _saving(move: Move, ready_h: float, pause_h: float) -> dict[str, Any]:
    """What the move saves to the horizon with its true set-up, pause and prices, beside what was forecast.

    The old box trained for `ready_h` while the new one billed as well; then H - ready_h hours of its work were left.
    """
    decision = move.deed.data.get("decision_after_rehearsal") or move.request.decision
    old, row = move.desk.journal.box(move.old_id), move.row(move.new_id)
    if decision is None or decision.get("left_h") is None or old is None or row is None:
        return {}
    before = move.request.decision or decision
    p0, pj, v = float(old.data.get("dph_total") or 0.0), row.dph_total, float(decision["speed"])
    left = max(0.0, float(before["left_h"]) - ready_h)
    return {"saves_to_horizon_usd": left * (p0 - pj / v) - ready_h * pj - pause_h * pj / v}
