"""The guard as somebody sees it who pays when it fails: every way it could be blinded, stalled, misled or killed."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote.arming import REFUSED, alarm, standing
from runner.box import guard as guard_module
from runner.box.guard import LONGEST_GRACE_S, PROOF_S, Guard
from runner.box.limits import CONFIG, REPORT, Limits, View, decide, read_limits
from runner.box.meters import (
    LONGEST_SAVE_S,
    GpuMeter,
    Uploads,
    away_s,
    boot_id,
    container_age_s,
    network_bytes,
    process_lives,
    read_uploads,
)
from runner.box.own_key import Api
from runner.metrics import MetricsWriter
from runner.rundir import METRICS, STATUS, Status, write_status
from tests.fake_vast import faults
from tests.support.guard import Stand, a_stand

ROOT = Path(guard_module.__file__).parent.parent.parent
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    with a_stand(tmp_path) as made:
        yield made


def wait_for(condition: Any, seconds: float = 180.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass in time"
        time.sleep(0.05)


# -- what it reads ----------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.sampled_from([*asdict(Limits()), "new"]), JSON, max_size=8))
@settings(max_examples=300, deadline=None)
def test_whatever_stands_in_guard_json_each_limit_that_is_read_can_be_reached(
    tmp_path_factory: pytest.TempPathFactory, document: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    (folder / CONFIG).write_text(json.dumps({"instance_id": 7, **document}))
    limits = read_limits(folder)
    if limits is None:
        return
    for name in ("budget_usd", "deadline_s", "idle_s", "lease_s"):
        value = getattr(limits, name)
        assert (value is None) == (document.get(name) is None), "a limit that was given is a limit"
        assert value is None or (math.isfinite(value) and value >= 0)
    assert math.isfinite(limits.usd_per_h)


@given(report=st.dictionaries(
    st.sampled_from(["instance_id", "wall", "mono", "boot_id", "elapsed_s", "spent_usd", "down_gb", "up_gb", "limits"]),
    JSON,
))  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_whatever_an_earlier_guard_left_behind_the_meter_starts_at_a_number(
    tmp_path_factory: pytest.TempPathFactory, report: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    (folder / CONFIG).write_text(json.dumps(asdict(Limits(instance_id=7, spent_usd=0.5, budget_usd=5.0))))
    (folder / REPORT).write_text(json.dumps({"instance_id": 7, **report}))
    guard = Guard(folder, mono=lambda: 1e6, network=lambda: (0, 0), gpu_use=lambda: None)
    guard.load()
    guard.recover()
    view = guard.look()
    assert math.isfinite(view.spent_usd)
    assert view.spent_usd >= 0.5
    assert math.isfinite(view.elapsed_s)
    assert view.elapsed_s >= 0


def test_a_config_that_is_spoilt_while_it_stands_leaves_the_limits_in_force(stand: Stand) -> None:
    guard = stand.arm(budget_usd=0.1)
    (stand.run_dir / CONFIG).write_text('{"instance_id": 7, "budget_usd": NaN}')
    guard.load()
    assert guard.limits.budget_usd == 0.1
    (stand.run_dir / CONFIG).unlink()
    assert guard.watch() == 0
    assert stand.box.intended == "stopped"


def test_a_run_directory_that_was_deleted_keeps_no_limit_from_ending_the_rental(stand: Stand) -> None:
    stand.beat(1, 10)
    guard = stand.arm(deadline_s=7200)
    guard.look()
    for path in stand.run_dir.iterdir():
        path.unlink()
    stand.run_dir.rmdir()
    begun = stand.clock()
    assert guard.watch() == 0
    assert stand.box.intended == "stopped"
    assert stand.clock() - begun < 1200, "its trainer is gone with it: it is over as a crash is"


def test_a_metrics_file_is_read_once_however_often_it_is_looked_at(tmp_path: Path) -> None:
    """It grows to hundreds of megabytes, and the trainer needs the processor more."""
    writer = MetricsWriter(tmp_path / METRICS)
    writer.write("save", step=100, seconds=3.0, path="checkpoint-100", bytes=1)
    with (tmp_path / METRICS).open("ab") as file:
        file.write(b'{"event": "train", "step": 1, "loss": 1.5}\n' * 500_000)
    uploads = Uploads(tmp_path)
    assert uploads.read() == (3.0, False, False)
    whole = (tmp_path / METRICS).stat().st_size
    before = int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])
    for _ in range(20):
        assert uploads.read() == (3.0, False, False)
    after = int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])
    assert after - before < whole / 10
    writer.write("upload", step=100, status="done", revision="abc", seconds=1.0, detail="")
    assert uploads.read() == (3.0, False, True)
    with (tmp_path / METRICS).open("ab") as file:
        file.write(b'{"event": "save", "step": 200, "sec')
    assert uploads.read()[2] is True, "half a line is no event"
    with (tmp_path / METRICS).open("ab") as file:
        file.write(b'onds": 4}\n')
    assert uploads.read() == (4.0, False, False)
    (tmp_path / METRICS).write_text('{"event": "save", "step": 1, "seconds": 1.0}\n')
    assert uploads.read() == (1.0, False, False) == read_uploads(tmp_path), "another file was put in its place"


def test_a_save_of_an_absurd_length_is_not_waited_for_while_the_box_bills(tmp_path: Path) -> None:
    guard = Guard(tmp_path, network=lambda: (0, 0), gpu_use=lambda: None)
    guard.limits = Limits(instance_id=7, deadline_s=3600, budget_usd=100.0)
    for seconds in (1e9, float("inf"), float("nan"), "inf", None, -5, 10**400):
        (tmp_path / METRICS).write_text(json.dumps({"event": "save", "step": 1, "seconds": seconds}) + "\n")
        view = replace(guard.look(), save_s=read_uploads(tmp_path)[0])
        assert 0 <= view.save_s <= LONGEST_SAVE_S
        for reason in ("deadline", "budget", "idle", "lease"):
            assert 0 < guard._grace_s(reason, view) <= LONGEST_GRACE_S


@given(
    budget=st.floats(0.2, 50), rate=st.floats(0.05, 20), save=st.floats(0, LONGEST_SAVE_S), share=st.floats(0, 0.3),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_a_run_that_saves_until_its_last_second_costs_the_budget_and_half_a_minute_at_most(
    tmp_path_factory: pytest.TempPathFactory, budget: float, rate: float, save: float, share: float
) -> None:
    """From the moment of the decision the trainer takes all the time it is given."""
    limits = Limits(instance_id=7, budget_usd=budget, reserve_usd=share * budget, usd_per_h=rate)
    guard = Guard(tmp_path_factory.mktemp("run"), network=lambda: (0, 0))
    guard.limits = limits
    usable = budget - limits.reserve_usd
    at = usable - min((2 * save + limits.period_s) / 3600 * rate, 0.2 * usable)
    # the guard looks each period: the decision falls within one of the moment
    spent = at + limits.period_s / 3600 * rate
    view = View(0.0, spent, running=True, save_s=save)
    assert decide(limits, view) == "budget"
    assert spent + guard._grace_s("budget", view) / 3600 * rate <= budget + (30.0 + limits.period_s) / 3600 * rate


def test_processes_with_odd_names_and_tables_that_cannot_be_read_are_no_error(tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "600"])
    try:
        assert process_lives(Status(pid=child.pid))
        assert not process_lives(Status(pid=child.pid, start_ticks=1))
        child.send_signal(signal.SIGKILL)
        wait_for(lambda: Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
        assert not process_lives(Status(pid=child.pid)), "a zombie trains nothing"
    finally:
        child.kill()
        child.wait()
    for pid in (None, 0, -1, 10**30):
        assert not process_lives(Status(pid=pid))
    assert network_bytes(tmp_path / "none") == (0, 0)
    (tmp_path / "table").write_bytes(b"\xff\n\xfe\n eth\xff0: 5 0 0 0 0 0 0 0 7\n lo: 9 0 0 0 0 0 0 0 9\nnonsense\n")
    assert network_bytes(tmp_path / "table") == (5, 7)
    assert container_age_s(tmp_path) is None
    assert (container_age_s() or 0) > 0


# -- what it calls ----------------------------------------------------------------------------------------------------


def test_an_nvidia_smi_that_never_answers_and_cannot_be_killed_is_left_behind(tmp_path: Path) -> None:
    """As it is when a GPU has fallen off the bus; the tool is started once and not once a period."""
    count = tmp_path / "started"
    tool = tmp_path / "smi"
    tool.write_text(f"#!/bin/sh\ntrap '' TERM\necho x >> {count}\nexec sleep 600\n")
    tool.chmod(0o755)
    meter = GpuMeter([str(tool)], timeout_s=0.3)
    wait_for(lambda: meter() is None and count.exists())
    child = meter._stuck
    assert child is not None
    # it is dead only when it was waited for; a process in the kernel would not even die
    child.poll = lambda: None  # type: ignore[method-assign]
    assert [meter() for _ in range(5)] == [None] * 5
    assert count.read_text() == "x\n"
    del child.poll  # type: ignore[method-assign]
    child.wait(120)
    tool.write_text("#!/bin/sh\necho 12\necho '[N/A]'\necho 97\n")
    wait_for(lambda: meter() == 97.0)


@contextmanager
def a_server_that_says(raw: bytes) -> Iterator[str]:
    """A provider whose answer is these bytes, whatever was asked."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    line, _ = server.accept()
                except OSError:
                    return
                with line:
                    line.recv(65536)
                    line.sendall(raw)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"nonsense\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 500 no\r\nContent-Length: 9\r\n\r\n<",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000, b"HTTP/1.1 200 OK\r\n\r\n\xff\xfe", b"HTTP/1.1 204 No\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n{}", b"HTTP/1.1 200 OK\r\n\r\n[]",
    ],
)  # fmt: skip
def test_f16_an_answer_that_is_none_is_a_failed_try_and_not_the_end_of_the_guard(raw: bytes) -> None:
    with a_server_that_says(raw) as url:
        api = Api(url, 7, "key", 20.0)
        assert api.destroy()[0] is False
        assert api.stop()[0] is False
        assert api.prove()[0] is False
        assert api.ended("stop") is None


