"""Renting so that never two boxes come of one wish and never a box is unknown: what launch and migration share.

The order, each outside effect between two journal rows:

1. `check_offer`: the listing priced again for the true disk, the cap, the account's credit, the machine's record.
2. `create_box`: exactly one request, the label in its body. Whatever the answer, it is then known what exists, or the
   deed stays open with an intent that says what may exist.
3. `resolve`: after an answer that was lost, the label is looked for on the account. Never a second request.
4. `verify_row`: the box is the one that was quoted: GPU, memory, count, contract kind, price.
5. `wait_boot`: until it runs, with a deadline and the states that mean it never will.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from remote.desk import Desk, Note
from remote.journal import Deed
from remote.provider import (
    AmbiguousError,
    AuthError,
    CreditError,
    Instance,
    MarketOffer,
    OfferGoneError,
    Order,
    RateLimitedError,
    RejectedError,
    find,
    upper,
)
from runner.errors import ProviderError, RefusedError, TunewatchError, UnconfirmedError, UnreachableError

LOOKUPS_S = (0.0, 5.0, 15.0, 30.0, 60.0, 120.0, 240.0)
"""When the label of a lost answer is looked for: a new box was seen to appear minutes late."""
BOOT_POLLS_S = (0.5, 0.5, 1.0, 1.0, 2.0, 2.0, 3.0, 5.0)
"""Waits between two looks while booting; the last one repeats."""
GRACE_S = 60.0
"""How long "wanted running, is exited" may last: a restart shows the same."""
BUDGET_HEADROOM_H = 0.5
"""Credit has to pay for at least so many hours, or the provider stops the box under the run."""


class BootError(ProviderError):
    """The box was rented and will not run."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be rented, on which terms."""

    run: str
    offer_id: int
    disk_gb: float
    image: str
    onstart: str
    max_usd_per_h: float | None = None
    """Cap on the price with its disk; None accepts the price of the first look."""
    bid_usd_per_h: float | None = None
    """Set for an interruptible contract: the GPU part that is bid."""
    budget_usd: float | None = None
    needed_h: float | None = None
    """Hours the box has to stand, pessimistic; None when nobody knows."""
    min_vram_mb: float = 0.0
    boot_deadline_s: float = 25 * 60.0

    @property
    def spot(self) -> bool:
        """Whether the contract is interruptible."""
        return self.bid_usd_per_h is not None


def check_offer(desk: Desk, plan: Plan) -> MarketOffer:
    """Price the offer again for the true disk; raises OfferGoneError, RefusedError or CreditError."""
    offer = desk.patiently(lambda: desk.provider.offer(plan.offer_id, disk_gb=plan.disk_gb, spot=plan.spot), for_s=30.0)
    price = offer.dph_total
    if plan.bid_usd_per_h is not None:
        if offer.min_bid is not None and plan.bid_usd_per_h < offer.min_bid:
            raise RefusedError(
                f"The bid of ${plan.bid_usd_per_h:.4f}/h is below the least bid of ${offer.min_bid:.4f}/h.",
                hint="A bid below it creates a stopped box that bills for its disk.",
            )
        price = plan.bid_usd_per_h + (offer.dph_total - offer.dph_base)
    if plan.max_usd_per_h is not None and price > plan.max_usd_per_h + 1e-9:
        raise RefusedError(
            f"Offer {offer.id} costs ${price:.4f}/h with {plan.disk_gb:g} GB of disk, over the cap of "
            f"${plan.max_usd_per_h:.4f}/h.",
            hint="Raise --max-price or choose another offer.",
        )
    reason = desk.journal.excluded().get(offer.machine_id) if offer.machine_id else None
    if reason is not None:
        raise RefusedError(
            f"Machine {offer.machine_id} of offer {offer.id} failed before: {reason}",
            hint="Choose another offer; the machine is offered again after seven days.",
        )
    if offer.gpu_ram_mb < plan.min_vram_mb:
        raise RefusedError(f"Offer {offer.id} has {offer.gpu_ram_mb:g} MB per GPU, {plan.min_vram_mb:g} are needed.")
    if plan.needed_h is not None and offer.duration_s is not None and offer.duration_s < plan.needed_h * 3600:
        raise RefusedError(
            f"Offer {offer.id} stands for {offer.duration_s / 3600:.1f} h, the run may need {plan.needed_h:.1f} h.",
            hint="Choose an offer that lasts, or give --deadline.",
        )
    try:
        credit = desk.patiently(desk.provider.account, for_s=30.0, again_on=(UnreachableError,)).credit_usd
    except RejectedError:
        credit = None  # a key that may not see the account's money may still rent; the provider checks it anyway
    needed = min(plan.budget_usd, price * 24) if plan.budget_usd is not None else price * BUDGET_HEADROOM_H
    if credit is not None and credit < needed:
        raise CreditError(
            f"The account holds ${credit:.2f}, this needs ${needed:.2f}.",
            hint="At zero the provider stops every box. Add credit or lower --budget.",
        )
    return offer


