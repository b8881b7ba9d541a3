"""The market: every offer with finish time and bill for one run, the box it is on pinned at the top."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar, cast

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.message import Message
from textual.widgets import DataTable, Input, Static

from tui import words
from tui.keys import bindings
from tui.market import STALE_S, Limits, Quoted, bare_row, parse_budget, parse_deadline
from tui.offer_rows import SORTS, cells, front, offer_fields, titles
from tui.screens.filtering import Filtering, FilterLine, RentTable
from tui.snapshot import QuoteRow, RunSnapshot
from tui.widgets.billing import Head
from tui.widgets.key_line import KeyLine
from tui.widgets.limit_line import HINTS, LimitLine, slider, stepped
from tui.widgets.offer_detail import detail

if TYPE_CHECKING:
    from estimator.offer import Offer
    from tui.app import TunewatchApp
    from tui.market import LiveMarket
    from tui.run_filter import Query

T = TypeVar("T")

ROOM = 18
"""Rows of the terminal from which on an offer is told in full below the table."""
SHOWN = 100
"""Rows; a table of more is slow to fill and nobody reads it: the filter narrows it."""
AGAIN_STEPS = 20
"""Training steps after which the quotes of a live list are made anew."""
_ANY = QuoteRow("", "", 0.0, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
"""Stands for any offer, to ask what fields there are."""


@dataclass
class Back(Message):
    """A thread is done; what follows is the screen's."""

    then: Callable[[], None]


