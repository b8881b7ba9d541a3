"""What if the auto-stop rule were another one? Asked of the futures of the live forecast.

Every candidate rule first looks at the evals that really happened, then at each future path; so the rows differ only by
the rule. "Value of waiting" is the price of a better model: USD per 0.001 of eval loss between two rules.

A stop is called false on a path when the loss, smoothed over three evals, would later have fallen below the reference
by more than min_delta: patience ran out on a pause or on the noise of the evaluation, not on a plateau.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from estimator.plateau import Futures
from estimator.simulate import Floats, Ints, simulate_best, simulate_stop
from estimator.throughput import Throughput
from runner.autostop import StopRule, replay

SMOOTH = 3


@dataclass(frozen=True, slots=True)
class RuleOutcome:
    """What one rule would do with this run."""

    rule: StopRule
    stop: float
    """Expected stop step."""
    p10: int
    p50: int
    p90: int
    p_early: float
    best_loss: float
    """Expected lowest eval loss at the stop."""
    hours: float
    """Expected hours from now on the present box; NaN without a throughput."""
    usd: float
    """Expected USD from now; NaN without a price."""
    p_false_stop: float
    """Probability that it stops although a real gain was still to come."""
    usd_per_milli: float = math.nan
    """Value of waiting: USD per 0.001 of eval loss against the rule in force; NaN where the loss does not change."""


def eval_noise(losses: Sequence[float]) -> float | None:
    """Standard deviation of one evaluation's loss, from second differences; None below four evals.

    The median |second difference| of white noise of sd s is 0.6745 * sqrt(6) * s; the curve's own bend is in it too,
    so early in a run this is an upper bound.
    """
    finite = np.array([v for v in losses if math.isfinite(v)])
    if len(finite) < 4:
        return None
    return float(np.median(np.abs(np.diff(finite[-12:], 2)))) / (0.6745 * math.sqrt(6))


def false_stop_by_noise(rule: StopRule, noise_sd: float, gain_per_eval: float) -> float:
    """Probability that `patience` evals in a row miss although the loss truly falls by `gain_per_eval` each.

    The evals are taken as independent with the given noise around the falling truth, the reference as a typical (not
    lucky) one. A gain that never sums up to min_delta within the patience makes the stop right, not false: 0.
    """
    if gain_per_eval * rule.patience <= rule.min_delta:
        return 0.0
    if noise_sd <= 0:
        misses = [gain_per_eval * (i + 1) <= rule.min_delta for i in range(rule.patience)]
        return float(all(misses))
    # integrate over the noise of the reference: the misses are independent given it
    grid = np.linspace(-4, 4, 161)
    weight = np.exp(-0.5 * grid**2)
    weight /= weight.sum()
    chance = np.ones_like(grid)
    for i in range(rule.patience):
        edge = (rule.min_delta - gain_per_eval * (i + 1)) / noise_sd - grid
        chance *= np.array([0.5 * math.erfc(-z / math.sqrt(2)) for z in edge])
    return float((weight * chance).sum())


def what_if(
    futures: Futures,
    rules: Sequence[StopRule],
    *,
    step: int,
    thr: Throughput | None = None,
    dph: float | None = None,
    current: StopRule | None = None,
) -> list[RuleOutcome]:
    """One row per rule, in the order given. `current` is the rule in force, against which waiting is priced.

    `step` is where the run is now; `thr` and `dph` (USD/h) turn steps into hours and USD.
    """
    rows = [_outcome(futures, rule, step, thr, dph) for rule in rules]
    if current is None:
        return rows
    base = _outcome(futures, current, step, thr, dph)
    return [replace(row, usd_per_milli=value_of_waiting(base, row)) for row in rows]


def value_of_waiting(base: RuleOutcome, other: RuleOutcome) -> float:
    """USD per 0.001 of expected eval loss between two rules; NaN when the expected loss is the same."""
    gain = (base.best_loss - other.best_loss) * 1000
    return (other.usd - base.usd) / gain if abs(gain) > 1e-6 else math.nan


def neighbouring_rules(rule: StopRule, horizon: int) -> list[StopRule]:
    """The rule in force with patience, min_delta and min_steps varied around it; for a first look."""
    patiences = sorted({max(1, rule.patience // 2), rule.patience, rule.patience + 2, rule.patience * 2})
    deltas = sorted({rule.min_delta / 3, rule.min_delta, rule.min_delta * 2})
    firsts = sorted({rule.min_steps, min(horizon, rule.min_steps * 2)})
    return [
        replace(rule, patience=patience, min_delta=delta, min_steps=first)
        for patience, delta, first in product(patiences, deltas, firsts)
    ]


def _outcome(futures: Futures, rule: StopRule, step: int, thr: Throughput | None, dph: float | None) -> RuleOutcome:
    state = replay(rule, futures.seen)
    if state.stopped_at is not None:
        # this rule would have ended the run already: nothing more is spent
        at = state.stopped_at
        best = state.best if state.best is not None else math.nan
        return RuleOutcome(rule, at, at, at, at, 1.0, best, 0.0, 0.0, math.nan)
    index = simulate_stop(rule, state, futures.steps, futures.losses)
    steps = np.array([*futures.steps, futures.horizon], dtype=np.int64)[index]
    hours = math.nan if thr is None else float(np.mean(np.maximum(steps - step, 0))) / thr.effective_sps / 3600
    p10, p50, p90 = futures.interval(rule, np.sort(steps))
    return RuleOutcome(
        rule=rule,
        stop=float(steps.mean()),
        p10=p10,
        p50=p50,
        p90=p90,
        p_early=float(np.mean(index < len(futures.steps))),
        best_loss=float(np.mean(simulate_best(futures.losses, index, state.best))),
        hours=hours,
        usd=math.nan if dph is None else hours * dph,
        p_false_stop=_false_stops(futures.losses, index, rule, state.best),
    )


def _false_stops(losses: Floats, index: Ints, rule: StopRule, best: float | None) -> float:
    """Share of all paths that stop early and would later have gained more than min_delta for good."""
    m = losses.shape[1]
    early = np.flatnonzero(index < m - SMOOTH)
    if len(early) == 0:
        return 0.0
    kernel = np.ones(SMOOTH) / SMOOTH
    reached = simulate_best(losses, index, best)
    false = 0
    for path in early:
        later = losses[path, index[path] + 1 :]
        smooth = np.convolve(later, kernel, mode="valid")
        false += bool(len(smooth) and smooth.min() < reached[path] - rule.min_delta)
    return false / len(index)
