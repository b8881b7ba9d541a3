"""Recovery: a run whose box was lost goes on elsewhere from its newest whole checkpoint, without anybody being asked.

It is a migration like any other (`remote.migrate`), with its journal, its one trainer and its proof at the end; only
who asked for it differs. `remote.recovery_policy` says whether it may be begun. Each one is counted in the journal
before anything is rented, so neither a crash nor a laptop that starts anew goes beyond the number that was allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from remote.access import Opener
from remote.decision import market_offer
from remote.deeds import DeedResult
from remote.desk import Desk
from remote.destroy import GAP_S
from remote.forecast import forecast_run
from remote.journal import DeedRecord, Journal
from remote.kill import name_victim
from remote.launch import Launch, choose_image
from remote.migrate import migrate, open_migration, resume_migration
from remote.migrate_plan import plan_move
from remote.move import launch_of
from remote.provider import Instance, MarketOffer, OfferGoneError, RejectedError, Wanted, find
from remote.recovery_policy import Loss, Policy, losses, mirror_of, policy_of, spent, used, why_not
from remote.rent import BootError
from remote.settings import load_settings
from runner.errors import RefusedError, UnreachableError
from runner.history import RunHistory
from runner.metrics import MetricsReader
from runner.rundir import METRICS

TRIES = 3
"""Offers that are tried one after the other when the best was let to somebody else in this moment."""


@dataclass(frozen=True, slots=True)
class Choice:
    """An offer that would be taken."""

    offer: MarketOffer
    usd: float | None
    """What it is expected to cost to the end of the run; None where nobody can say."""
    hours: float | None


@dataclass(frozen=True, slots=True)
class Explained:
    """What the policy says about a run at this moment; nothing was done."""

    run: str
    policy: Policy
    used: int
    spent_usd: float
    loss: Loss | None
    why_not: str
    """Why nothing is done; empty when a recovery would begin."""
    choices: tuple[Choice, ...] = ()

    def lines(self) -> list[str]:
        """For people."""
        said = [self.policy.in_words()]
        if self.policy.on:
            said.append(f"{self.used} of {self.policy.most} used; the run has cost ${self.spent_usd:.2f} so far.")
        said.append(self.loss.text if self.loss is not None else "Its box is not lost.")
        if self.why_not:
            said.append(self.why_not)
        elif self.choices:
            best = self.choices[0]
            cost = "" if best.usd is None else f", about ${best.usd:.2f} and {best.hours or 0.0:.1f} h to the end"
            said.append(
                f"It would go on on offer {best.offer.id} ({best.offer.num_gpus}x {best.offer.gpu_name}, "
                f"${best.offer.dph_total:.4f}/h{cost}), from its newest whole checkpoint."
            )
        return said

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        loss = self.loss
        return {
            "run": self.run, "on": self.policy.on, "most": self.policy.most, "used": self.used,
            "usd_per_h": self.policy.usd_per_h, "usd_total": self.policy.usd_total, "after_s": self.policy.after_s,
            "spent_usd": self.spent_usd, "why_not": self.why_not,
            "loss": None if loss is None else {"cause": loss.cause, "instance": loss.instance, "text": loss.text},
            "offers": [{"id": c.offer.id, "dph": c.offer.dph_total, "usd": c.usd} for c in self.choices],
        }  # fmt: skip


def due(journal: Journal, found: list[Loss], now: float) -> list[Loss]:
    """Losses that the policies allow to be made good, and recoveries that were begun and left; asks nobody."""
    settings = load_settings(journal.home)
    wanted = []
    for record in journal.open_deeds("migrate"):
        if _cut(journal, record.run) is not None and policy_of(journal, record.run, settings).on:
            old = int(record.data["old_instance_id"])
            cause = record.data["request"]["recovery"]["cause"]
            wanted.append(Loss(record.run, old, cause, f"The recovery of {record.run} was cut.", record.opened))
    for loss in found:
        policy = policy_of(journal, loss.run, settings)
        lasted = loss.cause == "ending" or now - loss.since >= policy.after_s
        if lasted and not why_not(journal, loss, policy, now):
            wanted.append(loss)
    return wanted


def explain(desk: Desk, name: str) -> Explained:
    """What would be done about a run now. Raises NotFoundError for a run without a box, and the provider's errors."""
    journal, now = desk.journal, desk.clock()
    run = name_victim(journal, name).run
    policy = policy_of(journal, run, load_settings(journal.home))
    rows = desk.listing()
    # a person who asks looks at one listing; who does it by itself has proved an absence before
    listed = {row.id for row in rows}
    missing = {box.instance for box in journal.boxes() if box.instance not in listed}
    if _cut(journal, run) is not None:
        cut = (run, policy, used(journal, run), spent(journal, run, now), None)
        return Explained(*cut, why_not="Its recovery was begun and cut: that one is gone on with.")
    loss = next((found for found in losses(journal, rows, now, gone=missing) if found.run == run), None)
    known = (run, policy, used(journal, run), spent(journal, run, now), loss)
    if loss is None:
        return Explained(*known, why_not="There is nothing to recover.")
    reason = why_not(journal, loss, policy, now)
    if not reason and loss.cause != "ending" and now - loss.since < policy.after_s:
        reason = f"It has been lost for {now - loss.since:.0f} s; it is waited for {policy.after_s:.0f} s."
    if not reason and _is_empty(desk):
        reason = "The account is empty: that is why its box was stopped."
    if reason:
        return Explained(*known, why_not=reason)
    found = choices(desk, loss, policy, find(rows, loss.instance))
    return Explained(*known, why_not="" if found else _none(policy), choices=tuple(found))


