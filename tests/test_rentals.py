"""What bills is on the screen, and ends at its limit, while a control room is open: with and without the guard."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from remote.arming import Overdue
from remote.journal import Journal, MeterRow
from remote.kill import kill, name_victim
from remote.money import bill
from remote.provider import Instance
from remote.rented import GuardSight, IdleWatch, RentedBox
from runner.errors import ProviderError, UnreachableError
from tests.fake_vast import ManualClock, faults
from tests.fake_vast.market import offer_row
from tests.support.tui import app_with, frozen, history, snapshot, until
from tests.support.vast import rented_world
from tests.test_kill import Rented
from tui.rental_alerts import RentalAlerts
from tui.rental_view import RentalSnapshot
from tui.rentals import Rentals


class Room:
    """A control room on the stand-in, its clock moved by hand."""

    def __init__(self, laptop: Rented) -> None:
        self.laptop = laptop
        self.clock: ManualClock = laptop.fake.world.clock  # type: ignore[assignment]
        self.posted: list[RentalSnapshot] = []
        self.ended: list[Overdue] = []
        self.rooms: list[Rentals] = []

    def end(self, late: Overdue) -> None:
        """Kill as the command does, on the clock of the stand-in."""
        self.ended.append(late)
        desk = self.laptop.desk()
        if not kill(desk, name_victim(desk.journal, str(late.instance)), open_pair=None, for_s=30.0).ok:
            raise ProviderError("unconfirmed")

    def open(self, **options: object) -> Rentals:
        made = Rentals(
            self.posted.append, home=self.laptop.home, make_provider=lambda: self.laptop.provider,
            clock=self.clock, mono=self.clock, **{"end": self.end, "sight": no_guard, **options},
        )  # type: ignore[arg-type]  # fmt: skip
        self.rooms.append(made)
        return made

    def rounds(self, rentals: Rentals, count: int) -> RentalSnapshot:
        """So many rounds, 15 s apart; deeds that were begun are waited for."""
        shown = rentals.look()
        for _ in range(count - 1):
            self.clock.sleep(15)
            self.laptop.fake.world.tick()
            shown = rentals.look()
        rentals.wait_for_deeds()
        return shown


def no_guard(*_: object) -> GuardSight:
    return GuardSight({}, "")


def titles(shown: RentalSnapshot) -> set[str]:
    return {alarm.key.split()[0] for alarm in shown.alarms}


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    with rented_world(offers=[offer_row(number, machine_id=number) for number in range(1, 60)]) as (fake, provider, _):
        made = Room(Rented(fake, tmp_path, provider=provider, real=False))
        yield made
        for rentals in made.rooms:
            rentals.wait_for_deeds()
            rentals.close()


def test_over_budget_the_laptop_destroys_the_box_although_no_guard_stands(room: Room) -> None:
    box = room.laptop.rent()
    room.laptop.desk().journal.put_box(box.id, budget_usd=1.0)
    rentals = room.open()
    first = room.rounds(rentals, 1)
    assert (first.acting, room.ended) == (True, [])
    room.clock.sleep(3600)
    assert room.rounds(rentals, 2).alarms == ()
    room.clock.sleep(1800)
    room.rounds(rentals, 1)
    assert [late.instance for late in room.ended] == [box.id]
    assert box.destroyed is not None
    assert room.laptop.state() == "destroyed"
    shown = rentals.look()
    assert (shown.boxes, shown.forms, titles(shown)) == ((), (), {"ended"})
    steps = [row.step for row in Journal(room.laptop.home).rows(instance=box.id)]
    assert "past its limit" in steps
    room.laptop.check_agreement()


def test_past_its_deadline_a_stopped_box_is_left_and_a_running_one_ended(room: Room) -> None:
    running, stopped = room.laptop.rent(), room.laptop.rent(offer=2)
    for box in (running, stopped):
        room.laptop.desk().journal.put_box(box.id, deadline_at=room.clock() + 600)
    room.laptop.provider.stop(stopped.id)
    room.clock.sleep(3600)
    room.rounds(room.open(), 2)
    assert [late.instance for late in room.ended] == [running.id]
    assert stopped.destroyed is None


def test_an_idle_gpu_is_ended_after_its_limit_and_a_working_one_is_not(room: Room) -> None:
    box = room.laptop.rent()
    room.laptop.desk().journal.put_box(box.id, idle_s=300.0)
    rentals = room.open()
    room.rounds(rentals, 40)
    assert room.ended == []
    box.overrides["gpu_util"] = 0.0
    room.rounds(rentals, 27)
    assert room.ended == [], "the guard has the first move"
    room.rounds(rentals, 4)
    assert "its GPU has done nothing" in room.ended[0].reason
    assert box.destroyed is not None


def test_the_time_in_which_a_box_is_made_ready_is_no_idleness(room: Room) -> None:
    box = room.laptop.rent()
    box.overrides["gpu_util"] = 0.0
    journal = room.laptop.desk().journal
    journal.put_box(box.id, idle_s=300.0, state="ready")
    rentals = room.open()
    room.rounds(rentals, 60)
    journal.put_box(box.id, state="running")
    room.rounds(rentals, 20)
    assert room.ended == []


def test_idleness_is_not_counted_over_steps_or_over_a_laptop_that_slept() -> None:
    row = Instance(7, "", "running", "running", gpu_util=0.0)
    watch = IdleWatch()
    assert [watch.take(row, at) for at in (0.0, 60.0, 120.0)] == [0.0, 60.0, 120.0]
    assert watch.take(row, 180.0, step=5) == 0.0
    assert watch.take(row, 240.0, step=5) == 60.0
    assert watch.take(row, 4000.0, step=5) == 0.0
    assert watch.take(replace(row, gpu_util=None), 4060.0) == 0.0


def test_read_only_nothing_is_ended_nor_written_and_an_alarm_says_so(room: Room) -> None:
    box = room.laptop.rent()
    room.laptop.desk().journal.put_box(box.id, deadline_at=room.clock() - 600)
    rentals = room.open(read_only=True)
    before = Journal(room.laptop.home).rows(), Journal(room.laptop.home).meter(box.id)
    shown = room.rounds(rentals, 3)
    assert (shown.acting, room.ended, box.destroyed) == (False, [], None)
    assert "read-only" in next(a.text for a in shown.alarms if a.key == f"late {box.id}")
    assert shown.colour == "error"
    assert (Journal(room.laptop.home).rows(), Journal(room.laptop.home).meter(box.id)) == before


def test_f21_a_second_control_room_only_looks_until_the_first_is_closed(room: Room) -> None:
    box = room.laptop.rent()
    first, second = room.open(), room.open()
    room.rounds(first, 1)
    room.laptop.desk().journal.put_box(box.id, deadline_at=room.clock() - 600)
    shown = room.rounds(second, 2)
    assert (shown.acting, room.ended) == (False, [])
    assert "process" in shown.why_not
    first.close()
    assert room.rounds(second, 1).acting
    assert [late.instance for late in room.ended] == [box.id]


@pytest.mark.parametrize("fault", [faults.SERVER_ERROR, faults.HTML_OK, faults.RATE_LIMITED], ids=lambda f: f.name)
def test_a_provider_that_does_not_answer_leaves_the_last_known_with_its_age(room: Room, fault: faults.Fault) -> None:
    room.laptop.rent()
    rentals = room.open()
    rate = room.rounds(rentals, 1).usd_per_h
    room.laptop.fake.faults.add("list", fault, times=500)
    shown = room.rounds(rentals, 9)
    assert shown.usd_per_h == rate > 0
    assert shown.forms[0].endswith("billing, known 2m ago")
    assert "The provider does not answer, last known 2m ago" in shown.sentence
    assert shown.colour == "warning"
    assert rentals.pause_s > 15
    assert "provider" in titles(shown)
    room.laptop.fake.faults.clear()
    room.clock.sleep(30)
    assert rentals.look().forms[0].endswith("/h billing")
    assert rentals.pause_s == 15


def test_an_end_that_failed_is_said_and_tried_again_a_minute_later(room: Room) -> None:
    box = room.laptop.rent()
    room.laptop.desk().journal.put_box(box.id, deadline_at=room.clock() - 600)
    room.laptop.fake.faults.add("destroy", faults.SERVER_ERROR, times=500)
    rentals = room.open()
    room.rounds(rentals, 1)
    shown = rentals.look()
    assert {"failed", "unconfirmed"} <= titles(shown)
    assert shown.colour == "error"
    assert shown.usd_per_h > 0
    room.laptop.fake.faults.clear()
    room.clock.sleep(61)
    room.rounds(rentals, 1)
    assert len(room.ended) == 2
    assert room.laptop.state() == "destroyed"
    room.laptop.check_agreement()


def test_a_kill_that_was_cut_off_is_finished(room: Room) -> None:
    box = room.laptop.rent()
    journal = room.laptop.desk().journal
    with journal.begin("kill", "mine/1", instance_id=box.id, label=box.label):
        pass
    room.rounds(room.open(), 1)
    assert box.destroyed is not None
    room.laptop.check_agreement()


def test_a_box_of_a_deed_under_way_is_left_to_it(room: Room) -> None:
    box = room.laptop.rent()
    journal = room.laptop.desk().journal
    journal.put_box(box.id, deadline_at=room.clock() - 600)
    with journal.begin("kill", "mine/1", instance_id=box.id, label=box.label):
        room.rounds(room.open(), 3)
    assert room.ended == []


def test_a_box_its_guard_destroyed_is_gone_after_two_listings_and_bills_no_more(room: Room) -> None:
    box = room.laptop.rent()
    rentals = room.open()
    room.rounds(rentals, 2)
    room.laptop.fake.world.destroy(box, str(box.id))
    shown = rentals.look()
    assert shown.boxes[0].status == "not listed"
    assert shown.colour == "error"
    assert room.laptop.state() == "running"
    room.clock.sleep(15)
    shown = rentals.look()
    assert (shown.boxes, titles(shown)) == ((), {"gone"})
    assert room.laptop.state() == "destroyed"


def test_a_failing_guard_is_an_alarm_and_its_traffic_is_on_the_bill(room: Room) -> None:
    box = room.laptop.rent()
    room.laptop.desk().journal.put_box(box.id, guard="watching", run_dir="r", inet_down_cost=0.01)
    report = {"word": "failing", "attempts": ["destroy: HTTP 500"], "down_gb": 10.0, "up_gb": 0.0}
    from remote.arming import alarm

    rentals = room.open(sight=lambda *_: GuardSight(report, alarm(report, 1.0)))
    room.rounds(rentals, 1)
    shown = rentals.look()
    assert "destroy: HTTP 500" in next(a.text for a in shown.alarms if a.key == f"guard {box.id}")
    assert shown.colour == "error"
    assert bill(Journal(room.laptop.home), box.id).down == pytest.approx(0.1)


def test_a_box_that_cannot_be_reached_says_nothing_about_its_guard(room: Room) -> None:
    box = room.laptop.rent()
    room.laptop.desk().journal.put_box(box.id, guard="watching", run_dir="r")

    def away(*_: object) -> GuardSight:
        raise UnreachableError("no answer")

    rentals = room.open(sight=away)
    room.rounds(rentals, 2)
    assert rentals.look().alarms == ()


def test_the_rate_is_that_of_the_provider_and_of_the_command(room: Room) -> None:
    running, stopped = room.laptop.rent(), room.laptop.rent(offer=2)
    room.laptop.provider.stop(stopped.id)
    foreign = room.laptop.rent(offer=3, label="by hand", known=False)
    shown = room.rounds(room.open(), 1)
    assert shown.usd_per_h == pytest.approx(sum(row.billing_usd_per_h for row in room.laptop.provider.instances()))
    assert {box.instance: box.ours for box in shown.boxes} == {running.id: True, stopped.id: True, foreign.id: False}


def test_two_processes_that_meter_one_box_count_its_time_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for start, stop in ((0.0, 3600.0), (3000.0, 4000.0), (3500.0, 3900.0), (4000.0, 7200.0)):
        journal.add_meter(MeterRow(7, start, stop, "running", 1.0, 0.0))
    assert bill(journal, 7).gpu == pytest.approx(2.0)


def test_each_alarm_is_told_once_and_again_only_after_it_was_over(room: Room) -> None:
    box = room.laptop.rent()
    room.laptop.desk().journal.put_box(box.id, deadline_at=room.clock() - 600)
    rentals = room.open(read_only=True)
    alerts = RentalAlerts()
    told = [alerts.take(room.rounds(rentals, 1)) for _ in range(3)]
    assert [[event.title for event in events] for events in told] == [["past its limit"], [], []]
    assert told[0][0].target == "mine/1"
    assert alerts.take(RentalSnapshot()) == []
    assert len(alerts.take(rentals.look())) == 1


def test_the_production_way_ends_a_box_by_the_command_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real thread and a real `tunewatch kill` process: only the provider is a stand-in."""
    start = time.time() - 7200
    with rented_world(offers=[offer_row(1, machine_id=1)], clock=ManualClock(start)) as (fake, provider, clock):
        laptop = Rented(fake, tmp_path, provider=provider, real=False)
        box = laptop.rent()
        clock.sleep(time.time() - clock())
        Journal(laptop.home).put_box(box.id, budget_usd=0.5)
        monkeypatch.setenv("TUNEWATCH_HOME", str(laptop.home))
        monkeypatch.setenv("TUNEWATCH_VAST_URL", fake.url)
        monkeypatch.setenv("VAST_API_KEY", fake.world.account_key)
        posted: list[RentalSnapshot] = []
        rentals = Rentals(posted.append, interval=0.3)
        rentals.start()
        wait(lambda: posted and "ended" in titles(posted[-1]) and not posted[-1].boxes)
        rentals.stop()
        rentals.join(120)
        assert box.destroyed is not None
        laptop.check_agreement()


