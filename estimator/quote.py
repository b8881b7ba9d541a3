"""What finishing the run costs on each offer, and when it would be done there.

Every sample of the stop step, of the rate, of the offer's speed and of its setup is one possible future; hours and USD
of an offer are worked out in each of them, and P10 / P50 / P90 are shown as optimistic, base and pessimistic. The same
random numbers serve all offers, so a difference between two rows is a difference of the boxes and not of luck.

Money follows the provider's rules: GPU time per second once the box is up (pulling the image is not billed), disk from
creation to destruction, traffic per GB. The box the run is already on has its setup behind it: `stay` is a row with the
sunk cost taken out. An interruptible box loses time to interruptions: at a rate nobody knows well (log-uniform from
0.01 to 0.2 an hour), each costing half a checkpoint interval, a restart and an outage that bills only the disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from estimator.memory import Fit, largest_batch, memory_fit
from estimator.offer import Offer
from estimator.plateau import StopForecast
from estimator.scenario import Q3, SEED_FACTORS, ScenarioRow, project_scenarios, scenario_row
from estimator.simulate import Floats
from estimator.speed import OwnRun, SpeedRatio, relative_speed
from estimator.throughput import Throughput
from estimator.workload import SETUP_LOG_SD, Workload, hourly_rates, setup_phases, traffic_usd, transfer_h

__all__ = ["Q3", "SEED_FACTORS", "Comparison", "Offer", "Quote", "ScenarioRow", "compare", "project_scenarios"]

SAMPLES = 256
"""Futures per offer: the sorted stop samples are thinned evenly to as many."""
INTERRUPTIONS_PER_H = (0.01, 0.2)
RESTART_H = 0.15
OUTAGE_H = 1.0
CHECKPOINT_H = 0.5
"""Assumed time between checkpoints where none was seen."""


@dataclass(frozen=True, slots=True)
class Quote:
    """One row of the comparison. Hours and USD count from now unless they are called total."""

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
    """P50 above the soonest P50 of the table."""
    expected_regret_usd: float = 0.0
    """Mean over the futures of the cost above the row that is cheapest in that future."""
    pareto: bool = True
    """It fits and no other row that fits is both cheaper and sooner."""
    lines: dict[str, float] = field(default_factory=dict)
    """Mean USD by kind: gpu, disk, traffic."""
    phases: dict[str, float] = field(default_factory=dict)
    """Hours of each setup phase."""
    speed_sources: tuple[str, ...] = ()
    fit: Fit | None = None
    largest_batch: int | None = None
    """Sequences per device that would still fit, 0 for none; None when the model or the memory is unknown."""
    total_usd: Q3 | None = None
    """With what has been spent so far; None when that is unknown."""

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
            "expected_regret_usd": self.expected_regret_usd,
            "pareto": self.pareto,
            "lines": self.lines,
            "phases": self.phases,
            "speed_sources": list(self.speed_sources),
            "total_usd": None if self.total_usd is None else self.total_usd.to_json(),
            "need_gib": None if self.fit is None else self.fit.need_gib,
            "advice": "" if self.fit is None else self.fit.advice,
            "largest_batch": self.largest_batch,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """All rows in the order of the offers, and the row of staying."""

    quotes: tuple[Quote, ...]
    stay: Quote | None
    best_id: str | None = None
    """The offer (or "stay") with the lowest P50 among those that fit."""

    @property
    def pareto_ids(self) -> tuple[str, ...]:
        """Ids of the rows that no other row beats in both money and time."""
        return tuple(q.offer_id for q in self.quotes if q.pareto)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the comparison is asked under. USD and hours count from now."""

    step: int
    """Steps done."""
    here: Offer | None = None
    """The box the run is on."""
    checkpoint_step: int | None = None
    """Last durable checkpoint: a move starts again from there; None loses nothing."""
    budget: float | None = None
    deadline_h: float | None = None
    spent_usd: float | None = None
    work: Workload = field(default_factory=Workload)
    own_runs: tuple[OwnRun, ...] = ()
    probes: Mapping[str, float] = field(default_factory=dict)
    """Speed ratios measured live, by the id of the offer: beside one the tables only steady its noise."""


@dataclass(frozen=True, slots=True)
class _Futures:
    """What all offers share: hours of training still to do on the present box, and the random numbers."""

    stay_h: Floats
    move_h: Floats
    speed_z: Floats
    setup: Floats
    per_hour: Floats
    """Interruptions per hour on an interruptible box."""
    spread: Floats
    """Exponential factor on the time lost to them."""
    checkpoint_h: float


