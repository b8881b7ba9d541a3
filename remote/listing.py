"""What can be rented now and what a run would take and cost on each: one reading for the command and for the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from remote.provider import MarketOffer, Wanted

if TYPE_CHECKING:
    from estimator.offer import Offer
    from remote.desk import Desk
    from remote.forecast import RunForecast
    from runner.autostop import StopRule
    from runner.history import RunHistory
    from runner.recipe import Recipe

SEED_RATE = 0.349
"""Steps/s, evals included, measured for stage 5 on an A100 SXM4 40 GB; the start of a quote before there is a run."""
SEED_GPU = ("A100 SXM4", 40.0)


@dataclass(frozen=True, slots=True)
class Listing:
    """The market at one moment."""

    offers: tuple[MarketOffer, ...]
    """Machines of one's own first, then the market's without those on which a launch failed."""
    setup: Mapping[int, float] = field(default_factory=dict)
    """Hours that a machine took before, by machine id."""
    own: frozenset[str] = frozenset()
    """Names of the machines of one's own, `host:NAME`."""


def read_market(desk: Desk, wanted: Wanted) -> Listing:
    """Ask once. Raises what `Provider.search` raises, and UsageError for a hosts file that cannot be read."""
    from remote.setup_times import setup_hours

    found = desk.provider.search(wanted)
    failed = desk.journal.excluded()
    own = [offer for offer in found if offer.own]
    return Listing(
        (*own, *(offer for offer in found if not offer.own and offer.machine_id not in failed)),
        setup_hours(desk.journal.phases()),
        frozenset(offer.as_typed for offer in own),
    )


def as_offers(offers: Sequence[MarketOffer], setup: Mapping[int, float]) -> list[Offer]:
    """The listings as the estimator reads them."""
    from estimator.offer import Offer

    return [Offer.from_row({**offer.row, "setup_h": setup.get(offer.machine_id)}) for offer in offers]


def quote_offers(
    offers: Sequence[Offer],
    recipe: Recipe,
    disk: float,
    history: RunHistory | None,
    *,
    rule: StopRule | None = None,
    dph: float | None = None,
    rate: float | None = None,
    budget: float | None = None,
    deadline_h: float | None = None,
) -> RunForecast:
    """Forecast `history` on each offer, or a new run of the recipe when there is none.

    `disk` is GB, `rate` steps/s, `dph` USD/h of the present box, `budget` USD and `deadline_h` hours, both from now.
    """
    from estimator.offer import Offer
    from remote.forecast import forecast_run
    from remote.sizing import workload
    from runner.history import RunHistory

    here = None
    if history is None:
        history = RunHistory(max_steps=recipe.train.max_steps, step=0, rule=recipe.stop_rule)
        rate = rate or SEED_RATE
        here = Offer(id="reference", gpu=SEED_GPU[0], dph=0.0, gpu_ram_gib=SEED_GPU[1], speed=1.0, setup_h=0.0)
    return forecast_run(
        history, rule, offers, here=here, dph=dph, budget=budget, deadline_h=deadline_h, rate=rate,
        workload=workload(recipe, disk),
    )  # fmt: skip
