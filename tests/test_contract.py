"""What a person can do about a box that stands: raise a bid, answer a price increase, start a stopped box."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote.contract import carry_out, plan_change
from remote.journal import Journal
from remote.launch import launch
from remote.notices import notices
from remote.provider import Order, RejectedError
from remote.reconcile import reconcile
from runner.errors import NotFoundError, RefusedError, TunewatchError
from tests.fake_vast import Box, faults
from tests.fake_vast.contracts import ask_for_more
from tests.fake_vast.market import offer_row
from tests.support.rented import Crash, CrashAt, Laptop, real_world
from tests.support.vast import rented_world
from tests.test_kill import Rented

LABEL = "tunewatch:abcdef:mine/1:00000001"


@pytest.fixture
def rented(tmp_path: Path) -> Iterator[Rented]:
    with rented_world(offers=[offer_row(number, machine_id=number) for number in range(1, 30)]) as (fake, provider, _):
        fake.world.start_credit = 1e5
        laptop = Rented(fake, tmp_path, provider=provider, real=False)
        laptop.rent()
        yield laptop


def spot(rented: Rented, bid: float = 0.40) -> Box:
    made = rented.provider.create(Order(7, LABEL, "img", 60, "true", bid_usd_per_h=bid))
    rented.fake.world.clock.sleep(60)  # type: ignore[attr-defined]
    rented.desk().journal.put_box(made, run="mine/1", label=LABEL, state="running")
    return rented.fake.world.boxes[made]


def said(rented: Rented) -> list[str]:
    desk = rented.desk()
    found = notices(
        desk.listing(), desk.journal.boxes(), account=desk.provider.account(),
        increases=desk.provider.price_increases(), now=desk.clock(),
    )  # fmt: skip
    return [f"{notice.text} {notice.advice}" for notice in found]


def change(rented: Rented, instance: int, kind: str, bid: float | None = None) -> list[str]:
    desk = rented.desk()
    result = carry_out(desk, plan_change(desk, instance, kind, bid=bid), None)  # type: ignore[arg-type]
    assert result.ok
    rented.check_agreement()
    return [step.detail for step in result.steps]


# -- F18: an outbid box -----------------------------------------------------------------------------------------------


def test_f18_an_outbid_box_says_the_least_bid_and_the_command_it_names_brings_it_back(rented: Rented) -> None:
    box = spot(rented)
    box.offer["min_bid"] = 0.55  # somebody bid more
    rented.fake.world.outbid(box)
    (text,) = said(rented)
    assert "its processes were killed" in text
    assert "The least bid is $0.5500/h now, yours is $0.4000/h" in text
    bid = float(text.split("--bid ")[1].split(". With --resume")[0])
    details = change(rented, box.id, "bid", bid)
    assert box.status == "running"
    assert box.dph_base == bid
    assert details[-1].startswith("running, bills $0.57")
    assert said(rented) == []


def test_a_bid_that_would_stop_the_box_or_makes_no_sense_is_refused_before_it_is_sent(rented: Rented) -> None:
    box = spot(rented)
    with pytest.raises(RefusedError, match=r"below the least bid of \$0\.3100"):
        plan_change(rented.desk(), box.id, "bid", bid=0.2)
    with pytest.raises(RefusedError, match=r"between \$0\.001 and \$32"):
        plan_change(rented.desk(), box.id, "bid", bid=400.0)
    with pytest.raises(RefusedError, match="on demand"):
        plan_change(rented.desk(), rented.box.id, "bid", bid=0.9)
    with pytest.raises(NotFoundError, match="no instance 99"):
        plan_change(rented.desk(), 99, "bid", bid=0.9)
    assert rented.fake.count("bid") == 0


def test_a_foreign_box_is_not_changed(rented: Rented) -> None:
    made = rented.provider.create(Order(9, "somebody else", "img", 60, "true", bid_usd_per_h=0.4))
    rented.fake.world.clock.sleep(60)  # type: ignore[attr-defined]
    with pytest.raises(RefusedError, match="not rented by tunewatch"):
        plan_change(rented.desk(), made, "bid", bid=0.9)


@pytest.mark.parametrize("fault", faults.WITHOUT_EFFECT, ids=lambda fault: fault.name)
def test_f11_a_bid_that_fails_is_an_error_with_a_sentence_and_can_be_repeated(
    rented: Rented, fault: faults.Fault
) -> None:
    box = spot(rented)
    rented.fake.faults.add("bid", fault)
    desk = rented.desk()
    with pytest.raises(TunewatchError):
        carry_out(desk, plan_change(desk, box.id, "bid", bid=0.6), None)
    assert box.dph_base == 0.40
    rented.check_agreement()
    change(rented, box.id, "bid", 0.6)
    assert box.dph_base == 0.6


# -- F18: a higher price ----------------------------------------------------------------------------------------------


def test_f18_a_price_increase_is_told_with_its_share_and_its_day_and_accepted_by_the_command_it_names(
    rented: Rented,
) -> None:
    box = rented.box
    ask_for_more(rented.fake.world, box, 0.9)
    end = box.end_date
    (text,) = said(rented)
    hours = (end - rented.desk().clock()) / 3600  # type: ignore[operator]
    assert f"tunewatch instances {box.id} --accept-price" in text
    assert "until then nothing changes" in text
    assert f"in {hours:.1f} h" in text
    assert "%" in text
    old = box.dph_base
    desk = rented.desk()
    proposal = plan_change(desk, box.id, "accept price")
    assert "the contract goes on" in proposal.text
    carry_out(desk, proposal, None)
    assert rented.fake.world.answered == [(900, True)]
    assert box.dph_base == old, "nothing changes before the end of the contract"
    assert box.end_date > end  # type: ignore[operator]
    assert said(rented) == []
    rented.fake.world.clock.sleep(hours * 3600 + 60)  # type: ignore[attr-defined]
    (row,) = rented.desk().listing()
    assert (row.status, row.dph_base) == ("running", pytest.approx(0.9))


def test_f18_a_price_increase_is_rejected_and_the_contract_ends_as_agreed(rented: Rented) -> None:
    box = rented.box
    ask_for_more(rented.fake.world, box, 0.9)
    desk = rented.desk()
    proposal = plan_change(desk, box.id, "reject price")
    assert "stops then" in proposal.text
    carry_out(desk, proposal, None)
    assert rented.fake.world.answered == [(900, False)]
    with pytest.raises(NotFoundError, match="Nobody asks"):
        plan_change(rented.desk(), box.id, "accept price")
    rented.fake.world.clock.sleep(box.end_date - rented.desk().clock() + 60)  # type: ignore[attr-defined, operator]
    (row,) = rented.desk().listing()
    assert row.halted


def test_a_request_that_was_replaced_by_a_dearer_one_is_not_accepted_unseen(rented: Rented) -> None:
    """The answer names the request that was shown, not the box."""
    ask_for_more(rented.fake.world, rented.box, 0.9)
    desk = rented.desk()
    proposal = plan_change(desk, rented.box.id, "accept price")
    rented.fake.world.price_increases.clear()
    rented.fake.world.answered.append((0, False))
    ask_for_more(rented.fake.world, rented.box, 2.0)
    with pytest.raises(NotFoundError, match="does not stand any more"):
        carry_out(desk, proposal, None)
    assert len(rented.fake.world.price_increases) == 1
    rented.check_agreement()


# -- F18: a stopped box -----------------------------------------------------------------------------------------------


def test_f18_a_stopped_box_is_started_or_it_is_said_that_its_gpu_is_let(rented: Rented) -> None:
    with pytest.raises(RefusedError, match="nothing to start"):
        plan_change(rented.desk(), rented.box.id, "start")
    rented.fake.world.stop(rented.box)
    (text,) = said(rented)
    assert f"tunewatch instances {rented.box.id} --start" in text
    rented.fake.world.refuse_start = True
    desk = rented.desk()
    with pytest.raises(RefusedError, match="let to somebody else") as caught:
        carry_out(desk, plan_change(desk, rented.box.id, "start"), None)
    assert "migrate" in caught.value.hint
    rented.check_agreement()
    rented.fake.world.refuse_start = False
    assert change(rented, rented.box.id, "start")[-1].startswith("running")


def test_a_container_that_ended_by_itself_is_told_and_can_be_started(rented: Rented) -> None:
    rented.desk().listing()
    rented.box.status = "exited"
    (text,) = said(rented)
    assert "ended by itself, or its guard ended it" in text
    assert change(rented, rented.box.id, "start")[-1].startswith("running")


def test_another_refusal_of_a_start_keeps_its_own_words(rented: Rented) -> None:
    rented.fake.world.stop(rented.box)
    no = faults.json_fault("billing", 400, {"success": False, "error": "missing_payment", "msg": "add a card"})
    rented.fake.faults.add("start", no)
    desk = rented.desk()
    with pytest.raises(RejectedError, match="add a card"):
        carry_out(desk, plan_change(desk, rented.box.id, "start"), None)


@pytest.mark.parametrize("row", range(1, 4))
@pytest.mark.parametrize("moment", ["before", "after"])
def test_f14_cut_at_each_row_of_a_bid_and_closed_by_reconcile(rented: Rented, row: int, moment: str) -> None:
    box = spot(rented)
    crash = CrashAt(row)
    desk = rented.desk(before=crash) if moment == "before" else rented.desk(after=crash)
    with pytest.raises(Crash):
        carry_out(desk, plan_change(desk, box.id, "bid", bid=0.6), None)
    result, _ = reconcile(rented.desk(), lambda found: "leave", rented.open_pair, {})
    assert result.ok
    rented.check_agreement()
    change(rented, box.id, "bid", 0.7)
    assert box.dph_base == 0.7


# -- with a real box --------------------------------------------------------------------------------------------------


def test_the_guard_on_the_box_meters_by_the_new_bid_from_then_on(tmp_path: Path) -> None:
    with real_world(tmp_path / "boxes") as fake:
        laptop = Laptop(fake, tmp_path)
        launched = launch(laptop.desk(), laptop.request(1, bid_usd_per_h=0.4), laptop.open_pair, {})
        assert launched.instance_id is not None
        box = fake.world.boxes[launched.instance_id]
        assert box.container is not None
        config = box.container.home / "tunewatch/runs/mine/20260215-104518/guard.json"
        before = json.loads(config.read_text())
        desk = laptop.desk()
        result = carry_out(desk, plan_change(desk, box.id, "bid", bid=0.6), laptop.open_pair)
        assert [step.name for step in result.steps] == ["bid", "look", "tell the guard"]
        after = json.loads(config.read_text())
        assert after["usd_per_h"] - before["usd_per_h"] == pytest.approx(0.2)
        assert {**after, "usd_per_h": 0} == {**before, "usd_per_h": 0}, "its limits are as they were"
        assert Journal(laptop.home).open_deeds() == []
        fake.world.destroy(box, "the test")