def create_box(desk: Desk, deed: Deed, plan: Plan, offer: MarketOffer, label: str) -> int:
    """Rent by one request and return the id, or raise with nothing left behind but what the journal says.

    UnconfirmedError: it could not be found out whether a box exists; the deed must stay open.
    """
    deed.intent(
        "create", label=label, offer_id=offer.id, machine_id=offer.machine_id, disk_gb=plan.disk_gb,
        price=offer.dph_total, bid=plan.bid_usd_per_h, image=plan.image, gpu_name=offer.gpu_name,
    )  # fmt: skip
    order = Order(offer.id, label, plan.image, plan.disk_gb, plan.onstart, plan.bid_usd_per_h)
    try:
        instance_id = desk.provider.create(order)
    except AmbiguousError as error:
        deed.failed("create", answer="lost", why=error.message)
        found = resolve(desk, deed, label)
        if found is None:
            raise UnconfirmedError(
                f"{error.message} No box with its label has shown within {LOOKUPS_S[-1]:g} s.",
                hint="Nothing was tried again. Later: tunewatch reconcile.",
            ) from error
        return found
    except RejectedError as error:
        if error.new_contract is not None:
            _adopt_id(deed, error.new_contract, label, offer, plan, state="unconfirmed")
            raise
        _refused(desk, deed, label, error.message)
        raise
    except (OfferGoneError, CreditError, AuthError, RateLimitedError) as error:
        _refused(desk, deed, label, error.message)
        raise
    _adopt_id(deed, instance_id, label, offer, plan)
    return instance_id


def _refused(desk: Desk, deed: Deed, label: str, why: str) -> None:
    """A refusal is believed only after the account was looked at: refused calls were seen to leave a box behind."""
    deed.failed("create", answer="refused", why=why)
    found = [row for row in desk.listing(for_s=30.0) if row.label == label]
    if found:
        deed.done("create", instance=found[0].id, box={"label": label, "state": "unconfirmed"}, instance_id=found[0].id)


def _adopt_id(
    deed: Deed, instance_id: int, label: str, offer: MarketOffer, plan: Plan, *, state: str = "booting"
) -> None:
    deed.done(
        "create",
        instance=instance_id,
        instance_id=instance_id,
        box={
            "label": label,
            "state": state,
            "called": f"host {offer.own}" if offer.own else "",
            "offer_id": offer.id,
            "machine_id": offer.machine_id,
            "gpu_name": offer.gpu_name,
            "dph_total": offer.dph_total,
            "disk_gb": plan.disk_gb,
            "storage_cost": offer.storage_cost,
            "inet_up_cost": offer.inet_up_cost,
            "inet_down_cost": offer.inet_down_cost,
            "image": plan.image,
            "bid": plan.bid_usd_per_h,
            "budget_usd": plan.budget_usd,
        },
    )


def resolve(desk: Desk, deed: Deed, label: str, *, lookups: tuple[float, ...] = LOOKUPS_S) -> int | None:
    """Find out by label whether the lost rental made a box; only successful listings count.

    Returns its id, journalled, or None when it did not show. More than one box of a label cannot come of one request;
    should it be seen, the first is taken and the rest are left for reconcile as orphans.
    """
    begun = desk.mono()
    for at in lookups:
        if desk.mono() - begun < at:
            desk.sleep(at - (desk.mono() - begun))
        try:
            rows = desk.listing(for_s=20.0)
        except TunewatchError:
            continue
        for row in rows:
            if row.label == label:
                deed.done(
                    "create", instance=row.id, instance_id=row.id,
                    box={"label": label, "state": "booting", "machine_id": row.machine_id, "gpu_name": row.gpu_name,
                         "dph_total": row.dph_total, "inet_up_cost": row.inet_up_cost,
                         "inet_down_cost": row.inet_down_cost, "called": row.called if row.own else ""},
                )  # fmt: skip
                return row.id
    return None


