"""Prices that renew themselves, on the market screen and beside the run; a file of offers stands above them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from remote.market import load_offers
from tests.fake_vast import faults
from tests.support.tui import app_with, frozen, history, plain, snapshot, until
from tests.test_offers_screen import Hand, ids, market, settled, trouble  # noqa: F401 - a fixture among them
from tui.live_prices import LivePrices, best
from tui.market import AGAIN_S, STALE_S, LiveMarket
from tui.opening import new_session
from tui.screens.live import LiveScreen
from tui.screens.offers import OffersScreen
from tui.snapshot import SnapshotMaker

BIG = (120, 40)


def searches(market: Any) -> int:  # noqa: F811
    return sum(1 for name, _ in market.fake.bodies if name == "search")


async def test_the_list_of_offers_is_read_again_by_itself_when_it_has_grown_old(market):  # noqa: F811
    async with market.screen(snapshot()) as pilot:
        asked = searches(market)
        market.fake.world.offers.pop(7000002)
        market.clock.now += STALE_S + 1
        await until(lambda: searches(market) > asked, pilot, 60)
        await settled(pilot)
        await until(lambda: "7000002" not in ids(pilot), pilot, 60)
        # the market does not answer: the last list stays, and it is asked again later, not at each second
        market.fake.faults.add("search", faults.BAD_GATEWAY, times=50)
        market.clock.now += STALE_S + 1
        await until(lambda: bool(trouble(pilot)), pilot, 60)
        await settled(pilot)
        assert "7000001" in ids(pilot)
        assert not pilot.app.market.due
        market.fake.faults.clear()
        market.clock.now += AGAIN_S + 1
        await until(lambda: not trouble(pilot), pilot, 60)


async def test_the_quotes_beside_a_run_become_those_of_the_live_market_and_say_their_age(market):  # noqa: F811
    one = snapshot()
    app = app_with(frozen(one))
    app.market = LiveMarket(clock=market.clock)
    handed: list[Any] = []
    prices = LivePrices(app.market, lambda: one, handed.append, first_s=0.0)
    async with app.run_test(size=BIG) as pilot:
        await until(lambda: isinstance(app.screen, LiveScreen), pilot)
        prices.start()
        await until(lambda: handed, pilot, 60)
        assert {offer.id for offer in handed[-1]} == {"7000001", "7000002", "7000003"}
        market.clock.now += 45
        app.screen.take(replace(app.screen.snapshot, at=2.0))
        await until(lambda: "live prices, 45s old" in plain(app), pilot)
        market.fake.world.offers[7000001]["dph_base"] = 0.1
        market.clock.now += STALE_S
        await until(lambda: len(handed) > 1, pilot, 60)
        assert handed[-1][0].id == "7000001", "the cheapest to the end stands first"
    prices.stop()
    prices.join(60)


async def test_a_file_of_offers_stands_above_the_live_market_although_there_is_a_key(market, tmp_path):  # noqa: F811
    path = tmp_path / "mine.json"
    row = {"id": 5, "gpu_name": "L40S", "num_gpus": 1, "gpu_ram": 46000, "dph_total": 0.5}
    path.write_text(json.dumps({"offers": [row]}))
    session = new_session(str(path))
    assert session.offers_from == str(path)
    app = app_with(snapshot())
    app.session.offers, app.session.offers_from = session.offers, session.offers_from
    app.market = LiveMarket(clock=market.clock)
    app.live_prices = True
    async with app.run_test(size=BIG) as pilot:
        await pilot.press("o")
        await until(lambda: isinstance(app.screen, OffersScreen), pilot)
        assert not app.screen.live
        assert "from mine.json" in plain(app)
        await pilot.press("r")
        await until(lambda: "mine.json, as asked for" in trouble(pilot), pilot)
        await until(lambda: app._settled, pilot)
        assert app._prices is None
        assert app.price_words() == "prices from mine.json"
    assert searches(market) == 0


def test_other_offers_are_quoted_at_the_next_look_although_nothing_was_trained():
    class Read:
        history = history(457)
        state, reason, problem, warnings, log_path, health = "running", "", None, (), None, None
        link = snapshot().link

    maker = SnapshotMaker("run", "run", offers=load_offers()[:2])
    first = maker.make(Read, at=1.0)
    assert maker.make(Read, at=2.0).quotes == first.quotes
    maker.use(load_offers()[3:5])
    assert {q.offer_id for q in maker.make(Read, at=3.0).quotes} == {o.id for o in load_offers()[3:5]}


def test_what_stands_beside_a_run_is_the_cheapest_and_the_front_and_what_does_not_fit_comes_last():
    base = frozen(snapshot()).quotes[0]
    rows = [replace(base, offer_id=str(n), usd=(1.0, 1.0 + n, 9.0), hours=(1.0, 9.0, 9.0)) for n in range(20)]
    rows += [replace(base, offer_id="quick", usd=(9.0, 99.0, 99.0), hours=(0.1, 0.2, 0.3))]
    rows += [replace(base, offer_id="small", usd=(0.0, 0.1, 0.2), fits="no")]
    rows += [replace(base, offer_id="unknown", usd=(float("nan"),) * 3)]
    found = best(rows)
    assert found == [*map(str, range(8)), "quick"]
    assert best([]) == []