@pytest.mark.parametrize("url", ["http://[::1", "nonsense", "", "file:///etc/passwd", "http://127.0.0.1:99999"])
def test_f16_an_address_that_is_none_is_a_failed_try(url: str) -> None:
    assert Api(url, 7, "key", 1.0).destroy()[0] is False


@pytest.mark.parametrize("release", [True, False])
def test_f16_a_yes_that_was_not_done_is_no_end(stand: Stand, release: bool) -> None:
    """The guard looks at what became of its request, and asks again while the box still runs."""
    if release:
        (stand.run_dir / guard_module.RELEASE).touch()
    what = "destroy" if release else "stop"
    stand.fake.faults.add(what, faults.Fault("said and not done", 200, b'{"success": true}'), times=2)
    begun = stand.clock()
    assert stand.arm(deadline_s=60).watch() == 0
    assert stand.fake.count("destroy" if release else "state") == 3
    assert (stand.box.destroyed is not None) if release else (stand.box.intended == "stopped")
    assert stand.clock() - begun < 60 + 3 * (sum(PROOF_S) + 10)


def test_a_key_that_is_taken_back_during_the_run_is_an_alarm_long_before_the_limit(stand: Stand) -> None:
    guard = stand.arm(deadline_s=30 * 3600)
    stand.key = "taken back"
    seen: list[str] = []
    original = stand.clock.sleep

    def sleep(seconds: float) -> None:
        original(seconds)
        seen.append(alarm(stand.report(), 1.0))
        if seen[-1]:
            raise SystemExit

    guard._sleep = sleep
    with pytest.raises(SystemExit):
        guard.watch()
    assert "could not switch itself off any more (the provider refused the key" in seen[-1]
    assert stand.report()["key_refused"] == REFUSED
    assert stand.box.intended == "running", "it is said, nothing is done"


