"""Does the move pay? What is shown before a migration, asked again after the rehearsal, and compared with at its end.

Two answers side by side. To the horizon: what a person works out by hand, the rest of the steps at both prices, with
the break-even. And expected: over the forecast of the stop step, with overlap, traffic and steps done twice, as a
probability and an interval. The second one decides; the first one is there to be checked.

The old box trains on while the new one is made ready, so only the time between its last step and the new one's first is
lost; but the new box bills from its first minute.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from estimator.migration import Migration, break_even_hours, migration
from estimator.offer import Offer
from estimator.quote import Plan
from estimator.throughput import throughput
from estimator.workload import Workload, setup_phases
from remote.forecast import forecast_run, run_view
from remote.provider import Instance, MarketOffer
from runner.autostop import StopRule
from runner.history import RunHistory

LEAST_USD = 0.50
LEAST_SHARE = 0.10
"""A move that saves less than both 50 cents and a tenth of what staying costs is not worth its risk."""
PAUSE_H = 0.05
"""Hours without training that are counted until the rehearsal has measured a load and a save."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One answer; plain values, for it stands in the journal."""

    offer_id: str
    pays: bool
    why: str
    """One sentence."""
    step: int
    left_h: float | None
    """Hours to the horizon on the present box."""
    stay_usd: float | None
    """To the horizon."""
    move_usd: float | None
    """To the horizon, setup there included."""
    break_even_h: float | None
    """Hours left on the present box from which on moving pays, by price, speed and setup alone; None for never."""
    setup_h: float
    speed: float
    """Of the new box relative to the present one."""
    speed_measured: bool
    overlap_usd: float
    """What both boxes cost together in the time that the new one needs to be ready, the new one's part."""
    p_saves: float | None
    saves_usd: tuple[float, float, float] | None
    """P10, P50, P90 of what moving saves."""
    mean_saves_usd: float | None
    risks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """What a person reads before the question."""
        said = []
        if self.stay_usd is not None and self.move_usd is not None and self.left_h is not None:
            even = "never pays" if self.break_even_h is None else f"pays from {self.break_even_h:.1f} h left on"
            said.append(
                f"To the horizon: staying ${self.stay_usd:.2f}, moving ${self.move_usd:.2f}; moving {even}, "
                f"{self.left_h:.1f} h are left."
            )
        if self.saves_usd is not None and self.p_saves is not None and self.mean_saves_usd is not None:
            low, _, high = self.saves_usd
            said.append(
                f"Expected, with auto-stop, overlap and traffic: saves {usd(self.mean_saves_usd)} "
                f"({usd(low)} to {usd(high)}), P(saves) {self.p_saves:.0%}."
            )
        how = "measured" if self.speed_measured else "estimated"
        said.append(
            f"New box: speed {self.speed:.2f} of the present one ({how}), {self.setup_h * 60:.0f} min until it trains, "
            f"overlap ${self.overlap_usd:.2f}."
        )
        return [*said, *(f"Risk: {risk}" for risk in self.risks)]