class OffersScreen(Filtering):
    """Quotes for one run, or the bare prices when no run is open."""

    CSS_PATH = "offers.tcss"
    BINDINGS: ClassVar[list[BindingType]] = bindings("offers")
    place = "offers"

    def __init__(self, target: str | None) -> None:
        super().__init__()
        self.target = target
        self.order = "usd" if target else "price"
        self.only_front = False
        self.accepts: Callable[[QuoteRow], bool] = lambda row: True
        self.limits = Limits()
        self.live = False
        """Whether there is a live market to ask."""
        self._snapshot: RunSnapshot | None = None
        self._quoted: Quoted | None = None
        self._sentences: dict[str, str] = {}
        self._busy: set[str] = set()
        self._again = False
        self._quoted_step = 0
        self._count = ""
        self._typing = "budget"
        self._seen = float("-inf")
        """The reading of the market that is shown."""

    @property
    def control(self) -> TunewatchApp:
        """The application, by its own type."""
        return cast("TunewatchApp", self.app)

    def compose(self) -> ComposeResult:
        """One table."""
        yield Head()
        yield FilterLine("gpu:H100 price<1 vram>=40")
        yield LimitLine(id="limit")
        yield Static("", id="trouble", markup=False)
        table = RentTable(cursor_type="row", zebra_stripes=False, fixed_columns=1)
        for key, title in titles({}):
            table.add_column(title, key=key)
        yield table
        yield Static(id="detail", markup=False)
        yield KeyLine(id="keys")

    def on_mount(self) -> None:
        """Show the quotes that are known; ask the market where there is a key and the last list is not fresh."""
        self.query_one(DataTable).focus()
        # without a run there are prices and nothing else to sort by
        self.recall_list(tuple(SORTS) if self.target else tuple(key for key in SORTS if key not in ("usd", "hours")))
        self.control.theme_changed_signal.subscribe(self, lambda _: self._fill())
        self._snapshot = self.control.snapshots.get(self.target) if self.target else None
        session = self.control.session
        # a file that was named stands above whatever key lies about
        self.live = not session.recorded and not session.offers_from and self._market.configured()
        if self.live:
            self.set_interval(1.0, self._tick)
            if self._market.known:
                self._quote()
            self._seen = self._market.read_at
            if self._market.age_s > STALE_S and not self._market.wait_s:
                self._ask()
        self._fill()

    def on_resize(self) -> None:
        """A low terminal keeps its rows for the table."""
        self._detail()

    def _tick(self) -> None:
        """The age of the prices, each second; a list that has grown old is read again by itself."""
        if self._market.read_at != self._seen and "market" not in self._busy:
            self._seen = self._market.read_at  # the quotes beside the run have asked meanwhile
            self._quote()
            self._fill()
        elif self._market.due and "market" not in self._busy and self.app.screen is self:
            self._ask()
        self._head()

    @property
    def _market(self) -> LiveMarket:
        return self.control.market

    def take(self, snapshot: RunSnapshot) -> None:
        """New quotes for this run."""
        if self.is_running and snapshot.target == self.target:
            old, self._snapshot = self._snapshot, snapshot
            if self._quoted is not None:
                if abs((snapshot.step or 0) - self._quoted_step) >= AGAIN_STEPS:
                    self._quote()
            elif old is None or old.quotes != snapshot.quotes or old.stay != snapshot.stay:
                self._fill()

    # -- aside: what waits for the provider or computes long --------------------------------------------------------

    def _aside(self, name: str, work: Callable[[], T], then: Callable[[T], None]) -> None:
        """Do `work` in a thread, `then` on the screen. A daemon: leaving never waits for a provider that hangs."""

        def run() -> None:
            try:
                result = work()
            except Exception as error:
                fault = f"a fault in tunewatch: {type(error).__name__}: {error}"
                self.post_message(Back(lambda: self._done(name, lambda: self._say(name, fault))))
                raise
            self.post_message(Back(lambda: self._done(name, lambda: then(result))))

        self._busy.add(name)
        threading.Thread(target=run, name=f"offers {name}", daemon=True).start()

    def _done(self, name: str, then: Callable[[], None]) -> None:
        self._busy.discard(name)
        if self.is_running:
            then()

    @on(Back)
    def _back(self, message: Back) -> None:
        message.stop()
        message.then()

    def _ask(self) -> None:
        market, target = self._market, self.target
        self._say("wait", "")
        self._aside("market", lambda: market.ask(target), self._asked)
        self._head()

    def _asked(self, _: None) -> None:
        self._say("market", self._market.trouble)
        self._seen = self._market.read_at
        if not self._market.trouble:
            self._say("offer", "")
            self._quote()
        self._fill()

    def _quote(self) -> None:
        """Make quotes for the list that is shown, once more after the one under way."""
        if "quotes" in self._busy:
            self._again = True
            return
        self._again = False
        market, offers, snapshot, limits = self._market, self._offers(), self._snapshot, self.limits
        self._quoted_step = (snapshot.step or 0) if snapshot is not None else 0
        self._aside("quotes", lambda: market.quote(offers, snapshot, limits), self._take_quotes)

    def _take_quotes(self, quoted: Quoted) -> None:
        self._quoted = quoted
        if self._again:
            self._quote()
        self._fill()

    def _say(self, about: str, sentence: str) -> None:
        """A sentence in its place above the table; an empty one takes it away."""
        self._sentences[about] = sentence
        trouble = self.query_one("#trouble", Static)
        said = [one for one in self._sentences.values() if one]
        trouble.update("\n".join(said))
        trouble.display = bool(said)

    # -- the table --------------------------------------------------------------------------------------------------

    def _offers(self) -> Sequence[Offer]:
        return self._market.offers if self.live and self._market.known else self.control.session.offers

    def _rows(self) -> list[QuoteRow]:
        if self._quoted is not None or (self.live and self._market.known):
            by_id = {row.offer_id: row for row in self._quoted.rows} if self._quoted is not None else {}
            # a price comes from the list, never from a quote made for the list before it
            rows = [(by_id.get(offer.id), bare_row(offer)) for offer in self._offers()]
            return [bare if quote is None or quote.dph != bare.dph else quote for quote, bare in rows]
        if self._snapshot is not None and self._snapshot.quotes:
            return list(self._snapshot.quotes)
        return [bare_row(offer) for offer in self._offers()]

    def _stay(self) -> QuoteRow | None:
        if self._quoted is not None:
            return self._quoted.stay
        return self._snapshot.stay if self._snapshot else None

    def _asked_limits(self) -> dict[str, float]:
        asked = {"p_under_budget": self.limits.budget, "p_before_deadline": self.limits.deadline_h}
        return {name: value for name, value in asked.items() if value is not None}

    def _fill(self) -> None:
        rows = self._rows()
        best = front(rows)
        stay = self._stay()
        limits = self._asked_limits()
        shown = [r for r in rows if self.accepts(r) and (not self.only_front or r.offer_id in best)]
        # what has no quote yet comes last, in any order
        shown.sort(key=lambda r: ((value := SORTS[self.order](r)) != value, value))
        table = self.query_one(DataTable)
        at, before = table.cursor_row, self._chosen()
        wanted = titles(limits)
        if [str(column.label) for column in table.ordered_columns] != [title for _, title in wanted]:
            table.clear(columns=True)
            for name, title in wanted:
                table.add_column(title, key=name)
        else:
            table.clear()
        pinned = [stay] if stay is not None else []
        most = max((r.usd[2] for r in (*pinned, *shown) if r.usd[2] < float("inf")), default=0.0)
        keys = []
        for row in (*pinned, *shown[:SHOWN]):
            keys.append("stay" if row.stay else row.offer_id)
            colours = self.control.theme_variables
            table.add_row(*cells(row, stay, most, colours, row.offer_id in best, limits), key=keys[-1])
        if keys:
            # the cursor stays on its offer: a list read anew must not put another under a finger on Enter
            table.move_cursor(row=keys.index(before) if before in keys else min(at, len(keys) - 1))
        self._count = f"{min(len(shown), SHOWN)} of {len(rows)} offers"
        self._head()
        self._detail()

    @on(DataTable.RowHighlighted)
    def _detail(self) -> None:
        """All of the offer under the cursor, below the table."""
        chosen, stay = self._chosen(), self._stay()
        row = stay if chosen == "stay" else next((r for r in self._rows() if r.offer_id == chosen), None)
        shown = self.query_one("#detail", Static)
        shown.display = row is not None and self.size.height >= ROOM
        if row is not None:
            best = row.offer_id in front(self._rows())
            shown.update(detail(row, stay, self._asked_limits(), self.control.theme_variables, best=best))

    def _head(self) -> None:
        """What is shown, of which market, and how old it is."""
        name = f" for {self._snapshot.name}" if self._snapshot else ""
        extra = ", only the front" if self.only_front else ""
        self.query_one("#head", Static).update(f"market{self._which()}   {self._count}{name}, by {self.order}{extra}")
        if not self._market.wait_s and self._sentences.get("wait"):
            self._say("wait", "")

    def _which(self) -> str:
        market = self._market
        if self.live and market.known:
            asking = ", asking again" if "market" in self._busy else ""
            return f"   live, {words.age(market.age_s)} old{asking}, {market.disk_gb:.0f} GB disk in the price"
        asking = ", asking the live one" if "market" in self._busy else ""
        if any(o.example for o in self.control.session.offers):
            return f"   example prices, not today's{asking}"
        name = Path(self.control.session.offers_from).name or "a file"
        return f"   from {name}{asking}" if self.control.session.offers else asking

    def _chosen(self) -> str | None:
        table = self.query_one(DataTable)
        return table.ordered_rows[table.cursor_row].key.value if table.row_count > table.cursor_row >= 0 else None

    @on(DataTable.RowSelected)
    def action_rent(self) -> None:
        """Move the run there, or rent it for a recipe. The dialog asks."""
        chosen = self._chosen()
        if chosen is None:
            return
        offer = next((r for r in self._rows() if r.offer_id == chosen), None)
        if offer is None:
            self.notify("That is the box the run is on.")
        elif self.control.looks_only:
            self.notify(f"renting is refused: {self.control.looks_only}", severity="warning")
        elif self.live and self._market.known:
            if "offer" not in self._busy:
                self._say("offer", f"asking whether offer {offer.offer_id} is still there …")
                market, asked = self._market, offer
                self._aside("offer", lambda: market.check(asked), lambda why: self._checked(asked, why))
        elif any(o.example and o.id == offer.offer_id for o in self.control.session.offers):
            self.notify(
                "An example cannot be rented; a key for the provider brings the live market.", severity="warning"
            )
        else:
            self._open(offer)

    def _checked(self, offer: QuoteRow, why: str) -> None:
        self._say("offer", why)
        if not why and self.app.screen is self:
            self._open(offer)

    def _open(self, offer: QuoteRow) -> None:
        from tui.deeds import migrate_deed
        from tui.screens.deed import DeedScreen
        from tui.screens.launch import LaunchScreen

        own = self._market.is_own(offer.offer_id)  # a machine of one's own is no place to move to, but one to launch on
        if not own and self._snapshot is not None and self.control.session.rented(self._snapshot.target):
            stay = self._stay()
            self.app.push_screen(DeedScreen(migrate_deed(replace(self._snapshot, stay=stay), offer)))
        else:
            self.app.push_screen(LaunchScreen(offer))

    def action_refresh(self) -> None:
        """Read the market again, not more often than its quota bears."""
        if self.control.session.offers_from:
            self._say("market", f"The offers are those of {self.control.session.offers_from}, as asked for.")
        elif not self.live:
            self._say("market", "There is no key for the provider: set VAST_API_KEY to see the live market.")
        elif "market" in self._busy:
            self._say("wait", "The market is being asked already.")
        elif wait := self._market.wait_s:
            self._say("wait", f"The market was asked a moment ago; again in {words.duration(max(wait, 1.0))}.")
        else:
            self._ask()

    def action_limit(self, which: str) -> None:
        """Open the line for a budget or a deadline."""
        line = self.query_one(LimitLine)
        self._typing = which
        given = self.limits.budget if which == "budget" else self.limits.deadline_h
        line.border_title = which
        line.placeholder = HINTS[which]
        line.value = _limit_words(which, given)
        line.border_subtitle = "↑ ↓ move it, Enter keeps it, Esc leaves it"
        line.add_class("-open")
        line.focus()

    @on(LimitLine.Stepped)
    def _limit_moved(self, event: LimitLine.Stepped) -> None:
        """A step of the slider is in force at once: the chances move with it."""
        budget = self._typing == "budget"
        rows = [r.usd if budget else r.hours for r in (self._stay(), *self._rows()) if r is not None]
        known = [row for row in rows if all(map(math.isfinite, row))]
        given = self.limits.budget if budget else self.limits.deadline_h
        start = min((row[1] for row in known), default=5.0)
        value = stepped(start if given is None else given, event.by)
        self.limits = replace(self.limits, budget=value) if budget else replace(self.limits, deadline_h=value)
        line = self.query_one(LimitLine)
        line.value = _limit_words(self._typing, value)
        most = sorted(row[2] for row in known)[len(known) // 2] if known else 2 * value
        line.border_subtitle = slider(value, most, "$" if budget else "h")
        self._quote()
        self._fill()

    @on(Input.Submitted, "#limit")
    def _limit_done(self, event: Input.Submitted) -> None:
        try:
            if self._typing == "budget":
                self.limits = replace(self.limits, budget=parse_budget(event.value))
            else:
                self.limits = replace(self.limits, deadline_h=parse_deadline(event.value))
        except ValueError as error:
            self._say("limit", str(error))
            return
        self._say("limit", "")
        self.query_one(LimitLine).action_put_away()
        self._quote()
        self._fill()

    def action_sort(self) -> None:
        """Sort by the next column."""
        names = list(SORTS)
        self.order = names[(names.index(self.order) + 1) % len(names)]
        self._fill()
        self.keep_list()

    def action_pareto(self) -> None:
        """Only the front, or all."""
        self.only_front = not self.only_front
        self._fill()

    def filter_fields(self) -> tuple[str, ...]:
        """What can be asked of an offer."""
        return tuple(offer_fields(_ANY))

    def filter_fault(self, sentence: str) -> None:
        """A sentence below the filter."""
        self._say("filter", sentence)

    def filter_by(self, query: Query) -> None:
        """Show only the offers that pass."""
        self.accepts = lambda row: query.matches(offer_fields(row))
        self._fill()


def _limit_words(which: str, given: float | None) -> str:
    return "" if given is None else f"{given:g}" if which == "budget" else f"{given:.4g}h"
