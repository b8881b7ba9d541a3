"""Move or stay, wait or stop, and how the forecasts came true."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.bets import Bet, calibration
from estimator.migration import break_even_hours, break_even_time, migration
from estimator.plateau import certain, forecast_stop
from estimator.quote import Plan
from estimator.speed import relative_speed
from estimator.throughput import given_rate
from estimator.whatif import eval_noise, false_stop_by_noise, neighbouring_rules, what_if
from remote.bets import BetBook
from remote.forecast import forecast_run, other_rules, weigh_move
from remote.market import load_offers, running_offer
from runner.autostop import StopRule
from tests.support.runs import eval_view, seed_history

CURRENT, CHEAPER, H100 = load_offers()[:3]


def weighed(there, stop_step, here=CURRENT, **more):
    stop = certain(stop_step, 256, 6000, "horizon")
    plain = {"inet_up_cost": None, "inet_down_cost": None}
    plan = Plan(step=457, here=replace(here, **plain))
    return migration(replace(there, **plain), stop, given_rate(0.349), np.random.default_rng(0), plan, **more)


def test_the_seeds_cheaper_box_breaks_even_at_14_45_hours_and_4_41_are_left():
    assert break_even_hours(0.7411, 0.6676, 0.945, 0.75) == pytest.approx(14.45, abs=0.01)
    answer = weighed(CHEAPER, 6000)
    assert answer.break_even_h == pytest.approx(14.45, abs=0.01)
    assert answer.remaining_h.base == pytest.approx(4.41, abs=0.01)
    assert answer.mean_saves_usd == pytest.approx(-0.35, abs=0.03)
    assert not answer.worth_money


def test_the_seeds_h100_never_pays_in_money_and_in_time_only_after_8_hours():
    assert math.isinf(break_even_hours(0.7411, 1.1347, 1.1435, 1.0))
    assert break_even_time(1.1435, 1.0) == pytest.approx(7.97, abs=0.01)
    answer = weighed(H100, 6000)
    assert answer.p_saves == 0
    assert "never pays" in answer.why
    assert answer.to_json()["break_even_h"] is None


def test_a_much_cheaper_box_pays_and_a_run_about_to_stop_does_not_move():
    bargain = replace(CHEAPER, dph=0.2, dph_base=None)
    assert weighed(bargain, 6000).worth_money
    assert not weighed(bargain, 600).worth_money


def test_a_probe_decides_what_tables_leave_open():
    unknown = replace(H100, speed=None, dph=0.9, dph_base=None, setup_h=0.2)
    assert weighed(unknown, 6000, probe=2.0).p_sooner > 0.99
    assert weighed(unknown, 6000, probe=0.9).p_sooner == 0


@settings(max_examples=50, deadline=None)
@given(st.floats(0.05, 5), st.floats(0.05, 5), st.floats(0.2, 3), st.floats(0, 3), st.floats(0.01, 50))
def test_beyond_the_break_even_moving_saves_and_before_it_does_not(p0, pj, v, setup, hours):
    even = break_even_hours(p0, pj, v, setup)
    stay, move = hours * p0, (setup + hours / v) * pj
    if abs(stay - move) > 1e-6:
        assert (stay > move) == (hours > even)


def test_without_a_price_here_nothing_is_weighed():
    with pytest.raises(ValueError, match="no known price"):
        migration(CHEAPER, certain(6000, 8, 6000, "x"), given_rate(0.3), np.random.default_rng(0), Plan(step=1))
    assert weigh_move(forecast_run(seed_history(), StopRule()), CHEAPER) is None


def test_the_seeds_run_staying_costs_3_27_to_the_horizon_and_about_half_a_dollar_with_auto_stop():
    offers = load_offers()
    here = running_offer(offers)
    whole = forecast_run(seed_history(), None, offers, here=here)
    assert whole.stay.usd.base == pytest.approx(3.27, abs=0.02)
    assert whole.stop.method == "horizon"
    fixed = forecast_run(seed_history(), None, offers, here=here, rate=0.349, scenario=True)
    assert fixed.stay.usd.base == pytest.approx(3.27, abs=0.005)
    assert fixed.quotes[1].usd.base == pytest.approx(3.62, abs=0.005)
    stopped = forecast_run(seed_history(), StopRule(), offers, here=here)
    assert stopped.stay.usd.base < 1.2
    assert stopped.stay.usd.pess < whole.stay.usd.pess


def futures():
    rng = np.random.default_rng(3)
    losses = 2.0 / np.arange(1, 13) ** 0.4 + 0.004 * rng.standard_normal(12)
    return forecast_stop(eval_view(losses, 40), StopRule(4, 0.003, 4), rng).futures


def test_more_patience_stops_later_and_is_never_worse_in_loss():
    rows = what_if(futures(), [StopRule(p, 0.003, 4) for p in (2, 4, 8)], step=12, thr=given_rate(0.01), dph=1.0)
    stops = [r.stop for r in rows]
    losses = [r.best_loss for r in rows]
    assert stops == sorted(stops)
    assert losses == sorted(losses, reverse=True)
    assert [r.usd for r in rows] == sorted(r.usd for r in rows)


def test_the_value_of_waiting_is_dollars_per_thousandth_of_loss():
    current = StopRule(4, 0.003, 4)
    longer = replace(current, patience=8)
    (base, row) = what_if(futures(), [current, longer], step=12, thr=given_rate(0.01), dph=1.0, current=current)
    assert math.isnan(base.usd_per_milli)
    assert row.usd_per_milli == pytest.approx((row.usd - base.usd) / ((base.best_loss - row.best_loss) * 1000))
    assert row.usd_per_milli > 0


def test_the_neighbours_hold_the_rule_in_force():
    rule = StopRule(4, 0.003, 600)
    near = neighbouring_rules(rule, 6000)
    assert rule in near
    assert len(near) == len(set(near))


def test_what_ifs_on_the_seeds_run_are_there_and_a_rule_that_would_have_stopped_costs_nothing_more():
    offers = load_offers()
    found = forecast_run(seed_history(), StopRule(), offers, here=running_offer(offers))
    rows = other_rules(found)
    assert all(0 <= r.p_false_stop <= 1 for r in rows)
    (gone,) = other_rules(found, [StopRule(1, 0.003, 300, "start")])
    assert (gone.stop, gone.usd) == (300, 0.0)
    assert other_rules(forecast_run(seed_history(), None)) == []


def test_the_rule_in_force_has_the_same_interval_as_a_what_if_and_as_the_forecast():
    found = forecast_run(seed_history(), StopRule(), load_offers(), widen=0.05)
    stop = found.stop
    assert stop is not None
    assert stop.p90 > stop.p10
    (same,) = other_rules(found, [StopRule()])
    assert (same.p10, same.p50, same.p90, same.p_early) == (stop.p10, stop.p50, stop.p90, stop.p_early)


def test_eval_noise_is_recovered_from_the_second_differences():
    noise = np.random.default_rng(0).normal(0, 0.01, 400)
    recovered = [eval_noise(1.0 + noise[i : i + 12]) for i in range(0, 388, 12)]
    assert np.mean(recovered) == pytest.approx(0.01, rel=0.25)
    assert eval_noise([1.0, 0.9, 0.8]) is None
    assert eval_noise([1.0, math.nan, 0.9, 0.8, math.inf]) is None


def test_noise_makes_false_stops_likely_and_a_clear_fall_does_not():
    rule = StopRule(4, 0.003, 0)
    assert false_stop_by_noise(rule, 0.0001, 0.02) < 0.001
    noisy = false_stop_by_noise(rule, 0.02, 0.002)
    assert 0.05 < noisy < 0.9
    assert false_stop_by_noise(replace(rule, patience=8), 0.02, 0.002) < noisy
    assert false_stop_by_noise(rule, 0.02, 0.0) == 0.0
    # against plain simulation of the same story
    rng = np.random.default_rng(1)
    reference = rng.normal(0, 0.02, 200_000)
    evals = -0.002 * np.arange(1, 5) + rng.normal(0, 0.02, (200_000, 4))
    assert noisy == pytest.approx(np.mean((reference[:, None] - evals <= 0.003).all(axis=1)), abs=0.01)


def bet(run, truth, p10=10, p90=20, p_early=1.0, step=5):
    return Bet(run, step, 40, p10, 15, p90, p_early, truth)


def test_calibration_counts_runs_and_not_their_bets():
    many = [bet("a", 15, step=s) for s in range(1, 30)] + [bet("b", 33)]
    found = calibration(many)
    assert (found.runs, found.bets) == (2, 30)
    assert found.coverage == pytest.approx(0.5)
    assert "2 runs settled" in found.in_words()


def test_intervals_that_fail_are_widened_gently_and_those_that_always_hold_are_narrowed():
    assert calibration([]).widen == 0
    failed = calibration([bet(str(i), 33) for i in range(3)]).widen
    assert 0.1 < failed <= 0.15
    assert calibration([bet(str(i), 15) for i in range(10)]).widen < 0


def test_following_a_run_places_one_bet_an_eval_and_settles_it_at_its_end(tmp_path):
    book = BetBook(tmp_path / "bets.jsonl")
    running = replace(seed_history(), run_id="u-1")
    found = forecast_run(running, StopRule())
    for _ in range(3):
        book.follow(running, found.stop)
    assert [b.step for b in book.of_run("u-1")] == [400]
    crashed = replace(running, ended="crashed")
    book.follow(crashed, forecast_run(crashed, StopRule()).stop)
    assert book.calibration().runs == 0
    ended = replace(running, ended="finished", step=6000)
    book.follow(ended, forecast_run(ended, StopRule()).stop)
    assert [b.truth for b in BetBook(tmp_path / "bets.jsonl").of_run("u-1")] == [6000]
    book.follow(seed_history(), found.stop)
    assert len(book.of_run("u-1")) == 1


def test_two_screens_that_watch_one_run_bet_once(tmp_path):
    books = [BetBook(tmp_path / "bets.jsonl") for _ in range(2)]
    running = replace(seed_history(), run_id="u-1")
    found = forecast_run(running, StopRule())
    ended = replace(running, ended="finished", step=6000)
    for book in books:
        book.follow(running, found.stop)
        book.note_rate("stage5", "A100 SXM4", 0.35)
    for book in books:
        book.follow(ended, forecast_run(ended, StopRule()).stop)
    kept = BetBook(tmp_path / "bets.jsonl")
    assert [b.truth for b in kept.of_run("u-1")] == [6000]
    assert (kept.calibration().runs, len(kept.own_runs())) == (1, 1)


def test_rates_of_finished_runs_are_kept_and_used(tmp_path):
    book = BetBook(tmp_path / "bets.jsonl")
    book.note_rate("stage5", "A100 SXM4", 0.35)
    book.note_rate("stage5", "H100 PCIE", 0.42)
    book.note_rate("stage5", "H100 PCIE", math.nan)
    kept = BetBook(tmp_path / "bets.jsonl").own_runs()
    assert [r.steps_per_s for r in kept] == [0.35, 0.42]
    ratio = relative_speed(CURRENT, replace(H100, speed=None), own_runs=kept, recipe="stage5")
    assert ratio.mean == pytest.approx(1.2, rel=0.06)


def test_bets_survive_a_restart_and_a_cut_line(tmp_path):
    path = tmp_path / "bets.jsonl"
    found = forecast_stop(eval_view([2.0, 1.5, 1.4, 1.35], 40), StopRule(4, 0.003, 4), np.random.default_rng(0))
    book = BetBook(path)
    assert book.place("run-1", 4, 40, found)
    assert not book.place("run-1", 4, 40, found)
    assert not book.place("run-1", 40, 40, certain(40, 8, 40, "ended"))
    with path.open("ab") as file:
        file.write(b'{"run": "run-2", "step": 1, "hor\n[1]\n')
    assert BetBook(path).settle("run-1", 15) == 1
    again = BetBook(path)
    assert [b.truth for b in again.of_run("run-1")] == [15]
    assert again.calibration().runs == 1
    assert again.settle("run-1", 15) == 0
