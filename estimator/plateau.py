"""When will auto-stop end the run: a distribution of the stop step.

Futures of the eval loss come from two sources, half from each: analogs (`estimator.library`) and a Bayesian learning
curve with drift (`estimator.bayes`); every future runs through the auto-stop machine from the state the run is in now.
So a forecast can never name a step before the earliest legal stop or after the horizon, and works for any rule.

**The interval that is shown.** The stop step has an atom at the horizon, so central quantiles are too wide where the
run surely goes on, and useless where it may do either. Shown is the shortest interval around the median that holds a
chosen mass, made longer as long as that is cheap: while a percent of the horizon more takes in more than 1 / `WORTH`
percent of the futures. Under the usual rule the mass is `MASS` of everything where the run will probably reach the
horizon, `MASS` of the early stops where it will probably stop, in between a blend; a little more while few evals are
known, and more when the library knows nothing like this curve. Under rules far from it a plain `MASS_UNUSUAL` of
everything, for there the finer choice was found not to hold. The numbers were chosen on curves held out by source,
under fifteen rules (docs/forecast.md, `python -m estimator.backtest --held-out`). `p10` and `p90` are the ends of this
interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from estimator.bayes import power_law_paths
from estimator.library import AT_HOME, Library, Seen, analog_paths, neighbours, shipped, unit_of
from estimator.simulate import Floats, Ints, simulate_best, simulate_stop
from estimator.view import RunView
from runner.autostop import StopRule, StopState, earliest_stop, replay

POWER_LAW_SHARE = 0.5
MASS = 0.76
"""Share of the futures that the shown interval holds at least."""
WORTH = 0.8
"""Horizons that the interval may grow by per unit of mass that this takes in."""
BLEND = (0.35, 0.55)
"""Between these probabilities of an early stop the two masses are blended."""
FEW_EVALS = 0.04
"""Mass added per e-fold that fewer than six evals are known, at most 0.028; up to 0.012 is taken away beyond."""
FAR_ANALOGS = 0.15
"""Mass added per e-fold that the analogs are further away than usual, at most 0.105; up to 0.023 is taken away."""
USUAL_RULE = StopRule(4, 0.003)
"""The rule under which the masses above were chosen."""
MASS_UNUSUAL = 0.82
"""Mass under rules far from the usual one, where the finer choice above has not been seen to hold."""
LEAST_UNUSUAL = 0.3
"""The plain mass has its say under the usual rule, too: the finer choice was made on few curves."""
DEFAULT_PATHS = 512
FEWEST_PATHS = 64
LARGEST_LOSS = 1e150
LARGEST_WORK = 60_000
"""Losses simulated per forecast; the paths are thinned to keep to it."""


@dataclass(frozen=True, slots=True)
class Futures:
    """The samples a forecast rests on; what-ifs run other rules over the same paths."""

    steps: tuple[int, ...]
    """The coming eval steps."""
    losses: Floats
    """Shape (paths, len(steps))."""
    seen: tuple[tuple[int, float], ...]
    horizon: int
    distance: float = AT_HOME
    """How far away the analogs were; the intervals of other rules are as wide for it."""
    widen: float = 0.0
    """What own past forecasts add to the mass of an interval."""

    def interval(self, rule: StopRule, stops: Ints) -> tuple[int, int, int]:
        """P10, P50 and P90 of the sorted stop steps of a rule over these paths, as the forecast shows its own."""
        return shortest_interval(stops, self.level(rule, stops), worth=WORTH, span=self.horizon)

    def level(self, rule: StopRule, stops: Ints) -> float:
        """Share of the stops that the interval is asked to hold at least."""
        p_early = float(np.mean(stops < self.horizon))
        return min(0.995, max(0.05, interval_mass(p_early, len(self.seen), self.distance, rule) + self.widen))


@dataclass(frozen=True, slots=True)
class StopForecast:
    """Where the run will stop, as samples and as the interval that is shown."""

    samples: Ints
    """Stop steps, sorted; the horizon stands for "not stopped early"."""
    p10: int
    p50: int
    p90: int
    p_early: float
    """Probability that auto-stop ends the run before the horizon."""
    level: float
    """Share of the samples that the shown interval was asked to hold at least."""
    method: str
    """mixture, library (too few evals for a curve of its own), stopped, horizon or ended."""
    earliest: int | None = None
    """First step at which a plateau could legally end the run; None when it no longer can."""
    best: float | None = None
    """Expected lowest eval loss at the stop."""
    futures: Futures | None = None

    def to_json(self) -> dict[str, float | int]:
        """The `projected` of `watch --json`."""
        return {"p10": self.p10, "p50": self.p50, "p90": self.p90, "p_early": self.p_early}


def forecast_stop(
    view: RunView,
    rule: StopRule,
    rng: np.random.Generator,
    library: Library | None = None,
    n: int = DEFAULT_PATHS,
    *,
    held_out: Callable[[Library], NDArray[np.bool_]] | None = None,
    widen: float = 0.0,
) -> StopForecast:
    """Forecast the stop step of a run under a rule.

    `library` is the shipped one unless given; `held_out` marks curves of it that must not be used. `widen` adds to the
    mass of the interval, as own past forecasts suggest (`estimator.bets`). Raises ValueError when the horizon is
    unknown.
    """
    if view.horizon is None:
        raise ValueError("the number of planned steps is unknown, so there is nothing to forecast against")
    pairs = view.eval_pairs()
    state = replay(rule, pairs)
    if state.stopped_at is not None:
        return certain(state.stopped_at, n, view.horizon, "stopped", best=state.best)
    coming = view.coming_evals()
    if not coming:
        return certain(view.horizon, n, view.horizon, "horizon", best=state.best)
    # the machine takes any finite loss; sums and differences of the largest ones would not be finite
    losses = np.clip(np.array([loss for _, loss in pairs], dtype=np.float64), -LARGEST_LOSS, LARGEST_LOSS)
    # hundreds of evals to come: fewer paths say the same, and a screen must not wait
    n = max(FEWEST_PATHS, min(n, LARGEST_WORK // len(coming)))
    paths, method, distance = futures_of(view, rule, state, losses, len(coming), rng, library or shipped(), n, held_out)
    paths = above_zero(paths, losses)
    index = simulate_stop(rule, state, coming, paths)
    steps = np.array([*coming, view.horizon], dtype=np.int64)
    samples = np.sort(steps[index])
    p_early = float(np.mean(samples < view.horizon))
    futures = Futures(tuple(coming), paths, tuple(pairs), view.horizon, distance, widen)
    p10, p50, p90 = futures.interval(rule, samples)
    return StopForecast(
        samples=samples,
        p10=p10,
        p50=p50,
        p90=p90,
        p_early=p_early,
        level=futures.level(rule, samples),
        method=method,
        earliest=earliest_stop(rule, state, coming),
        best=float(np.mean(simulate_best(paths, index, state.best))),
        futures=futures,
    )


def futures_of(
    view: RunView,
    rule: StopRule,
    state: StopState,
    losses: Floats,
    coming: int,
    rng: np.random.Generator,
    library: Library,
    n: int,
    held_out: Callable[[Library], NDArray[np.bool_]] | None,
) -> tuple[Floats, str, float]:
    """Loss paths of the coming evals, the name of the method, and how far away the analogs were."""
    horizon = view.horizon or 1
    seen = Seen(
        losses=losses,
        length=len(losses) + coming,
        rule=rule,
        reference=None if state.reference is None else max(-LARGEST_LOSS, min(LARGEST_LOSS, state.reference)),
        bad=state.bad,
        min_share=min(1.0, rule.min_steps / horizon),
    )
    own = round(n * POWER_LAW_SHARE) if len(losses) >= 3 else 0
    states, weights, distance = neighbours(library, seen, held_out)
    if len(states) == 0:
        # nothing comparable in the library: the curve has to speak for itself
        if len(losses) < 2:
            level = float(losses[-1]) if len(losses) else 0.0
            return np.full((n, coming), level), "library", distance
        return power_law_paths(losses, seen.length, n, rng), "power law", distance
    analogs = analog_paths(library, seen, states, weights, n - own, rng)
    if own == 0:
        return analogs, "library", distance
    return np.concatenate([analogs, power_law_paths(losses, seen.length, own, rng)]), "mixture", distance


def above_zero(paths: Floats, losses: Floats) -> Floats:
    """Bend futures that would fall below zero, which no loss does that was above it so far.

    Above half of the lowest loss seen nothing changes; below, y becomes m exp((y - m) / m) with m that half, which goes
    on at the same slope, keeps the order and never reaches zero. A run with losses at or below zero is left alone.
    """
    bend = 0.5 * float(losses.min()) if len(losses) else 0.0
    if bend <= 0 or paths.min() >= bend:
        return paths
    bent: Floats = np.where(paths < bend, bend * np.exp(np.minimum(paths - bend, 0.0) / bend), paths)
    return bent


def interval_mass(p_early: float, k: int, distance: float = AT_HOME, rule: StopRule = USUAL_RULE) -> float:
    """Mass the shown interval has to hold: from the probability of an early stop, the evals seen, how far away the
    analogs were, and how unusual the rule is.
    """
    early = min(1.0, max(0.0, (p_early - BLEND[0]) / (BLEND[1] - BLEND[0])))
    more = FEW_EVALS * min(0.7, max(-0.3, math.log(6 / max(k, 1))))
    more += FAR_ANALOGS * min(0.7, max(-0.15, math.log(max(distance, 1e-3) / AT_HOME)))
    usual = (MASS + more) * (1 - early + early * p_early)
    odd = unusual(rule)
    return (1 - odd) * usual + odd * MASS_UNUSUAL


def unusual(rule: StopRule) -> float:
    """How far a rule is from the usual one, `LEAST_UNUSUAL` to 1; 1 at one and a half times its patience or twice its
    min_delta, or as much below.
    """
    patience = abs(math.log(rule.patience / USUAL_RULE.patience)) / math.log(1.5)
    delta = abs(math.log(unit_of(rule.min_delta) / USUAL_RULE.min_delta)) / math.log(2)
    return min(1.0, max(patience, delta, LEAST_UNUSUAL))


def shortest_interval(samples: Ints, mass: float, *, worth: float = 0.0, span: float = 1.0) -> tuple[int, int, int]:
    """Ends and median of the shortest interval around the median that holds `mass` of the sorted samples.

    Among equally short ones the fullest is taken. With `worth` a longer one is taken where that is cheap: of all that
    hold the mass, the one with the least width / span - worth * held.
    """
    n = len(samples)
    values, counts = np.unique(samples, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    at = int(np.searchsorted(values, samples[(n - 1) // 2]))
    low, high = values[: at + 1], values[at:]
    held = below[at + 1 :][None, :] - below[: at + 1][:, None]
    price = (high[None, :] - low[:, None]) / span - max(worth, 1e-9) * held / n
    price[held < max(1, math.ceil(mass * n - 1e-9))] = np.inf
    first, last = np.unravel_index(int(np.argmin(price)), price.shape)
    return int(low[first]), int(values[at]), int(high[last])


def certain(step: int, n: int, horizon: int, method: str, *, best: float | None = None) -> StopForecast:
    """The forecast of what is already known."""
    samples = np.full(n, step, dtype=np.int64)
    return StopForecast(samples, step, step, step, float(step < horizon), 1.0, method, step, best)
