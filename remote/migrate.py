"""Moves a live run to another box, the old one training until the new one has proved that it can.

| state        | what it does                                      | cut here, `resume` ...                          |
|--------------|---------------------------------------------------|-------------------------------------------------|
| M0 planned   | writes the decision: prices, budget, why          | drops a plan older than ten minutes             |
| M1 creating  | rents the new box, by one request                 | finds it by its label; rents nothing twice      |
| M2 booting   | waits until it runs                               | waits on; a box that cannot run is destroyed    |
| M3 preparing | code, environment, guard with a short deadline    | does it again, every part looks first           |
| M4 saving    | asks the old run for a checkpoint C, and names it | asks again                                      |
| M5 transfer  | brings C over, every file by its sha256           | goes on with the bytes that are missing         |
| M6 rehearse  | loads C there, measures speed, last chance for no | does it again                                   |
| M7 draining  | stops the old run with a checkpoint C2, fences it | reads how the old ended; asks again             |
| M8 sync      | brings C2 and the run's files over                | goes on with the bytes that are missing         |
| M9 starting  | starts the new trainer under the next epoch       | looks who runs first; the run's lock allows one |
| M10 confirm  | waits for 20 steps, or an evaluation              | waits on; without progress the old one goes on  |
| M11 destroy  | destroys the old box and proves it                | repeats until it is proved                      |
| M12 done     | writes what it cost and how long training stood   | writes it again                                 |
| abort        | the run back to the old box, the new one destroyed| repeats until it is proved                      |

What holds at every moment, also after a crash at any row:

- At most one trainer of the run lives. The new one starts after the old was seen dead (M7), and an old one that comes
  back finds a newer epoch in its run directory and ends with 12.
- The old box is destroyed only after the new one has trained (M10).
- Every box is in the journal, or carries our label.
- Until M7 an abort costs the old run nothing; from M7 to M10 it goes on from C2 on the old box, one epoch later.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from remote import migrate_end, migrate_rehearse
from remote import migrate_ready as ready
from remote import migrate_switch as switch
from remote.access import Opener
from remote.deeds import DeedResult
from remote.desk import Desk, Note
from remote.journal import Deed, DeedRecord, Journal
from remote.migrate_abort import NoWayBackError, undo
from remote.move import Move, Request
from runner.errors import NotFoundError, RefusedError, TunewatchError, UnconfirmedError, UnreachableError

AGAIN_S = (1.0, 5.0, 15.0)
"""Waits before a state whose link broke is done again."""
EXPIRY_S = 600.0
"""A plan whose box was not rented within this time is dropped: prices move."""


@dataclass(frozen=True, slots=True)
class State:
    """One row of the table above."""

    name: str
    words: str
    do: Callable[[Move, Note], dict[str, Any]]


STATES = (
    State("M1", "rent the new box", ready.create),
    State("M2", "boot", ready.boot),
    State("M3", "prepare", ready.prepare_box),
    State("M4", "checkpoint of the old run", ready.save),
    State("M5", "transfer", ready.transfer),
    State("M6", "rehearse", migrate_rehearse.rehearse),
    State("M7", "drain the old run", switch.drain),
    State("M8", "carry the last step over", switch.sync),
    State("M9", "start on the new box", switch.start),
    State("M10", "see it train", switch.confirm),
    State("M11", "destroy the old box", migrate_end.destroy_old),
    State("M12", "account", migrate_end.finish),
)
"""M0 is the opening of the deed itself."""
NAMES = tuple(state.name for state in STATES)
HARMLESS = ("M1", "M2", "M3", "M4", "M5", "M6")
"""States in which the old run has not noticed anything: a failure undoes the move and nothing else."""
SWITCHING = ("M7", "M8", "M9", "M10")
"""States in which the run may stand still: a failure of the new box puts the old one back to work."""


def migrate(
    desk: Desk, request: Request, open_pair: Opener, environment: Mapping[str, str] | None = None
) -> DeedResult:
    """Move a run as `request` says; raises what went wrong after undoing what can be undone.

    UnconfirmedError: something may still bill or train, and the deed stays open for `resume_migration`.
    """
    deed = desk.journal.begin(
        "migrate", request.run, epoch=request.epoch, request=request.to_json(), old_instance_id=request.old_id
    )
    with deed:
        return _carry_on(desk, deed, request, open_pair, environment)


def open_migration(journal: Journal, run: str) -> DeedRecord | None:
    """The unfinished migration of a run."""
    found = journal.open_deeds("migrate", run)
    return found[0] if found else None


def unfinished(journal: Journal, name: str) -> DeedRecord:
    """The unfinished migration of the run of that name, or of the end of it; raises NotFoundError."""
    found = [d for d in journal.open_deeds("migrate") if d.run == name or d.run.endswith(f"/{name}")]
    if len(found) == 1:
        return found[0]
    raise NotFoundError(
        f"'{name}' fits {len(found)} unfinished migrations." if found else f"No migration of '{name}' is unfinished.",
        hint="Name one: " + ", ".join(d.run for d in found) if found else "tunewatch runs lists the runs.",
    )


def last_migration(journal: Journal, run: str) -> DeedRecord:
    """The newest migration of a run, finished or not; raises NotFoundError."""
    deeds = [row.deed for row in journal.rows() if row.kind == "migrate" and row.run == run and row.deed is not None]
    if not deeds:
        raise NotFoundError(f"{run} was never moved.")
    return journal.deed(deeds[-1])


def account(record: DeedRecord) -> dict[str, Any]:
    """What a migration was expected to bring and what it cost; keys are missing for what it did not come to."""
    data = record.data
    kept = (
        "decision_after_rehearsal", "rehearsal", "transfer_way", "transfer_s", "transfer_bytes", "sync_s", "drain_s",
        "pause_s", "pause_parts", "pause_floor", "lost_steps", "ready_h", "overlap_usd", "old_usd", "new_usd",
        "saves_to_horizon_usd", "why",
    )  # fmt: skip
    decision = data.get("request", {}).get("decision")
    return {"deed": record.id, "at": data.get("at"), "decision": decision, **{k: data[k] for k in kept if k in data}}


def resume_migration(
    desk: Desk, deed_id: str, open_pair: Opener, environment: Mapping[str, str] | None = None
) -> DeedResult:
    """Go on with a migration that was cut, or finish its undoing; same outcome and errors as `migrate`."""
    with desk.journal.resume(deed_id) as deed:
        request = Request.from_json(deed.data["request"])
        if deed.data.get("aborting"):
            return _abort(desk, deed, request, open_pair, environment, str(deed.data.get("why") or "undone"))
        if not deed.data.get("label") and desk.clock() - deed.record.opened > EXPIRY_S:
            deed.close("expired")
            raise RefusedError(
                f"The plan to move {request.run} is older than ten minutes and nothing was rented; it was dropped.",
                hint="Migrate again, at the prices of now.",
            )
        return _carry_on(desk, deed, request, open_pair, environment)


def abort_migration(
    desk: Desk, deed_id: str, open_pair: Opener, environment: Mapping[str, str] | None = None
) -> DeedResult:
    """Undo an unfinished migration: the run stays on the old box, the new one is destroyed.

    Raises RefusedError once the old box is being destroyed: then there is nothing to go back to.
    """
    with desk.journal.resume(deed_id) as deed:
        if deed.data.get("at") in ("M10", "M11", "M12"):
            raise RefusedError(
                "The run trains on the new box already and the old one is being destroyed.",
                hint="tunewatch migrate RUN --resume finishes that.",
            )
        return _abort(desk, deed, Request.from_json(deed.data["request"]), open_pair, environment, "asked for")


def _carry_on(
    desk: Desk, deed: Deed, request: Request, open_pair: Opener, environment: Mapping[str, str] | None
) -> DeedResult:
    move = Move(desk, deed, request, open_pair, dict(os.environ if environment is None else environment))
    begun = NAMES.index(deed.data["at"]) + 1 if deed.data.get("at") in NAMES else 0
    try:
        for state in STATES[begun:]:
            _enter(move, state)
        deed.close("migrated", instance=move.new_id, box={"state": "running"})
        return desk.result(ok=True, state="running", run=request.run, instance_id=move.new_id)
    finally:
        move.close()


def _enter(move: Move, state: State) -> None:
    """One state between its two rows, and what its failure means."""
    deed = move.deed
    instance = deed.data.get("instance_id")
    deed.intent(state.name, instance=instance if isinstance(instance, int) else None)
    try:
        with move.desk.step(f"{state.name} {state.words}") as note:
            facts = _patiently(move, state, note)
    except UnconfirmedError:
        raise
    except TunewatchError as error:
        if state.name in (*HARMLESS, *SWITCHING):
            _after_failure(move, state, error)
        raise
    except KeyboardInterrupt:
        # from M7 on the run may stand still: that is not undone by a slip of the hand, --resume or --abort decides
        if state.name in HARMLESS:
            undo(move, "interrupted")
        raise
    found = deed.data.get("instance_id")
    deed.done(state.name, instance=found if isinstance(found, int) else None, at=state.name, **facts)


def _patiently(move: Move, state: State, note: Note) -> dict[str, Any]:
    """A state may be done again, so a link that broke in the middle of one is no reason to turn back yet."""
    for wait in AGAIN_S:
        try:
            return state.do(move, note)
        except UnreachableError as error:
            note.say(f"{error.message} Once more.")
            move.close()
            move.desk.sleep(wait)
    return state.do(move, note)


def _after_failure(move: Move, state: State, error: TunewatchError) -> None:
    """Undo the move; what cannot be undone now stays in the journal as open, and the error says so."""
    try:
        undone = undo(move, error.message)
    except NoWayBackError as stuck:
        stuck.message = f"{error.message} {stuck.message}"
        raise stuck from error
    except TunewatchError as failed:
        raise UnconfirmedError(
            f"{error.message} Undoing the move failed as well: {failed.message}",
            hint="tunewatch migrate RUN --resume goes on undoing it.", exists=_exists(move),
        ) from error  # fmt: skip
    if not undone:
        error.exists = f"{_exists(move)}, unconfirmed: it may still bill"


def _exists(move: Move) -> str:
    found = move.deed.data.get("instance_id")
    return f"instance {found}" if isinstance(found, int) else ""


def _abort(
    desk: Desk, deed: Deed, request: Request, open_pair: Opener, environment: Mapping[str, str] | None, why: str
) -> DeedResult:
    move = Move(desk, deed, request, open_pair, dict(os.environ if environment is None else environment))
    try:
        gone = undo(move, why)
    finally:
        move.close()
    return desk.result(ok=gone, state="stopped" if gone else "unconfirmed", run=request.run, instance_id=request.old_id)
