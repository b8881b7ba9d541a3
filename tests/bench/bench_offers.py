"""1,000 offers from the answer's last byte to quotes on the screen (the target is 300 ms), and how many calls and how
long it takes to know of every rented box anew: status, price and bill, from the pages of one list.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from estimator.offer import Offer
from remote.desk import Desk
from remote.forecast import forecast_run
from remote.journal import Journal
from remote.provider import Order
from remote.rented import survey
from remote.sizing import workload
from remote.vast_rows import offer_from
from runner.config import load_recipe
from runner.history import RunHistory
from tests.fake_vast.market import offer_row, priced, random_offers
from tests.support.vast import rented_world
from tui.commands.offers import lines

TARGET_S = 0.3
COUNT = 1000


def once(body: bytes) -> float:
    recipe = load_recipe("stage5", env={})
    began = time.perf_counter()
    rows = json.loads(body)["offers"]
    market = [offer for offer in (offer_from(row, 110.0, spot=False) for row in rows) if offer is not None]
    offers = [Offer.from_row(offer.row) for offer in market]
    history = RunHistory(max_steps=recipe.train.max_steps, step=0, rule=recipe.stop_rule)
    here = Offer(id="reference", gpu="A100 SXM4", dph=0.0, gpu_ram_gib=40.0, speed=1.0, setup_h=0.0)
    forecast = forecast_run(history, None, offers, here=here, rate=0.349, workload=workload(recipe, 110.0))
    quotes = {str(quote.offer_id): quote.to_json() for quote in forecast.quotes}
    lines(market, quotes)
    return time.perf_counter() - began


def refresh(boxes: int) -> tuple[int, float, float]:
    """Calls, seconds in all, and seconds of the calls themselves, to refresh so many boxes at the stand-in."""
    offers = [offer_row(number, machine_id=number) for number in range(1, boxes + 1)]
    with TemporaryDirectory() as folder, rented_world(offers=offers, credit=1e6) as (fake, provider, clock):
        journal = Journal(Path(folder), clock=clock)
        for number in range(1, boxes + 1):
            made = provider.create(Order(number, f"tunewatch:abcdef:mine/{number}:{number:08x}", "img", 60, "true"))
            journal.put_box(made, run=f"mine/{number}", state="running")
        desk = Desk(provider, journal, clock=clock, mono=clock, sleep=clock.sleep)
        desk.listing()
        clock.advance(60)
        before, began = fake.count("list"), time.perf_counter()
        rows = desk.listing()
        listed = time.perf_counter()
        shown = survey(journal, rows, clock())
        done = time.perf_counter()
        assert len(shown) == boxes
        return fake.count("list") - before, done - began, listed - began


def main() -> None:
    body = json.dumps({"offers": [priced(row, 110.0, bid=False) for row in random_offers(COUNT)]}).encode()
    once(body)
    best = sorted(once(body) for _ in range(5))[2]
    print(f"offers to quotes, {COUNT}  {best * 1000:.0f} ms  {TARGET_S * 1000:.0f} ms  {best / TARGET_S:.2f}")
    for boxes in (1, 10, 25, 40, 100):
        calls, seconds, listed = refresh(boxes)
        print(f"refresh of {boxes} boxes  {calls} calls  {seconds * 1000:.0f} ms, of it listing {listed * 1000:.0f} ms")


if __name__ == "__main__":
    main()
