"""The market behind the Offers screen: what was asked last, how old it is, and when it may be asked again.

Everything here that blocks is called from a thread of the screen's; the SDK of the provider is imported there alone.
A fault keeps the last list. The object lives as long as the application, so that leaving the screen and coming back
does not ask again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.errors import TunewatchError
from tui.snapshot import QuoteRow, RunSnapshot, quote_row, whole_run_quotes

if TYPE_CHECKING:
    from estimator.offer import Offer
    from remote.listing import Listing
    from runner.recipe import Recipe

PAUSE_S = 5.0
"""Seconds between two questions to the market: its searches have a quota."""
STALE_S = 120.0
"""Seconds after which opening the screen asks again by itself."""
AGAIN_S = 30.0
"""Seconds after a fault until it is asked again by itself."""
RECIPE = "stage5"
"""What a quote without a run is for, as in `tunewatch offers`."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a person wants to stay under, from now on; None: not asked."""

    budget: float | None = None
    """USD."""
    deadline_h: float | None = None


@dataclass(frozen=True, slots=True)
class Quoted:
    """Quotes for one list of offers."""

    rows: tuple[QuoteRow, ...]
    stay: QuoteRow | None = None


class LiveMarket:
    """The provider's offers, where a key for it is configured."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, enabled: bool = True) -> None:
        self._clock = clock
        self._enabled = enabled
        self._not_before = float("-inf")
        self._read_at = float("-inf")
        self._disk = 0.0
        self._listing: Listing | None = None
        self.offers: tuple[Offer, ...] = ()
        """The last list; empty before the first."""
        self.trouble = ""
        """Why the last question had no answer; empty when it had one."""
        self.known = False
        """Whether there is a list."""
        self._recipes: dict[str | None, Recipe] = {}
        self._asking = threading.Lock()
        self._due = float("-inf")

    def configured(self) -> bool:
        """Whether there is somebody to ask: a key where the provider's SDK looks for one, or machines of one's own."""
        from remote.home import home
        from remote.hosts import FILE
        from remote.vast import key_configured

        return self._enabled and (key_configured() or (home() / FILE).is_file())

    @property
    def age_s(self) -> float:
        """Seconds since the list was read."""
        return self._clock() - self._read_at

    @property
    def read_at(self) -> float:
        """When the list was read, by the market's clock."""
        return self._read_at

    @property
    def due(self) -> bool:
        """Whether the list has grown old and nobody has asked lately; after a fault a little later again."""
        return self._clock() >= self._due and not self.wait_s and not self._asking.locked()

    @property
    def wait_s(self) -> float:
        """Seconds until it may be asked again; 0 when it may be now."""
        return max(0.0, self._not_before - self._clock())

    @property
    def disk_gb(self) -> float:
        """GB of disk that are in the prices."""
        return self._disk

    def is_own(self, offer_id: str) -> bool:
        """Whether an offer is a machine of one's own."""
        return self._listing is not None and offer_id in self._listing.own

    def ask(self, target: str | None, recipe: Recipe | None = None) -> None:
        """Read the market for the recipe of a run, or for `recipe`. Blocks. A fault is kept as a sentence, with the
        list before it.
        """
        with self._asking:
            self._ask(recipe or self._recipe(target))
            self._due = max(self._clock() + (AGAIN_S if self.trouble else STALE_S), self._not_before)

    def _ask(self, recipe: Recipe) -> None:
        from remote.listing import as_offers, read_market
        from remote.provider import RateLimitedError, Wanted
        from remote.sizing import disk_gb
        from tui.cloud import open_desk

        self._not_before = self._clock() + PAUSE_S
        try:
            disk = disk_gb(recipe)
            with open_desk() as desk:
                listing = read_market(desk, Wanted(disk_gb=disk, num_gpus=1))
        except TunewatchError as error:
            self.trouble = str(error)
            if isinstance(error, RateLimitedError):
                self._not_before = self._clock() + max(PAUSE_S, error.retry_after_s)
            return
        self.offers = tuple(as_offers(listing.offers, listing.setup))
        self._listing, self._disk, self._read_at = listing, disk, self._clock()
        self.trouble, self.known = "", True

    def check(self, row: QuoteRow) -> str:
        """Why an offer of the list cannot be rented as it stands there; empty when it can. Blocks."""
        from remote.hosts import parse_offer
        from tui import words
        from tui.cloud import open_desk

        try:
            with open_desk() as desk:
                now = desk.provider.offer(parse_offer(row.offer_id), disk_gb=self._disk)
        except TunewatchError as error:
            return str(error)
        if now.dph_total > row.dph * 1.005:
            price = f"{words.usd(now.dph_total)}/h, not {words.usd(row.dph)}/h as listed"
            return f"Offer {row.offer_id} now costs {price}; r reads the market again."
        return ""

    def quote(
        self, offers: Sequence[Offer], snapshot: RunSnapshot | None, limits: Limits, recipe: Recipe | None = None
    ) -> Quoted:
        """Finish time and bill of the run on each offer, or of a new run of a recipe. Slow; for a thread."""
        from remote.listing import quote_offers
        from remote.sizing import disk_gb

        recipe = recipe or self._recipe(snapshot.target if snapshot is not None else None)
        if snapshot is not None and snapshot.history.ended is not None:
            return Quoted(whole_run_quotes(snapshot.history, offers))
        forecast = quote_offers(
            offers,
            recipe,
            self._disk or disk_gb(recipe),
            snapshot.history if snapshot is not None else None,
            rule=snapshot.ruling.rule if snapshot is not None else None,
            dph=(snapshot.dph or None) if snapshot is not None else None,
            budget=limits.budget,
            deadline_h=limits.deadline_h,
        )
        stay = forecast.stay if snapshot is not None else None
        return Quoted(
            tuple(quote_row(one, offers=offers) for one in forecast.quotes),
            None if stay is None else quote_row(stay, stay=True),
        )

    def _recipe(self, target: str | None) -> Recipe:
        """The recipe a known run was started with; the usual one where that is not known or cannot be read."""
        from remote.home import home
        from remote.known import known_runs
        from runner.config import load_recipe

        if target not in self._recipes:
            name = next((r.recipe for r in known_runs(home()) if target in (r.target, r.name)), None) or RECIPE
            try:
                self._recipes[target] = load_recipe(name, ())
            except TunewatchError:
                self._recipes[target] = load_recipe(RECIPE, ())
        return self._recipes[target]


