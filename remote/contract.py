"""What can be done about a box that stands: another bid, an answer to a price increase, taking its GPU again.

Each is a deed in the journal with a row before and after the request, and each is asked once: a request whose answer
was lost is looked up in the next listing, where the price and the state of the box stand, and is harmless to repeat.
When the price changed, the guard on the box is told, so that its budget is metered by what is paid.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from remote.access import Opener, reach
from remote.deeds import DeedResult
from remote.desk import Desk
from remote.labels import read_label
from remote.provider import Instance, PriceIncrease, RejectedError, find
from remote.transport import Transport
from runner.atomic import read_object
from runner.box.limits import CONFIG
from runner.errors import NotFoundError, RefusedError, TunewatchError

Kind = Literal["bid", "accept price", "reject price", "start"]
ALONE = "; its run does not go on by itself (--resume starts it again)"
LEAST_BID, MOST_BID = 0.001, 32.0
"""USD/h and GPU: what the provider takes."""


@dataclass(frozen=True, slots=True)
class Change:
    """What is about to be done, with what it means."""

    kind: Kind
    row: Instance
    text: str
    """For the question."""
    usd_per_h: float | None = None
    """The bid."""
    increase: PriceIncrease | None = None


def plan_change(desk: Desk, instance_id: int, kind: Kind, *, bid: float | None = None) -> Change:
    """Look before asking. Raises NotFoundError (no such box, no request for more), RefusedError (it makes no sense)."""
    row = find(desk.listing(), instance_id)
    if row is None:
        raise NotFoundError(f"There is no instance {instance_id}.", hint="See: tunewatch instances.")
    if desk.journal.box(row.id) is None and read_label(row.label) is None:
        raise RefusedError(
            f"Instance {row.id} was not rented by tunewatch.",
            hint=f"Take it under watch first: tunewatch adopt {row.id}.",
        )
    if row.own:
        raise RefusedError(f"{row.called} is a machine of your own: there is no contract to change.")
    if kind == "bid":
        return _plan_bid(row, bid or 0.0)
    if kind == "start":
        if not row.halted and row.status != "exited":
            raise RefusedError(f"Instance {row.id} is {row.status}: there is nothing to start.")
        text = (
            f"Instance {row.id} takes its GPU again and bills ${row.dph_total:.4f}/h. Its guard comes back with it"
            f"{ALONE}."
        )
        return Change(kind, row, text)
    found = next((i for i in desk.provider.price_increases() if i.instance_id == row.id), None)
    if found is None:
        raise NotFoundError(f"Nobody asks for a higher price for instance {row.id}.", hint="See: tunewatch instances.")
    asked = f"${found.new_usd_per_h:.4f}/h instead of ${found.old_usd_per_h:.4f}/h from the end of the contract on"
    text = f"Instance {row.id} will cost {asked}, and the contract goes on."
    if kind == "reject price":
        text = f"Instance {row.id} will not be paid {asked}: the contract ends as agreed, and the box stops then."
    return Change(kind, row, text, increase=found)


def _plan_bid(row: Instance, bid: float) -> Change:
    if not row.spot:
        raise RefusedError(
            f"Instance {row.id} is on demand: its price is agreed, there is nothing to bid.",
            hint="Only a contract launched with --bid has one.",
        )
    most = MOST_BID * row.num_gpus
    if not LEAST_BID <= bid <= most:
        raise RefusedError(f"A bid is between ${LEAST_BID:g} and ${most:g} an hour, not ${bid:g}.")
    if row.min_bid is not None and bid < row.min_bid:
        raise RefusedError(
            f"The bid of ${bid:.4f}/h is below the least bid of ${row.min_bid:.4f}/h.",
            hint="With it the box is stopped, and only its disk bills on.",
        )
    total = bid + row.disk_usd_per_h
    comes_back = " It comes back, with its processes gone." if row.halted else ""
    text = (
        f"The bid for instance {row.id} goes from ${row.dph_base:.4f}/h to ${bid:.4f}/h; with its disk it bills "
        f"${total:.4f}/h.{comes_back}"
    )
    return Change("bid", row, text, usd_per_h=bid)


def carry_out(desk: Desk, change: Change, open_pair: Opener | None) -> DeedResult:
    """Do it, look at what became of it, tell the guard. Raises what the provider says."""
    row = change.row
    box = desk.journal.box(row.id)
    run = box.run if box is not None else ""
    with desk.journal.begin("contract", run, instance_id=row.id, change=change.kind, bid=change.usd_per_h) as deed:
        with desk.step(change.kind, f"instance {row.id}"):
            deed.intent(change.kind, instance=row.id)
            try:
                request_of(desk, change)()
            except TunewatchError as error:
                deed.failed(change.kind, instance=row.id, why=error.message)
                deed.close("failed", instance=row.id)
                raise
            deed.done(change.kind, instance=row.id, box={"bid": change.usd_per_h} if change.usd_per_h else None)
        with desk.step("look") as note:
            now = find(desk.listing(), row.id) or row
            note.detail = f"{now.status}, bills ${now.billing_usd_per_h:.4f}/h"
        if box is not None and box.data.get("guard") and open_pair is not None and now.status == "running":
            with desk.step("tell the guard") as note:
                try:
                    host, _ = reach(now, open_pair)
                    with host:
                        told = tell_price(host, str(box.data.get("guard_dir") or box.data.get("run_dir")), now)
                    note.detail = f"${now.dph_total:.4f}/h" if told else "it knew"
                except TunewatchError as error:
                    # it meters by the old price until somebody looks at it; the laptop's own limit knows the new one
                    note.ok, note.detail = None, error.message
        deed.close("done", instance=row.id)
    return desk.result(ok=True, state="done", run=run or None, instance_id=row.id)


def request_of(desk: Desk, change: Change) -> Callable[[], None]:
    """The one call to the provider that a change is; it raises RefusedError when the GPU was let to somebody else."""
    row, increase, bid = change.row, change.increase, change.usd_per_h
    if increase is not None:
        return lambda: desk.provider.answer_increase(increase.id, accept=change.kind == "accept price")
    if bid is not None:
        return lambda: desk.provider.bid(row.id, bid)

    def start() -> None:
        try:
            desk.provider.start(row.id)
        except RejectedError as error:
            if error.error != "resources_unavailable":
                raise
            raise RefusedError(
                f"The GPU of instance {row.id} is let to somebody else; the provider starts the box when it is free.",
                hint="Its disk bills meanwhile. Go on elsewhere: tunewatch migrate; or end it: tunewatch kill.",
            ) from error

    return start


def tell_price(host: Transport, folder: str, row: Instance) -> bool:
    """Put the price of a box into its guard's limits when it changed; whether it had. Raises UnreachableError."""
    try:
        limits = read_object(host.read_from(f"{folder}/{CONFIG}", 0).data)
    except NotFoundError:
        return False
    known = (limits or {}).get("usd_per_h")
    if row.dph_total <= 0:
        return False  # a row without its price: told as it is, the guard would meter nothing
    if not isinstance(known, (int, float)) or limits is None or abs(known - row.dph_total) < 1e-6:
        return False
    limits |= {"usd_per_h": row.dph_total, "disk_usd_per_h": row.disk_usd_per_h}
    host.put(json.dumps(limits).encode(), f"{folder}/{CONFIG}", mode=0o600)
    return True