def verify_row(desk: Desk, deed: Deed, instance_id: int, plan: Plan, offer: MarketOffer | None) -> Instance:
    """The rented box is the quoted one; raises BootError naming the difference, or when it never shows."""
    row = _wait_visible(desk, instance_id)
    wrong = []
    if offer is not None:
        if row.gpu_name and row.gpu_name != offer.gpu_name:
            wrong.append(f"GPU {row.gpu_name} instead of {offer.gpu_name}")
        if row.num_gpus != offer.num_gpus:
            wrong.append(f"{row.num_gpus} GPUs instead of {offer.num_gpus}")
        if row.gpu_ram_mb and row.gpu_ram_mb < offer.gpu_ram_mb * 0.98:
            wrong.append(f"{row.gpu_ram_mb:g} MB per GPU instead of {offer.gpu_ram_mb:g}")
        allowed = plan.max_usd_per_h if plan.max_usd_per_h is not None else offer.dph_total * 1.02
        if not plan.spot and row.dph_total > allowed + 1e-6:
            wrong.append(f"${row.dph_total:.4f}/h instead of ${allowed:.4f}/h at most")
    if row.spot != plan.spot:
        wrong.append(
            "an interruptible contract" if row.spot else "an on-demand contract instead of an interruptible one"
        )
    if wrong:
        raise BootError(f"{upper(row.called)} is not what was quoted: {', '.join(wrong)}.")
    if row.dph_total <= 0 and offer is not None and not row.own:
        # a row that does not tell its price yet: nothing may be metered at nothing
        row = replace(row, dph_total=offer.dph_total, disk_usd_per_h=offer.dph_total - offer.dph_base)
    deed.done("verify", instance=instance_id, box={"dph_total": row.dph_total, "start_date": row.start_date})
    return row


def _wait_visible(desk: Desk, instance_id: int, for_s: float = 240.0) -> Instance:
    until = desk.mono() + for_s
    while True:
        row = find(desk.listing(), instance_id)
        if row is not None:
            return row
        if desk.mono() > until:
            raise BootError(f"Instance {instance_id} was rented and does not show after {for_s:g} s.")
        desk.sleep(3.0)


def wait_boot(desk: Desk, deed: Deed, instance_id: int, plan: Plan, note: Note) -> Instance:
    """Wait until it runs; raises BootError with the reason when it cannot, or at the deadline."""
    begun = desk.mono()
    waits = iter(BOOT_POLLS_S)
    wait = BOOT_POLLS_S[0]
    exited_at: float | None = None
    restarted = False
    while True:
        row = find(desk.listing(for_s=120.0), instance_id)
        age = desk.mono() - begun
        if row is not None:
            note.say(f"{row.status_word or row.status} since {age:.0f} s{': ' + row.message if row.message else ''}")
            if row.status == "running" and row.intended in ("", "running") and row.ssh:
                return row
            failure = row.boot_failure()
            if failure and row.halted and not row.message and not restarted:
                # a race between create and schedule was seen to leave a box wanting to stop; one start mends it
                restarted = True
                deed.intent("restart", instance=instance_id)
                _try(lambda: desk.provider.start(instance_id))
            elif failure:
                raise BootError(f"Instance {instance_id} does not start: {failure}.")
            if row.status in ("exited", "stopped"):
                exited_at = exited_at if exited_at is not None else desk.mono()
                if desk.mono() - exited_at > GRACE_S:
                    raise BootError(f"Instance {instance_id} exited while starting. {row.message}".rstrip())
            else:
                exited_at = None
        if age > plan.boot_deadline_s:
            word = row.status if row is not None else "not listed"
            raise BootError(f"Instance {instance_id} is still {word} after {age / 60:.0f} min.")
        wait = next(waits, wait)
        desk.sleep(wait)


def _try(call: Callable[[], None]) -> bool:
    try:
        call()
    except TunewatchError:
        return False
    return True
