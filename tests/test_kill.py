"""Kill: destroyed is said after proof and not before, any number of times, and nothing of others is touched."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote.deeds import DeedResult
from remote.destroy import destroy
from remote.feed import RunFeed
from remote.journal import Journal
from remote.kill import kill, name_victim
from remote.known import list_runs
from remote.launch import launch
from remote.lock import HeldError
from remote.provider import Order
from remote.reconcile import reconcile
from remote.transport import NoHostError
from runner.errors import NotFoundError, RefusedError
from tests.fake_vast import Box, FakeVast, faults
from tests.fake_vast.market import offer_row
from tests.support.rented import Crash, CrashAt, Laptop, real_world
from tests.support.vast import rented_world


class Rented(Laptop):
    """A laptop that has rented one box, without processes behind it."""

    box: Box

    def rent(self, label: str = "tunewatch:abcdef:mine/1:00000001", offer: int = 1, known: bool = True) -> Box:
        made = self.provider.create(Order(offer, label, "img", 60, "true"))
        self.fake.world.clock.sleep(60)  # type: ignore[attr-defined]
        if known:
            self.desk().journal.put_box(made, run="mine/1", label=label, state="running")
        self.box = self.fake.world.boxes[made]
        return self.box

    def kill(self, name: str = "mine/1", **more: object) -> DeedResult:
        desk = self.desk()
        return kill(desk, name_victim(desk.journal, name), open_pair=self.open_pair, **more)  # type: ignore[arg-type]

    def state(self) -> str:
        box = Journal(self.home).box(self.box.id)
        assert box is not None
        return box.state


@pytest.fixture
def rented(tmp_path: Path) -> Iterator[Rented]:
    with rented_world(offers=[offer_row(number, machine_id=number) for number in range(1, 60)]) as (fake, provider, _):
        laptop = Rented(fake, tmp_path, provider=provider, real=False)
        laptop.rent()
        yield laptop


def test_destroyed_means_two_listings_without_it(rented: Rented) -> None:
    before = rented.fake.count("list")
    result = rented.kill()
    assert (result.ok, result.state) == (True, "destroyed")
    assert rented.fake.count("list") - before >= 3, "one to look, two to prove"
    assert rented.state() == "destroyed"
    rented.check_agreement()


def test_f13_a_box_that_lingers_in_the_list_stays_unproved_until_it_is_gone(rented: Rented) -> None:
    rented.box.lingering_lists = 4
    said: list[str] = []
    desk = rented.desk()
    desk.progress = lambda step: said.append(step.detail)
    result = kill(desk, name_victim(desk.journal, "mine/1"), open_pair=None)
    assert result.state == "destroyed"
    assert said.count("still listed") >= 1
    rented.check_agreement()


@pytest.mark.parametrize("fault", faults.WITHOUT_EFFECT, ids=lambda fault: fault.name)
def test_f13_a_destroy_that_is_refused_for_ever_ends_unconfirmed(rented: Rented, fault: faults.Fault) -> None:
    rented.fake.faults.add("destroy", fault, times=500)
    result = rented.kill(for_s=60.0)
    assert (result.ok, result.state) == (False, "unconfirmed")
    assert "may still bill" in result.steps[-1].detail
    assert rented.state() == "unconfirmed"
    assert [box.id for box in rented.fake.world.living()] == [rented.box.id]
    rented.fake.faults.clear()
    assert rented.kill().state == "destroyed", "the same command finishes it"
    rented.check_agreement()


@pytest.mark.parametrize("fault", faults.WITHOUT_EFFECT, ids=lambda fault: fault.name)
def test_f13_a_destroy_that_is_refused_twice_is_repeated(rented: Rented, fault: faults.Fault) -> None:
    rented.fake.faults.add("destroy", fault, fault)
    assert rented.kill().state == "destroyed"
    rented.check_agreement()


@pytest.mark.parametrize("fault", faults.WITH_EFFECT, ids=lambda fault: fault.name)
def test_f13_a_destroy_whose_yes_was_lost_is_proved_all_the_same(rented: Rented, fault: faults.Fault) -> None:
    rented.fake.faults.add("destroy", fault)
    assert rented.kill().state == "destroyed"
    rented.check_agreement()


@pytest.mark.parametrize("fault", faults.WITHOUT_EFFECT, ids=lambda fault: fault.name)
def test_f13_a_listing_that_failed_is_no_absence(rented: Rented, fault: faults.Fault) -> None:
    """The DELETE has no effect and every list fails: nothing may be called destroyed."""
    desk = rented.desk()
    liar = faults.json_fault("says yes, does nothing", 200, {"success": True})
    rented.fake.faults.add("destroy", liar, times=500)
    with desk.journal.begin("kill", "mine/1", instance_id=rented.box.id) as deed, desk.step("destroy") as note:
        rented.fake.faults.add("list", fault, times=500)
        assert destroy(desk, deed, rented.box.id, note, for_s=60.0) == "unconfirmed"


def test_f13_a_yes_that_did_nothing_is_noticed_and_asked_again(rented: Rented) -> None:
    liar = faults.json_fault("says yes, does nothing", 200, {"success": True})
    rented.fake.faults.add("destroy", liar, times=3)
    assert rented.kill().state == "destroyed"
    assert rented.fake.count("destroy") == 4
    rented.check_agreement()


def test_f13_killing_again_and_again_is_harmless(rented: Rented) -> None:
    for _ in range(3):
        assert rented.kill().state == "destroyed"
    rented.check_agreement()
    history = [(row.kind, row.step, row.phase) for row in Journal(rented.home).rows(instance=rented.box.id)]
    assert history.count(("kill", "destroy", "done")) == 3


def test_f13_a_box_destroyed_in_the_console_counts_as_destroyed(rented: Rented) -> None:
    rented.fake.world.destroy(rented.box, "console")
    assert rented.kill(str(rented.box.id)).state == "destroyed"
    rented.check_agreement()


def test_f17_a_box_without_our_label_is_never_touched(rented: Rented) -> None:
    other = rented.rent(label="somebody else", offer=2, known=False)
    with pytest.raises(RefusedError, match="not rented by tunewatch"):
        rented.kill(str(other.id))
    assert other.destroyed is None
    assert rented.fake.count("destroy") == 0


def test_what_does_not_exist_is_said_so(rented: Rented) -> None:
    with pytest.raises(NotFoundError, match="no instance 99"):
        rented.kill("99")
    with pytest.raises(NotFoundError, match="No rented box"):
        rented.kill("mine/77")


def test_a_run_is_found_by_the_end_of_its_name_and_an_instance_by_its_number(rented: Rented) -> None:
    journal = Journal(rented.home)
    assert name_victim(journal, "1").instance_id == 1
    assert name_victim(journal, f"vast:{rented.box.id}:/root/x").instance_id == rented.box.id
    journal.put_box(5, run="stage5/20260215-104518", state="running")
    assert name_victim(journal, "20260215-104518").instance_id == 5
    journal.put_box(6, run="stage3/20260215-104518", state="running")
    with pytest.raises(NotFoundError, match="fits several"):
        name_victim(journal, "20260215-104518")


def test_a_launch_under_way_in_another_process_keeps_its_box(rented: Rented) -> None:
    with rented.desk().journal.begin("launch", "mine/1", instance_id=rented.box.id):
        with pytest.raises(HeldError, match="under way"):
            rented.kill()
        assert rented.box.destroyed is None


@pytest.mark.parametrize("row", range(1, 4))
@pytest.mark.parametrize("moment", ["before", "after"])
def test_f14_cut_at_each_row_of_a_kill_and_finished_by_reconcile(rented: Rented, row: int, moment: str) -> None:
    crash = CrashAt(row)
    desk = rented.desk(before=crash) if moment == "before" else rented.desk(after=crash)
    with pytest.raises(Crash):
        kill(desk, name_victim(desk.journal, "mine/1"), open_pair=None)
    result, _ = reconcile(rented.desk(), lambda found: "leave", rented.open_pair, {})
    if (row, moment) != (1, "before"):
        assert result.ok
        assert rented.fake.world.living() == []
    else:
        assert rented.kill().ok
    rented.check_agreement()


# -- with real boxes --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeVast]:
    with real_world(tmp_path_factory.mktemp("boxes")) as fake:
        yield fake


@pytest.mark.parametrize(("row", "moment"), [(1, "after"), (2, "before"), (2, "after"), (3, "before")])
def test_f14_cut_while_the_run_is_stopped_and_finished_by_reconcile(
    real: FakeVast, tmp_path: Path, row: int, moment: str
) -> None:
    laptop = Laptop(real, tmp_path)
    before = {box.id for box in real.world.living()}
    offer = 10 + row * 2 + (moment == "after")
    launch(laptop.desk(), laptop.request(offer), laptop.open_pair, {})
    crash = CrashAt(row)
    desk = laptop.desk(before=crash) if moment == "before" else laptop.desk(after=crash)
    with pytest.raises(Crash):
        kill(desk, name_victim(desk.journal, "20260215-104518"), open_pair=laptop.open_pair, grace_s=10.0)
    result, report = reconcile(laptop.desk(), lambda found: "leave", laptop.open_pair, {})
    assert result.ok
    assert len(report.destroyed) == 1
    assert {box.id for box in real.world.living()} == before
    laptop.check_agreement()


def test_a_run_of_ours_is_stopped_with_a_checkpoint_before_its_box_goes(real: FakeVast, tmp_path: Path) -> None:
    """A trainer that saves on SIGTERM; what it saved is seen by the hook that fetches before the end."""
    laptop = Laptop(real, tmp_path)
    (laptop.folder / "work" / "train.py").write_text(
        "import os, signal, sys, time\n"
        "from pathlib import Path\n"
        "def save(*_):\n"
        "    Path('checkpoint-7').mkdir(); Path('checkpoint-7/weights').write_text('x'); sys.exit(11)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print({'loss': 1.0}, flush=True)\n"
        "while True: time.sleep(0.05)\n"
    )
    launch(laptop.desk(), laptop.request(40), laptop.open_pair, {})
    desk = laptop.desk()
    seen: list[str] = []
    result = kill(
        desk, name_victim(desk.journal, "20260215-104518"), open_pair=laptop.open_pair, grace_s=20.0,
        before=lambda host, victim: seen.append(host.run(f"ls {victim.run_dir}/work").text),
    )  # fmt: skip
    assert result.state == "destroyed"
    assert "checkpoint-7" in seen[0]
    laptop.check_agreement()


def test_the_last_words_and_the_results_are_here_when_the_box_is_gone(
    real: FakeVast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody mirrored the run to its end; a screen that watched it from the middle on goes over to how it ended."""
    monkeypatch.setenv("TUNEWATCH_VAST_URL", real.url)
    monkeypatch.setenv("VAST_API_KEY", real.world.account_key)
    laptop = Laptop(real, tmp_path)
    (laptop.folder / "work" / "train.py").write_text(
        "import json, os, signal, sys, time\n"
        "from pathlib import Path\n"
        "step = 0\n"
        "def save(*_):\n"
        "    print({'loss': 0.25, 'learning_rate': 1e-05, 'epoch': 9.0}, flush=True)\n"
        "    run = Path(os.environ['TUNEWATCH_RUN_DIR'])\n"
        "    (run / 'metrics.json').write_text(json.dumps({'stage': 'stage4', 'macro': 0.5}))\n"
        "    (run / 'weights.bin').write_bytes(b'0' * 5000)\n"
        "    print('saved at', step, flush=True); sys.exit(11)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "while True:\n"
        "    step += 1\n"
        "    print({'loss': 1.0, 'learning_rate': 1e-05, 'epoch': step / 100}, flush=True)\n"
        "    time.sleep(0.02)\n"
    )
    launched = launch(laptop.desk(), laptop.request(42), laptop.open_pair, {})
    feed = RunFeed("20260215-104518", home=laptop.home)
    until = time.monotonic() + 120
    while not (state := feed.tick()).history.train:
        assert time.monotonic() < until, f"{state.state}: {state.reason}"
        time.sleep(0.05)
    seen = len(feed.tick().history.train)
    desk = laptop.desk()
    result = kill(desk, name_victim(desk.journal, "20260215-104518"), open_pair=laptop.open_pair, grace_s=20.0)
    assert result.state == "destroyed"
    assert [step.ok for step in result.steps if step.name == "bring log and results home"] == [True]
    while (state := feed.tick()).state != "stopped":
        assert time.monotonic() < until, f"{state.state}: {state.reason}"
        time.sleep(0.05)
    feed.close()
    assert isinstance(state.problem, NoHostError)
    assert len(state.history.train) > seen
    assert state.history.train[-1].loss == 0.25
    assert state.log_path is not None
    assert "saved at" in state.log_path.read_text().splitlines()[-1]
    assert json.loads((state.log_path.parent / "metrics.json").read_text())["macro"] == 0.5
    assert not (state.log_path.parent / "weights.bin").exists()
    [row] = [row for row in list_runs(laptop.home, tmp_path) if row["instance_id"] == launched.instance_id]
    assert row["state"] == "stopped"