def decide(
    history: RunHistory,
    here: Offer,
    there: Offer,
    *,
    rule: StopRule | None = None,
    work: Workload | None = None,
    measured_speed: float | None = None,
    setup_left_h: float | None = None,
    max_steps: int | None = None,
    rate: float | None = None,
) -> Decision:
    """Weigh moving the run of `history` from `here` to `there`. Pure; the same arguments give the same answer.

    `measured_speed` is what the rehearsal measured, relative to the present box; `setup_left_h` what of the setup is
    still to be paid (0 after it). `rate` in steps/s overrides what was measured on the present box.
    """
    import numpy as np

    work = work or Workload()
    if setup_left_h is not None:
        there = replace(there, setup_h=setup_left_h)
    if measured_speed is not None:
        there = replace(there, speed=measured_speed)
    setup = sum(setup_phases(there, work).values())
    known = forecast_run(history, rule, (there,), here=here, max_steps=max_steps, rate=rate, workload=work)
    risks = _risks(there, known.view.remaining)
    if known.throughput is None or known.stop is None:
        return Decision(
            there.id, False, "How fast the run goes or how long it is planned is not known yet, so a move cannot be "
            "weighed.", known.view.step, None, None, None, None, setup, there.speed or 1.0, measured_speed is not None,
            setup * there.dph, None, None, None, risks,
        )  # fmt: skip
    answer = migration(
        there, known.stop, known.throughput, np.random.default_rng(0), Plan(step=known.view.step, here=here, work=work),
        overlap_h=PAUSE_H, probe=measured_speed,
    )  # fmt: skip
    speed = answer.speed.mean
    left = known.throughput.seconds(known.view.remaining or 0) / 3600
    stay, move = left * here.dph, (setup + left / speed) * there.dph
    even = break_even_hours(here.dph, there.dph, speed, setup)
    pays = answer.worth_money and answer.mean_saves_usd >= least(answer.remaining_h.base * here.dph)
    return Decision(
        offer_id=there.id,
        pays=pays,
        why=_why(answer, pays, stay, move, even, left),
        step=known.view.step,
        left_h=left,
        stay_usd=stay,
        move_usd=move,
        break_even_h=even if math.isfinite(even) else None,
        setup_h=setup,
        speed=speed,
        speed_measured=measured_speed is not None,
        overlap_usd=setup * there.dph,
        p_saves=answer.p_saves,
        saves_usd=(answer.saves_usd.opt, answer.saves_usd.base, answer.saves_usd.pess),
        mean_saves_usd=answer.mean_saves_usd,
        risks=risks,
    )


def least(stay_usd: float) -> float:
    """What a move has to save to be worth its risk, by what staying would cost.

    >>> least(3.27), least(40.0)
    (0.5, 4.0)
    """
    return max(LEAST_USD, LEAST_SHARE * stay_usd)


def usd(value: float) -> str:
    """Money that may be a loss.

    >>> usd(-0.384)
    '-$0.38'
    """
    return f"-${-value:.2f}" if value < -0.005 else f"${abs(value):.2f}"


def _why(answer: Migration, pays: bool, stay: float, move: float, even: float, left: float) -> str:
    if pays:
        return answer.why
    plain = f"To the horizon staying costs ${stay:.2f} and moving ${move:.2f}"
    if math.isinf(even):
        return f"{plain}; a step costs more there, so moving never pays."
    if left < even:
        return f"{plain}; moving pays from {even:.1f} h left on, {left:.1f} h are left."
    return f"{plain}, but it is expected to save {usd(answer.mean_saves_usd)} only (P(saves) {answer.p_saves:.0%})."


def _risks(there: Offer, remaining: int | None) -> tuple[str, ...]:
    found = []
    if there.interruptible:
        found.append("the new box is interruptible: a higher bid ends it without notice")
    if there.reliability is not None and there.reliability < 0.97:
        found.append(f"the host's reliability is {there.reliability:.1%}")
    if there.verified is False:
        found.append("the host is not verified")
    if remaining is None:
        found.append("the run does not say how long it is planned")
    return tuple(found)


def market_offer(offer: MarketOffer) -> Offer:
    """A listing of the provider in the estimator's words."""
    row: Mapping[str, Any] = offer.row
    wanted = {**row, "id": offer.id, "gpu_name": offer.gpu_name, "dph_total": offer.dph_total}
    return replace(Offer.from_row(wanted), current=False, interruptible=offer.spot)


def instance_offer(row: Instance) -> Offer:
    """A rented box in the estimator's words."""
    return Offer(
        id=str(row.id), gpu=row.gpu_name or "this box", dph=row.dph_total, num_gpus=max(1, row.num_gpus),
        gpu_ram_gib=row.gpu_ram_mb / 1024 if row.gpu_ram_mb else None, inet_up_cost=row.inet_up_cost,
        inet_down_cost=row.inet_down_cost, interruptible=row.spot, current=True,
    )  # fmt: skip


def seconds_per_step(history: RunHistory) -> float | None:
    """Of training alone, evaluations and saves left out; None before two readings of progress."""
    known = throughput(run_view(history))
    return None if known is None else known.step_s
