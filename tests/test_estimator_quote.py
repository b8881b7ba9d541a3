"""Quotes: laws of money and time, the row of staying, the front, and odd offers."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.memory import MINISTRAL_3B, TrainShape
from estimator.offer import Offer
from estimator.plateau import certain
from estimator.quote import Plan, compare, project_scenarios
from estimator.throughput import Throughput
from estimator.workload import Workload, setup_phases
from remote.market import load_offers, running_offer
from runner.errors import NotFoundError, UsageError

THR = Throughput(2.0, 10.0, 5.0, 100, 500, 0.01, 300, "frames")
HERE = Offer("here", "A100 SXM4", 0.8, gpu_ram_gib=40, speed=1.0, setup_h=0.6)
offers = st.builds(
    Offer,
    id=st.uuids().map(str),
    gpu=st.sampled_from(["A100 SXM4", "RTX 4090", "H100 SXM", "Unheard Of"]),
    dph=st.floats(0, 5),
    gpu_ram_gib=st.sampled_from([24.0, 40.0, 80.0]),
    speed=st.none() | st.floats(0.2, 3),
    setup_h=st.none() | st.floats(0, 2),
    inet_down=st.none() | st.floats(1, 10000),
    interruptible=st.booleans(),
)


def spread_stop(low=500, high=6000, n=512):
    stop = certain(high, n, high, "test")
    return replace(stop, samples=np.linspace(low, high, n).astype(np.int64))


def quoted(rows, plan=None, seed=0, stop=None):
    plan = plan or Plan(step=400, here=HERE)
    return compare(rows, stop or spread_stop(), THR, np.random.default_rng(seed), plan)


@settings(max_examples=40, deadline=None)
@given(st.lists(offers, min_size=1, max_size=8))
def test_every_row_is_ordered_finite_and_on_the_front_only_when_unbeaten(rows):
    table = quoted(rows)
    everything = [*table.quotes, table.stay]
    for quote in everything:
        for three in (quote.hours, quote.usd):
            assert 0 <= three.opt <= three.base <= three.pess < math.inf
        beaten = any(o.usd.base < quote.usd.base and o.hours.base < quote.hours.base for o in everything)
        assert not (quote.pareto and beaten)
        assert quote.regret_usd >= 0
        assert quote.regret_h >= 0
    assert any(q.pareto for q in everything)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 5), st.floats(1.1, 4))
def test_cost_is_linear_in_the_price_and_hours_do_not_depend_on_it(dph, factor):
    one = Offer("a", "L40S", dph, gpu_ram_gib=48)
    cheap, dear = quoted([one, replace(one, id="b", dph=dph * factor)]).quotes
    assert dear.usd.base == pytest.approx(cheap.usd.base * factor)
    assert dear.hours == cheap.hours


@settings(max_examples=30, deadline=None)
@given(st.floats(0.2, 2), st.floats(1.05, 3), st.floats(0, 2), st.floats(0.01, 1))
def test_faster_is_sooner_and_more_setup_is_later(speed, faster, setup, more):
    one = Offer("a", "L40S", 1.0, speed=speed, setup_h=setup)
    base, quick, slow = quoted(
        [one, replace(one, id="b", speed=speed * faster), replace(one, id="c", setup_h=setup + more)]
    ).quotes
    assert quick.hours.base < base.hours.base < slow.hours.base
    assert slow.hours.base == pytest.approx(base.hours.base + more)


def test_more_steps_take_longer():
    rows = [Offer("a", "L40S", 1.0, speed=1.0, setup_h=0.5)]
    short, long = (project_scenarios(n, 0.3, rows)[0].hours.base for n in (1000, 1001))
    assert short < long


def test_staying_has_no_setup_and_a_copy_of_the_same_box_has():
    table = quoted([HERE])
    assert table.stay.setup_h == 0
    assert table.quotes[0].hours.base == pytest.approx(table.stay.hours.base + 0.6, abs=0.12)
    assert "sunk setup removed" in table.stay.notes
    assert table.best_id == "stay"


def test_evals_and_saves_are_counted_one_by_one():
    sure = replace(THR, log_sd=0.0)
    stop = certain(1000, 64, 1000, "horizon")
    table = compare([], stop, sure, np.random.default_rng(0), Plan(step=400, here=HERE))
    assert table.stay.hours.base == pytest.approx((600 * 2.0 + 6 * 10.0 + 2 * 5.0) / 3600)
    assert table.stay.usd.base == pytest.approx(table.stay.hours.base * 0.8)


def test_work_since_the_last_checkpoint_is_done_again_by_a_move_only():
    rows = [Offer("a", "L40S", 1.0, speed=1.0, setup_h=0.5)]
    kept = quoted(rows, Plan(step=400, here=HERE))
    lost = quoted(rows, Plan(step=400, here=HERE, checkpoint_step=0))
    assert lost.quotes[0].hours.base > kept.quotes[0].hours.base + 0.2
    assert lost.stay.hours == kept.stay.hours


def test_the_same_box_through_a_slower_link_takes_longer_to_set_up():
    fast = Offer("a", "L40S", 1.0, inet_down=5000.0)
    slow = replace(fast, inet_down=100.0)
    work = Workload(model_gb=7.0)
    assert setup_phases(slow, work)["model"] == pytest.approx(7 * 8000 / (100 * 0.6) / 3600)
    assert sum(setup_phases(slow, work).values()) > 0.8 > 0.5 > sum(setup_phases(fast, work).values())


def test_traffic_and_disk_have_lines_of_their_own():
    row = Offer(
        "a",
        "L40S",
        9.9,
        dph_base=1.0,
        storage_cost=0.36,
        inet_down_cost=0.01,
        inet_up_cost=0.02,
        speed=1.0,
        setup_h=0.0,
    )
    work = Workload(env_gb=3, model_gb=7, data_gb=0, upload_gb=5, disk_gb=100)
    quote = quoted([row], Plan(step=400, here=HERE, work=work)).quotes[0]
    assert quote.lines["traffic"] == pytest.approx(10 * 0.01 + 5 * 0.02)
    # 100 GB at 0.36 USD a month of 720 h is 5 cents an hour, and dph_total of another disk size is not used
    assert quote.lines["disk"] == pytest.approx(0.05 * quote.lines["gpu"], rel=1e-6)


def test_an_interruptible_box_takes_longer_than_the_same_on_demand():
    row = Offer("a", "L40S", 1.0, speed=1.0, setup_h=0.5)
    firm, spot = quoted([row, replace(row, id="b", interruptible=True)]).quotes
    assert spot.hours.pess > firm.hours.pess
    assert any("interruptible" in n for n in spot.notes)


def test_budget_and_deadline_become_probabilities():
    table = quoted([], Plan(step=400, here=HERE, budget=1.3, deadline_h=1.0))
    assert 0 < table.stay.p_before_deadline < table.stay.p_under_budget < 1
    unlimited = quoted([], Plan(step=400, here=HERE, budget=1e9, deadline_h=1e9)).stay
    assert (unlimited.p_under_budget, unlimited.p_before_deadline) == (1.0, 1.0)


def test_what_was_spent_is_in_the_total_and_not_in_the_remaining():
    stay = quoted([], Plan(step=400, here=HERE, spent_usd=2.0)).stay
    assert stay.total_usd.base == pytest.approx(stay.usd.base + 2.0)


def test_a_box_that_cannot_hold_the_run_competes_for_nothing():
    small = Offer("small", "RTX 3090", 0.01, gpu_ram_gib=24, speed=5.0, setup_h=0.0)
    work = Workload(model=MINISTRAL_3B, train=TrainShape(optimiser="adamw"))
    table = quoted([small], Plan(step=400, here=HERE, work=work))
    assert table.quotes[0].fits == "no"
    assert not table.quotes[0].pareto
    assert table.best_id == "stay"
    assert "weights and optimiser" in " ".join(table.quotes[0].notes)


def test_the_largest_batch_that_fits_is_told_where_model_and_memory_are_known():
    sizes = [Offer(str(gib), "L40S", 0.5, gpu_ram_gib=gib) for gib in (24, 48, 141, None)]
    plan = Plan(step=400, here=HERE, work=Workload(model=MINISTRAL_3B))
    known = [q.largest_batch for q in quoted(sizes, plan).quotes]
    assert known[0] == 0
    assert 1 <= known[1] < known[2]
    assert known[3] is None
    assert quoted(sizes[:1]).quotes[0].largest_batch is None


def test_a_free_offer_and_an_unknown_gpu_are_quoted_with_a_warning():
    free, novel = quoted([Offer("a", "L40S", 0.0, speed=1.0), Offer("b", "Unheard Of", 0.5)]).quotes
    assert free.usd.pess == 0
    assert any("look twice" in n for n in free.notes)
    assert any("not in the GPU table" in n for n in novel.notes)
    assert novel.hours.pess / novel.hours.opt > free.hours.pess / free.hours.opt


def test_the_same_seed_gives_the_same_table_and_a_row_does_not_depend_on_the_others():
    rows = [Offer("a", "L40S", 1.0), Offer("b", "RTX 4090", 0.4, interruptible=True)]
    assert quoted(rows).quotes == quoted(rows).quotes
    alone = quoted(rows[1:]).quotes[0]
    assert (alone.hours, alone.usd) == (quoted(rows).quotes[1].hours, quoted(rows).quotes[1].usd)


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({"gpu_name": "A100", "dph_total": 1}, "id"),
        ({"id": 1, "dph_total": 1}, "gpu_name"),
        ({"id": 1, "gpu_name": "A100"}, "dph_total"),
        ({"id": 1, "gpu_name": "A100", "dph_total": "cheap"}, "dph_total"),
        ({"id": 1, "gpu_name": "A100", "dph_total": math.nan}, "dph_total"),
        ({"id": 1, "gpu_name": "A100", "dph_total": -1}, "dph_total"),
        ({"id": 1, "gpu_name": "A100", "dph_total": 1, "speed": 0}, "speed"),
        ({"id": 1, "gpu_name": "A100", "dph_total": 1, "gpu_ram": True}, "gpu_ram"),
    ],
)
def test_a_row_with_a_wrong_type_names_the_field(row, word):
    with pytest.raises(ValueError, match=word):
        Offer.from_row(row)


def test_the_providers_units_are_converted():
    offer = Offer.from_row(
        {"id": 7, "gpu_name": "RTX 4090", "dph_total": 0.4, "gpu_ram": 24564, "duration": 7200.0, "is_bid": True}
    )
    assert (offer.id, round(offer.gpu_ram_gib, 1), offer.duration_h, offer.interruptible) == ("7", 24.0, 2.0, True)


@pytest.mark.parametrize(
    ("text", "error"),
    [(None, NotFoundError), ("not json", UsageError), ("[]", UsageError), ('{"offers": [3]}', UsageError),
     ('{"offers": [{"id": 1, "gpu_name": "A", "dph_total": "x"}]}', UsageError)],
)  # fmt: skip
def test_a_bad_offers_file_is_one_sentence_that_names_it(tmp_path, text, error):
    path = tmp_path / "offers.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=r"offers\.json"):
        load_offers(path)


def test_the_bundled_market_is_marked_as_examples_and_knows_the_running_box():
    rows = load_offers()
    assert len(rows) >= 15
    assert all(o.example for o in rows)
    assert running_offer(rows).id == "31457957"
    assert running_offer(rows, "40010005").gpu == "RTX 4090"
    with pytest.raises(NotFoundError, match="nowhere"):
        running_offer(rows, "nowhere")