# -- clocks, restarts, a run that goes on -----------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [-86400.0, 86400.0])
def test_f10_a_wall_clock_that_was_put_right_neither_ends_the_rental_nor_makes_it_free(jump: float) -> None:
    before = {"mono": 1000.0, "wall": 5e8, "boot_id": "b"}
    assert away_s(before, now=1060.0, wall=lambda: 5e8 + 60 + jump, boot=lambda: "b") == 60.0
    # after a boot only the wall clock is left
    assert away_s(before, now=5.0, wall=lambda: 5e8 + 60, boot=lambda: "c") == 60.0
    assert away_s(before, now=5.0, wall=lambda: 5e8 - 60, boot=lambda: "c") == 0.0
    assert boot_id()


def test_the_time_in_which_the_container_did_not_run_costs_its_disk_and_not_its_gpu(stand: Stand) -> None:
    """Outbid for ten hours and back: a budget that is not used up must not end it at once."""
    guard = stand.arm(budget_usd=5.0, usd_per_h=0.75, disk_usd_per_h=0.01)
    stand.clock.advance(3600)
    guard.report(guard.look(), "watching")
    stand.clock.advance(36_000)
    stand.age = 30.0
    again = stand.arm(budget_usd=5.0, usd_per_h=0.75, disk_usd_per_h=0.01)
    view = again.look()
    assert view.spent_usd == pytest.approx(0.75 + 0.1 + 0.75 * 630 / 3600, rel=0.05)
    assert view.elapsed_s == pytest.approx(39_600, abs=5), "a deadline is a time, whatever ran until then"
    stand.age = None
    assert stand.arm(budget_usd=5.0, usd_per_h=0.75).look().spent_usd > 7, "what cannot be told costs the full price"