def scenario_quotes(
    steps: float, rate: float, offers: Sequence[Offer], *, here: Offer | None = None, work: Workload | None = None
) -> Comparison:
    """The scenario table as quotes: fixed steps, three factors on the rate, no auto-stop.

    `here` is the box the rate was measured on; with it the row `stay` is added, without setup. Speed and setup that an
    offer does not carry are worked out and noted.
    """
    work = work or Workload()
    rows = [_from_scenario(steps, rate, offer, here, work) for offer in offers]
    stay = None
    if here is not None:
        row = scenario_row(steps, rate, replace(here, speed=1.0), setup_h=0.0)
        stay = {
            "offer_id": here.id,
            "gpu": here.gpu,
            "dph": here.dph,
            "hours": row.hours,
            "usd": row.usd,
            "fits": "fits",
            "speed": 1.0,
            "speed_sd": 0.0,
            "setup_h": 0.0,
            "notes": ("sunk setup removed",),
        }
    return _ranked(rows, stay, None)


def _from_scenario(steps: float, rate: float, offer: Offer, here: Offer | None, work: Workload) -> Draft:
    notes: list[str] = []
    ratio = relative_speed(here, offer) if offer.speed is not None or here is not None else None
    if ratio is None:
        ratio = SpeedRatio(1.0, 0.3, ("not given: counted as 1",), known=False)
    if offer.speed is None:
        notes.append("speed from " + ratio.sources[0])
    phases = setup_phases(offer, work)
    if offer.setup_h is None:
        notes.append(f"setup worked out for {work.model_gb:.3g} GB of model")
    row = scenario_row(steps, rate, replace(offer, speed=ratio.mean), setup_h=sum(phases.values()))
    fit = _fit(offer, work)
    return {
        "offer_id": offer.id,
        "gpu": offer.gpu,
        "dph": offer.dph,
        "hours": row.hours,
        "usd": row.usd,
        "fits": "unknown" if fit is None else fit.verdict,
        "speed": row.speed,
        "speed_sd": ratio.log_sd,
        "setup_h": row.setup_h,
        "notes": tuple(notes + _warnings(offer, row.hours, ratio, fit)),
        "phases": phases,
        "speed_sources": ratio.sources,
        "fit": fit,
        "largest_batch": _batch(offer, work),
    }


def compare(
    offers: Sequence[Offer], forecast: StopForecast, thr: Throughput, rng: np.random.Generator, plan: Plan
) -> Comparison:
    """Quote every offer over the futures of the forecast, and staying where `plan.here` is known."""
    shared = _futures(forecast, thr, rng, plan)
    rows, usd = _rows(offers, shared, plan, moving=True)
    stay = None
    if plan.here is not None:
        stays, stay_usd = _rows([plan.here], shared, plan, moving=False)
        stay = stays[0]
        usd = np.concatenate([usd, stay_usd])
    return _ranked(rows, stay, usd)


Draft = dict[str, Any]
"""The fields of a quote before it is compared with the others."""


def _futures(forecast: StopForecast, thr: Throughput, rng: np.random.Generator, plan: Plan) -> _Futures:
    at = np.linspace(0, len(forecast.samples) - 1, SAMPLES).round().astype(np.int64)
    stop = forecast.samples[at]
    rate = np.exp(thr.log_sd * rng.standard_normal(SAMPLES))
    start = plan.step if plan.checkpoint_step is None else min(plan.step, plan.checkpoint_step)
    low, high = np.log(INTERRUPTIONS_PER_H[0]), np.log(INTERRUPTIONS_PER_H[1])
    save_every = thr.save_every
    return _Futures(
        stay_h=_busy_hours(stop, plan.step, thr) * rate,
        move_h=_busy_hours(stop, start, thr) * rate,
        speed_z=rng.standard_normal(SAMPLES),
        setup=np.exp(SETUP_LOG_SD * rng.standard_normal(SAMPLES)),
        per_hour=np.exp(rng.uniform(low, high, SAMPLES)),
        spread=rng.standard_exponential(SAMPLES),
        checkpoint_h=thr.seconds(save_every) / 3600 if save_every else CHECKPOINT_H,
    )


