"""From what is known of a run to what is shown of its end: one pure call for command line, screens and migration.

    run_view(history, *, max_steps=None) -> RunView
    forecast_run(history, rule=None, offers=(), *, dph=None, here=None, budget=None, deadline_h=None, max_steps=None,
                 rate=None, scenario=False, workload=None, checkpoint_step=None, spent_usd=None, own_runs=(), probes={},
                 widen=0.0, seed=0, n=512) -> RunForecast
    weigh_move(forecast, there, *, probe=None, seed=0) -> estimator.migration.Migration | None
    other_rules(forecast, rules=None) -> list[estimator.whatif.RuleOutcome]

`history` is a `runner.history.RunHistory`. `rule` is the auto-stop rule to forecast under; None takes the rule the run
declared, and where there is none either (a foreign run) no auto-stop is assumed and the run goes to its horizon.
`offers` are `estimator.offer.Offer`s (`remote.market.load_offers`, or `Offer.from_row`). `here` is the offer of the box
the run is on; with `dph` alone (USD/h) the stay row is priced without a listing. `budget` is USD and `deadline_h`
hours, both from now. `rate` (steps/s) overrides what was measured. `scenario=True` asks for the fixed horizon with the
factors 1.2 / 1.0 / 0.6 instead of the forecast. `workload` says what a move has to carry and, with its `model`, opens
the memory verdicts. `checkpoint_step` is the last durable checkpoint: a move starts there again. `probes` are rates
(steps/s, evals included) that were measured on a box on offer, by its id. `widen` is
`remote.bets.BetBook().calibration().widen`.

`RunForecast.stop` is None when the horizon is unknown, `.throughput` is None before two readings of progress, `.quotes`
is empty and `.stay` None when either is missing. No clock and no I/O; the same arguments give the same answer, so a
caller may skip the call while `history` is the same object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from estimator.migration import Migration, migration
from estimator.offer import Offer
from estimator.plateau import DEFAULT_PATHS, StopForecast, certain, forecast_stop
from estimator.quote import Plan, Quote, compare, scenario_quotes
from estimator.speed import OwnRun
from estimator.throughput import Throughput, given_rate, throughput
from estimator.view import RunView, make_view
from estimator.whatif import RuleOutcome, eval_noise, neighbouring_rules, what_if
from estimator.workload import Workload
from runner.autostop import StopRule
from runner.history import RunHistory


@dataclass(frozen=True, slots=True)
class RunForecast:
    """Everything the screens say about the end of a run."""

    view: RunView
    throughput: Throughput | None
    stop: StopForecast | None
    """The coming stop step; a certain one at the horizon when no auto-stop is known."""
    rule: StopRule | None
    """The rule it was made under."""
    quotes: tuple[Quote, ...] = ()
    stay: Quote | None = None
    best_id: str | None = None
    """Id of the offer with the lowest P50, or "stay"."""
    plan: Plan | None = None
    """What the quotes were asked under; None in scenario mode and without quotes."""
    noise_sd: float | None = None
    """Standard deviation of one evaluation's loss; None below four evals."""

    @property
    def eta_s(self) -> float | None:
        """Seconds until the P50 stop on this box."""
        if self.throughput is None or self.stop is None:
            return None
        return self.throughput.seconds(max(0, self.stop.p50 - self.view.step))

    def to_json(self) -> dict[str, Any]:
        """`estimate --json`: quotes and stay, with what they rest on."""
        thr = self.throughput
        return {
            "quotes": [quote.to_json() for quote in self.quotes],
            "stay": None if self.stay is None else self.stay.to_json(),
            "best_id": self.best_id,
            "rule": None if self.rule is None else self.rule.in_words(),
            "eval_noise_sd": self.noise_sd,
            "projected": None if self.stop is None else {**self.stop.to_json(), "method": self.stop.method},
            "throughput": None
            if thr is None
            else {
                "step_s": thr.step_s,
                "eval_s": thr.eval_s,
                "save_s": thr.save_s,
                "effective_steps_per_s": thr.effective_sps,
                "log_sd": thr.log_sd,
                "drift": thr.drift,
                "source": thr.source,
            },
        }