def test_arming_again_counts_from_there_and_an_earlier_ending_is_not_this_runs(stand: Stand) -> None:
    stand.beat(5, 10, "stopped", rc=12)
    guard = stand.arm(budget_usd=1.0, deadline_s=3600, arming="a")
    stand.clock.advance(3000)
    guard.report(guard.look(), "watching")
    config = {**json.loads((stand.run_dir / CONFIG).read_text()), "arming": "b", "spent_usd": 0.25, "budget_usd": 2.0}
    for anew in (False, True):
        (stand.run_dir / CONFIG).write_text(json.dumps(config))
        if anew:
            guard = stand.arm(**config)
        else:
            guard.load()
        view = guard.look()
        assert view.spent_usd == pytest.approx(0.25, abs=0.01)
        assert view.elapsed_s == pytest.approx(0.0, abs=1)
        stand.clock.advance(300)
        assert decide(guard.limits, guard.look()) is None, "the run that ended before is about to be gone on with"
        guard.report(guard.look(), "watching")
        config["arming"] = "c"
    write_status(stand.run_dir / STATUS, Status(state="finished", seq=1, step=20, rc=0, pid=77, epoch=1))
    guard.look()
    stand.clock.advance(30)
    assert decide(guard.limits, guard.look()) == "finished"


# -- the guard itself -------------------------------------------------------------------------------------------------


def test_a_full_disk_does_not_end_the_guard(tmp_path: Path) -> None:
    """Neither its log nor its report can be written, and it ends the rental all the same."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from runner.box import guard\n"
        "ended = []\n"
        "class Api:\n"
        "    def stop(self): ended.append(1); return True, 'done'\n"
        "    def ended(self, what): return True\n"
        "g = guard.Guard(Path(sys.argv[2]), api=lambda limits: Api(), sleep=lambda s: None)\n"
        "g.limits = guard.Limits(instance_id=7, deadline_s=0.0)\n"
        "code = g.watch()\n"
        "sys.exit(40 + code if ended else 1)\n"
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program, str(ROOT), str(tmp_path / "no/such/run")],
            stdout=full,
            timeout=120,
            check=False,
        )
    assert done.returncode == 40


def test_a_guard_that_is_killed_is_followed_by_another_until_its_work_is_done(tmp_path: Path) -> None:
    limits = replace(Limits(), instance_id=7, period_s=0.2, url="http://127.0.0.1:9")
    (tmp_path / CONFIG).write_text(json.dumps(asdict(limits)))
    line = standing(str(tmp_path), lambda words: f"cd {ROOT} && {sys.executable} -m {words}", limits)
    loop = subprocess.Popen(["sh", "-c", line.replace("sleep 5", "sleep 0.2")], start_new_session=True)

    def pid() -> int:
        try:
            return int(json.loads((tmp_path / REPORT).read_text())["pid"])
        except (OSError, ValueError):
            return 0

    try:
        wait_for(lambda: pid() > 0)
        for number in (signal.SIGKILL, signal.SIGALRM):  # by the kernel for memory, or because it hung
            first = pid()
            os.kill(first, number)
            wait_for(lambda first=first: pid() != first)
        elapsed = json.loads((tmp_path / REPORT).read_text())["elapsed_s"]
        wait_for(lambda: json.loads((tmp_path / REPORT).read_text())["elapsed_s"] > elapsed)
        (tmp_path / CONFIG).unlink()
        os.kill(pid(), signal.SIGKILL)
        assert loop.wait(120) == 0, "with nothing to guard it ends"
    finally:
        with_group = loop.pid
        if loop.poll() is None:
            os.killpg(with_group, signal.SIGKILL)
            loop.wait()


def test_a_silent_guard_is_an_alarm_whatever_it_was_doing() -> None:
    for word in ("watching", "saving", "ending"):
        assert "silent for 100 s" in alarm({"word": word}, 100.0)
    assert alarm({"word": "ended"}, 100.0) == ""
