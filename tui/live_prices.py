"""Keeps the prices beside a run those of the market: asks it now and then, and hands the best offers to the session.

A thread of its own, a daemon: a provider that hangs delays nothing. It asks only where there is a provider to ask, and
no offers file was given; the market screen shows the same list, so one question serves both.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from runner.errors import TunewatchError
from tui.market import Limits, LiveMarket
from tui.snapshot import QuoteRow, RunSnapshot

if TYPE_CHECKING:
    from estimator.offer import Offer

FIRST_S = 3.0
"""Seconds after the first frame: the run's own curve and forecast come first."""
LOOK_S = 1.0
SHOWN = 8
"""Offers beside a run: the cheapest to its end, and what no other beats in time and money."""


class LivePrices(threading.Thread):
    """Asks the market whenever its list has grown old; `use` is called with the offers worth showing."""

    def __init__(
        self,
        market: LiveMarket,
        front: Callable[[], RunSnapshot | None],
        use: Callable[[Sequence[Offer]], None],
        *,
        first_s: float = FIRST_S,
    ) -> None:
        super().__init__(name="live prices", daemon=True)
        self.market = market
        self._front = front
        self._use = use
        self._first_s = first_s
        self._ending = threading.Event()
        self._seen = float("-inf")

    def stop(self) -> None:
        """Ask it to end; does not wait for a question that is under way."""
        self._ending.set()

    def run(self) -> None:
        """Ask until told to end."""
        if self._ending.wait(self._first_s) or not self.market.configured():
            return
        while not self._ending.wait(LOOK_S):
            front = self._front()
            if front is None:
                continue
            if self.market.due:
                self.market.ask(front.target)
            if self.market.known and self.market.read_at != self._seen:
                self._seen = self.market.read_at
                self._hand_over(front)

    def _hand_over(self, front: RunSnapshot) -> None:
        offers = self.market.offers
        try:
            rows = self.market.quote(offers, front, Limits()).rows
        except TunewatchError:
            # no quote can be made of this run yet: the bare list is handed over, by price
            rows = ()
        wanted = best(rows) or [one.id for one in sorted(offers, key=lambda one: one.dph)[:SHOWN]]
        by_id = {one.id: one for one in offers}
        self._use([by_id[name] for name in wanted if name in by_id])


def best(rows: Sequence[QuoteRow]) -> list[str]:
    """Ids of the offers worth a place beside the run, the cheapest first; those that do not fit the model last."""
    from tui.offer_rows import front

    known = [row for row in rows if row.usd[1] == row.usd[1]]
    ordered = sorted(known, key=lambda row: (row.fits == "no", row.usd[1], row.hours[1]))
    on_front = front([row for row in known if row.fits != "no"])
    chosen = {row.offer_id for row in ordered[:SHOWN]} | on_front
    return [row.offer_id for row in ordered if row.offer_id in chosen][: 2 * SHOWN]
