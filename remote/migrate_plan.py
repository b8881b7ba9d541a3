"""M0: what is to be moved where, on which terms, and whether it pays; nothing outside is touched yet.

The terms are those the run was launched on, its order, limits and interpreter, with the new offer put in. A run whose
box is halted or lost is planned as well: then there is nothing to stay on, and no decision to make.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from remote.access import Opener, own_key, reach
from remote.decision import Decision, decide, instance_offer, market_offer
from remote.desk import Desk
from remote.kill import Victim, name_victim
from remote.launch import Launch, onstart
from remote.migrate_rehearse import history_of
from remote.move import DEAD, Request, launch_of
from remote.provider import Instance, MarketOffer, find
from remote.rent import Plan
from runner.errors import RefusedError
from runner.history import RunHistory
from runner.rundir import STATUS, Status, read_status

PRICE_SLACK = 1.05
"""The price may move by so much between the decision and the rental."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """Everything that is known before the question is asked."""

    request: Request
    decision: Decision | None
    """None when the old box trains nothing any more: moving is the only way on."""
    offer: MarketOffer
    old: str
    """The old box in words."""


def plan_move(
    desk: Desk, name: str, offer_id: int, open_pair: Opener, *, forced: bool = False, max_usd_per_h: float | None = None
) -> Proposal:
    """Propose to move the run of a rented box to an offer.

    Raises NotFoundError for a name or offer that is not there, RefusedError for a run that is over or was not launched
    by tunewatch, UnreachableError when the box is said to run and does not answer.
    """
    victim = name_victim(desk.journal, name)
    if any(deed.run == victim.run for deed in desk.journal.open_deeds("migrate")):
        raise RefusedError(
            f"A migration of {victim.run} is unfinished.",
            hint="Go on with it: tunewatch migrate RUN --resume. Or undo it: --abort.",
        )
    launch = launch_of(desk.journal, victim.instance_id)
    if victim.run_dir is None:
        raise RefusedError(
            f"Nothing was started on instance {victim.instance_id} yet.", hint="Finish its launch first."
        )
    row = find(desk.listing(), victim.instance_id)
    history, status = _look(desk, victim, row, open_pair)
    if status is not None and status.ended and status.rc in (0, 10, 12):
        raise RefusedError(f"{victim.run} is over ({status.reason}): there is nothing left to move.")
    disk = launch.plan.disk_gb
    offer = desk.patiently(lambda: desk.provider.offer(offer_id, disk_gb=disk), for_s=30.0)
    refuse_fewer_gpus(launch, offer)
    decision = None
    if row is not None and history is not None:
        decision = decide(history, instance_offer(row), market_offer(offer))
    _, public = own_key(desk.journal.home)
    cap = max_usd_per_h if max_usd_per_h is not None else offer.dph_total * PRICE_SLACK
    plan = Plan(
        victim.run, offer_id, disk, launch.plan.image, onstart(public), max_usd_per_h=cap,
        budget_usd=launch.plan.budget_usd, min_vram_mb=launch.plan.min_vram_mb,
        boot_deadline_s=launch.plan.boot_deadline_s,
    )  # fmt: skip
    request = Request(
        run=victim.run, old_id=victim.instance_id, old_dir=victim.run_dir, old_label=victim.label,
        launch=replace(launch, plan=plan), epoch=_next_epoch(desk, victim, status),
        decision=None if decision is None else decision.to_json(), forced=forced,
        max_steps=None if history is None else history.max_steps,
    )  # fmt: skip
    where = "gone" if row is None else f"{row.status}, {row.gpu_name}, ${row.dph_total:.4f}/h"
    return Proposal(request, decision, offer, f"instance {victim.instance_id} ({where})")


def refuse_fewer_gpus(launch: Launch, offer: MarketOffer) -> None:
    """Raise RefusedError for an offer that cannot hold the run's processes, one per GPU."""
    if launch.order.nproc > offer.num_gpus:
        raise RefusedError(
            f"The run trains in {launch.order.nproc} processes, one per GPU; offer {offer.id} has {offer.num_gpus}.",
            hint="Choose an offer with as many GPUs: fewer processes would be another batch size.",
        )


def refuse_if_it_does_not_pay(proposal: Proposal) -> None:
    """Raise RefusedError with the figures, unless it pays, was forced, or is the only way on."""
    decision = proposal.decision
    if decision is None or decision.pays or proposal.request.forced:
        return
    raise RefusedError(f"Moving does not pay. {decision.why}", hint="Add --force to move all the same.")


def _look(
    desk: Desk, victim: Victim, row: Instance | None, open_pair: Opener
) -> tuple[RunHistory | None, Status | None]:
    """History and status of the run, (None, None) when its box trains nothing any more."""
    if row is None or row.status in DEAD:
        return None, None
    host, _ = desk.patiently(lambda: reach(row, open_pair), for_s=30.0)
    run_dir = str(victim.run_dir)
    with host:
        status = read_status(host.read_from(f"{run_dir}/{STATUS}", 0, limit=1 << 16).data)
        history = history_of(host, run_dir)
    if status is not None and (status.ended and status.state == "crashed"):
        return None, status
    return history, status


def _next_epoch(desk: Desk, victim: Victim, status: Status | None) -> int:
    """Above every epoch this run ever had, by its own word and by the journal's."""
    box = desk.journal.box(victim.instance_id)
    known = [status.epoch if status is not None else 0, int(box.data.get("epoch") or 0) if box is not None else 0]
    known += [row.epoch for row in desk.journal.rows(instance=victim.instance_id)]
    return max(known) + 1
