"""Which run is recovered and which is not, within which caps, and what is said of it; without boxes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remote.arming import Overdue
from remote.journal import Journal
from remote.recover import explain, recover
from remote.recovery_policy import Loss, Policy, losses, mirror_of, note_asked_stop, policy_of, set_policy, used
from remote.settings import Settings
from runner.errors import NotFoundError, RefusedError
from runner.rundir import STATUS, Status, write_status
from tests.fake_vast.market import offer_row
from tests.support.vast import rented_world
from tests.test_kill import Rented
from tui.cli import main
from tui.rental_view import RentalSnapshot
from tui.rentals import Rentals

RUN_DIR = "/root/tunewatch/runs/mine/1"


class Lab:
    """A run on a rented box without processes, and a room that looks at it."""

    def __init__(self, laptop: Rented) -> None:
        self.laptop = laptop
        self.clock = laptop.fake.world.clock
        self.box = laptop.rent()
        self.box.is_bid = True
        self.journal = laptop.desk().journal
        self.journal.put_box(self.box.id, run_dir=RUN_DIR, machine_id=1, gpu_name="A100 SXM4")
        with self.journal.begin("launch", "mine/1", launch=laptop.request(1, name="mine/1").to_json()) as deed:
            deed.done("create", instance=self.box.id)
            deed.close("running", instance=self.box.id)
        self.recovered: list[Loss] = []

    def allow(self, **more: Any) -> None:
        set_policy(self.journal, "mine/1", self.clock(), **{"on": True, "after_s": 100.0, **more})

    def rounds(self, rentals: Rentals, count: int) -> RentalSnapshot:
        rentals.look()
        for _ in range(count - 1):
            self.clock.sleep(15)  # type: ignore[attr-defined]
            self.laptop.fake.world.tick()
            rentals.look()
        rentals.wait_for_deeds()
        return rentals.look()

    def room(self, **options: Any) -> Rentals:
        def nothing(late: Overdue) -> None:
            raise AssertionError(f"{late} is not to be ended")

        return Rentals(
            lambda _: None, home=self.laptop.home, make_provider=lambda: self.laptop.provider, clock=self.clock,
            mono=self.clock, end=nothing, **{"recover": self.recovered.append, **options},
        )  # fmt: skip

    def outbid(self) -> None:
        self.laptop.fake.world.outbid(self.box)

    def last_words(self, status: Status) -> None:
        folder = mirror_of(self.laptop.home, self.box.id, RUN_DIR)
        folder.mkdir(parents=True, exist_ok=True)
        write_status(folder / STATUS, status)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    offers = [offer_row(number, machine_id=number) for number in range(1, 60)]
    with rented_world(offers=offers, credit=5000.0) as (fake, provider, _):
        yield Lab(Rented(fake, tmp_path, provider=provider, real=False))


def test_it_is_off_unless_it_was_turned_on(lab: Lab) -> None:
    room = lab.room()
    lab.rounds(room, 2)
    lab.outbid()
    shown = lab.rounds(room, 20)
    assert lab.recovered == []
    assert any("was outbid" in alarm.text for alarm in shown.alarms), "and it is said all the same"
    room.close()


def test_an_outbid_box_is_replaced_once_the_provider_has_said_so_for_long_enough(lab: Lab) -> None:
    lab.allow()
    room = lab.room()
    lab.rounds(room, 2)
    lab.outbid()
    lab.rounds(room, 6)
    assert lab.recovered == [], "it may win the next bid"
    shown = lab.rounds(room, 4)
    assert [(loss.run, loss.cause) for loss in lab.recovered] == [("mine/1", "outbid")]
    told = [alarm for alarm in shown.alarms if alarm.key.startswith("recovery")]
    assert (told[0].title, told[0].loud) == ("recovery", True)
    assert "goes on elsewhere" in told[0].text
    lab.rounds(room, 10)
    assert len(lab.recovered) == 1, "not again within minutes"
    room.close()


def test_settings_turn_it_on_for_every_run_and_a_run_of_its_own_off_again(lab: Lab) -> None:
    (lab.laptop.home / "settings.toml").write_text("[recover]\nauto = true\nafter = 30.0\nmost = 1\nprice = 0.9\n")
    desk = lab.laptop.desk()
    room = lab.room()
    lab.rounds(room, 2)
    lab.outbid()
    lab.rounds(room, 6)
    assert len(lab.recovered) == 1
    set_policy(lab.journal, "mine/1", lab.clock(), on=False)
    assert explain(desk, "mine/1").why_not.startswith("A lost box is not replaced by itself.")
    room.close()


def test_a_host_that_is_offline_for_a_blink_is_waited_for(lab: Lab) -> None:
    lab.allow()
    room = lab.room()
    lab.rounds(room, 2)
    lab.box.status = "offline"
    lab.rounds(room, 5)
    lab.box.status = "running"
    lab.rounds(room, 3)
    lab.box.status = "offline"
    lab.rounds(room, 5)
    assert lab.recovered == []
    lab.rounds(room, 6)
    assert [loss.cause for loss in lab.recovered] == ["offline"]
    room.close()


def test_a_contract_that_ends_within_the_hour_is_left_while_its_box_still_trains(lab: Lab) -> None:
    lab.allow(usd_total=5000.0)
    assert lab.box.end_date is not None
    room = lab.room()
    lab.clock.sleep(lab.box.end_date - lab.clock() - 2 * 3600)  # type: ignore[attr-defined]
    lab.rounds(room, 2)
    assert lab.recovered == []
    lab.clock.sleep(3700)  # type: ignore[attr-defined]
    lab.rounds(room, 2)
    assert [loss.cause for loss in lab.recovered] == ["ending"]
    room.close()


def test_a_box_that_vanished_while_it_ran_was_destroyed_by_somebody_and_is_not_replaced(lab: Lab) -> None:
    lab.allow(after_s=0.0)
    room = lab.room()
    lab.rounds(room, 2)
    lab.laptop.fake.world.destroy(lab.box, "the console")
    lab.rounds(room, 4)
    assert lab.recovered == []
    room.close()


def test_a_box_that_vanished_while_its_host_was_gone_is_replaced(lab: Lab) -> None:
    lab.allow(after_s=0.0)
    room = lab.room()
    lab.rounds(room, 2)
    lab.box.status = "offline"
    desk = lab.laptop.desk()
    desk.listing()
    lab.clock.sleep(5)  # type: ignore[attr-defined]
    desk.listing()
    lab.laptop.fake.world.destroy(lab.box, "the host")
    found = losses(lab.journal, desk.listing(), lab.clock(), gone={lab.box.id})
    assert [loss.cause for loss in found] == ["gone"]
    room.close()


@pytest.mark.parametrize(
    ("rc", "reason", "recovered"),
    [
        (0, "all steps are done", False),
        (10, "the auto-stop rule fired", False),
        (11, "stopped on request, with a checkpoint (asked for)", False),
        (12, "stopped at its budget or deadline", False),
        (11, "stopped on request, with a checkpoint (SIGTERM)", True),
        (1, "RuntimeError: CUDA error", True),
    ],
)
def test_a_run_that_was_over_before_its_box_was_lost_is_left_alone(
    lab: Lab, rc: int, reason: str, recovered: bool
) -> None:
    lab.allow(after_s=0.0)
    lab.last_words(Status(state="crashed" if rc == 1 else "stopped", rc=rc, reason=reason))
    room = lab.room()
    lab.rounds(room, 2)
    lab.outbid()
    lab.rounds(room, 3)
    assert bool(lab.recovered) is recovered
    room.close()


def test_a_run_that_a_person_stopped_is_never_recovered_although_its_box_was_lost_later(lab: Lab) -> None:
    lab.allow(after_s=0.0)
    note_asked_stop(f"vast:{lab.box.id}:{RUN_DIR}", lab.laptop.home)
    lab.outbid()
    room = lab.room()
    lab.rounds(room, 3)
    assert lab.recovered == []
    assert "was stopped from here" in explain(lab.laptop.desk(), "mine/1").why_not
    room.close()


def test_a_run_that_a_person_began_to_kill_is_never_recovered(lab: Lab) -> None:
    lab.allow(after_s=0.0)
    lab.journal.begin("kill", "mine/1", instance_id=lab.box.id).close("given up", instance=lab.box.id)
    lab.outbid()
    lab.laptop.desk().listing()
    lab.clock.sleep(5)  # type: ignore[attr-defined]
    assert "was ended from here" in explain(lab.laptop.desk(), "mine/1").why_not


def test_the_number_is_kept_in_the_journal_and_a_laptop_that_starts_anew_does_not_exceed_it(lab: Lab) -> None:
    lab.allow(after_s=0.0, most=2)
    lab.outbid()
    for number in (1, 2):
        # the new box lets nobody in: it is given back, and the attempt counts
        with pytest.raises(RefusedError):
            recover(lab.laptop.desk(), "mine/1", lab.laptop.open_pair, {})
        assert used(Journal(lab.laptop.home), "mine/1") == number
    room = lab.room()
    lab.rounds(room, 3)
    assert lab.recovered == []
    said = explain(lab.laptop.desk(), "mine/1")
    assert "recovered 2 times already" in said.why_not
    assert [box.id for box in lab.laptop.fake.world.living()] == [lab.box.id]
    room.close()


def test_read_only_and_a_second_room_recover_nothing(lab: Lab) -> None:
    lab.allow(after_s=0.0)
    lab.outbid()
    first, second = lab.room(recover=lambda _: None), lab.room()
    lab.rounds(lab.room(read_only=True), 2)
    first.look()
    lab.rounds(second, 3)
    assert lab.recovered == []
    first.close()


def test_the_cheapest_offer_under_both_caps_on_another_machine_is_chosen_and_explained(lab: Lab) -> None:
    offers = lab.laptop.fake.world.offers
    offers[5]["dph_base"], offers[6]["dph_base"], offers[7]["dph_base"] = 0.50, 0.30, 0.20
    offers[6]["machine_id"] = 1  # where the lost box stood
    offers[7]["gpu_ram"] = offers[7]["gpu_total_ram"] = 16_000
    offers[8]["dph_base"], offers[8]["cuda_max_good"] = 0.25, 11.8  # a driver too old for every image
    lab.allow(after_s=0.0, usd_per_h=0.6)
    lab.outbid()
    desk = lab.laptop.desk()
    desk.listing()
    lab.clock.sleep(5)  # type: ignore[attr-defined]
    said = explain(desk, "mine/1")
    assert [choice.offer.id for choice in said.choices] == [5]
    assert "It would go on on offer 5" in said.lines()[-1]
    assert lab.laptop.fake.count("create") == 1, "it was only explained"
    lab.allow(after_s=0.0, usd_per_h=0.1)
    assert "No offer fits it at up to $0.1000/h" in explain(desk, "mine/1").why_not
    lab.allow(after_s=0.0, usd_per_h=0.6, usd_total=0.0001)
    lab.clock.sleep(3600)  # type: ignore[attr-defined]
    assert "has cost $" in explain(desk, "mine/1").why_not


def test_an_account_that_is_empty_is_no_loss_that_a_new_box_makes_good(lab: Lab) -> None:
    lab.allow(after_s=0.0)
    lab.outbid()
    lab.laptop.fake.world.start_credit = 0.0
    desk = lab.laptop.desk()
    desk.listing()
    lab.clock.sleep(5)  # type: ignore[attr-defined]
    assert "The account is empty" in explain(desk, "mine/1").why_not
    assert used(lab.journal, "mine/1") == 0


def test_what_was_said_for_a_run_stands_over_the_settings_and_lasts(lab: Lab) -> None:
    general = Settings({"recover.auto": True, "recover.price": 0.5})
    assert policy_of(lab.journal, "mine/1", general) == Policy(on=True, usd_per_h=0.5)
    set_policy(lab.journal, "mine/1", 1.0, on=True, most=7)
    set_policy(lab.journal, "mine/1", 2.0, on=False)
    assert policy_of(Journal(lab.laptop.home), "mine/1", general) == Policy(on=False, most=7, usd_per_h=0.5)
    with pytest.raises(NotFoundError):
        set_policy(lab.journal, "nobody/knows", 1.0, on=True)


def test_the_command_turns_it_on_explains_and_refuses_in_words(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*words: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["migrate", "mine/1", *words])
        return int(str(ended.value.code or 0))

    monkeypatch.setenv("TUNEWATCH_HOME", str(lab.laptop.home))
    monkeypatch.setenv("TUNEWATCH_VAST_URL", lab.laptop.fake.url)
    monkeypatch.setenv("VAST_API_KEY", lab.laptop.fake.world.account_key)
    assert told("--auto", "on", "--max-price", "0.8", "--times", "3", "--max-total", "12", "--after", "2m") == 0
    assert "at most 3 times, by one of at most $0.8000/h, up to $12.00 in all" in capsys.readouterr().err
    assert told("--recover", "--dry-run", "--json") == 0
    policy = json.loads(capsys.readouterr().out)["policy"]
    assert (policy["on"], policy["most"], policy["used"], policy["after_s"]) == (True, 3, 0, 120.0)
    assert told("--recover", "--yes") == 4
    assert "Its box is not lost" in policy["why_not"] or "nothing to recover" in capsys.readouterr().err
    assert told("--recover", "--to", "5") == 2
    assert told("--auto", "off", "--times", "2") == 2
    assert told("--resume", "--dry-run") == 2
    monkeypatch.setenv("TUNEWATCH_READ_ONLY", "1")
    assert told("--recover", "--yes") == 4
    assert told("--auto", "off") == 4


def test_no_status_of_a_row_alone_is_a_loss_for_a_box_that_nobody_bid_for(lab: Lab) -> None:
    lab.box.is_bid = False
    lab.laptop.provider.stop(lab.box.id)
    lab.laptop.desk().listing()
    rows = [replace(row, spot=False) for row in lab.laptop.provider.instances()]
    assert losses(lab.journal, rows, lab.clock()) == [], "stopped in the console, perhaps by a person"
