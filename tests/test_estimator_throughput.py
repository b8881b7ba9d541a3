"""Step time: pauses out, resumed and appended logs right, drift and changes seen, the interval honest."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.library import shipped
from estimator.throughput import given_rate, throughput
from estimator.view import make_view
from remote.forecast import run_view
from runner.log import LogReader

STEP_S, EVAL_S, SAVE_S = 2.0, 30.0, 12.0


def frames_of(steps, *, step_s=STEP_S, eval_every=50, save_every=100, first=1, process=0, whole=False):
    """Readings of a run as tqdm prints them: a step's frame comes before the eval and the save that follow it."""
    frames, pauses, clock = [], [], 0.0
    for step in range(first, steps + 1):
        clock += step_s(step) if callable(step_s) else step_s
        frames.append((step, math.floor(clock) if whole else clock, process))
        if step % eval_every == 0:
            pauses.append((step, "eval", EVAL_S, process))
            clock += EVAL_S
        if step % save_every == 0:
            pauses.append((step, "save", SAVE_S, process))
            clock += SAVE_S
    return frames, pauses, clock


def measured(steps=300, **how):
    frames, pauses, clock = frames_of(steps, **how)
    return throughput(make_view(step=steps, horizon=1000, elapsed_s=clock, frames=frames, pauses=pauses, eval_every=50))


def test_evals_and_saves_are_kept_apart_from_steps():
    found = measured()
    assert found.step_s == pytest.approx(STEP_S, rel=1e-6)
    assert (found.eval_s, found.save_s, found.save_every) == (EVAL_S, SAVE_S, 100)
    assert found.effective_sps == pytest.approx(100 / (100 * STEP_S + 2 * EVAL_S + SAVE_S))


def test_an_eval_inside_the_window_does_not_change_the_step_time():
    assert measured(149).step_s == pytest.approx(measured(151).step_s, rel=1e-9)


def test_a_clock_of_whole_seconds_moves_the_step_time_by_less_than_a_percent():
    assert measured(400, step_s=0.7, whole=True).step_s == pytest.approx(0.7, rel=0.01)


@pytest.mark.parametrize("step_s", [2.7924, 1.9, 2.51, 4.44])
def test_steps_of_a_few_seconds_on_that_clock_are_right_to_four_thousandths(step_s):
    """A median over short blocks reads 31 s / 11 steps = 2.818 for every 2.7924."""
    assert measured(457, step_s=step_s, whole=True).step_s == pytest.approx(step_s, rel=0.004)


def test_a_resumed_log_whose_clock_starts_again_gives_the_same_step_time():
    one, pauses, _ = frames_of(150)
    two, more, _ = frames_of(300, first=101, process=1)
    view = make_view(step=300, horizon=1000, frames=[*one, *two], pauses=[*pauses, *more], eval_every=50)
    assert throughput(view).step_s == pytest.approx(STEP_S, rel=1e-6)


def test_slow_first_steps_do_not_count():
    found = measured(step_s=lambda s: 20.0 if s <= 5 else STEP_S)
    assert found.step_s == pytest.approx(STEP_S, rel=1e-3)


def test_a_changed_host_is_noticed_and_only_the_time_since_counts():
    found = measured(step_s=lambda s: 2.0 if s <= 150 else 3.0)
    assert found.source == "after a change of speed"
    assert found.step_s == pytest.approx(3.0, rel=0.01)
    assert found.log_sd > measured().log_sd


def test_a_run_that_slows_down_shows_drift_and_a_wider_interval():
    found = measured(step_s=lambda s: 2.0 * (1 + s / 3000))
    assert found.drift > 0.05
    assert found.log_sd > 1.5 * measured().log_sd


def test_without_readings_the_total_time_is_used_and_without_that_nothing():
    view = make_view(step=100, horizon=1000, elapsed_s=260.0, evals=[(50, 1.0, 30.0), (100, 0.9, 30.0)])
    assert throughput(view).step_s == pytest.approx(2.0)
    assert throughput(make_view(step=100, horizon=1000)) is None
    assert throughput(make_view(step=0, horizon=1000, elapsed_s=0.0)) is None


def test_the_seeds_throughput_is_0_3497_from_its_totals():
    found = throughput(make_view(step=457, horizon=6000, elapsed_s=1307.0))
    assert found.effective_sps == pytest.approx(457 / 1307)
    assert math.floor(found.effective_sps * 1000) / 1000 == 0.349


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-5, 500), st.floats(allow_nan=True, allow_infinity=True), st.integers(0, 2)), max_size=40
    ),
    st.lists(st.tuples(st.integers(0, 500), st.sampled_from(["eval", "save"]), st.floats(), st.integers(0, 2))),
)
def test_any_readings_give_a_finite_speed_or_none(frames, pauses):
    found = throughput(make_view(step=10, horizon=500, frames=frames, pauses=pauses))
    if found is not None:
        assert 0 < found.effective_sps < math.inf
        assert math.isfinite(found.log_sd)
        low, middle, high = found.interval(100)
        assert low <= middle <= high


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_an_impossible_rate_is_refused(rate):
    with pytest.raises(ValueError, match="steps per second"):
        given_rate(rate)


def test_a_real_console_log_of_slow_steps_is_measured_to_a_percent():
    log = Path(__file__).parent / "data" / "trainer-logs" / "4.57.6-pipe-slow.txt"
    reader = LogReader()
    reader.feed(log.read_bytes())
    found = throughput(run_view(reader.history()))
    # the recorded program slept 1.2 s in every step; the model itself takes under a hundredth of that
    assert found.step_s == pytest.approx(1.21, rel=0.01)
    assert 0.05 < found.eval_s < 0.2


def remaining_errors(progress):
    """(log error, covered) of the remaining time on every shipped curve whose source tells the time."""
    rows = []
    for curve in shipped().curves:
        steps, elapsed = curve.steps, curve.elapsed
        if np.isnan(elapsed).any():
            continue
        keep = np.r_[True, (np.diff(steps) > 0) & (np.diff(elapsed) > 0)]
        steps, elapsed = steps[keep], elapsed[keep]
        k = max(2, round(progress * (len(steps) - 1)))
        frames = [(int(s), float(e), 0) for s, e in zip(steps[: k + 1], elapsed[: k + 1], strict=True)]
        found = throughput(make_view(step=int(steps[k]), horizon=int(steps[-1]), frames=frames))
        low, middle, high = found.interval(steps[-1] - steps[k])
        truth = elapsed[-1] - elapsed[k]
        rows.append((abs(math.log(truth / middle)), low <= truth <= high))
    return np.array(rows)


def test_on_recorded_runs_the_remaining_time_is_within_one_percent_and_the_interval_honest():
    errors = remaining_errors(0.1)
    assert len(errors) >= 50
    assert np.median(errors[:, 0]) <= 0.01
    assert 0.70 <= errors[:, 1].mean() <= 0.92
