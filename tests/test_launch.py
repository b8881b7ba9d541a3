"""Launch: never two boxes, never an unknown one, and a box that does not become a run is given back."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from remote.access import own_key
from remote.arming import Wishes
from remote.kill import kill, name_victim
from remote.launch import choose_image, launch, onstart, undo_launch
from remote.provider import CreditError, OfferGoneError, RejectedError, Wanted
from remote.reconcile import reconcile
from remote.rent import BootError
from runner.errors import RefusedError, TunewatchError, UnconfirmedError
from runner.rundir import read_status
from tests.fake_vast import FakeVast, faults
from tests.fake_vast.market import offer_row
from tests.support.rented import Crash, CrashAt, Laptop, real_world
from tests.support.vast import rented_world

ROWS = 11
"""Rows a launch writes after it was opened."""


@pytest.fixture
def rented(tmp_path: Path) -> Iterator[Laptop]:
    """A laptop on a stand-in without processes, with a clock that waiting moves."""
    offers = [offer_row(number, machine_id=number) for number in range(1, 40)]
    with rented_world(offers=offers) as (fake, provider, _):
        yield Laptop(fake, tmp_path, provider=provider, real=False)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeVast]:
    with real_world(tmp_path_factory.mktemp("boxes")) as fake:
        yield fake


def fails(laptop: Laptop, offer: int = 1, **more: object) -> TunewatchError:
    with pytest.raises(TunewatchError) as caught:
        launch(laptop.desk(), laptop.request(offer, **more), laptop.open_pair, {})
    return caught.value


# -- before anything is rented ----------------------------------------------------------------------------------------


def test_the_cap_is_held_against_the_price_with_its_disk(rented: Laptop) -> None:
    error = fails(rented, max_usd_per_h=0.75)
    assert isinstance(error, RefusedError)
    assert "0.7536" in error.message
    assert rented.fake.count("create") == 0
    rented.check_agreement()


def test_low_credit_is_refused_before_the_rental(rented: Laptop) -> None:
    rented.fake.world.start_credit = 0.2
    assert isinstance(fails(rented), CreditError)
    assert rented.fake.count("create") == 0


def test_an_offer_too_short_for_the_run_is_refused(rented: Laptop) -> None:
    rented.fake.world.offers[1]["duration"] = 3600.0
    assert "stands for 1.0 h" in fails(rented, needed_h=5.0).message


def test_a_bid_below_the_least_is_refused_before_it_makes_a_stopped_box(rented: Laptop) -> None:
    assert "below the least bid" in fails(rented, bid_usd_per_h=0.01).message
    assert rented.fake.world.boxes == {}


def test_a_second_launch_of_the_same_run_is_refused(rented: Laptop) -> None:
    with rented.desk().journal.begin("launch", "mine/20260215-104518"):
        assert "not finished" in fails(rented).message
    assert rented.fake.count("create") == 0


# -- F12: the rental itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", faults.WITH_EFFECT, ids=lambda fault: fault.name)
def test_f12_a_rental_whose_answer_was_lost_is_found_by_label_and_never_sent_again(
    rented: Laptop, fault: faults.Fault
) -> None:
    rented.fake.faults.add("create", fault)
    rented.fake.world.hide_new = 3
    error = fails(rented)
    assert "does not answer" in error.message, "it went on with the box that was found, up to the SSH that is missing"
    assert rented.fake.count("create") == 1
    assert rented.fake.world.living() == []
    rented.check_agreement()


def test_f12_a_rental_that_cannot_be_settled_stays_open_and_says_so(rented: Laptop) -> None:
    rented.fake.faults.add("create", faults.RESET_AFTER)
    rented.fake.world.hide_new = 10_000
    error = fails(rented)
    assert isinstance(error, UnconfirmedError)
    (record,) = rented.desk().journal.open_deeds("launch")
    (box,) = rented.fake.world.living()
    box.hidden_lists = 0
    result, report = reconcile(rented.desk(), lambda found: "destroy", rented.open_pair, {})
    assert result.ok
    assert report.destroyed == [box.id]
    assert rented.fake.count("create") == 1
    assert rented.desk().journal.deed(record.id).closed is not None
    rented.check_agreement()


@pytest.mark.parametrize("fault", [f for f in faults.WITHOUT_EFFECT if f.name != "429"], ids=lambda fault: fault.name)
def test_f12_a_rental_that_never_happened_ends_with_nothing_rented(rented: Laptop, fault: faults.Fault) -> None:
    rented.fake.faults.add("create", fault)
    error = fails(rented)
    assert rented.fake.world.boxes == {}
    assert rented.fake.count("create") == 1
    if isinstance(error, UnconfirmedError):
        rented.fake.world.clock.sleep(700)  # type: ignore[attr-defined]
        reconcile(rented.desk(), lambda found: "leave", rented.open_pair, {})
    rented.check_agreement()


def test_f12_a_refusal_that_carries_a_contract_is_destroyed(rented: Laptop) -> None:
    rented.fake.world.offers[1]["min_bid"] = 0.3

    def raise_floor() -> None:
        rented.fake.world.offers[1]["min_bid"] = 0.9

    original = rented.fake.do_create

    def create(offer_id: int, body: dict[str, object]) -> dict[str, object]:
        raise_floor()
        return original(offer_id, body)

    rented.fake.do_create = create  # type: ignore[method-assign]
    error = fails(rented, bid_usd_per_h=0.4)
    assert isinstance(error, RejectedError)
    assert len(rented.fake.world.boxes) == 1
    assert rented.fake.world.living() == []
    assert error.exists == ""
    rented.check_agreement()


def test_f12_an_offer_sold_meanwhile_rents_nothing(rented: Laptop) -> None:
    gone = faults.json_fault(
        "no_such_ask", 404, {"success": False, "error": "invalid_args", "msg": "error 404/3603: no_such_ask Instance"}
    )
    rented.fake.faults.add("create", gone)
    assert isinstance(fails(rented), OfferGoneError)
    rented.check_agreement()


@pytest.mark.parametrize(
    ("odd", "word"),
    [
        ({"gpu_name": "RTX 3090"}, "GPU RTX 3090"),
        ({"gpu_ram": 24576}, "MB per GPU"),
        ({"num_gpus": 2}, "2 GPUs"),
        ({"dph_total": 1.9}, "$1.9000/h"),
        ({"is_bid": True}, "interruptible"),
    ],
)
def test_f12_a_box_that_is_not_the_quoted_one_is_given_back(rented: Laptop, odd: dict[str, object], word: str) -> None:
    rented.fake.world.on_create = lambda box: box.overrides.update(odd)
    error = fails(rented)
    assert isinstance(error, BootError)
    assert word in error.message
    assert rented.fake.world.living() == []
    rented.check_agreement()


# -- boot -------------------------------------------------------------------------------------------------------------

BOOTS = {
    "abandoned": {"intended_status": "stopped", "cur_state": "stopped", "next_state": "stopped",
                  "actual_status": "created", "status_msg": "Error response from daemon: OCI runtime create failed"},
    "oci while created": {"actual_status": "created", "status_msg": "Error: OCI runtime create failed: no space"},
    "offline": {"actual_status": "offline"},
    "exited": {"actual_status": "exited"},
    "never": {"actual_status": "loading"},
    "new word": {"actual_status": "hibernating"},
}  # fmt: skip


@pytest.mark.parametrize("name", BOOTS)
def test_a_box_that_will_not_boot_is_given_back_and_its_machine_left_out(rented: Laptop, name: str) -> None:
    rented.fake.world.on_create = lambda box: box.overrides.update(BOOTS[name])
    error = fails(rented, offer=3)
    assert isinstance(error, BootError)
    assert rented.fake.world.living() == []
    rented.check_agreement()
    desk = rented.desk()
    assert set(desk.journal.excluded()) == {3}
    assert list((rented.home / "launches").iterdir())
    rented.fake.world.offers[3].update(rentable=True)
    assert "failed before" in fails(rented, offer=3, name="mine/2").message


def test_the_image_follows_the_hosts_driver() -> None:
    with rented_world(offers=[offer_row(1, cuda_max_good=12.8), offer_row(2, cuda_max_good=12.2)]) as (_, provider, _):
        new, old = sorted(provider.search(Wanted(disk_gb=10)), key=lambda offer: offer.id)
    assert "cuda12.8" in choose_image(new)
    assert choose_image(old, "mine:1") == "mine:1"
    with pytest.raises(BootError, match=r"CUDA 12\.2"):
        choose_image(old)


def test_the_start_script_fits_and_tells_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    _, public = own_key(tmp_path)
    text = onstart(public)
    assert len(text) < 2048
    assert "hf_secret" not in text
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    private, _ = own_key(tmp_path)
    assert private.stat().st_mode & 0o077 == 0
    assert own_key(tmp_path)[1] == public


@pytest.mark.parametrize("operation", ["search", "user", "create", "list", "attach", "destroy"])
def test_f11_no_odd_answer_in_a_launch_leaves_a_box_or_escapes_as_another_error(rented: Laptop, operation: str) -> None:
    for number, fault in enumerate((*faults.WITHOUT_EFFECT, *faults.WITH_EFFECT), start=1):
        rented.fake.faults.add(operation, fault, times=2)
        try:
            launch(rented.desk(), rented.request(number, name=f"mine/{number}"), rented.open_pair, {})
        except TunewatchError:
            rented.fake.faults.clear()
        rented.fake.world.clock.sleep(700)  # type: ignore[attr-defined]
        reconcile(rented.desk(), lambda found: "destroy", rented.open_pair, {})
        assert rented.fake.world.living() == [], fault.name
        rented.check_agreement()
    assert len(rented.fake.world.boxes) <= number


def test_ctrl_c_while_it_boots_undoes_the_rental(rented: Laptop) -> None:
    desk = rented.desk()
    sleep = desk.sleep

    def interrupted(seconds: float) -> None:
        desk.sleep = sleep
        raise KeyboardInterrupt

    desk.sleep = interrupted
    with pytest.raises(KeyboardInterrupt):
        launch(desk, rented.request(1), rented.open_pair, {})
    assert rented.fake.world.living() == []
    rented.check_agreement()


@pytest.mark.parametrize("row", range(1, 6))
@pytest.mark.parametrize("moment", ["before", "after"])
def test_f14_cut_at_each_row_of_the_rental_and_undone(rented: Laptop, row: int, moment: str) -> None:
    crash = CrashAt(row)
    desk = rented.desk(before=crash) if moment == "before" else rented.desk(after=crash)
    with pytest.raises(Crash):
        launch(desk, rented.request(1), rented.open_pair, {})
    assert len(rented.fake.world.living()) <= 1
    again = rented.desk()
    (record,) = again.journal.open_deeds()
    undo_launch(again, record.id)
    assert rented.fake.world.living() == []
    assert rented.fake.count("create") <= 1
    rented.check_agreement()


# -- with real boxes --------------------------------------------------------------------------------------------------


def trainers(laptop: Laptop, instance_id: int) -> int:
    """How many trainers live in a box: processes of its train.py."""
    container = laptop.fake.world.boxes[instance_id].container
    assert container is not None
    count = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                cwd = str((entry / "cwd").readlink())
            except OSError:
                continue
            # the interpreter itself, not the supervisor and shells that have the command in their arguments
            count += words[1:3] == [b"-u", b"train.py"] and str(container.home) in cwd
    return count


def test_a_launch_ends_at_the_first_line_of_the_trainer_and_kill_proves_the_end(real: FakeVast, tmp_path: Path) -> None:
    laptop = Laptop(real, tmp_path)
    desk = laptop.desk()
    result = launch(desk, laptop.request(150), laptop.open_pair, {"HF_TOKEN": "hf_thisisaverysecrettoken"})
    assert result.state == "running"
    assert result.steps[-1].name == "first log line"
    assert "'loss'" in result.steps[-1].detail
    names = [step.name for step in result.steps]
    assert names.index("guard") < names.index("start"), "proved before anything runs"
    overhead = sum(s.seconds or 0 for s in result.steps if s.name not in ("boot", "ship our code", "first log line"))
    assert {phase for _, _, phase, _ in desk.journal.phases()} >= {"boot", "ssh", "environment"}
    assert overhead > 0
    killed = kill(laptop.desk(), name_victim(desk.journal, "20260215-104518"), open_pair=laptop.open_pair)
    assert killed.state == "destroyed"
    laptop.check_agreement()


def test_a_guard_that_cannot_be_proved_stops_the_launch(real: FakeVast, tmp_path: Path) -> None:
    laptop = Laptop(real, tmp_path)
    real.faults.add("show", faults.UNAUTHORISED, times=50)
    with pytest.raises(TunewatchError, match="cannot switch itself off"):
        launch(laptop.desk(), laptop.request(152), laptop.open_pair, {})
    real.faults.clear()
    laptop.check_agreement()
    assert 31_000_000 not in {box.id for box in real.world.living()}


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass in time"
        time.sleep(0.05)


@pytest.mark.slow
def test_f15_a_launched_run_ends_at_its_deadline_with_the_laptop_gone(real: FakeVast, tmp_path: Path) -> None:
    """From the end of the launch on nobody but the box itself asks the provider for anything."""
    laptop = Laptop(real, tmp_path)
    request = replace(laptop.request(170), wishes=Wishes(budget_usd=2.0, deadline_s=6.0))
    launched = launch(laptop.desk(), request, laptop.open_pair, {})
    assert launched.instance_id is not None
    box, asked = real.world.boxes[launched.instance_id], len(real.calls)
    assert box.container is not None
    wait_for(lambda: box.intended == "stopped")
    assert {identity for _, identity in real.calls[asked:]} <= {str(box.id)}
    run_dir = box.container.home / "tunewatch/runs/mine/20260215-104518"
    assert json.loads((run_dir / "stop.request").read_text())["reason"] == "deadline"
    status = read_status(run_dir / "status.json")
    assert status is not None
    assert status.ended, "the run was asked to save before the box was stopped"
    result, report = reconcile(laptop.desk(), lambda found: "leave", laptop.open_pair, {})
    assert result.ok
    assert report.gone == []
    assert kill(laptop.desk(), name_victim(laptop.desk().journal, str(box.id)), open_pair=laptop.open_pair).ok


def test_a_container_that_begins_anew_has_its_guard_again(real: FakeVast, tmp_path: Path) -> None:
    """As after an outbid: every process is gone, the start script runs, and the clock of the guard goes on."""
    laptop = Laptop(real, tmp_path)
    launched = launch(laptop.desk(), laptop.request(171), laptop.open_pair, {})
    assert launched.instance_id is not None
    box = real.world.boxes[launched.instance_id]
    assert box.container is not None
    report = box.container.home / "tunewatch/runs/mine/20260215-104518/guard.status.json"
    before = json.loads(report.read_text())
    real.world.stop(box)
    report_then = report.read_text()
    real.world.start(box)
    wait_for(lambda: report.read_text() != report_then)
    after = json.loads(report.read_text())
    assert after["word"] == "watching"
    assert after["elapsed_s"] > before["elapsed_s"]
    assert after["spent_usd"] >= before["spent_usd"]
    kill(laptop.desk(), name_victim(laptop.desk().journal, str(box.id)), open_pair=laptop.open_pair, checkpoint=False)


@pytest.mark.slow
@pytest.mark.parametrize("row", range(1, ROWS + 1))
@pytest.mark.parametrize("moment", ["before", "after"])
def test_f14_cut_at_each_row_of_a_launch_and_carried_on_or_undone(
    real: FakeVast, tmp_path: Path, row: int, moment: str
) -> None:
    """After the restart there is exactly one box with one trainer, or none, and the journal equals the provider."""
    laptop = Laptop(real, tmp_path)
    crash = CrashAt(row)
    desk = laptop.desk(before=crash) if moment == "before" else laptop.desk(after=crash)
    offer = row + (0 if moment == "before" else 20)
    living = {box.id for box in real.world.living()}
    with pytest.raises(Crash):
        launch(desk, laptop.request(offer), laptop.open_pair, {})
    del desk
    choice = "adopt" if (row + (moment == "before")) % 2 else "destroy"
    result, _ = reconcile(laptop.desk(), lambda found: choice, laptop.open_pair, {})  # type: ignore[arg-type, return-value]
    assert result.ok
    made = [box for box in real.world.living() if box.id not in living]
    finished = row == ROWS and moment == "after"
    rented_anything = row > 2 or (row == 2 and moment == "before") or (row, moment) == (2, "after")
    assert len(made) == (1 if finished or (choice == "adopt" and rented_anything) else 0)
    laptop.check_agreement()
    if made:
        assert trainers(laptop, made[0].id) == 1
        assert kill(
            laptop.desk(), name_victim(laptop.desk().journal, str(made[0].id)), open_pair=laptop.open_pair, grace_s=10.0
        ).ok
        laptop.check_agreement()


@pytest.mark.slow
def test_forty_rounds_of_random_faults_and_crashes_rent_nothing_twice_and_forget_nothing() -> None:
    """The benchmark's thousand, cut short; found seeds stay here."""
    from tests.bench.bench_faults import run

    count = run(40, 4711)
    assert count.crashes > 10
    assert (count.double, count.unknown) == (0, 0)
    assert count.worst_orphan_s <= 60.0


def test_f11_with_the_documented_rate_limits_on_nothing_is_ever_asked_too_soon(rented: Laptop) -> None:
    """A launch, its undoing and a reconcile, against a server that counts every call that came too early."""
    rented.fake.rate_limits = True
    fails(rented)
    reconcile(rented.desk(), lambda found: "leave", rented.open_pair, {})
    assert rented.fake.limited == 0
    assert rented.fake.world.living() == []
