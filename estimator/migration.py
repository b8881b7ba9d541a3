"""Does it pay to move the run to another box?

With H hours left on the present box (price p0), a target of price pj and speed v, D hours of setup, L hours of work
that the last checkpoint does not hold, O hours of both boxes running and B USD of traffic, moving saves money when

    H * (p0 - pj / v)  >  D * pj + O * p0 + L * pj / v + B

and time when H * (1 - 1 / v) > D + L / v - O. H is not a number but a distribution, for the run will probably stop by
itself: the answer is a probability and an expectation over the stop samples, with the break-even H beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from estimator.offer import Offer
from estimator.plateau import StopForecast
from estimator.quote import SAMPLES, Plan
from estimator.scenario import Q3
from estimator.speed import SpeedRatio, relative_speed
from estimator.throughput import Throughput
from estimator.workload import SETUP_LOG_SD, hourly_rates, setup_phases, traffic_usd

OVERLAP_H = 0.0
"""Hours both boxes are billed while neither is ahead. While the new one sets up the old one goes on training, so by
default nothing is lost; a caller that pauses the old run during the move says how long."""
WORTH_IT = 0.6
"""A move is called worth it when it saves in expectation and with at least this probability."""


@dataclass(frozen=True, slots=True)
class Migration:
    """The answer for one target."""

    offer_id: str
    break_even_h: float
    """Hours left on the present box from which on moving saves money; infinite when it never does."""
    break_even_time_h: float
    """The same for time."""
    remaining_h: Q3
    """Hours left on the present box."""
    p_saves: float
    """Probability that moving costs less than staying."""
    p_sooner: float
    """Probability that moving ends sooner."""
    saves_usd: Q3
    """USD saved by moving, from bad to good: P10, P50, P90. Negative is a loss."""
    mean_saves_usd: float
    mean_saves_h: float
    speed: SpeedRatio
    setup_h: float
    lost_h: float
    """Hours of work since the last durable checkpoint, done again."""
    worth_money: bool
    worth_time: bool
    why: str
    """One sentence."""

    def to_json(self) -> dict[str, Any]:
        """For `migrate --json` and the screens; an infinite break-even is null."""
        return {
            "offer_id": self.offer_id,
            "break_even_h": self.break_even_h if math.isfinite(self.break_even_h) else None,
            "break_even_time_h": self.break_even_time_h if math.isfinite(self.break_even_time_h) else None,
            "remaining_h": self.remaining_h.to_json(),
            "p_saves": self.p_saves,
            "p_sooner": self.p_sooner,
            "saves_usd": {"p10": self.saves_usd.opt, "p50": self.saves_usd.base, "p90": self.saves_usd.pess},
            "mean_saves_usd": self.mean_saves_usd,
            "mean_saves_h": self.mean_saves_h,
            "speed": self.speed.mean,
            "speed_sd": self.speed.log_sd,
            "setup_h": self.setup_h,
            "lost_h": self.lost_h,
            "worth_money": self.worth_money,
            "worth_time": self.worth_time,
            "why": self.why,
        }


def break_even_hours(
    p0: float,
    pj: float,
    v: float,
    setup_h: float,
    *,
    overlap_h: float = 0.0,
    lost_h: float = 0.0,
    extra_usd: float = 0.0,
) -> float:
    """Hours left on the present box from which on the move saves money; `inf` when it never does.

    Prices in USD/h, `v` the speed of the target relative to the present box.

    >>> round(break_even_hours(0.7411, 0.6676, 0.945, 0.75), 2)
    14.45
    """
    gain = p0 - pj / v
    cost = setup_h * pj + overlap_h * p0 + lost_h * pj / v + extra_usd
    return cost / gain if gain > 0 else math.inf


def break_even_time(v: float, setup_h: float, *, overlap_h: float = 0.0, lost_h: float = 0.0) -> float:
    """Hours left on the present box from which on the move ends sooner; `inf` when it never does."""
    gain = 1 - 1 / v
    return max(0.0, setup_h + lost_h / v - overlap_h) / gain if gain > 0 else math.inf


def migration(
    there: Offer,
    forecast: StopForecast,
    thr: Throughput,
    rng: np.random.Generator,
    plan: Plan,
    *,
    overlap_h: float = OVERLAP_H,
    probe: float | None = None,
) -> Migration:
    """Weigh moving from `plan.here` to `there`. `probe` is a speed ratio measured live on the target.

    Raises ValueError when `plan.here` is not known: without a price here there is nothing to compare with.
    """
    here = plan.here
    if here is None:
        raise ValueError("the box the run is on has no known price, so a move cannot be weighed")
    probe = plan.probes.get(there.id) if probe is None else probe
    ratio = relative_speed(here, there, probe=probe, own_runs=plan.own_runs, recipe=plan.work.recipe)
    p0, pj = sum(hourly_rates(here, plan.work)), sum(hourly_rates(there, plan.work))
    setup = sum(setup_phases(there, plan.work).values())
    start = plan.step if plan.checkpoint_step is None else min(plan.step, plan.checkpoint_step)
    lost = thr.seconds(plan.step - start) / 3600
    traffic = traffic_usd(there, plan.work, moving=True)

    at = np.linspace(0, len(forecast.samples) - 1, SAMPLES).round().astype(np.int64)
    left = np.maximum(forecast.samples[at] - plan.step, 0) / thr.effective_sps / 3600
    left = left * np.exp(thr.log_sd * rng.standard_normal(SAMPLES))
    speed = ratio.mean * np.exp(ratio.log_sd * rng.standard_normal(SAMPLES))
    spread = 1.0 if there.setup_h is not None else np.exp(SETUP_LOG_SD * rng.standard_normal(SAMPLES))
    away_h = setup * spread + (left + lost) / speed
    stay_usd = left * p0
    away_usd = away_h * pj + overlap_h * p0 + traffic
    saves = stay_usd - away_usd
    sooner = left - (away_h - overlap_h)
    p_saves, p_sooner = float(np.mean(saves > 0)), float(np.mean(sooner > 0))
    worth_money = bool(p_saves >= WORTH_IT and saves.mean() > 0)
    worth_time = bool(p_sooner >= WORTH_IT and sooner.mean() > 0)
    even = break_even_hours(p0, pj, ratio.mean, setup, overlap_h=overlap_h, lost_h=lost, extra_usd=traffic)
    left_q = _q3(left)
    return Migration(
        offer_id=there.id,
        break_even_h=even,
        break_even_time_h=break_even_time(ratio.mean, setup, overlap_h=overlap_h, lost_h=lost),
        remaining_h=left_q,
        p_saves=p_saves,
        p_sooner=p_sooner,
        saves_usd=_q3(saves),
        mean_saves_usd=float(saves.mean()),
        mean_saves_h=float(sooner.mean()),
        speed=ratio,
        setup_h=setup,
        lost_h=lost,
        worth_money=worth_money,
        worth_time=worth_time,
        why=_why(worth_money, worth_time, even, left_q.base, p_saves, float(saves.mean()), float(sooner.mean())),
    )


def _why(money: bool, time: bool, even: float, left: float, p_saves: float, saves: float, sooner: float) -> str:
    if money:
        return f"Moving saves ${saves:.2f} on average (probability {p_saves:.0%})."
    if time:
        return f"Moving ends {sooner:.1f} h sooner on average and costs ${-saves:.2f} more."
    if math.isinf(even):
        return f"Moving never pays: a step costs more there. It would cost ${-saves:.2f} more on average."
    return (
        f"Moving pays only with more than {even:.1f} h left here, and about {left:.1f} h are left: "
        f"it saves with probability {p_saves:.0%}."
    )


def _q3(values: np.ndarray[Any, np.dtype[np.float64]]) -> Q3:
    return Q3(*(float(q) for q in np.quantile(values, (0.1, 0.5, 0.9))))
