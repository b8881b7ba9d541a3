"""The forecast on curves of shapes, lengths, noises and scales that are in no library."""

import numpy as np
import pytest

from estimator.backtest import PROGRESS, Protocol, score, summary
from estimator.library import shipped
from estimator.plateau import forecast_stop
from runner.autostop import StopRule, earliest_stop, replay
from tests.support.curves import LENGTHS, SCALES, SMOOTH, TREACHEROUS, drawn_curve, power_law
from tests.support.runs import eval_view

NOMINAL = 0.80


def drawn(shapes, each, seed=0):
    rng = np.random.default_rng(seed)
    return [drawn_curve(shape, rng) for shape in shapes for _ in range(each)]


@pytest.mark.parametrize("count_from", ["min_steps", "start"])
@pytest.mark.parametrize(("shapes", "margin", "widest"), [(SMOOTH, 0.03, 0.20), (TREACHEROUS, 0.18, 0.22)])
def test_the_interval_holds_the_stop_of_curves_drawn_from_formulas(count_from, shapes, margin, widest):
    """Nearly as often as promised where the beginning tells of the end; where a curve turns without a sign, less."""
    curves = drawn(shapes, 40)
    found = summary(score(curves, Protocol(count_from=count_from), shipped(), lambda _: None))
    assert found["forecasts"] > 400
    assert found["coverage80"] >= NOMINAL - margin
    assert found["width"] <= widest


@pytest.mark.parametrize("shape", [*SMOOTH, *TREACHEROUS], ids=lambda shape: shape.__name__)
def test_every_forecast_of_a_drawn_curve_is_legal_ordered_and_finite(shape):
    rng = np.random.default_rng(len(shape.__name__))
    for n in range(14):
        curve = drawn_curve(shape, rng)
        horizon = len(curve.losses)
        rule = StopRule(int(rng.integers(1, 7)), float(rng.choice([0.0, 0.001, 0.003, 0.05])), round(0.1 * horizon))
        k = max(1, round(rng.choice([0.0, *PROGRESS]) * horizon))
        view = eval_view(curve.losses[:k], horizon)
        state = replay(rule, view.eval_pairs())
        if state.stopped_at is not None:
            continue
        found = forecast_stop(view, rule, np.random.default_rng(n), n=128)
        again = forecast_stop(view, rule, np.random.default_rng(n), n=128)
        first = earliest_stop(rule, state, range(k + 1, horizon + 1)) or horizon
        assert first <= found.samples.min()
        assert found.samples.max() <= horizon
        assert (np.diff(found.samples) >= 0).all()
        assert first <= found.p10 <= found.p50 <= found.p90 <= horizon
        assert np.isfinite(found.best)
        assert found.futures is not None
        assert np.isfinite(found.futures.losses).all()
        assert found.futures.losses.min() >= 0
        assert (found.samples == again.samples).all()


@pytest.mark.parametrize("horizon", [LENGTHS[0], 500, 5000])
def test_evals_at_every_step_and_few_or_thousands_of_them_are_forecast_within_a_bounded_work(horizon):
    losses = power_law(np.random.default_rng(1), np.arange(horizon) / horizon)[: max(3, horizon // 10)]
    found = forecast_stop(eval_view(losses, horizon), StopRule(4, 0.0, horizon // 10), np.random.default_rng(0))
    assert found.futures is not None
    assert len(found.samples) >= 64
    assert found.futures.losses.size <= max(60_000, 64 * horizon)


@pytest.mark.parametrize("scale", sorted({s for s in SCALES if s >= 0.1}))
def test_the_scale_of_a_loss_moves_the_forecast_little_when_min_delta_moves_with_it(scale):
    """The floor of the noise is a loss, and the library knows levels; so it may shift, but to no other story."""
    rng = np.random.default_rng(4)
    losses = 0.8 + 1.2 * np.arange(1, 9) ** -0.6 + 0.002 * rng.standard_normal(8)
    one = forecast_stop(eval_view(losses, 40), StopRule(4, 0.003, 4), np.random.default_rng(0))
    other = forecast_stop(eval_view(losses * scale, 40), StopRule(4, 0.003 * scale, 4), np.random.default_rng(0))
    assert abs(other.p50 - one.p50) <= 12
    assert abs(other.p_early - one.p_early) <= 0.35