def _busy_hours(stop: NDArray[np.int64], start: int, thr: Throughput) -> Floats:
    """Hours on the present box from step `start` to each stop: steps, evals and saves counted one by one."""
    steps = np.maximum(stop - start, 0)
    seconds = steps * thr.step_s
    if thr.eval_every:
        seconds = seconds + np.maximum(stop // thr.eval_every - start // thr.eval_every, 0) * thr.eval_s
    if thr.save_every:
        seconds = seconds + np.maximum(stop // thr.save_every - start // thr.save_every, 0) * thr.save_s
    hours: Floats = seconds / 3600
    return hours


def _rows(offers: Sequence[Offer], shared: _Futures, plan: Plan, *, moving: bool) -> tuple[list[Draft], Floats]:
    """Drafts of the quotes, and the USD of every offer in every future."""
    if not offers:
        return [], np.zeros((0, SAMPLES))
    work = plan.work
    ratios = [
        relative_speed(plan.here, o, probe=plan.probes.get(o.id), own_runs=plan.own_runs, recipe=work.recipe)
        if moving
        else SpeedRatio(1.0, 0.0, ("measured here",))
        for o in offers
    ]
    phases = [setup_phases(o, work) if moving else {} for o in offers]
    prices = [hourly_rates(o, work) for o in offers]
    speed, sd = _column([r.mean for r in ratios]), _column([r.log_sd for r in ratios])
    image = _column([p.get("image", 0.0) for p in phases])
    setup = _column([sum(p.values()) for p in phases])
    # a setup that came with the offer was measured and is taken as it is
    known = _column([o.setup_h is not None for o in offers])
    setups = setup * np.where(known > 0, 1.0, shared.setup)
    hours = np.exp(-sd * shared.speed_z)
    hours *= (shared.move_h if moving else shared.stay_h) / speed
    spot = [i for i, o in enumerate(offers) if o.interruptible]
    hits = hours[spot] * (shared.per_hour * shared.spread)
    upload = _column([transfer_h(work.upload_gb, o.inet_up) if work.upload_gb else 0.0 for o in offers])
    hours += setups + upload
    hours[spot] += hits * (shared.checkpoint_h / 2 + RESTART_H)
    gpu_price, disk_price = _column([p[0] for p in prices]), _column([p[1] for p in prices])
    traffic = _column([traffic_usd(o, work, moving=moving) for o in offers])
    # everything is billed but the pull of the image, which takes its share of the drawn setup time
    usd = hours * (gpu_price + disk_price)
    usd += traffic - gpu_price * image * np.where(known > 0, 1.0, shared.setup)
    hours[spot] += hits * OUTAGE_H
    usd[spot] += hits * OUTAGE_H * disk_price[spot]
    at_hours, at_usd = _quantiles(hours), _quantiles(usd)
    under = None if plan.budget is None else (usd <= plan.budget).mean(axis=1)
    before = None if plan.deadline_h is None else (hours <= plan.deadline_h).mean(axis=1)
    disk_mean = disk_price[:, 0] * hours.mean(axis=1)
    gpu_mean = usd.mean(axis=1) - disk_mean - traffic[:, 0]
    drafts: list[Draft] = []
    for i, offer in enumerate(offers):
        span = Q3(*at_hours[i].tolist())
        bill = Q3(*at_usd[i].tolist())
        fit = _fit(offer, work) if moving else None
        notes = _warnings(offer, span, ratios[i], fit) if moving else ["sunk setup removed"]
        spent = plan.spent_usd
        drafts.append(
            {
                "offer_id": offer.id,
                "gpu": offer.gpu,
                "dph": offer.dph,
                "hours": span,
                "usd": bill,
                "fits": ("unknown" if fit is None else fit.verdict) if moving else "fits",
                "speed": ratios[i].mean,
                "speed_sd": ratios[i].log_sd,
                "setup_h": float(setup[i, 0]),
                "notes": tuple(notes),
                "p_under_budget": None if under is None else float(under[i]),
                "p_before_deadline": None if before is None else float(before[i]),
                "lines": {"gpu": float(gpu_mean[i]), "disk": float(disk_mean[i]), "traffic": float(traffic[i, 0])},
                "phases": phases[i],
                "speed_sources": ratios[i].sources,
                "fit": fit,
                "largest_batch": _batch(offer, work) if moving else None,
                "total_usd": None if spent is None else Q3(bill.opt + spent, bill.base + spent, bill.pess + spent),
            }
        )
    return drafts, usd


def _column(values: Sequence[float]) -> Floats:
    """One value per offer, ready to meet a row of futures."""
    column: Floats = np.array(values, dtype=np.float64)[:, None]
    return column


def _quantiles(values: Floats) -> Floats:
    """P10, P50 and P90 along the last axis, by the nearest order statistic."""
    n = values.shape[1]
    at = [round(q * (n - 1)) for q in (0.1, 0.5, 0.9)]
    quantiles: Floats = np.partition(values, at, axis=1)[:, at]
    return quantiles


def _fit(offer: Offer, work: Workload) -> Fit | None:
    if work.model is None:
        return None
    return memory_fit(work.model, work.train, offer.gpu_ram_gib)


def _batch(offer: Offer, work: Workload) -> int | None:
    if work.model is None or not offer.gpu_ram_gib:
        return None
    return largest_batch(work.model, work.train, offer.gpu_ram_gib)


def _memory_words(fit: Fit) -> str:
    """The verdict, the numbers behind it, the term that breaks it and what would make it fit, as one clause."""
    if fit.verdict == "unknown":
        return f"memory unknown: {fit.need_gib:.0f} GiB are needed"
    said = "does not fit" if fit.verdict == "no" else "fits narrowly"
    largest = f"{fit.worst} {fit.terms[fit.worst]:.0f}"
    return f"{said}: needs {fit.need_gib:.0f} of {fit.have_gib:.0f} GiB ({largest}); try {fit.advice}"


def _warnings(offer: Offer, hours: Q3, ratio: SpeedRatio, fit: Fit | None) -> list[str]:
    """What a person should know before renting, one clause each."""
    notes: list[str] = []
    if not ratio.known:
        notes.append(f"{offer.gpu} is not in the GPU table: speed is a guess")
    elif "unverified" in ratio.sources[0]:
        notes.append("speed is a guess: the datasheet numbers behind it are unverified")
    if offer.dph == 0:
        notes.append("the listing asks nothing: look twice")
    if offer.duration_h is not None and offer.duration_h < hours.pess:
        notes.append(f"the offer ends in {offer.duration_h:.1f} h, before the pessimistic end")
    if offer.interruptible:
        notes.append("interruptible: can be outbid at any time")
    if offer.num_gpus > 1:
        notes.append(f"{offer.num_gpus} GPUs: the quote counts on one")
    if offer.reliability is not None and offer.reliability < 0.95:
        notes.append(f"reliability {offer.reliability:.0%}")
    if fit is not None and fit.verdict != "fits":
        notes.append(_memory_words(fit))
    if offer.example:
        notes.append("example, not a live listing")
    return notes


def _ranked(rows: list[Draft], stay: Draft | None, usd: Floats | None) -> Comparison:
    """Add regret and the Pareto front. Rows that do not fit in memory compete for neither."""
    table = rows if stay is None else [*rows, stay]
    fit = [i for i, d in enumerate(table) if d["fits"] != "no"]
    points = [(d["usd"].base, d["hours"].base) for d in table]
    if not fit:
        return Comparison(tuple(Quote(**d, pareto=False) for d in rows), None)
    cheapest = min(points[i][0] for i in fit)
    soonest = min(points[i][1] for i in fit)
    best = min(fit, key=lambda i: points[i])
    extra = np.zeros(len(table)) if usd is None else usd.mean(axis=1) - usd[fit].min(axis=0).mean()
    front = {fit[i] for i in _pareto([points[i] for i in fit])}
    ranked = [
        Quote(
            **draft,
            regret_usd=points[i][0] - cheapest,
            regret_h=points[i][1] - soonest,
            expected_regret_usd=float(extra[i]),
            pareto=i in front,
        )
        for i, draft in enumerate(table)
    ]
    if stay is None:
        return Comparison(tuple(ranked), None, ranked[best].offer_id)
    chosen = "stay" if best == len(table) - 1 else ranked[best].offer_id
    return Comparison(tuple(ranked[:-1]), ranked[-1], chosen)


def _pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other point beats in both coordinates; equal points are all kept."""
    order = sorted(range(len(points)), key=lambda i: points[i])
    front: list[int] = []
    best, at = float("inf"), float("inf")
    for i in order:
        money, time = points[i]
        if time < best or (time == best and money == at):
            front.append(i)
            best, at = time, money
    return front
