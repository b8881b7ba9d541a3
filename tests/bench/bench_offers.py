"""1,000 offers from the answer's last byte to quotes on the screen; the target is 300 ms."""

from __future__ import annotations

import json
import time

from estimator.offer import Offer
from remote.forecast import forecast_run
from remote.sizing import workload
from remote.vast_rows import offer_from
from runner.config import load_recipe
from runner.history import RunHistory
from tests.fake_vast.market import priced, random_offers
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


def main() -> None:
    body = json.dumps({"offers": [priced(row, 110.0, bid=False) for row in random_offers(COUNT)]}).encode()
    once(body)
    best = sorted(once(body) for _ in range(5))[2]
    print(f"offers to quotes, {COUNT}  {best * 1000:.0f} ms  {TARGET_S * 1000:.0f} ms  {best / TARGET_S:.2f}")


if __name__ == "__main__":
    main()
