"""The scenario mode: the table people make by hand before they trust a forecast.

    wall_h = setup_h + steps / (rate * speed * f) / 3600        cost = dph * wall_h

with one factor f on the rate for each of optimistic, base and pessimistic. With f = 1.2 / 1.0 / 0.6 it gives the
figures of the study that this project began with, all 18 to the cent; they are the golden test. It knows no auto-stop:
every run goes to the horizon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from estimator.offer import Offer


@dataclass(frozen=True, slots=True)
class Q3:
    """Optimistic, base and pessimistic value of one quantity; in forecast mode P10, P50 and P90."""

    opt: float
    base: float
    pess: float

    def to_json(self) -> dict[str, float]:
        """Unrounded."""
        return {"opt": self.opt, "base": self.base, "pess": self.pess}

    def times(self, factor: float) -> Q3:
        """Each value times a factor of 0 or more."""
        return Q3(self.opt * factor, self.base * factor, self.pess * factor)


SEED_FACTORS = Q3(1.2, 1.0, 0.6)
"""On the rate: 20 % faster, as measured, 40 % slower."""

FOREIGN_SETUP_H = 0.75
"""Hours until the first step on a box about which nothing is said: the middle one of the study's three."""


@dataclass(frozen=True, slots=True)
class ScenarioRow:
    """One offer in the scenario table."""

    offer: Offer
    hours: Q3
    usd: Q3
    speed: float
    setup_h: float


def project_scenarios(
    steps: float,
    rate: float,
    offers: Sequence[Offer],
    factors: Q3 = SEED_FACTORS,
) -> list[ScenarioRow]:
    """Hours and USD per offer for `steps` steps at `rate` steps/s on the box of speed 1.

    An offer without `speed` counts as 1, without `setup_h` as 0.75 h. Nothing is rounded: the golden figures are
    half-up roundings of these values. Raises ValueError for steps below 0 or a rate that is not above 0.
    """
    if not (math.isfinite(steps) and steps >= 0):
        raise ValueError(f"steps has to be 0 or more, not {steps!r}")
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"rate has to be above 0 steps per second, not {rate!r}")
    return [scenario_row(steps, rate, offer, factors) for offer in offers]


def scenario_row(
    steps: float, rate: float, offer: Offer, factors: Q3 = SEED_FACTORS, *, setup_h: float | None = None
) -> ScenarioRow:
    """One row; `setup_h` overrides the offer's own (0 for the box that is already running)."""
    speed = 1.0 if offer.speed is None else offer.speed
    setup = setup_h if setup_h is not None else FOREIGN_SETUP_H if offer.setup_h is None else offer.setup_h
    hours = Q3(*(setup + steps / (rate * speed * f) / 3600 for f in (factors.opt, factors.base, factors.pess)))
    return ScenarioRow(offer, hours, hours.times(offer.dph), speed, setup)