def recover(
    desk: Desk, name: str, open_pair: Opener, environment: Mapping[str, str] | None = None, **changes: Any
) -> DeedResult:
    """Do it, or go on with one that was cut. Raises RefusedError with the reason when it is not to be done, and what a
    migration raises. `changes` are fields of the migration's request.
    """
    run = name_victim(desk.journal, name).run
    cut = _cut(desk.journal, run)
    if cut is not None:
        return resume_migration(desk, cut.id, open_pair, environment)
    with desk.step("what is lost") as note:
        plan = explain(desk, run)
        note.detail = plan.loss.text if plan.loss is not None else ""
    if plan.loss is None or plan.why_not:
        raise RefusedError(f"{run} is not recovered. {plan.why_not}", hint=plan.policy.in_words())
    if plan.loss.cause == "gone":
        # one listing without it proves nothing
        desk.sleep(GAP_S)
        if find(desk.listing(), plan.loss.instance) is not None:
            raise RefusedError(f"{run} is not recovered. Instance {plan.loss.instance} is listed again.")
    return _recover(desk, plan, plan.loss, open_pair, environment, changes)


def _recover(
    desk: Desk, plan: Explained, loss: Loss, open_pair: Opener, environment: Mapping[str, str] | None,
    changes: Mapping[str, Any],
) -> DeedResult:  # fmt: skip
    number = plan.used + 1
    recovery = {"cause": loss.cause, "number": number, "most": plan.policy.most}
    desk.journal.put_box(loss.instance, recoveries=number)
    desk.journal.note("recovery", run=loss.run, instance=loss.instance, why=loss.text, **recovery)
    gone: OfferGoneError | None = None
    for choice in plan.choices[:TRIES]:
        proposal = plan_move(
            desk, loss.run, choice.offer.id, open_pair, forced=True, max_usd_per_h=plan.policy.usd_per_h
        )
        request = replace(proposal.request, recovery=recovery, **changes)
        try:
            return migrate(desk, request, open_pair, environment)
        except OfferGoneError as error:
            gone = error
    raise gone or RefusedError(f"{loss.run} is not recovered. {_none(plan.policy)}")


