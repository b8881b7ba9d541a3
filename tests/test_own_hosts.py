"""Machines of one's own as the second place to launch on: the same command, no rental, a guard that ends the run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from remote.access import opener, own_key
from remote.arming import Wishes
from remote.desk import Desk
from remote.hosts import FILE, HostsProvider, host_id, parse_offer
from remote.images import onstart
from remote.journal import Journal
from remote.kill import kill, name_victim
from remote.known import known_runs
from remote.launch import Launch, launch
from remote.money import bill
from remote.own_host import settle_all
from remote.places import Places, open_places
from remote.provider import AuthError, Wanted
from remote.reconcile import reconcile
from remote.remote_run import Order
from remote.rent import Plan
from runner.box.limits import CONFIG, REPORT, Limits, View, decide
from runner.errors import TunewatchError, UsageError
from runner.rundir import STATUS, read_status
from tests.support.rented import TRAINER, Crash, CrashAt
from tests.support.sshd import Sshd
from tests.support.vast import rented_world

RUN = "mine/20260215-104518"
PRICE = 0.36


def wait_for(condition: Callable[[], object], seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass in time"
        time.sleep(0.05)


@dataclass
class Owner:
    """A laptop without any account, and one machine in its hosts.toml."""

    box: Sshd
    home: Path
    recipe: Path

    def desk(self, after: CrashAt | None = None) -> Desk:
        return Desk(Places(HostsProvider(self.home), None), Journal(self.home, after_row=after))

    def request(self, **wishes: object) -> Launch:
        _, public = own_key(self.home)
        plan = Plan(RUN, host_id("attic"), 60.0, "", onstart(public), budget_usd=2.0)
        return Launch(Order(str(self.recipe), name=RUN), plan, Wishes(**{"budget_usd": 2.0, **wishes}), grace_s=5.0)  # type: ignore[arg-type]

    def kill(self, **more: object) -> object:
        desk = self.desk()
        return kill(desk, name_victim(desk.journal, "host:attic"), open_pair=opener(self.home), **more)  # type: ignore[arg-type]

    @property
    def run_dir(self) -> Path:
        return self.box.home / "tunewatch/runs" / RUN

    def guards(self) -> list[int]:
        return self.box.processes("runner.box.guard")

    def trainers(self) -> list[int]:
        return self.box.processes("train.py")


@pytest.fixture
def owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Owner]:
    """The machine is reached by a name of ssh_config, as a person has it."""
    with Sshd(tmp_path / "box") as box:
        laptop = tmp_path / "laptop"
        (laptop / ".ssh").mkdir(parents=True)
        (laptop / ".ssh/config").write_text(
            f"Host attic\n  HostName {box.host}\n  Port {box.port}\n  User {box.user}\n  IdentityFile {box.key}\n"
            "  IdentitiesOnly yes\n"
        )
        monkeypatch.setenv("HOME", str(laptop))
        monkeypatch.delenv("VAST_API_KEY", raising=False)
        home = tmp_path / "state"
        home.mkdir()
        (home / FILE).write_text(
            f'[attic]\naddress = "attic"\ngpu = "RTX 4090"\nvram_gb = 24\nusd_per_h = {PRICE}\ndisk_gb = 200\n'
        )
        work = tmp_path / "work"
        work.mkdir()
        (work / "train.py").write_text(TRAINER)
        recipe = tmp_path / "mine.toml"
        recipe.write_text(f'kind = "command"\n[foreign]\ncommand = ["python3", "-u", "train.py"]\nworkdir = "{work}"\n')
        yield Owner(box, home, recipe)


def test_a_host_is_launched_on_metered_and_given_back_with_everything_on_it(owner: Owner) -> None:
    desk = owner.desk()
    (offer,) = desk.provider.search(Wanted())
    assert (offer.as_typed, offer.dph_total) == ("host:attic", PRICE)
    result = launch(desk, owner.request(), opener(owner.home), {})
    assert result.state == "running"
    said = {step.name: step.detail for step in result.steps}
    assert said["rent"] == "host attic"
    assert "ends the run, not the machine" in said["guard"]
    assert "'loss'" in said["first log line"]
    (row,) = owner.desk().listing()
    assert (row.own, row.status, row.billing_usd_per_h) == ("attic", "running", PRICE)
    assert desk.provider.search(Wanted()) == [], "a host in use is not offered"
    (known,) = known_runs(owner.home, owner.home / "no runs here")
    assert known.target == f"attic:{owner.run_dir}", "it can be watched like any run over SSH"
    assert owner.trainers()
    before = sorted(path.name for path in owner.run_dir.iterdir())

    killed = owner.kill()
    assert killed.state == "destroyed"  # type: ignore[attr-defined]
    assert [step.name for step in killed.steps if step.name in ("destroy", "give back")] == ["give back"]  # type: ignore[attr-defined]
    assert owner.trainers() == []
    wait_for(lambda: not owner.guards())
    assert set(before) <= {path.name for path in owner.run_dir.iterdir()}, "nothing on it was deleted"
    status = read_status(owner.run_dir / STATUS)
    assert status is not None
    assert status.ended
    journal = Journal(owner.home)
    cost = bill(journal, host_id("attic"))
    (box,) = journal.boxes()
    assert (box.called, box.state, cost.usd_per_h) == ("host attic", "destroyed", 0.0)
    metered = sum(row.stop - row.start for row in journal.meter(box.instance)) / 3600
    assert cost.total == pytest.approx(metered * PRICE)
    assert cost.total > 0
    assert [offer.own for offer in owner.desk().provider.search(Wanted())] == ["attic"]
    assert launch(owner.desk(), owner.request(), opener(owner.home), {}).ok, "and it can be used again"
    owner.kill(checkpoint=False)


@pytest.mark.parametrize("by", ["kill", "a look"])
def test_its_guard_ends_the_run_at_the_deadline_and_the_price_counts_no_further(owner: Owner, by: str) -> None:
    """Nobody looks from the laptop until the run is over."""
    launch(owner.desk(), owner.request(deadline_s=3.0), opener(owner.home), {})
    report = owner.run_dir / REPORT
    wait_for(lambda: json.loads(report.read_text())["word"] == "ended")
    said = json.loads(report.read_text())
    assert said["reason"] == "deadline"
    assert "this machine is its owner's" in said["attempts"][-1]
    assert owner.trainers() == []
    wait_for(lambda: not owner.guards())
    report.write_text(json.dumps({**said, "wall": said["wall"] - 1800}))  # as if half an hour had passed
    journal = Journal(owner.home, clock=lambda: time.time() + 1800)
    desk = replace(owner.desk(), journal=journal, clock=journal.clock)
    if by == "kill":
        assert kill(desk, name_victim(journal, "host:attic"), open_pair=opener(owner.home)).ok
    else:
        settle_all(desk, opener(owner.home))
        (row,) = desk.listing()
        assert (row.status, row.billing_usd_per_h) == ("stopped", 0.0)
    trained = sum(row.stop - row.start for row in journal.meter(host_id("attic")) if row.status == "running")
    assert trained < 900, "half an hour after the end is not on the bill"
    assert bill(journal, host_id("attic")).total == pytest.approx(trained / 3600 * PRICE)
    assert json.loads((owner.run_dir / CONFIG).read_text())["rental"] is False


def test_a_host_that_does_not_answer_stays_unconfirmed_until_it_is_known_that_nothing_trains(owner: Owner) -> None:
    launch(owner.desk(), owner.request(), opener(owner.home), {})
    owner.box.stop()
    killed = owner.kill()
    assert killed.state == "unconfirmed"  # type: ignore[attr-defined]
    assert "may still train" in killed.steps[-1].detail  # type: ignore[attr-defined]
    assert owner.trainers(), "it does"
    owner.box.start()
    result, report = reconcile(owner.desk(), lambda found: "leave", opener(owner.home), {})
    assert result.ok
    assert report.destroyed == [host_id("attic")]
    assert owner.trainers() == []


@pytest.mark.slow
@pytest.mark.parametrize("row", [5, 10])
def test_a_launch_on_a_host_that_was_cut_is_undone_and_nothing_of_it_trains(owner: Owner, row: int) -> None:
    with pytest.raises(Crash):
        launch(owner.desk(CrashAt(row)), owner.request(), opener(owner.home), {})
    result, _ = reconcile(owner.desk(), lambda found: "destroy", opener(owner.home), {})
    assert result.ok
    assert owner.trainers() == []
    wait_for(lambda: not owner.guards())
    assert owner.desk().listing() == []


def test_a_wrong_address_is_said_and_the_host_is_not_kept(owner: Owner) -> None:
    (owner.home / FILE).write_text('[attic]\naddress = "root@127.0.0.1:1"\ngpu = "RTX 4090"\n')
    desk = owner.desk()
    clock = time.monotonic
    desk.mono = lambda: clock() * 30  # thirty times as impatient as a person
    with pytest.raises(TunewatchError):
        launch(desk, owner.request(), opener(owner.home), {})
    assert owner.desk().listing() == []
    assert owner.desk().journal.excluded() == {}, "a machine of one's own is not left out for a week"


@pytest.mark.parametrize("rc", [0, 1, 11, -1])
def test_on_a_host_the_guard_leaves_with_the_run_however_it_ended(rc: int) -> None:
    over = View(0.0, 0.0, running=False, ended_rc=rc, over_for_s=25.0)
    assert decide(Limits(rental=False, keep_when_finished=True), over) == "over"
    assert decide(Limits(rental=False), replace(over, over_for_s=5.0)) is None


def test_an_offer_is_named_by_number_or_by_host() -> None:
    assert parse_offer("7000001") == 7_000_001
    assert parse_offer("host:attic") == host_id("attic")
    for text in ("attic", "host:", "", "-3"):
        with pytest.raises(UsageError, match="host:NAME"):
            parse_offer(text)


def test_without_a_key_nothing_is_concluded_about_boxes_of_the_market(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal that holds a rented box and a shell without the key: that box must not look gone."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("VAST_API_KEY", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    (tmp_path / FILE).write_text('[attic]\naddress = "attic"\ngpu = "RTX 4090"\n')
    journal = Journal(tmp_path)
    assert open_places(tmp_path, journal).instances() == []
    journal.put_box(31_460_001, run="mine/1", state="running")
    with pytest.raises(AuthError):
        open_places(tmp_path, journal)


def test_both_places_stand_in_one_list_and_each_deed_reaches_its_own(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('[attic]\naddress = "attic"\ngpu = "RTX 4090"\nvram_gb = 24\nusd_per_h = 0.36\n')
    with rented_world() as (fake, vast, clock):
        places = Places(HostsProvider(tmp_path, clock=clock), vast)
        found = places.search(Wanted(disk_gb=60))
        assert {bool(offer.own) for offer in found} == {True, False}
        assert [o.dph_total for o in found] == sorted(o.dph_total for o in found)
        desk = Desk(places, Journal(tmp_path, clock=clock), clock=clock, mono=clock, sleep=clock.sleep)
        before = len(fake.calls)
        assert desk.at(host_id("attic")).listing() == []
        assert len(fake.calls) == before, "who deals with a host asks the market nothing"
        assert places.called(host_id("attic")) == "host attic"
        assert places.called(7) == "instance 7"