def run_view(history: RunHistory, *, max_steps: int | None = None) -> RunView:
    """Strip a history down to what the mathematics needs; `max_steps` overrides what the run says."""
    return make_view(
        step=history.step,
        horizon=max_steps if max_steps is not None else history.max_steps,
        elapsed_s=history.elapsed_s,
        evals=[(e.step, e.eval_loss, e.eval_runtime) for e in history.evals],
        frames=[(f.step, f.elapsed_s, f.process) for f in history.frames],
        pauses=[(p.step, p.kind, p.seconds, p.process) for p in history.pauses],
    )


def forecast_run(
    history: RunHistory,
    rule: StopRule | None = None,
    offers: Sequence[Offer] = (),
    *,
    dph: float | None = None,
    here: Offer | None = None,
    budget: float | None = None,
    deadline_h: float | None = None,
    max_steps: int | None = None,
    rate: float | None = None,
    scenario: bool = False,
    workload: Workload | None = None,
    checkpoint_step: int | None = None,
    spent_usd: float | None = None,
    own_runs: Sequence[OwnRun] = (),
    probes: Mapping[str, float] | None = None,
    widen: float = 0.0,
    seed: int = 0,
    n: int = DEFAULT_PATHS,
) -> RunForecast:
    """Forecast stop step, finish time and bill of a run; see the head of this file for the arguments."""
    view = run_view(history, max_steps=max_steps)
    rule = rule or history.rule
    rng = np.random.default_rng(seed)
    thr = throughput(view) if rate is None else given_rate(rate, view.eval_every)
    stop: StopForecast | None = None
    if view.horizon is not None:
        # a crashed run is forecast as if it were resumed: what it still needs is the question then
        over = history.ended in ("finished", "stopped")
        if over:
            stop = certain(view.step, n, view.horizon, "ended")
        elif rule is None or scenario:
            stop = certain(view.horizon, n, view.horizon, "horizon")
        else:
            stop = forecast_stop(view, rule, rng, n=n, widen=widen)
    if here is None and dph is not None:
        here = Offer(id="stay", gpu="this box", dph=dph, speed=1.0, setup_h=0.0, current=True)
    noise = eval_noise([loss for _, loss in view.eval_pairs()])
    if thr is None or stop is None:
        return RunForecast(view, thr, stop, rule, noise_sd=noise)
    if scenario:
        left = max(0, stop.p50 - view.step)
        table = scenario_quotes(left, thr.effective_sps, offers, here=here, work=workload)
        return RunForecast(view, thr, stop, rule, table.quotes, table.stay, table.best_id, noise_sd=noise)
    plan = Plan(
        step=view.step,
        here=here,
        checkpoint_step=checkpoint_step,
        budget=budget,
        deadline_h=deadline_h,
        spent_usd=spent_usd,
        work=workload or Workload(),
        own_runs=tuple(own_runs),
        probes={offer: rate / thr.effective_sps for offer, rate in (probes or {}).items()},
    )
    table = compare(offers, stop, thr, rng, plan)
    return RunForecast(view, thr, stop, rule, table.quotes, table.stay, table.best_id, plan, noise)


def weigh_move(forecast: RunForecast, there: Offer, *, probe: float | None = None, seed: int = 0) -> Migration | None:
    """Whether moving to `there` pays; None where the forecast has no throughput, no horizon or no price here.

    `probe` is a speed ratio measured live on the target.
    """
    plan = forecast.plan
    if plan is None or plan.here is None or forecast.throughput is None or forecast.stop is None:
        return None
    rng = np.random.default_rng(seed)
    return migration(there, forecast.stop, forecast.throughput, rng, plan, probe=probe)


def other_rules(forecast: RunForecast, rules: Sequence[StopRule] | None = None) -> list[RuleOutcome]:
    """What other auto-stop rules would do with this run; empty when nothing is left to decide.

    Without `rules` the neighbours of the rule in force are tried. Costs are for staying on the present box.
    """
    stop = forecast.stop
    if stop is None or stop.futures is None or forecast.rule is None:
        return []
    here = forecast.plan.here if forecast.plan is not None else None
    return what_if(
        stop.futures,
        rules or neighbouring_rules(forecast.rule, stop.futures.horizon),
        step=forecast.view.step,
        thr=forecast.throughput,
        dph=None if here is None else here.dph,
        current=forecast.rule,
    )
