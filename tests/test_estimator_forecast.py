"""The stop forecast: what it may never say, and what it says of curves that leave no doubt."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings

from estimator.library import FILE, shipped
from estimator.plateau import MASS_UNUSUAL, above_zero, forecast_stop, interval_mass, shortest_interval, unusual
from estimator.view import make_view
from remote.forecast import forecast_run
from runner.autostop import StopRule, earliest_stop, replay
from tests.support.runs import SEED_EVALS, eval_view, losses, rules, seed_history


def forecast(view, rule, seed=0, n=128):
    return forecast_stop(view, rule, np.random.default_rng(seed), n=n)


@settings(max_examples=80, deadline=None)
@given(rule=rules, seen=losses)
def test_no_sample_before_the_earliest_legal_stop_or_after_the_horizon(rule, seen):
    view = eval_view(seen, horizon=40)
    found = forecast(view, rule)
    state = replay(rule, view.eval_pairs())
    first = earliest_stop(rule, state, range(len(seen) + 1, 41)) or 40
    assert found.samples.min() >= first
    assert found.samples.max() <= 40
    assert found.samples.min() <= found.p10 <= found.p50 <= found.p90 <= found.samples.max()
    assert 0.0 <= found.p_early <= 1.0


@pytest.mark.parametrize("evals", range(4))
def test_with_no_to_three_evals_the_library_answers(evals):
    found = forecast(eval_view([2.0, 1.5, 1.3][:evals], horizon=30), StopRule(4, 0.003, 3))
    assert found.method == ("mixture" if evals == 3 else "library")
    assert found.p10 < found.p90
    assert len(set(found.samples.tolist())) > 3


def test_the_same_generator_gives_the_same_forecast():
    view = eval_view([2.0, 1.6, 1.5, 1.47], 30)
    one, two = forecast(view, StopRule(4, 0.003, 3), seed=7), forecast(view, StopRule(4, 0.003, 3), seed=7)
    assert one.samples.tolist() == two.samples.tolist()
    assert (one.p10, one.p50, one.p90) == (two.p10, two.p50, two.p90)


def test_a_curve_that_falls_for_good_is_expected_to_reach_its_horizon():
    falling = [3.0 - 0.08 * i for i in range(12)]
    found = forecast(eval_view(falling, 20), StopRule(4, 0.003, 2))
    assert found.p50 == 20
    assert found.p_early < 0.25


def test_a_fall_that_is_nearly_straight_is_not_called_a_plateau():
    """A power law that starts at eval 1 would bend such a fall, and stop it by eval 30 or so."""
    slow = [2.0 - 0.012 * i + 0.00002 * i * i for i in range(10)]
    found = forecast(eval_view(slow, 50), StopRule(4, 0.003, 5))
    assert found.p90 == 50
    assert found.p_early < 0.7


def test_no_future_of_a_loss_above_zero_falls_below_it():
    """The miniature study at eval 9 of 40: a straight line through the last four evals is below zero two evals on."""
    seen = [1.975, 0.844, 0.754, 0.63, 0.537, 0.429, 0.31, 0.153, 0.054]
    found = forecast(eval_view(seen, 40), StopRule(4, 0.004, 8), n=512)
    assert found.futures is not None
    assert found.futures.losses.min() >= 0
    assert found.best is not None
    assert 0 < found.best < 0.054
    # it really stopped at eval 18
    assert found.p50 <= 20
    assert found.p_early > 0.7


@given(seen=losses.filter(len))
def test_bending_futures_away_from_zero_keeps_their_order_and_leaves_the_others_alone(seen):
    history = np.abs(np.array(seen)) + 0.01
    low = history.min()
    paths = np.linspace(-5 * low, 3 * low, 50)[None, :]
    bent = above_zero(paths, history)
    assert bent.min() >= 0
    assert (np.diff(bent) >= 0).all()
    assert (bent[paths >= 0.5 * low] == paths[paths >= 0.5 * low]).all()
    assert (above_zero(paths, -history) == paths).all()


def test_a_flat_curve_is_expected_to_stop_as_soon_as_it_may():
    found = forecast(eval_view([1.0, 0.9995, 1.0004, 0.9999], 40), StopRule(4, 0.003, 2))
    assert found.p50 <= 10
    assert found.p_early > 0.9


@pytest.mark.parametrize(
    "seen",
    [
        [1.5],
        [1.0] * 6,
        [1.0, 1.2, 1.5, 1.9, 2.4],
        [0.0, 0.0, 0.0],
        [-2.0, -2.5, -2.6],
        [1e9, 1e6, 1e5],
        [1e300, 9e299, 1e280],
        [1e305, -1e305, 1.0],
        [5e-324, 1e-300, 1e-310],
        [2.0, 2.0 + 1e-12, 2.0],
    ],
)
def test_odd_curves_still_get_an_answer_within_the_horizon(seen):
    found = forecast(eval_view(seen, 30), StopRule(9, 0.003, 2))
    assert 1 <= found.p10 <= found.p50 <= found.p90 <= 30
    assert found.best is not None
    assert math.isfinite(found.best)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_stops_the_run_there(bad):
    found = forecast(eval_view([1.0, bad], 30), StopRule(4, 0.003, 10))
    assert (found.p10, found.p50, found.p90, found.method) == (2, 2, 2, "stopped")


def test_duplicate_and_disordered_evals_are_put_in_order_and_counted_once():
    tidy = make_view(step=40, horizon=300, evals=[(10, 2.0, None), (20, 1.8, None), (30, 1.7, None), (40, 1.65, None)])
    messy = make_view(
        step=40,
        horizon=300,
        evals=[(20, 1.8, None), (10, 2.0, None), (20, 9.9, None), (None, 5.0, None), (40, 1.65, 3.0), (30, 1.7, None)],
    )
    assert messy.eval_pairs() == tidy.eval_pairs()
    rule = StopRule(4, 0.003, 50)
    assert forecast(messy, rule).samples.tolist() == forecast(tidy, rule).samples.tolist()


def test_an_unknown_horizon_is_refused_in_words():
    with pytest.raises(ValueError, match="planned steps"):
        forecast(make_view(step=10, horizon=None, evals=[(10, 1.0, None)]), StopRule())


def test_a_run_without_evals_left_ends_at_its_horizon():
    found = forecast(eval_view([1.0, 0.9, 0.8], 3), StopRule(4, 0.003, 1))
    assert (found.p10, found.p50, found.p90, found.p_early) == (3, 3, 3, 0.0)


@pytest.mark.parametrize(("count_from", "first"), [("min_steps", 1000), ("start", 600)])
def test_the_seeds_run_can_stop_first_at_1000_or_600_by_its_counting(count_from, first):
    rule = StopRule(count_from=count_from)
    flat = [(s, 1.4) for s in range(500, 6001, 100)]
    assert replay(rule, [*SEED_EVALS, *flat]).stopped_at == first
    found = forecast_run(seed_history(), rule).stop
    assert found.earliest == first
    assert found.samples.min() >= first
    assert found.p_early > 0.8


def test_the_interval_is_the_shortest_one_that_holds_its_mass_and_the_median():
    samples = np.sort(np.array([10] * 50 + [11] * 25 + [40] * 25))
    assert shortest_interval(samples, 0.6) == (10, 10, 11)
    assert shortest_interval(samples, 1.0) == (10, 10, 40)
    assert shortest_interval(np.array([5, 5, 5]), 0.8) == (5, 5, 5)


def test_the_interval_grows_where_little_length_takes_in_many_futures_and_only_there():
    samples = np.sort(np.array([10] * 50 + [13] * 30 + [40] * 20))
    assert shortest_interval(samples, 0.4) == (10, 10, 10)
    assert shortest_interval(samples, 0.4, worth=0.8, span=50) == (10, 10, 13)
    assert shortest_interval(samples, 0.4, worth=0.8, span=15) == (10, 10, 13)
    assert shortest_interval(samples, 0.4, worth=0.8, span=10) == (10, 10, 10)
    assert shortest_interval(samples, 0.9, worth=0.8, span=10) == (10, 10, 40)


@pytest.mark.parametrize("worth", [0.0, 0.8])
def test_more_asked_mass_never_narrows_the_interval(worth):
    rng = np.random.default_rng(1)
    samples = np.sort(rng.integers(10, 60, 300))
    found = [shortest_interval(samples, m, worth=worth, span=60) for m in np.linspace(0.05, 1, 30)]
    widths = [h - lo for lo, _, h in found]
    assert widths == sorted(widths)
    for mass, (low, middle, high) in zip(np.linspace(0.05, 1, 30), found, strict=True):
        assert low <= middle <= high
        assert np.mean((samples >= low) & (samples <= high)) >= mass - 1e-9


def test_the_mass_changes_smoothly_with_the_probability_of_an_early_stop():
    masses = [interval_mass(p, 6) for p in np.linspace(0, 1, 201)]
    assert max(abs(b - a) for a, b in itertools.pairwise(masses)) < 0.03
    assert interval_mass(0.1, 3) > interval_mass(0.1, 20)
    assert interval_mass(0.9, 6, distance=3.0) > interval_mass(0.9, 6, distance=1.0)


def test_the_further_a_rule_is_from_the_usual_one_the_plainer_its_interval():
    assert unusual(StopRule(4, 0.003)) == unusual(StopRule(4, 0.003, 50, "start")) < 1
    assert unusual(StopRule(4, 0.003)) < unusual(StopRule(5, 0.003)) < unusual(StopRule(8, 0.003)) == 1
    assert unusual(StopRule(4, 0.0)) == unusual(StopRule(2, 0.01)) == unusual(StopRule(20, 0.003)) == 1
    assert interval_mass(0.7, 6, rule=StopRule(2, 0.001)) == MASS_UNUSUAL
    assert interval_mass(0.1, 20, rule=StopRule(20, 0.0)) == MASS_UNUSUAL


def test_the_shipped_library_is_small_sourced_and_whole():
    library = shipped()
    assert FILE.stat().st_size < 150_000
    assert len(library.curves) >= 100
    assert all(c.repo and c.path for c in library.curves)
    assert min(library.lengths) >= 9
    listed = FILE.with_name("CURVES.md").read_text()
    assert all(c.repo in listed for c in library.curves)
