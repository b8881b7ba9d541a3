"""Reconcile and the notices: journal and provider agree after one pass, and what is not ours stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from remote.arming import Wishes, alarm, enforce, in_words, keep_report, limits_for, overdue
from remote.journal import Journal
from remote.kill import kill, name_victim
from remote.labels import new_label, read_label
from remote.money import bill
from remote.notices import Notice, notices
from remote.provider import Account, Instance, PriceIncrease
from remote.reconcile import Found, Reconciled, reconcile
from runner.errors import UnreachableError
from tests.fake_vast import faults
from tests.fake_vast.market import offer_row
from tests.support.vast import rented_world
from tests.test_kill import Rented


@pytest.fixture
def rented(tmp_path: Path) -> Iterator[Rented]:
    with rented_world(offers=[offer_row(number, machine_id=number) for number in range(1, 60)]) as (fake, provider, _):
        yield Rented(fake, tmp_path, provider=provider, real=False)


def settle(rented: Rented, choice: str = "leave") -> tuple[Reconciled, list[Found]]:
    asked: list[Found] = []

    def decide(found: Found) -> str:
        asked.append(found)
        return choice

    _, report = reconcile(rented.desk(), decide, rented.open_pair, {})  # type: ignore[arg-type]
    return report, asked


def label_of(rented: Rented, run: str = "mine/7") -> str:
    return str(new_label(rented.desk().journal.laptop(), run))


def test_labels_are_read_back_and_other_peoples_are_not() -> None:
    label = new_label("abcdef", "stage5/20260215-104518")
    assert read_label(str(label)) == label
    assert len(str(new_label("abcdef", "x" * 500))) <= 256
    for text in ("", "my box", "tunewatch", "tunewatch:a:b", "other:a:b:c", "tunewatch:a:b:c:d"):
        assert read_label(text) is None


def test_f17_an_orphan_with_our_label_is_offered_first_and_left_when_nobody_decides(rented: Rented) -> None:
    box = rented.rent(label=label_of(rented), known=False)
    report, asked = settle(rented, "leave")
    assert [found.instance for found in asked] == [box.id]
    assert "rented by this laptop" in asked[0].text
    assert "$0.75" in asked[0].text
    assert not report.ok
    assert box.destroyed is None


def test_f17_an_orphan_is_destroyed_or_adopted_as_decided(rented: Rented) -> None:
    one = rented.rent(label=label_of(rented), known=False)
    report, _ = settle(rented, "adopt")
    assert report.adopted == [one.id]
    assert one.destroyed is None
    assert rented.kill(str(one.id)).ok
    two = rented.rent(label=label_of(rented), offer=2, known=False)
    report, _ = settle(rented, "destroy")
    assert report.destroyed == [two.id]
    rented.check_agreement()


def test_f17_an_orphan_of_another_laptop_is_called_so(rented: Rented) -> None:
    rented.rent(label="tunewatch:ffffff:stage5/1:00000001", known=False)
    _, asked = settle(rented)
    assert "another laptop" in asked[0].text


def test_f17_foreign_boxes_are_never_touched_nor_offered(rented: Rented) -> None:
    box = rented.rent(label="somebody else", known=False)
    report, asked = settle(rented, "destroy")
    assert (report.ok, asked, report.foreign) == (True, [], 1)
    assert box.destroyed is None
    assert rented.fake.count("destroy") == rented.fake.count("stop") == 0


def test_a_box_that_its_guard_destroyed_is_found_gone_and_its_bill_closed(rented: Rented) -> None:
    box = rented.rent()
    rented.desk().listing()
    rented.fake.world.clock.sleep(3600)  # type: ignore[attr-defined]
    rented.fake.world.tick()
    rented.fake.world.destroy(box, str(box.id))
    report, _ = settle(rented)
    assert report.gone == [box.id]
    assert bill(Journal(rented.home), box.id).usd_per_h == 0
    rented.check_agreement()


def test_a_box_missing_from_one_listing_only_is_not_gone(rented: Rented) -> None:
    box = rented.rent()
    box.hidden_lists = 2
    report, _ = settle(rented)
    assert report.gone == []
    assert rented.state() == "running"


def test_a_box_that_was_proved_gone_and_is_listed_again_is_believed_to_the_provider(rented: Rented) -> None:
    box = rented.rent()
    rented.desk().journal.put_box(box.id, state="destroyed")
    report, asked = settle(rented, "destroy")
    assert asked[0].kind == "returned"
    assert report.destroyed == [box.id]
    assert box.destroyed is not None


def test_a_second_pass_changes_nothing(rented: Rented) -> None:
    rented.rent(label=label_of(rented), known=False)
    settle(rented, "adopt")
    rows = len(Journal(rented.home).rows())
    report, asked = settle(rented, "destroy")
    assert report.ok
    assert asked == []
    assert len(Journal(rented.home).rows()) == rows


@pytest.mark.parametrize("fault", [faults.SERVER_ERROR, faults.HTML_OK, faults.NULL_INSTANCES], ids=lambda f: f.name)
def test_nothing_is_concluded_from_an_account_that_cannot_be_looked_at(rented: Rented, fault: faults.Fault) -> None:
    box = rented.rent()
    rented.fake.faults.add("list", fault, times=500)
    with pytest.raises(UnreachableError):
        settle(rented, "destroy")
    assert rented.state() == "running"
    assert box.destroyed is None


def test_an_unfinished_kill_is_finished_without_asking(rented: Rented) -> None:
    box = rented.rent()
    rented.fake.faults.add("destroy", faults.SERVER_ERROR, times=500)
    assert not rented.kill(for_s=30.0).ok
    rented.fake.faults.clear()
    report, asked = settle(rented)
    assert report.destroyed == [box.id]
    assert asked == []
    rented.check_agreement()


def test_a_laptop_that_was_off_for_a_week_sees_what_is_overdue_and_ends_it(rented: Rented) -> None:
    box = rented.rent()
    desk = rented.desk()
    desk.journal.put_box(box.id, deadline_at=desk.clock() + 3600, budget_usd=100.0)
    assert overdue(desk.journal, desk.clock() + 3600) == []
    rented.fake.world.clock.sleep(7 * 86400)  # type: ignore[attr-defined]
    assert "deadline passed" in overdue(desk.journal, desk.clock())[0].reason
    ended = enforce(desk, lambda late: kill(desk, name_victim(desk.journal, str(late.instance)), open_pair=None))
    assert [late.instance for late in ended] == [box.id]
    assert box.destroyed is not None


def test_the_laptop_enforces_the_budget_without_the_guard(rented: Rented) -> None:
    box = rented.rent()
    desk = rented.desk()
    desk.journal.put_box(box.id, budget_usd=1.0)
    desk.listing()
    rented.fake.world.clock.sleep(3600)  # type: ignore[attr-defined]
    desk.listing()
    assert overdue(desk.journal, desk.clock()) == []
    rented.fake.world.clock.sleep(1800)  # type: ignore[attr-defined]
    desk.listing()
    assert "$1.1" in overdue(desk.journal, desk.clock())[0].reason


def test_reconcile_ends_what_runs_past_its_limit_and_leaves_what_is_stopped(rented: Rented) -> None:
    running, stopped = rented.rent(label=label_of(rented)), rented.rent(label=label_of(rented), offer=2)
    desk = rented.desk()
    for box in (running, stopped):
        desk.journal.put_box(box.id, deadline_at=desk.clock() + 60)
    rented.provider.stop(stopped.id)
    rented.fake.world.clock.sleep(3600)  # type: ignore[attr-defined]
    report, asked = settle(rented)
    assert report.destroyed == [running.id]
    assert asked == []
    assert stopped.destroyed is None


# -- what the rows mean -----------------------------------------------------------------------------------------------

NOW = 1_000_000.0
RUNNING = Instance(7, "tunewatch:a:b:c", "running", "running", dph_base=0.7, dph_total=0.71, disk_usd_per_h=0.01)


def rows(**more: object) -> list[Notice]:
    from dataclasses import replace

    return notices([replace(RUNNING, **more)], [], account=Account(10.0), now=NOW)  # type: ignore[arg-type]


def kinds(found: list[Notice]) -> list[str]:
    return [notice.kind for notice in found]


HALTED = {"status": "exited", "intended": "stopped", "cur_state": "stopped", "next_state": "stopped"}


def test_a_healthy_box_says_nothing() -> None:
    assert rows() == []


def test_f18_outbid_is_told_from_a_stop_of_our_own(rented: Rented) -> None:
    assert kinds(rows(**HALTED, spot=True)) == ["outbid"]
    assert "disk costs" in rows(**HALTED, spot=True)[0].text
    journal = rented.desk().journal
    journal.put_box(7, state="stopped")
    from dataclasses import replace

    stopped = [replace(RUNNING, **HALTED, spot=True)]  # type: ignore[arg-type]
    assert kinds(notices(stopped, journal.boxes(), account=Account(10.0), now=NOW)) == ["stopped"]


def test_f18_outbid_on_the_stand_in_is_seen_in_the_row(rented: Rented) -> None:
    from remote.provider import Order

    made = rented.provider.create(Order(5, label_of(rented), "img", 60, "true", bid_usd_per_h=0.5))
    rented.fake.world.clock.sleep(60)  # type: ignore[attr-defined]
    rented.desk().listing()
    rented.fake.world.outbid(rented.fake.world.boxes[made])
    (row,) = rented.desk().listing()
    assert kinds(notices([row], [], account=Account(10.0), now=rented.desk().clock())) == ["outbid"]
    assert row.billing_usd_per_h == pytest.approx(60 * 0.15 / 720)


def test_f18_the_end_of_a_contract_is_announced_a_day_before_and_told_after() -> None:
    assert kinds(rows(end_date=NOW + 3600)) == ["ending"]
    assert kinds(rows(end_date=NOW + 3 * 86400)) == []
    assert kinds(rows(**HALTED, end_date=NOW - 60)) == ["ended"]


def test_f18_low_credit_and_no_credit() -> None:
    assert kinds(notices([RUNNING], [], account=Account(1.0), now=NOW)) == ["credit"]
    assert "1.4 h" in notices([RUNNING], [], account=Account(1.0), now=NOW)[0].text
    from dataclasses import replace

    stopped = [replace(RUNNING, **HALTED)]  # type: ignore[arg-type]
    assert "credit" in kinds(notices(stopped, [], account=Account(0.0), now=NOW))


def test_f18_credit_that_runs_out_stops_the_box_and_the_notice_says_why(rented: Rented) -> None:
    rented.fake.world.start_credit = 1.0
    box = rented.rent()
    rented.fake.world.clock.sleep(2 * 3600)  # type: ignore[attr-defined]
    (row,) = rented.desk().listing()
    said = notices([row], [], account=rented.provider.account(), now=rented.desk().clock())
    assert box.intended == "stopped"
    assert "the account is empty" in said[0].text


def test_f18_a_price_increase_offline_frozen_and_unknown_are_said_with_what_to_do() -> None:
    said = notices([RUNNING], [], increases=[PriceIncrease(1, 7, 0.7, 0.9, None)], now=NOW)
    assert "$0.9000/h instead of $0.7000/h" in said[0].text
    for status in ("offline", "frozen", "unknown"):
        (notice,) = rows(status=status)
        assert notice.kind == status
        assert notice.advice


# -- the guard seen from the laptop -----------------------------------------------------------------------------------


def test_the_disk_of_a_week_is_kept_back_from_the_budget() -> None:
    limits = limits_for(RUNNING, Wishes(budget_usd=10.0, deadline_s=36000.0), url="u", spent_usd=0.2)
    assert limits.reserve_usd == pytest.approx(1.68)
    assert limits_for(RUNNING, Wishes(budget_usd=1.0), url="u", spent_usd=0).reserve_usd == pytest.approx(0.3)
    assert limits.usd_per_h == 0.71
    assert in_words(limits) == "$10, 10 h, ends when finished"


def test_a_guard_that_fails_or_falls_silent_is_an_alarm() -> None:
    assert alarm({}, None) == "No guard stands on this box."
    assert alarm({"word": "watching"}, 10.0) == ""
    assert "silent for 200 s" in alarm({"word": "watching"}, 200.0)
    assert "power off" in alarm({"word": "failing", "attempts": ["destroy: HTTP 500", "power off: told"]}, 1.0)


def test_the_traffic_the_guard_counted_is_on_the_bill(rented: Rented) -> None:
    journal = rented.desk().journal
    journal.put_box(7, state="running", inet_down_cost=0.01, inet_up_cost=0.02)
    keep_report(journal, 7, {"down_gb": 10.0, "up_gb": 5.0, "word": "watching"})
    cost = bill(journal, 7)
    assert (cost.down, cost.up) == (pytest.approx(0.1), pytest.approx(0.1))