def test_a_laptop_that_cannot_keep_the_log_destroys_the_box_all_the_same(real: FakeVast, tmp_path: Path) -> None:
    """A disk that is full or may not be written here is no reason for a box to go on billing."""
    laptop = Laptop(real, tmp_path)
    launch(laptop.desk(), laptop.request(43), laptop.open_pair, {})
    (laptop.home / "mirrors").write_text("in the way")
    desk = laptop.desk()
    result = kill(desk, name_victim(desk.journal, "20260215-104518"), open_pair=laptop.open_pair, grace_s=20.0)
    assert result.state == "destroyed"
    [step] = [step for step in result.steps if step.name == "bring log and results home"]
    assert (step.ok, "mirrors" in step.detail) == (False, True)
    laptop.check_agreement()


def test_a_box_that_does_not_answer_is_destroyed_all_the_same(real: FakeVast, tmp_path: Path) -> None:
    laptop = Laptop(real, tmp_path)
    launched = launch(laptop.desk(), laptop.request(41), laptop.open_pair, {})
    assert launched.instance_id is not None
    container = real.world.boxes[launched.instance_id].container
    assert container is not None
    assert real.world.host is not None
    real.world.host.stop(launched.instance_id)
    real.world.boxes[launched.instance_id].container = None
    desk = laptop.desk()
    result = kill(desk, name_victim(desk.journal, str(launched.instance_id)), open_pair=laptop.open_pair)
    assert result.state == "destroyed"
    assert [step.ok for step in result.steps if step.name == "reach the box"] == [False]
    laptop.check_agreement()