def wait(condition: Callable[[], object], seconds: float = 120.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not come true"
        time.sleep(0.02)


NOTHING = """
import sys, time
from pathlib import Path
from tui.rentals import Rentals
posted = []
rentals = Rentals(posted.append, home=Path(sys.argv[1]))
rentals.start()
while rentals._wake.is_set() or rentals._home is None or not rentals.is_alive():
    time.sleep(0.01)
assert not rentals.something_rented()
rentals.stop()
rentals.join(120)
assert not rentals.is_alive()
print(len(posted), [name for name in ("vastai", "paramiko", "remote.vast", "torch", "textual") if name in sys.modules])
"""


@pytest.mark.parametrize("journal", [False, True], ids=["no journal", "everything destroyed"])
def test_with_nothing_rented_nothing_is_asked_posted_or_imported(tmp_path: Path, journal: bool) -> None:
    if journal:
        Journal(tmp_path).put_box(7, run="mine/1", state="destroyed")
    done = subprocess.run(
        [sys.executable, "-c", NOTHING, str(tmp_path)], capture_output=True, text=True, check=True, timeout=240
    )
    assert done.stdout.strip() == "0 []"
    assert journal or list(tmp_path.iterdir()) == []


# -- on the screen ----------------------------------------------------------------------------------------------------

BOX = RentedBox(31457957, "stage5/20260215-104518", "A100 SXM4", "running", 0.7411, 1.23)
SHOWN = RentalSnapshot((BOX,), age_s=0.5, acting=True)


def top(app: object, screen: object) -> str:
    """The first row of the screen, as it is drawn."""
    strips = app.screen._compositor.render_strips()  # type: ignore[attr-defined]
    return "".join(segment.text for segment in strips[0])


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWATCH_HOME", str(tmp_path))


@pytest.mark.parametrize("size", [(120, 40), (80, 24)], ids=["big", "small"])
async def test_the_top_line_of_every_screen_says_what_bills(empty_home: None, size: tuple[int, int]) -> None:
    app = app_with(frozen(snapshot(history(), dph=0.7411)))
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        assert "/h billing" not in top(app, app.screen)
        app.show_rental(SHOWN)
        for key in ("", "L", "o", "R"):
            if key:
                await pilot.press(key)
            await until(lambda: "$0.74/h" in top(app, app.screen), pilot, 3)
            if not key:
                assert "ETA" in top(app, app.screen)
                assert "→" in top(app, app.screen)
            if key == "L":
                await pilot.press("escape")


async def test_one_call_for_25_boxes_refreshes_every_box_on_every_screen(
    room: Room, empty_home: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a screen shows comes from the one listing: looking at more boxes, or on more screens, asks nothing more."""
    fake = room.laptop.fake
    fake.world.start_credit = 1e5
    for number in range(1, 41):
        room.laptop.rent(f"tunewatch:abcdef:mine/{number}:{number:08x}", number)
    rentals = room.open()
    before = len(fake.calls)
    shown = room.rounds(rentals, 5)
    asked = [name for name, _ in fake.calls[before:]]
    assert asked.count("list") == 5 * 2, "two pages of 25 hold 40 boxes"
    assert sorted(set(asked)) == ["increases", "list", "user"]
    assert (asked.count("user"), asked.count("increases")) == (1, 1), "once in five minutes"
    assert len(shown.boxes) == 40
    assert all(box.usd_so_far > 0 and box.status == "running" for box in shown.boxes)
    monkeypatch.setenv("TUNEWATCH_VAST_URL", fake.url)
    monkeypatch.setenv("VAST_API_KEY", fake.world.account_key)
    app = app_with(frozen(snapshot(history(), dph=0.7411)))
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        before = len(fake.calls)
        app.show_rental(shown)
        for key in ("L", "escape", "R", "escape", "r", "escape"):
            await pilot.press(key)
            await until(lambda: f"${sum(box.usd_per_h for box in shown.boxes):.2f}/h" in top(app, app.screen), pilot, 3)
        assert [name for name, _ in fake.calls[before:] if name == "list"] == []


async def test_an_alarm_is_told_and_the_line_turns_to_the_colour_of_an_error(empty_home: None) -> None:
    from tui.rental_view import Alarm

    app = app_with(frozen(snapshot(history(), dph=0.7411)))
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        bad = replace(BOX, late="its deadline passed 5 min ago")
        alarm = Alarm("late 1", "past its limit", "Instance 1 bills past its limit.", target="mine/1")
        app.show_rental(replace(SHOWN, boxes=(bad,), alarms=(alarm,)))
        await until(lambda: app.notices.events, pilot)
        assert app.notices.events[-1].text == "Instance 1 bills past its limit."
        colour = app.theme_variables["error"].lower()
        await until(lambda: colour in style_of(app, "$0.74/h"), pilot)


def style_of(app: object, words: str) -> str:
    for segment in app.screen._compositor.render_strips()[0]:  # type: ignore[attr-defined]
        if words in segment.text and segment.style is not None and segment.style.color is not None:
            return segment.style.color.get_truecolor().hex
    return ""
