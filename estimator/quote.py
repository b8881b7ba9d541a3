"""What finishing the run costs on each offer, and when it would be done there.

Every sample of the stop step, of the rate and of the offer's speed is one possible future; hours and USD of an offer
are worked out in each of them, and P10 / P50 / P90 are shown as optimistic, base and pessimistic. The same random
numbers serve all offers, so a difference between two rows is a difference of the boxes.

Money follows the provider's rules: GPU time per second, disk from creation to destruction (inside `dph_total` when
the search asked for it), traffic per GB. The box the run is already on has its setup behind it: `stay` is a row with
the sunk cost taken out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from estimator.offer import Offer
from estimator.plateau import StopForecast
from estimator.scenario import FOREIGN_SETUP_H, Q3, SEED_FACTORS, ScenarioRow, project_scenarios, scenario_row
from estimator.simulate import Floats
from estimator.throughput import Throughput

__all__ = ["Q3", "SEED_FACTORS", "Comparison", "Offer", "Quote", "ScenarioRow", "compare", "project_scenarios"]


@dataclass(frozen=True, slots=True)
class Quote:
    """One row of the comparison."""

    offer_id: str
    gpu: str
    dph: float
    hours: Q3
    """From now on, setup included."""
    usd: Q3
    fits: str
    """fits, tight, no or unknown."""
    speed: float
    """Relative to the box the run is on."""
    speed_sd: float
    """Log sd of the speed."""
    setup_h: float
    notes: tuple[str, ...] = ()
    p_under_budget: float | None = None
    p_before_deadline: float | None = None
    regret_usd: float = 0.0
    """P50 above the cheapest P50 of the table."""
    regret_h: float = 0.0
    pareto: bool = True
    """No other row is both cheaper and sooner."""
    lines: dict[str, float] = field(default_factory=dict)
    """USD at P50 by kind: gpu, disk, traffic."""

    def to_json(self) -> dict[str, Any]:
        """One entry of `quotes` in `estimate --json`."""
        return {
            "offer_id": self.offer_id,
            "gpu": self.gpu,
            "dph": self.dph,
            "hours": self.hours.to_json(),
            "usd": self.usd.to_json(),
            "fits": self.fits,
            "speed": self.speed,
            "speed_sd": self.speed_sd,
            "setup_h": self.setup_h,
            "notes": list(self.notes),
            "p_under_budget": self.p_under_budget,
            "p_before_deadline": self.p_before_deadline,
            "regret_usd": self.regret_usd,
            "regret_h": self.regret_h,
            "pareto": self.pareto,
            "lines": self.lines,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """All rows, cheapest P50 first, and the row of staying."""

    quotes: tuple[Quote, ...]
    stay: Quote | None


def scenario_quotes(steps: float, rate: float, offers: Sequence[Offer], *, here: Offer | None = None) -> Comparison:
    """The scenario table as quotes; with `here` the box of that offer stays without setup."""
    rows = [_from_scenario(row) for row in project_scenarios(steps, rate, offers)]
    stay = None if here is None else _from_scenario(scenario_row(steps, rate, here, setup_h=0.0), stay=True)
    return Comparison(tuple(rows), stay)


def _from_scenario(row: ScenarioRow, *, stay: bool = False) -> Quote:
    notes = ["sunk setup removed"] if stay else []
    if row.offer.speed is None:
        notes.append("speed not given: counted as 1")
    if row.offer.setup_h is None and not stay:
        notes.append(f"setup not given: counted as {FOREIGN_SETUP_H:g} h")
    return Quote(
        offer_id=row.offer.id,
        gpu=row.offer.gpu,
        dph=row.offer.dph,
        hours=row.hours,
        usd=row.usd,
        fits="unknown",
        speed=row.speed,
        speed_sd=0.0,
        setup_h=row.setup_h,
        notes=tuple(notes),
    )


def compare(
    offers: Sequence[Offer],
    forecast: StopForecast,
    thr: Throughput,
    rng: np.random.Generator,
    *,
    step: int,
    here: Offer | None = None,
    budget: float | None = None,
    deadline_h: float | None = None,
) -> Comparison:
    """Quote every offer over the samples of the forecast, from `step` on.

    `here` is the box the run is on. `budget` in USD and `deadline_h` in hours count from now.
    """
    left = np.maximum(forecast.samples - step, 0) / thr.effective_sps / 3600
    rate_z, speed_z = rng.standard_normal((2, len(left)))
    left = left * np.exp(thr.log_sd * rate_z)
    rows = [_quote(o, left, speed_z, budget, deadline_h, stay=False) for o in offers]
    stay = None if here is None else _quote(here, left, speed_z, budget, deadline_h, stay=True)
    return Comparison(tuple(rows), stay)


def _quote(
    offer: Offer, left: Floats, speed_z: Floats, budget: float | None, deadline_h: float | None, *, stay: bool
) -> Quote:
    speed, sd, notes = 1.0, 0.0, []
    setup = 0.0
    if stay:
        notes.append("sunk setup removed")
    else:
        setup = FOREIGN_SETUP_H if offer.setup_h is None else offer.setup_h
        if offer.speed is None:
            sd = 0.3
            notes.append("speed unknown: counted as 1 with a wide spread")
        else:
            speed, sd = offer.speed, 0.05
    hours = setup + left / speed * np.exp(-sd * speed_z)
    usd = hours * offer.dph
    return Quote(
        offer_id=offer.id,
        gpu=offer.gpu,
        dph=offer.dph,
        hours=Q3(*(float(q) for q in np.quantile(hours, (0.1, 0.5, 0.9)))),
        usd=Q3(*(float(q) for q in np.quantile(usd, (0.1, 0.5, 0.9)))),
        fits="unknown",
        speed=speed,
        speed_sd=sd,
        setup_h=setup,
        notes=tuple(notes),
        p_under_budget=None if budget is None else float(np.mean(usd <= budget)),
        p_before_deadline=None if deadline_h is None else float(np.mean(hours <= deadline_h)),
    )