def bare_row(offer: Offer) -> QuoteRow:
    """An offer with its price and without a quote."""
    unknown = (float("nan"),) * 3
    return QuoteRow(
        offer.id,
        offer.gpu,
        offer.dph,
        unknown,
        unknown,
        place=offer.place,
        reliability=offer.reliability,
        vram_gib=offer.gpu_ram_gib,
        notes=("example",) if offer.example else (),
    )


def parse_budget(text: str) -> float | None:
    """`5`, `$5` or `5 USD` as USD; None for nothing. Raises ValueError with a sentence."""
    given = text.strip().removeprefix("$").lower().removesuffix("usd").strip()
    if not given:
        return None
    try:
        value = float(given)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise ValueError(f"'{text.strip()}' is no amount of money: USD above 0, for example 5.")
    return value


def parse_deadline(text: str) -> float | None:
    """`90s`, `45m`, `10h` or an ISO time as hours from now; None for nothing. Raises ValueError with a sentence."""
    from tui.commands.estimate import hours_from_now

    given = text.strip()
    if not given:
        return None
    try:
        hours = hours_from_now(given)
    except TunewatchError as error:
        raise ValueError(str(error)) from error
    if not 0 < hours < float("inf"):
        raise ValueError(f"'{given}' is over already: a time from now on, for example 10h.")
    return hours
