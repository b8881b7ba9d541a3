"""Everywhere a run can be launched, as one provider: the market and the machines of one's own.

Which of the two is meant is told by the number of a box or an offer. A listing is complete or raises: when there is
no key for the market and the journal still holds one of its boxes, nothing is listed, so that nothing is concluded.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from remote.hosts import HostsProvider
from remote.provider import (
    Account,
    Charge,
    Instance,
    MarketOffer,
    Order,
    PriceIncrease,
    Provider,
    Wanted,
    is_own,
)

if TYPE_CHECKING:
    from remote.journal import Journal


class Places:
    """The machines of one's own, and the market where there is an account on it."""

    name = "places"

    def __init__(self, hosts: HostsProvider, market: Provider | None) -> None:
        self.hosts = hosts
        self.market = market

    def part(self, number: int) -> Provider:
        """Who lets this box or offer; raises AuthError when that is the market and there is no key for it."""
        return self.hosts if is_own(number) else self._market()

    def _market(self) -> Provider:
        if self.market is None:
            self.market = _vast()
        return self.market

    @property
    def _parts(self) -> list[Provider]:
        return [self.hosts, *([self.market] if self.market is not None else [])]

    @property
    def url(self) -> str:
        """The API server of the market."""
        return str(getattr(self.market, "url", ""))

    def called(self, instance_id: int) -> str:
        """A host by its name, a box by its number."""
        return self.hosts.called(instance_id) if is_own(instance_id) else f"instance {instance_id}"

    def search(self, wanted: Wanted) -> list[MarketOffer]:
        """Of both, cheapest first."""
        found = [offer for part in self._parts for offer in part.search(wanted)]
        return sorted(found, key=lambda offer: offer.dph_total)

    def offer(self, offer_id: int, *, disk_gb: float, spot: bool = False) -> MarketOffer:
        """One listing."""
        return self.part(offer_id).offer(offer_id, disk_gb=disk_gb, spot=spot)

    def account(self) -> Account:
        """The account on the market."""
        return self.market.account() if self.market is not None else Account(None)

    def instances(self) -> list[Instance]:
        """Everything in use, complete."""
        return [row for part in self._parts for row in part.instances()]

    def create(self, order: Order) -> int:
        """Rent, or take a host."""
        return self.part(order.offer_id).create(order)

    def destroy(self, instance_id: int) -> None:
        """End the contract, or give a host back."""
        self.part(instance_id).destroy(instance_id)

    def stop(self, instance_id: int) -> None:
        """Release the GPU."""
        self.part(instance_id).stop(instance_id)

    def start(self, instance_id: int) -> None:
        """Take the GPU again."""
        self.part(instance_id).start(instance_id)

    def label(self, instance_id: int, text: str) -> None:
        """Name a box."""
        self.part(instance_id).label(instance_id, text)

    def attach_key(self, instance_id: int, public_key: str) -> None:
        """Let a key in."""
        self.part(instance_id).attach_key(instance_id, public_key)

    def logs(self, instance_id: int, tail: int = 100) -> str:
        """The end of the container's log."""
        return self.part(instance_id).logs(instance_id, tail)

    def charges(self, since: float, until: float) -> list[Charge]:
        """The market's bill: nobody sends one for a host."""
        return [charge for part in self._parts for charge in part.charges(since, until)]

    def price_increases(self) -> list[PriceIncrease]:
        """Requests of hosts of the market."""
        return [increase for part in self._parts for increase in part.price_increases()]

    def answer_increase(self, increase_id: int, *, accept: bool) -> None:
        """Only the market's hosts ask."""
        self._market().answer_increase(increase_id, accept=accept)

    def bid(self, instance_id: int, usd_per_h: float) -> None:
        """Only on the market."""
        self.part(instance_id).bid(instance_id, usd_per_h)


def open_places(home: Path, journal: Journal | None = None) -> Provider:
    """What a command works with: the market alone without a hosts.toml, both where there is one.

    Raises AuthError when the market is needed and there is no key: always without hosts, and as long as the journal
    holds a box of the market for living.
    """
    from remote.hosts import FILE, STATE
    from remote.vast import key_configured

    if not (home / FILE).exists() and not (home / STATE).exists():
        return _vast()
    hosts = HostsProvider(home)
    rented = journal is not None and any(not is_own(box.instance) for box in journal.boxes(living=True))
    return Places(hosts, _vast() if rented or key_configured() else None)


def _vast() -> Provider:
    from remote.vast import VastProvider

    return VastProvider()
