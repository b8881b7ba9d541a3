"""The vectorised auto-stop machine is the scalar one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.simulate import simulate_best, simulate_stop
from runner.autostop import StopRule, StopState, replay
from tests.support.runs import losses, rules


def stops_by_the_scalar_machine(rule, state, steps, futures):
    found = []
    for path in futures:
        end = replay(rule, zip(steps, map(float, path), strict=True), state)
        found.append(steps.index(end.stopped_at) if end.stopped_at is not None else len(steps))
    return found


@settings(max_examples=200, deadline=None)
@given(rule=rules, seen=losses, coming=st.integers(1, 15), seed=st.integers(0, 2**32), scale=st.floats(1e-4, 1.0))
def test_every_path_stops_where_the_scalar_machine_stops(rule, seen, coming, seed, scale):
    state = replay(rule, [(i + 1, v) for i, v in enumerate(seen)])
    if state.stopped_at is not None:
        return
    steps = [len(seen) + 1 + i for i in range(coming)]
    rng = np.random.default_rng(seed)
    start = seen[-1] if seen else 1.0
    futures = np.round(start + np.cumsum(rng.normal(-0.2, 1, (5, coming)), axis=1) * scale, 4)
    assert simulate_stop(rule, state, steps, futures).tolist() == stops_by_the_scalar_machine(
        rule, state, steps, futures
    )


@pytest.mark.parametrize("count_from", ["min_steps", "start"])
def test_a_thousand_random_paths_agree_in_both_counting_modes(count_from):
    rng = np.random.default_rng(5)
    rule = StopRule(3, 0.003, 9, count_from)
    seen = [(i + 1, 2.0 - 0.1 * i) for i in range(4)]
    state = replay(rule, seen)
    steps = list(range(5, 45))
    # multiples of min_delta, so that gains of exactly min_delta occur again and again
    futures = 1.6 + np.cumsum(rng.integers(-2, 2, (1000, 40)) * 0.003, axis=1)
    assert simulate_stop(rule, state, steps, futures).tolist() == stops_by_the_scalar_machine(
        rule, state, steps, futures
    )


def test_a_stopped_state_stays_stopped():
    state = StopState(reference=1.0, bad=4, stopped_at=400, last_step=400, armed_at=100)
    assert simulate_stop(StopRule(), state, [500, 600], np.ones((3, 2))).tolist() == [0, 0, 0]


@settings(max_examples=50, deadline=None)
@given(rule=rules, seed=st.integers(0, 2**32), shift=st.integers(-5, 5))
def test_a_shift_of_all_losses_changes_no_stop(rule, seed, shift):
    rng = np.random.default_rng(seed)
    # dyadic steps keep the shifted sums exact, so equality is not a matter of rounding
    futures = 8 + np.cumsum(rng.integers(-3, 2, (20, 12)), axis=1) / 64
    steps = list(range(1, 13))
    plain = simulate_stop(rule, StopState(), steps, futures)
    assert simulate_stop(rule, StopState(), steps, futures + shift).tolist() == plain.tolist()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), factor=st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_scaling_losses_and_min_delta_together_changes_no_stop(seed, factor):
    rng = np.random.default_rng(seed)
    futures = 8 + np.cumsum(rng.normal(0, 0.01, (20, 12)), axis=1)
    steps = list(range(1, 13))
    plain = simulate_stop(StopRule(3, 0.004, 4), StopState(), steps, futures)
    scaled = simulate_stop(StopRule(3, 0.004 * factor, 4), StopState(), steps, futures * factor)
    assert scaled.tolist() == plain.tolist()


def test_the_best_loss_of_a_path_is_the_lowest_up_to_its_stop():
    futures = np.array([[3.0, 2.0, 2.5, 1.0], [4.0, 4.5, 5.0, 6.0]])
    assert simulate_best(futures, np.array([2, 4]), best=None).tolist() == [2.0, 4.0]
    assert simulate_best(futures, np.array([2, 4]), best=1.5).tolist() == [1.5, 1.5]
