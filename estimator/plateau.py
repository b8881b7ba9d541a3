"""When will auto-stop end the run: a distribution of the stop step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from estimator.simulate import Ints, simulate_stop
from estimator.view import RunView
from runner.autostop import StopRule, earliest_stop, replay


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
    """Nominal level of the shown interval after calibration."""
    method: str
    earliest: int | None = None
    """First step at which a plateau could legally end the run."""

    def to_json(self) -> dict[str, float | int]:
        """The `projected` of `watch --json`."""
        return {"p10": self.p10, "p50": self.p50, "p90": self.p90, "p_early": self.p_early}


def forecast_stop(
    view: RunView, rule: StopRule, rng: np.random.Generator, *, library: Any = None, n: int = 256
) -> StopForecast:
    """Forecast the stop step. Raises ValueError when the horizon is unknown."""
    if view.horizon is None:
        raise ValueError("the number of planned steps is unknown, so there is nothing to forecast against")
    state = replay(rule, view.eval_pairs())
    if state.stopped_at is not None:
        return certain(state.stopped_at, n, view.horizon, "stopped")
    coming = view.coming_evals()
    if not coming:
        return certain(view.horizon, n, view.horizon, "horizon")
    losses = np.array([loss for _, loss in view.eval_pairs()])
    gains = np.diff(losses) if len(losses) > 1 else np.array([-rule.min_delta, 0.0, rule.min_delta])
    last = float(losses[-1]) if len(losses) else 0.0
    futures = last + np.cumsum(rng.choice(gains, size=(n, len(coming))), axis=1)
    index = simulate_stop(rule, state, coming, futures)
    samples = np.sort(np.array([*coming, view.horizon])[index])
    p10, p50, p90 = (int(np.quantile(samples, q, method="inverted_cdf")) for q in (0.1, 0.5, 0.9))
    return StopForecast(
        samples=samples,
        p10=p10,
        p50=p50,
        p90=p90,
        p_early=float(np.mean(samples < view.horizon)),
        level=0.8,
        method="bootstrap",
        earliest=earliest_stop(rule, state, coming),
    )


def certain(step: int, n: int, horizon: int, method: str) -> StopForecast:
    """The forecast of what is already known."""
    return StopForecast(np.full(n, step), step, step, step, float(step < horizon), 1.0, method, step)
