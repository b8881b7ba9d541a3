"""One suite for every place that lets GPUs: the market over HTTP, and the hosts of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from remote.desk import Desk
from remote.destroy import destroy
from remote.hosts import FILE, HostsProvider, host_id
from remote.journal import Journal
from remote.provider import NoSuchInstanceError, OfferGoneError, Order, Provider, Wanted
from runner.errors import UsageError
from tests.fake_vast import ManualClock
from tests.support.vast import rented_world

HOSTS = """
[attic]
address = "root@10.0.0.5:2222"
gpu = "RTX 4090"
vram_gb = 24
usd_per_h = 0.12
[office]
address = "me@office"
gpu = "A100 SXM4"
vram_gb = 40
usd_per_h = 0.5
disk_gb = 400
"""


@pytest.fixture(params=["vast", "hosts"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Provider, ManualClock]]:
    with rented_world() as (_, vast, clock):
        if request.param == "vast":
            yield vast, clock
        else:
            (tmp_path / FILE).write_text(HOSTS)
            yield HostsProvider(tmp_path, clock=clock), clock


Place = tuple[Provider, ManualClock]


def order(offer_id: int) -> Order:
    return Order(offer_id, "tunewatch:a:mine/1:1", "img", 60.0, "true")


def test_offers_come_cheapest_first_and_obey_every_wish(place: Place) -> None:
    provider, _ = place
    prices = [offer.dph_total for offer in provider.search(Wanted(disk_gb=60))]
    assert len(prices) >= 2
    assert prices == sorted(prices)
    assert all(o.dph_total <= 0.6 for o in provider.search(Wanted(max_price=0.6)))
    assert {o.gpu_name for o in provider.search(Wanted(gpu="A100_SXM4"))} == {"A100 SXM4"}
    assert provider.search(Wanted(gpu="NO SUCH")) == []


def test_every_offer_can_be_quoted(place: Place) -> None:
    from estimator.offer import Offer

    for offer in place[0].search(Wanted()):
        assert Offer.from_row(offer.row).dph == pytest.approx(offer.dph_total)


def test_what_was_rented_is_listed_with_its_label_and_no_longer_offered(place: Place) -> None:
    provider, clock = place
    offer = provider.search(Wanted(disk_gb=60))[0]
    made = provider.create(order(offer.id))
    clock.advance(60)
    (row,) = provider.instances()
    assert (row.id, row.label, row.status) == (made, "tunewatch:a:mine/1:1", "running")
    assert row.billing_usd_per_h == pytest.approx(offer.dph_total)
    assert row.ssh
    with pytest.raises(OfferGoneError):
        provider.create(order(offer.id))
    with pytest.raises(OfferGoneError):
        provider.offer(offer.id, disk_gb=60)


def test_destroyed_is_gone_from_the_list_and_unknown_from_then_on(place: Place) -> None:
    provider, _ = place
    made = provider.create(order(provider.search(Wanted())[0].id))
    provider.attach_key(made, "ssh-ed25519 AAAA")
    provider.label(made, "tunewatch:a:mine/2:2")
    assert provider.instances()[0].label == "tunewatch:a:mine/2:2"
    provider.destroy(made)
    assert provider.instances() == []
    for call in (provider.destroy, provider.stop, provider.start):
        with pytest.raises(NoSuchInstanceError):
            call(made)


def test_a_stopped_box_says_so_and_starts_again(place: Place) -> None:
    provider, clock = place
    made = provider.create(order(provider.search(Wanted())[0].id))
    clock.advance(60)
    provider.stop(made)
    (row,) = provider.instances()
    assert row.halted
    assert row.billing_usd_per_h < 0.02
    provider.start(made)
    assert provider.instances()[0].status == "running"


def test_the_same_proof_of_destruction_works_on_each(place: Place, tmp_path: Path) -> None:
    provider, clock = place
    desk = Desk(provider, Journal(tmp_path / "j", clock=clock), clock=clock, mono=clock, sleep=clock.sleep)
    made = provider.create(order(provider.search(Wanted())[0].id))
    with desk.journal.begin("kill", "mine/1") as deed, desk.step("destroy") as note:
        assert destroy(desk, deed, made, note) == "destroyed"
    assert desk.listing() == []


def test_money_and_increases_can_always_be_asked_for(place: Place) -> None:
    provider, clock = place
    assert provider.charges(clock() - 10, clock()) == []
    assert provider.price_increases() == []
    provider.account()
    assert isinstance(provider.logs(provider.create(order(provider.search(Wanted())[0].id))), str)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[x]\ngpu = 'A'", "needs 'address'"),
        ("[x]\naddress = 'a'\ngpu = 'A'\nprice = 1", "no 'price'"),
        ("[x]\naddress = 'a'\ngpu = 'A'\nusd_per_h = 'much'", "cannot be 'much'"),
        ("[x", "cannot be used"),
        ("[x]\naddress = 'a b:c'\ngpu = 'A'", "is not a host"),
    ],
)
def test_a_hosts_file_that_cannot_be_used_names_the_place(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UsageError, match=word):
        HostsProvider(tmp_path)


def test_two_processes_cannot_take_one_host(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(HOSTS)
    one, two = HostsProvider(tmp_path), HostsProvider(tmp_path)
    one.create(order(host_id("attic")))
    with pytest.raises(OfferGoneError):
        two.create(order(host_id("attic")))