def choices(desk: Desk, loss: Loss, policy: Policy, row: Instance | None) -> list[Choice]:
    """Offers on which the run fits, under both caps, the one that is expected to end it cheapest first.

    The lost box's own machine and machines that failed before are left out; interruptible ones are not taken.
    """
    journal, box = desk.journal, desk.journal.box(loss.instance)
    launch = launch_of(journal, loss.instance)
    excluded = journal.excluded()
    same = box.data.get("machine_id") if box is not None else None
    wanted = Wanted(
        gpu=_same_gpu(launch, row, str(box.data.get("gpu_name") or "") if box is not None else ""),
        max_price=policy.usd_per_h, disk_gb=launch.plan.disk_gb, num_gpus=row.num_gpus if row is not None else None,
    )  # fmt: skip
    least_mb = launch.plan.min_vram_mb or (row.gpu_ram_mb if row is not None else 0.0)
    market = desk.patiently(lambda: desk.provider.search(wanted), for_s=60.0)
    fitting = [
        offer
        for offer in market
        if offer.rentable and not offer.spot and offer.dph_total <= policy.usd_per_h and offer.gpu_ram_mb >= least_mb
        and offer.machine_id not in excluded and (not same or offer.machine_id != same)
        and offer.num_gpus >= launch.order.nproc and _has_an_image(offer, launch)
    ]  # fmt: skip
    priced = _priced(history_of_mirror(desk, loss), fitting)
    left = policy.usd_total - spent(journal, loss.run, desk.clock())
    if launch.plan.budget_usd is not None:
        left = min(left, launch.plan.budget_usd - spent(journal, loss.run, desk.clock()))
    affordable = [choice for choice in priced if choice.usd is None or choice.usd <= left]
    return sorted(affordable, key=lambda c: (c.usd if c.usd is not None else float("inf"), c.offer.dph_total))


def history_of_mirror(desk: Desk, loss: Loss) -> RunHistory:
    """What this laptop saw of the run."""
    box = desk.journal.box(loss.instance)
    reader = MetricsReader()
    if box is not None:
        try:
            reader.feed((mirror_of(desk.journal.home, loss.instance, str(box.data["run_dir"])) / METRICS).read_bytes())
        except OSError:
            return RunHistory()
    return reader.history()


def _priced(history: RunHistory, offers: list[MarketOffer]) -> list[Choice]:
    """Each offer with its quote; without one where the run never said how fast it goes or how long it is planned."""
    quotes = {q.offer_id: q for q in forecast_run(history, None, [market_offer(offer) for offer in offers]).quotes}
    found = []
    for offer in offers:
        quote = quotes.get(str(offer.id))
        if quote is not None and quote.fits == "no":
            continue
        found.append(Choice(offer, quote.usd.base if quote else None, quote.hours.base if quote else None))
    return found


def _same_gpu(launch: Launch, row: Instance | None, known: str) -> str | None:
    """Where neither the recipe nor the provider says how much memory the run needs, only the GPU it ran on will do."""
    if launch.plan.min_vram_mb or (row is not None and row.gpu_ram_mb):
        return None
    return known or None


def _has_an_image(offer: MarketOffer, launch: Launch) -> bool:
    """Whether the host's driver is new enough for some image."""
    try:
        return bool(choose_image(offer, launch.plan.image))
    except BootError:
        return False


def _is_empty(desk: Desk) -> bool:
    """Whether the account has nothing left to spend; a key that may not see that says no."""
    try:
        credit = desk.patiently(desk.provider.account, for_s=30.0, again_on=(UnreachableError,)).credit_usd
    except RejectedError:
        return False
    return credit is not None and credit <= 0


def _none(policy: Policy) -> str:
    return (
        f"No offer fits it at up to ${policy.usd_per_h:.4f}/h (settings: recover.price) within ${policy.usd_total:.2f}."
    )


def _cut(journal: Journal, run: str) -> DeedRecord | None:
    """The recovery of a run that was begun and left by its process."""
    record = open_migration(journal, run)
    if record is None or journal.under_way(record.id) or not (record.data.get("request") or {}).get("recovery"):
        return None
    return record
