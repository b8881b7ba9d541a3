"""Destroying a box and proving it gone: for kill, reconcile, migration, and a launch that undoes itself.

"destroyed" is said after the provider took the request and two successful listings, some seconds apart, showed neither
the id nor its label. Until then the box is "unconfirmed: may still bill". A yes of the provider is no proof, an answer
that failed is no absence, and a box that is not listed yet is not a box that is gone. Doing it again is harmless: an id
that the provider does not know counts as taken, and is proved the same way.
"""

from __future__ import annotations

from typing import Literal

from remote.desk import Desk, Note
from remote.journal import Deed
from remote.money import finish
from remote.provider import NoSuchInstanceError, find
from runner.errors import TunewatchError

PROOFS = 2
GAP_S = 2.0
"""Seconds between the two listings of a proof, at least."""
RETRIES_S = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Waits between two DELETE requests that were not answered with a yes."""


def destroy(
    desk: Desk, deed: Deed, instance_id: int, note: Note, *, for_s: float = 180.0, label: str = ""
) -> Literal["destroyed", "unconfirmed"]:
    """Send the DELETE until it is taken, look until it is proved. Never raises for the provider's faults."""
    deed.intent("destroy", instance=instance_id)
    until = desk.mono() + for_s
    waits = iter(RETRIES_S)
    taken = False
    absent = 0
    last_seen = desk.clock()
    next_delete = desk.mono()
    while True:
        if not taken and desk.mono() >= next_delete:
            taken = _delete(desk, instance_id, note)
            next_delete = desk.mono() + next(waits, RETRIES_S[-1])
        try:
            rows = desk.listing(for_s=0.0)
        except TunewatchError as error:
            note.say(f"unconfirmed, may still bill: {error.message}")
        else:
            if find(rows, instance_id) is None and not (label and any(row.label == label for row in rows)):
                absent += taken
                note.say(f"not listed ({absent} of {PROOFS})" if taken else "not listed, and not known to be destroyed")
            else:
                absent = 0
                last_seen = desk.clock()
                # accepted and yet listed: the provider is slow, or its yes meant nothing; ask again after a while
                taken = taken and desk.mono() < next_delete + RETRIES_S[-1]
                note.say("still listed")
        if absent >= PROOFS:
            finish(desk.journal, instance_id, last_seen)
            deed.done("destroy", instance=instance_id, box={"state": "destroyed", "destroyed_at": desk.clock()})
            note.detail = "two listings were without it"
            return "destroyed"
        if desk.mono() >= until:
            deed.failed("destroy", instance=instance_id, box={"state": "unconfirmed"}, taken=taken)
            note.ok = False
            note.detail = f"{desk.called(instance_id)} is unconfirmed and may still bill"
            return "unconfirmed"
        desk.sleep(GAP_S)


def _delete(desk: Desk, instance_id: int, note: Note) -> bool:
    try:
        desk.provider.destroy(instance_id)
    except NoSuchInstanceError:
        return True
    except TunewatchError as error:
        note.say(f"unconfirmed, may still bill: {error.message}")
        return False
    return True
