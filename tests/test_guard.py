"""The guard on the box: ends the rental by its limits with the laptop closed, and says when it cannot."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote.arming import alarm
from runner.box import guard as guard_module
from runner.box.limits import CONFIG, LEASE, RELEASE, REPORT, Limits, View, decide, read_limits
from runner.box.meters import read_uploads
from runner.box.own_key import Api, container_environment, end_container
from runner.metrics import MetricsWriter
from runner.rundir import METRICS, STATUS, STOP_REQUEST, Status, write_status
from tests.fake_vast import Box, FakeVast, faults
from tests.fake_vast.boxes import Container
from tests.support.guard import Stand, a_stand
from tests.support.sshd import make_key

QUIET = View(elapsed_s=0.0, spent_usd=0.0, running=True)


@pytest.mark.parametrize(
    ("limits", "view", "reason"),
    [
        (Limits(), View(1e9, 1e9, running=True, idle_for_s=1e9, lease_age_s=1e9), None),
        (Limits(deadline_s=100), View(99, 0, running=False), None),
        (Limits(deadline_s=100), View(100, 0, running=False), "deadline"),
        (Limits(deadline_s=1000), View(969, 0, running=True, save_s=10), None),
        (Limits(deadline_s=1000), View(976, 0, running=True, save_s=10), "deadline"),
        (Limits(budget_usd=1.0), View(0, 0.99, running=False), None),
        (Limits(budget_usd=1.0), View(0, 1.0, running=False), "budget"),
        (Limits(budget_usd=1.0, reserve_usd=0.1), View(0, 0.9, running=False), "budget"),
        (Limits(budget_usd=5.0, usd_per_h=3.6), View(0, 4.98, running=True, save_s=10), "budget"),
        (Limits(idle_s=60), View(0, 0, running=True, idle_for_s=59), None),
        (Limits(idle_s=60), View(0, 0, running=True, idle_for_s=60), "idle"),
        (Limits(lease_s=60), View(0, 0, running=True, lease_age_s=61), "lease"),
        (Limits(linger_s=20), View(0, 0, running=False, ended_rc=0, over_for_s=19), None),
        (Limits(linger_s=20), View(0, 0, running=False, ended_rc=10, over_for_s=20), "finished"),
        (Limits(), View(0, 0, running=False, ended_rc=0, over_for_s=500, uploading=True), None),
        (Limits(upload_s=400), View(0, 0, running=False, ended_rc=0, over_for_s=500, uploading=True), "finished"),
        (Limits(keep_when_finished=True), View(0, 0, running=False, ended_rc=0, over_for_s=1e6), None),
        (Limits(), View(0, 0, running=False, ended_rc=11, over_for_s=1e6), None),
        (Limits(), View(0, 0, running=False, ended_rc=1, over_for_s=899), None),
        (Limits(), View(0, 0, running=False, ended_rc=-1, over_for_s=900), "crashed"),
    ],
)
def test_each_limit_ends_the_rental_at_its_moment_and_not_before(
    limits: Limits, view: View, reason: str | None
) -> None:
    assert decide(limits, view) == reason


@given(
    budget=st.floats(0.1, 100), spent=st.floats(0, 200), save=st.floats(0, 1e5), rate=st.floats(0, 50),
    running=st.booleans(),
)  # fmt: skip
def test_a_budget_is_never_overspent_and_four_fifths_of_it_can_always_be_used(
    budget: float, spent: float, save: float, rate: float, running: bool
) -> None:
    limits = Limits(budget_usd=budget, usd_per_h=rate)
    reason = decide(limits, View(0.0, spent, running=running, save_s=save))
    if spent >= budget:
        assert reason == "budget"
    if spent < 0.79 * budget:
        assert reason is None


def test_the_files_for_the_box_are_python_3_9() -> None:
    root = Path(guard_module.__file__).parent.parent
    for name in (
        "box/guard.py",
        "box/limits.py",
        "box/meters.py",
        "box/own_key.py",
        "rundir.py",
        "atomic.py",
        "manifest.py",
    ):
        text = (root / name).read_text()
        ast.parse(text, feature_version=(3, 9))
        assert "slots=True" not in text, f"{name}: dataclass slots came with 3.10"


def test_the_key_is_found_in_the_start_scripts_file_before_the_first_process(tmp_path: Path) -> None:
    first = tmp_path / "environ"
    first.write_bytes(b"A=1\0CONTAINER_ID=7\0CONTAINER_API_KEY=from-first\0")
    assert container_environment(tmp_path, first) == {"CONTAINER_ID": "7", "CONTAINER_API_KEY": "from-first"}
    (tmp_path / "tunewatch").mkdir()
    (tmp_path / "tunewatch/container.env").write_text("CONTAINER_ID=7\nCONTAINER_API_KEY=from-file\n")
    assert container_environment(tmp_path, first)["CONTAINER_API_KEY"] == "from-file"


def test_the_machines_own_first_process_is_never_ended(tmp_path: Path) -> None:
    environ = tmp_path / "environ"
    environ.write_bytes(b"CONTAINER_ID=8\0")
    assert "left alone" in end_container(7, environ)
    assert "told" not in end_container(7), "this test's own machine"


def test_a_config_with_unknown_keys_is_read_and_a_number_that_is_none_spoils_it(tmp_path: Path) -> None:
    document = {"instance_id": 7, "deadline_s": 60, "url": 3, "keep_when_finished": 1, "new": 1}
    (tmp_path / CONFIG).write_text(json.dumps(document))
    assert read_limits(tmp_path) == Limits(instance_id=7, deadline_s=60)
    for odd in ("5", float("nan"), float("inf"), -1.0, True, [], 10**400):
        for name in ("budget_usd", "usd_per_h", "deadline_s", "period_s"):
            (tmp_path / CONFIG).write_text(json.dumps({**document, name: odd}))
            assert read_limits(tmp_path) is None, (name, odd)
    (tmp_path / CONFIG).write_text("{")
    assert read_limits(tmp_path) is None


def test_uploaded_means_the_newest_checkpoint_with_a_revision(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / METRICS)
    writer.write("save", step=100, seconds=3.0, path="checkpoint-100", bytes=1)
    assert read_uploads(tmp_path) == (3.0, False, False)
    writer.write("upload", step=100, status="queued", revision=None, seconds=None, detail="")
    assert read_uploads(tmp_path) == (3.0, True, False)
    writer.write("upload", step=100, status="done", revision="abc", seconds=1.0, detail="")
    assert read_uploads(tmp_path) == (3.0, False, True)
    writer.write("save", step=200, seconds=4.0, path="checkpoint-200", bytes=1)
    assert read_uploads(tmp_path) == (4.0, False, False)
    writer.write("upload", step=200, status="failed", revision=None, seconds=1.0, detail="no")
    assert read_uploads(tmp_path)[2] is False


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    with a_stand(tmp_path) as made:
        yield made


def test_the_budget_stops_the_box_when_nothing_was_uploaded(stand: Stand) -> None:
    guard = stand.arm(budget_usd=1.5, spent_usd=0.1, period_s=20.0)
    begun = stand.clock()
    assert guard.watch() == 0
    assert stand.box.intended == "stopped"
    assert stand.box.destroyed is None
    spent = 0.1 + (stand.clock() - begun) / 3600 * 0.75
    assert 1.45 < spent < 1.51
    assert stand.report()["reason"] == "budget"


def test_with_the_checkpoint_uploaded_the_box_is_destroyed(stand: Stand) -> None:
    writer = MetricsWriter(stand.run_dir / METRICS)
    writer.write("save", step=100, seconds=1.0, path="checkpoint-100", bytes=1)
    writer.write("upload", step=100, status="done", revision="abc", seconds=1.0, detail="")
    assert stand.arm(deadline_s=600).watch() == 0
    assert stand.box.destroyed is not None
    assert stand.box.destroyed_by == str(stand.box.id), "by the scoped key, not the account's"


def test_with_the_laptops_release_the_box_is_destroyed(stand: Stand) -> None:
    (stand.run_dir / RELEASE).touch()
    assert stand.arm(deadline_s=600).watch() == 0
    assert stand.box.destroyed is not None


def test_a_price_that_rises_is_metered_from_then_on(stand: Stand) -> None:
    guard = stand.arm(budget_usd=10.0)
    stand.clock.advance(3600)
    assert guard.look().spent_usd == pytest.approx(0.75, rel=1e-3)
    config = json.loads((stand.run_dir / CONFIG).read_text())
    (stand.run_dir / CONFIG).write_text(json.dumps({**config, "usd_per_h": 1.5}))
    guard.load()
    stand.clock.advance(3600)
    assert guard.look().spent_usd == pytest.approx(2.25, rel=1e-3)


def test_traffic_counts_and_a_counter_that_began_anew_does_not_take_money_back(stand: Stand) -> None:
    guard = stand.arm(usd_per_h=0.0, down_usd_per_gb=0.01, up_usd_per_gb=0.02)
    stand.traffic = (5_000_000_000, 1_000_000_000)
    assert guard.look().spent_usd == pytest.approx(0.07)
    stand.traffic = (1_000_000_000, 0)
    view = guard.look()
    assert view.spent_usd == pytest.approx(0.08)
    assert (view.down_gb, view.up_gb) == (6.0, 1.0)


def test_an_idle_gpu_without_steps_ends_it_and_a_busy_one_does_not(stand: Stand) -> None:
    guard = stand.arm(idle_s=300)
    stand.beat(1, 10)
    guard.look()
    for seq in range(2, 40):
        stand.clock.advance(20)
        stand.beat(seq, 10)
        stand.gpu = 90.0
        assert decide(guard.limits, guard.look()) is None
    stand.gpu = 1.0
    for seq in range(40, 60):
        stand.clock.advance(20)
        stand.beat(seq, 10)
        view = guard.look()
    assert decide(guard.limits, view) == "idle"


def test_a_lease_counts_by_its_change_and_not_by_a_clock(stand: Stand) -> None:
    guard = stand.arm(lease_s=100)
    for renewal in range(5):
        (stand.run_dir / LEASE).write_text(str(renewal))
        guard.look()
        stand.clock.advance(90)
        assert decide(guard.limits, guard.look()) is None
    stand.clock.advance(20)
    assert decide(guard.limits, guard.look()) == "lease"


def test_a_guard_that_comes_back_with_its_container_goes_on_counting(stand: Stand) -> None:
    guard = stand.arm(budget_usd=10.0, deadline_s=7200)
    stand.clock.advance(3600)
    guard.report(guard.look(), "watching")
    again = stand.arm(budget_usd=10.0, deadline_s=7200)
    view = again.look()
    assert view.elapsed_s == pytest.approx(3600, abs=5)
    assert view.spent_usd == pytest.approx(0.75, abs=0.01)


def test_the_run_is_asked_to_save_before_the_box_goes(stand: Stand) -> None:
    child = subprocess.Popen(["sleep", "600"])
    try:
        status = Status(state="running", seq=1, step=5, supervisor_pid=child.pid)
        write_status(stand.run_dir / STATUS, status)
        guard = stand.arm(deadline_s=100)

        ended = Status(state="stopped", seq=9, step=6, rc=11)
        original = stand.clock.sleep

        def sleep(seconds: float) -> None:
            original(seconds)
            if child.poll() is not None:
                write_status(stand.run_dir / STATUS, ended)
            else:
                status.seq += 1
                write_status(stand.run_dir / STATUS, status)

        guard._sleep = sleep
        assert guard.watch() == 0
        assert json.loads((stand.run_dir / STOP_REQUEST).read_text())["reason"] == "deadline"
        assert child.wait(120) == -15
        assert stand.box.intended == "stopped"
    finally:
        child.kill()


def test_f15_the_rental_ends_within_a_minute_of_its_limit_with_the_laptop_asleep(stand: Stand) -> None:
    """Nobody but the guard calls the provider for eight hours."""
    guard = stand.arm(deadline_s=4 * 3600, budget_usd=100, period_s=30.0)
    before = list(stand.fake.calls)
    armed = stand.clock()
    guard.watch()
    assert {identity for _, identity in stand.fake.calls[len(before) :]} == {str(stand.box.id)}
    assert abs(stand.clock() - armed - 4 * 3600) < 60
    stand.clock.advance(4 * 3600)
    stand.fake.world.tick()
    spent = stand.box.usd
    stand.clock.advance(3600)
    stand.fake.world.tick()
    assert stand.box.usd - spent < 0.02, "only the disk bills on"


@pytest.mark.parametrize("fault", [*faults.WITHOUT_EFFECT, faults.UNAUTHORISED], ids=lambda fault: fault.name)
def test_f16_a_destroy_that_fails_is_tried_again_then_the_box_is_stopped(stand: Stand, fault: faults.Fault) -> None:
    (stand.run_dir / RELEASE).touch()
    stand.fake.faults.add("destroy", fault, times=4)
    assert stand.arm(deadline_s=60).watch() == 0
    assert stand.fake.count("destroy") == 4
    assert stand.box.intended == "stopped"


def test_f16_when_nothing_works_the_container_ends_and_the_alarm_is_written(stand: Stand) -> None:
    (stand.run_dir / RELEASE).touch()
    stand.key = "wrong"
    guard = stand.arm(deadline_s=60)
    with pytest.raises(SystemExit):
        guard.watch()
    assert stand.powered_off == [stand.box.id, stand.box.id]
    assert stand.report()["word"] in ("failing", "ending")
    assert any("power off" in line for line in stand.report()["attempts"])  # type: ignore[attr-defined]


def test_f16_a_provider_that_comes_back_gets_the_next_try(stand: Stand) -> None:
    (stand.run_dir / RELEASE).touch()
    stand.fake.faults.add("destroy", faults.RESET, times=4)
    stand.fake.faults.add("stop", faults.BAD_GATEWAY, times=3)
    assert stand.arm(deadline_s=60).watch() == 0
    assert stand.powered_off == [stand.box.id]
    assert stand.box.destroyed is not None


def test_proof_changes_nothing_and_a_refused_key_fails_it(stand: Stand) -> None:
    api = Api(stand.fake.url, stand.box.id, stand.key)
    assert api.prove() == (True, "the key of this instance works")
    assert Api(stand.fake.url, stand.box.id, "wrong").prove()[0] is False
    assert Api(stand.fake.url, stand.box.id + 1, stand.key).prove()[0] is False
    assert Api("http://127.0.0.1:9", stand.box.id, stand.key, 0.5).prove()[0] is False
    assert stand.box.intended == "running"


# -- on a real box, over SSH, with the environment a container has ----------------------------------------------------


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass in time"
        time.sleep(0.05)


@contextmanager
def a_guarded_box(tmp_path: Path, **wishes: float) -> Iterator[tuple[FakeVast, Box, Container, Path]]:
    """A box whose guard was proved and started over SSH; the time limits begin then."""
    key = make_key(tmp_path / "key")
    boot = ((0.0, None), (0.1, "loading"), (0.2, "running"))
    os.environ["NO_PROXY"] = "127.0.0.1,localhost"
    with FakeVast(boxes=tmp_path / "boxes", boot=boot) as fake:
        onstart = "umask 077; mkdir -p ~/tunewatch; env | grep ^CONTAINER_ > ~/tunewatch/container.env\n"
        box = fake.world.create(7_000_001, {"image": "x", "disk": 60, "label": "tunewatch:x:r:1", "onstart": onstart})
        fake.world.attach_key(box, key.with_suffix(".pub").read_text())
        container = box.container
        assert container is not None
        environment = container.home / "tunewatch/container.env"
        wait_for(lambda: box.status == "running" and environment.exists() and box.api_key in environment.read_text())
        run_dir = container.home / "tunewatch/runs/demo/1"
        run_dir.mkdir(parents=True)
        limits = replace(Limits(), instance_id=box.id, url=fake.url, period_s=0.2, **wishes)  # type: ignore[arg-type]
        (run_dir / CONFIG).write_text(json.dumps(asdict(limits)))
        root = Path(guard_module.__file__).parent.parent.parent
        start = (
            f"printenv CONTAINER_API_KEY | wc -l; cd {root} && "
            f"python3 -m runner.box.guard --run-dir {run_dir} --prove && "
            f"(setsid python3 -m runner.box.guard --run-dir {run_dir} --watch </dev/null >{run_dir}/guard.log 2>&1 &)"
        )
        ssh = [
            "ssh", "-F", "none", "-i", str(key), "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
            "-o", "UserKnownHostsFile=/dev/null", "-p", str(container.direct_port), "root@127.0.0.1", start,
        ]  # fmt: skip
        done = subprocess.run(ssh, capture_output=True, text=True, timeout=120, check=True)
        assert done.stdout.splitlines()[0] == "0", "no session has the key"
        assert json.loads(done.stdout.splitlines()[1])["ok"] is True
        yield fake, box, container, run_dir


def test_f15_on_a_real_box_the_guard_ends_the_rental_and_the_key_is_in_no_session(tmp_path: Path) -> None:
    with a_guarded_box(tmp_path, deadline_s=2.0) as (_, box, container, run_dir):
        wait_for(lambda: box.intended == "stopped" and not container.alive())
        for path in run_dir.iterdir():
            assert box.api_key not in path.read_text(errors="replace"), path


@pytest.mark.slow
def test_f16_on_a_real_box_whose_key_is_refused_the_container_ends_itself(tmp_path: Path) -> None:
    """The key worked when it was proved and is refused when it is needed: what bills is ended from within."""
    with a_guarded_box(tmp_path, lease_s=4.0) as (_, box, container, run_dir):
        (run_dir / LEASE).write_text("now")
        box.api_key = "taken back"
        wait_for(lambda: not container.alive())
        wait_for(lambda: box.status == "exited")
        assert box.intended == "running", "the provider was never told"
        report = json.loads((run_dir / REPORT).read_text())
        assert any(line.startswith("stop: HTTP 40") for line in report["attempts"])
        assert report["reason"] == "lease"
        assert "cannot end the rental (power off" in alarm(report, 1.0), "written while it lived to write it"
