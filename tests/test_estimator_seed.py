"""The study's own numbers: 18 figures to the cent, staying against moving, and where its run can stop."""

from decimal import ROUND_HALF_UP, Decimal

import pytest

from estimator.quote import project_scenarios, scenario_quotes
from remote.market import load_offers

SEED = {
    "31457957": ((4.58, 5.38, 8.56), (3.39, 3.98, 6.34)),
    "30911204": ((4.96, 5.80, 9.17), (3.31, 3.87, 6.12)),
    "31457612": ((4.48, 5.18, 7.96), (5.08, 5.87, 9.03)),
}


def half_up(value: float) -> float:
    return float(Decimal(repr(value)).quantize(Decimal("0.01"), rounding=ROUND_HALF_UP))


@pytest.mark.parametrize("offer_id", SEED)
def test_the_scenario_model_gives_the_eighteen_figures_to_the_cent(offer_id):
    offer = next(o for o in load_offers() if o.id == offer_id)
    (row,) = project_scenarios(6000, 0.349, [offer])
    hours, usd = SEED[offer_id]
    assert tuple(half_up(v) for v in (row.hours.opt, row.hours.base, row.hours.pess)) == hours
    assert tuple(half_up(v) for v in (row.usd.opt, row.usd.base, row.usd.pess)) == usd


def test_staying_costs_3_27_against_3_62_for_the_cheaper_box_at_step_457():
    current, cheaper, _ = load_offers()[:3]
    table = scenario_quotes(6000 - 457, 0.349, [current, cheaper], here=current)
    assert half_up(table.stay.usd.base) == 3.27
    assert half_up(table.quotes[1].usd.base) == 3.62


@pytest.mark.parametrize(("steps", "rate"), [(-1, 1.0), (6000, 0.0), (float("nan"), 1.0), (10, float("nan"))])
def test_impossible_steps_and_rates_are_refused_in_words(steps, rate):
    with pytest.raises(ValueError, match="has to be"):
        project_scenarios(steps, rate, load_offers())
