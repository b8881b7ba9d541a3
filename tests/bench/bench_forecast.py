"""The forecast beside its references: speed against the promised budget, quality against simple forecasters.

The references are forecasters anybody would write first: the horizon itself, and a random walk that draws its steps
from the gains seen. Quality is measured on the shipped curves held out by source, and printed, not asserted.
"""

from __future__ import annotations

import time

import numpy as np

from estimator.backtest import Protocol, Scored, by_source, recorded, score, summary, tables
from estimator.library import shipped, trimmed
from estimator.offer import Offer
from estimator.plateau import forecast_stop, shortest_interval
from estimator.quote import Plan, compare
from estimator.simulate import simulate_stop
from estimator.speed import leave_one_out
from estimator.throughput import given_rate
from estimator.view import make_view
from runner.autostop import StopRule, replay
from tests.support.runs import eval_view

NAMES = ("RTX 4090", "A100 SXM4", "H100 SXM", "L40S", "RTX A6000", "H200", "RTX 5090", "B200")


def best_of(action, times: int = 7) -> float:
    """Seconds of processor time of the fastest of some calls."""
    took = []
    for _ in range(times):
        began = time.process_time()
        action()
        took.append(time.process_time() - began)
    return min(took)


def walk(row: Scored, paths: int = 400) -> tuple[int, int, int]:
    """P10, P50, P90 of a random walk over the gains seen."""
    curve = recorded(shipped())[row.curve]
    losses = trimmed(curve.steps, curve.losses)
    rule = Protocol().rule(row.length)
    state = replay(rule, [(i, float(v)) for i, v in enumerate(losses[: row.k], 1)])
    rng = np.random.default_rng((row.curve, row.k))
    coming = row.length - row.k
    futures = losses[row.k - 1] + np.cumsum(rng.choice(np.diff(losses[: row.k]), (paths, coming)), axis=1)
    stops = np.sort(
        np.minimum(simulate_stop(rule, state, range(row.k + 1, row.length + 1), futures) + row.k + 1, row.length)
    )
    return int(stops[paths // 10]), int(stops[paths // 2]), int(stops[9 * paths // 10])


def pinball(rows: list[tuple[Scored, tuple[int, int, int]]]) -> float:
    """Mean quantile loss at .1, .5, .9 as a share of the length."""
    losses = [
        max(q * (s.truth - p), (q - 1) * (s.truth - p)) / s.length
        for s, ends in rows
        for q, p in zip((0.1, 0.5, 0.9), ends, strict=True)
    ]
    return float(np.mean(losses))


def main() -> None:
    """Print `name  ours  reference  ratio` lines."""
    library = shipped()
    losses = [2.0, 1.6, 1.45, 1.38, 1.34, 1.32]
    view = make_view(step=600, horizon=6000, evals=[(100 * i, v, None) for i, v in enumerate(losses, 1)])
    rule = StopRule()
    rng = np.random.default_rng(0)
    forecast = forecast_stop(view, rule, rng, library)
    one = best_of(lambda: forecast_stop(view, rule, rng, library)) * 1e3
    print(f"one forecast, ms                 {one:8.2f}  {10.0:8.2f}  {one / 10.0:6.2f}")
    many_evals = eval_view(3.0 / np.arange(1, 51) ** 0.5, 500)
    sparse = StopRule(4, 0.003, 50)
    long = best_of(lambda: forecast_stop(many_evals, sparse, rng, library)) * 1e3
    print(f"one with 500 evals, ms           {long:8.2f}  {10.0:8.2f}  {long / 10.0:6.2f}")
    offers = [
        Offer(str(i), NAMES[i % 8], 0.2 + 0.003 * i, gpu_ram_gib=None, dlperf=40.0 + i % 90, inet_down=100.0 + i)
        for i in range(1000)
    ]
    plan = Plan(step=600, here=Offer("here", "A100 SXM4", 0.74, gpu_ram_gib=40.0, dlperf=52.0), budget=3.0)
    thr = given_rate(0.349, 100)
    many = best_of(lambda: compare(offers, forecast, thr, np.random.default_rng(0), plan)) * 1e3
    print(f"1,000 offers, ms                 {many:8.2f}  {50.0:8.2f}  {many / 50.0:6.2f}")
    errors = list(leave_one_out().values())
    print(f"speed of an unseen GPU, median   {np.median(errors):8.3f}  {0.06:8.3f}  {np.median(errors) / 0.06:6.2f}")
    p90 = float(np.quantile(errors, 0.9))
    print(f"speed of an unseen GPU, P90      {p90:8.3f}  {0.20:8.3f}  {p90 / 0.20:6.2f}")
    curves = recorded(library)
    scored = score(curves, Protocol(), library, by_source(curves, library))
    ours = summary(scored)["pinball"] or float("nan")
    for name, rival in (
        ("horizon", pinball([(s, (s.length,) * 3) for s in scored])),
        ("random walk", pinball([(s, walk(s)) for s in scored])),
        (
            "central quantiles",
            pinball([(s, (s.samples[51], s.samples[256], s.samples[460])) for s in scored]),
        ),
        (
            "one level for all",
            pinball([(s, shortest_interval(np.array(s.samples), 0.8)) for s in scored]),
        ),
    ):
        print(f"pinball, against {name:17}{ours:8.4f}  {rival:8.4f}  {ours / rival:6.2f}")
    for line in tables(scored):
        print(line)


if __name__ == "__main__":
    main()
