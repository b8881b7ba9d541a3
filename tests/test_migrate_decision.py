"""Whether a move pays is said in dollars and hours before anything is rented."""

import pytest

from estimator.offer import Offer
from remote.carry import Line, ways
from remote.decision import decide
from remote.market import load_offers
from runner.autostop import StopRule
from runner.history import EvalPoint, Frame, RunHistory


def seed_run() -> RunHistory:
    """The run this project began with, at step 457 of 6000 after 1307 s."""
    evals = tuple(EvalPoint(step, loss, 7.72) for step, loss in ((200, 1.118), (300, 1.372), (400, 1.400)))
    return RunHistory(
        source="log", max_steps=6000, step=457, elapsed_s=1307.0, evals=evals,
        frames=(Frame(1, 2.86, 0), Frame(457, 1307.0, 0)),
    )  # fmt: skip


@pytest.mark.parametrize("rule", [None, StopRule(4, 0.003, 600)])
def test_the_seeds_move_is_not_worth_it_with_3_27_against_3_62_and_a_break_even_of_14_5_hours(rule):
    current, cheaper, _ = load_offers()[:3]
    decision = decide(seed_run(), current, cheaper, rule=rule, rate=0.349)
    assert not decision.pays
    assert round(decision.stay_usd, 2) == 3.27
    assert round(decision.move_usd, 2) == 3.62
    assert f"{decision.break_even_h:.1f}" == "14.5"
    assert decision.p_saves < 0.05
    assert "staying costs $3.27 and moving $3.62; moving pays from 14.5 h left on, 4.4 h are left" in decision.why


def test_a_faster_box_where_a_step_costs_more_never_pays_in_money():
    current, _, faster = load_offers()[:3]
    decision = decide(seed_run(), current, faster, rate=0.349)
    assert decision.break_even_h is None
    assert "never pays" in decision.why


def test_half_the_price_and_forty_hours_to_go_pays():
    here = Offer("1", "A100 SXM4", 1.20, speed=1.0, setup_h=0.0)
    there = Offer("2", "A100 SXM4", 0.60, speed=1.0, setup_h=0.3)
    long = RunHistory(max_steps=60_000, step=1000, elapsed_s=2500.0, frames=(Frame(1, 2.5, 0), Frame(1000, 2500.0, 0)))
    decision = decide(long, here, there)
    assert decision.pays
    assert decision.p_saves > 0.9
    low, middle, high = decision.saves_usd
    assert low < decision.mean_saves_usd < high
    assert middle == pytest.approx(59_000 * 2.5 / 3600 * 0.6 - 0.18 - 0.06, rel=0.05)


def test_the_measured_speed_of_the_rehearsal_can_turn_a_yes_into_a_no():
    here = Offer("1", "A100 SXM4", 1.00, speed=1.0, setup_h=0.0)
    there = Offer("2", "A100 SXM4", 0.80, speed=1.0, setup_h=0.3)
    run = RunHistory(max_steps=60_000, step=1000, elapsed_s=2500.0, frames=(Frame(1, 2.5, 0), Frame(1000, 2500.0, 0)))
    assert decide(run, here, there).pays
    rehearsed = decide(run, here, there, measured_speed=0.75, setup_left_h=0.0)
    assert not rehearsed.pays
    assert rehearsed.speed_measured
    assert "never pays" in rehearsed.why


def test_a_run_whose_speed_is_unknown_is_not_weighed():
    current, cheaper, _ = load_offers()[:3]
    decision = decide(RunHistory(max_steps=6000, step=0), current, cheaper)
    assert not decision.pays
    assert decision.p_saves is None
    assert "not known yet" in decision.why


def test_the_cheapest_way_all_told_is_taken_and_a_slow_laptop_line_costs_both_boxes_time():
    old, new = Line(up_mbit=800, up_usd_gb=0.003), Line(down_mbit=1600, down_usd_gb=0.003)
    found = ways(35 * 10**9, old, new, usd_per_h=1.4, reachable=True, on_hub=True, laptop_mbit=100)
    assert [way.name for way in found] == ["hub", "direct", "laptop"]
    laptop = found[-1]
    assert laptop.seconds == pytest.approx(2800, abs=1)
    assert laptop.usd == pytest.approx(35 * 0.006 + 1.4 * 2800 / 3600, rel=1e-3)


def test_a_few_bytes_do_not_pay_for_the_making_of_a_key():
    small = ways(500_000, Line(up_mbit=800), Line(down_mbit=800), usd_per_h=1.4, reachable=True, on_hub=True)
    assert small[0].name == "laptop"


def test_without_a_door_and_without_the_hub_the_laptop_is_always_a_way():
    assert [w.name for w in ways(10, Line(), Line(), usd_per_h=0.0, reachable=False, on_hub=False)] == ["laptop"]
