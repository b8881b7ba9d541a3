"""Money: what was spent agrees with the provider's own bill, and what bills now is known from one listing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote.desk import Desk
from remote.journal import Journal, MeterRow
from remote.money import add_traffic, bill, keep_charges
from remote.provider import Instance, Order
from tests.fake_vast import Box, FakeVast, ManualClock
from tests.support.vast import rented_world


class Stand:
    def __init__(self, fake: FakeVast, desk: Desk, clock: ManualClock) -> None:
        self.fake, self.desk, self.clock = fake, desk, clock
        self.box = self.rent(7_000_001)

    def rent(self, offer: int) -> Box:
        made = self.desk.provider.create(Order(offer, f"tunewatch:x:r:{offer}", "img", 60, "true"))
        self.desk.journal.put_box(made, run="r", state="running", inet_down_cost=0.001, inet_up_cost=0.002)
        return self.fake.world.boxes[made]

    def pass_time(self, seconds: float, every: float) -> None:
        """Let time pass with a look each `every` seconds."""
        until = self.clock() + seconds
        while self.clock() < until:
            self.clock.advance(min(every, until - self.clock()))
            self.desk.listing()

    def truth(self) -> float:
        self.fake.world.tick()
        return self.box.usd


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    with rented_world(credit=500.0) as (fake, provider, clock):
        yield Stand(
            fake, Desk(provider, Journal(tmp_path, clock=clock), clock=clock, mono=clock, sleep=clock.sleep), clock
        )


def test_spent_agrees_with_the_providers_bill_within_two_percent(stand: Stand) -> None:
    """Boot, five hours of running, a stop, a day of disk alone, a start: looked at every ten seconds."""
    stand.pass_time(60, 2)
    stand.pass_time(5 * 3600, 30)
    stand.desk.provider.stop(stand.box.id)
    stand.pass_time(24 * 3600, 600)
    stand.desk.provider.start(stand.box.id)
    stand.pass_time(3600, 30)
    stand.box.down_gb += 21.0
    stand.box.up_gb += 7.0
    add_traffic(stand.desk.journal, stand.box.id, down_gb=21.0, up_gb=7.0)
    ours = bill(stand.desk.journal, stand.box.id, stand.clock())
    truth = stand.truth()
    assert ours.total == pytest.approx(truth, rel=0.02)
    assert ours.gpu == pytest.approx(stand.box.gpu_usd, rel=0.02)
    assert ours.disk == pytest.approx(stand.box.disk_usd, rel=0.02)
    assert ours.down == pytest.approx(0.021)
    assert ours.up == pytest.approx(0.014)


def test_a_bid_that_changes_and_loses_and_wins_is_metered_at_each_of_its_prices(stand: Stand) -> None:
    """Three prices, ten hours outbid with the disk alone, and what came over the line: each part by itself."""
    provider = stand.desk.provider
    made = provider.create(Order(7_000_002, "tunewatch:x:r:spot", "img", 300, "true", bid_usd_per_h=0.45))
    stand.desk.journal.put_box(made, run="r", state="running", inet_down_cost=0.001, inet_up_cost=0.002)
    stand.box = stand.fake.world.boxes[made]
    stand.box.offer["min_bid"] = 0.3
    stand.pass_time(3 * 3600, 60)
    provider.bid(made, 0.62)
    stand.pass_time(2 * 3600, 60)
    stand.fake.world.outbid(stand.box)
    stand.pass_time(10 * 3600, 600)
    provider.bid(made, 0.9)
    stand.pass_time(3 * 3600, 60)
    stand.box.down_gb, stand.box.up_gb = 30.0, 12.0
    add_traffic(stand.desk.journal, made, down_gb=30.0, up_gb=12.0)
    ours, truth = bill(stand.desk.journal, made, stand.clock()), stand.truth()
    assert ours.gpu == pytest.approx(stand.box.gpu_usd, rel=0.02)
    assert ours.gpu == pytest.approx(3 * 0.45 + 2 * 0.62 + 3 * 0.9, rel=0.02)
    assert ours.disk == pytest.approx(stand.box.disk_usd, rel=0.02)
    assert (ours.down, ours.up) == pytest.approx((0.03, 0.024))
    assert ours.total == pytest.approx(truth, rel=0.02)
    (row,) = [row for row in stand.desk.listing() if row.id == made]
    assert row.billing_usd_per_h == pytest.approx(0.9 + stand.box.disk_usd_per_h)


def test_a_row_that_does_not_tell_its_price_is_not_for_nothing(stand: Stand) -> None:
    stand.pass_time(3600, 60)
    stand.box.overrides.update(dph_total=None, dph_base=None, storage_total_cost=None)
    stand.pass_time(3600, 60)
    assert bill(stand.desk.journal, stand.box.id, stand.clock()).total == pytest.approx(stand.truth(), rel=0.02)
    stand.box.overrides.clear()
    stand.pass_time(3600, 60)
    assert bill(stand.desk.journal, stand.box.id, stand.clock()).total == pytest.approx(stand.truth(), rel=0.02)


def test_a_week_of_sleep_is_put_right_by_the_providers_bill(stand: Stand) -> None:
    stand.pass_time(3600, 60)
    stand.clock.advance(2 * 3600)
    stand.fake.world.tick()
    stand.fake.world.stop(stand.box)
    stand.clock.advance(7 * 86400)
    stand.desk.listing()
    truth = stand.truth()
    assert bill(stand.desk.journal, stand.box.id).total > 2 * truth, "half of the sleep is guessed as running"
    keep_charges(stand.desk.journal, stand.desk.provider.charges(0, stand.clock()))
    assert bill(stand.desk.journal, stand.box.id, stand.clock()).total == pytest.approx(truth, rel=0.02)
    stand.pass_time(86400, 3600)
    assert bill(stand.desk.journal, stand.box.id, stand.clock()).total == pytest.approx(stand.truth(), rel=0.02)


def test_an_adopted_box_is_metered_from_the_providers_start(stand: Stand) -> None:
    stand.clock.advance(6 * 3600)
    stand.desk.listing()
    assert bill(stand.desk.journal, stand.box.id).total == pytest.approx(stand.truth(), rel=0.02)


def test_what_bills_now_is_the_whole_price_while_running_and_the_disk_alone_when_stopped(stand: Stand) -> None:
    stand.pass_time(60, 5)
    (row,) = stand.desk.listing()
    assert row.billing_usd_per_h == pytest.approx(0.7411 + 60 * 0.15 / 720)
    stand.desk.provider.stop(stand.box.id)
    (row,) = stand.desk.listing()
    assert row.dph_total == pytest.approx(0.7411 + 60 * 0.15 / 720), "the row goes on showing the running price"
    assert row.billing_usd_per_h == pytest.approx(60 * 0.15 / 720)


def test_one_listing_refreshes_every_box(stand: Stand) -> None:
    stand.rent(7_000_002)
    stand.clock.advance(3600)
    before = stand.fake.count("list")
    stand.desk.listing()
    assert stand.fake.count("list") == before + 1
    assert all(bill(stand.desk.journal, box.id).total > 0.3 for box in stand.fake.world.living())


def test_a_destroyed_box_costs_no_more(stand: Stand) -> None:
    from remote.destroy import destroy

    stand.pass_time(3600, 60)
    with stand.desk.journal.begin("kill", "r") as deed, stand.desk.step("destroy") as note:
        assert destroy(stand.desk, deed, stand.box.id, note) == "destroyed"
    cost = bill(stand.desk.journal, stand.box.id, stand.clock() + 86400)
    assert cost.usd_per_h == 0
    assert cost.total == pytest.approx(stand.truth(), rel=0.02)


def test_offline_hosts_bill_nothing(stand: Stand) -> None:
    stand.pass_time(600, 10)
    stand.fake.world.tick()
    stand.box.status = "offline"
    stand.desk.listing()
    before = bill(stand.desk.journal, stand.box.id).total
    stand.pass_time(86400, 3600)
    assert bill(stand.desk.journal, stand.box.id, stand.clock()).total == pytest.approx(before, rel=0.01)


def test_a_meter_that_is_read_at_any_times_gives_the_same_bill(tmp_path: Path) -> None:
    rng = random.Random(5)
    totals = []
    for trial in range(8):
        journal = Journal(tmp_path / str(trial))
        at = 0.0
        while at < 36_000:
            step = rng.uniform(1, 4000)
            end = min(36_000.0, at + step)
            journal.add_meter(MeterRow(1, at, end, "running", 0.7, 0.01))
            at = end
        totals.append(bill(journal, 1).total)
    assert max(totals) - min(totals) < 1e-9
    assert totals[0] == pytest.approx(7.1)


def test_clocks_that_disagree_never_give_a_negative_bill(tmp_path: Path) -> None:
    from remote.money import observe

    journal = Journal(tmp_path)
    row = Instance(9, "x", "running", "running", dph_total=1.0, disk_usd_per_h=0.1, start_date=5000.0)
    observe(journal, [row], 4000.0)
    observe(journal, [row], 3000.0)
    observe(journal, [row], 4500.0)
    assert bill(journal, 9, 4500.0).total >= 0
