"""Box health, clocks and the life of a process, read from what a shell prints; and `doctor` over real sshd."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from remote.alive import judge_alive
from remote.doctor import check_here, check_host, forget_host_key, judge_health
from remote.health import SCRIPT, read_health
from remote.link import Backoff
from remote.source import Freshness
from runner.box.proc import is_alive
from tests.support.sshd import Sshd

SMI = "0, NVIDIA A100-SXM4-40GB, 97, 30211, 40960, 71, 388.12, 400.00, 0x0000000000000004"


def box_text(clock: float = 1000.0, mono: float = 50.0, gpu: str = SMI, busy: int = 100, net: int = 0) -> str:
    return (
        f"@clock {clock}\n@mono {mono}\n@boot abc\n@load 1.50 1.0 0.5 2/300 99\n@cores 8\n"
        f"@cpu cpu  {busy} 0 0 {1000 - busy} 0 0 0 0 0 0\n@mem MemTotal: 1000 kB\n@mem MemAvailable: 400 kB\n"
        f"@cgroup max 5000\n@oom oom_kill 2\n@net eth0: {net} 0 0 0 0 0 0 0 {2 * net} 0\n@net lo: 9 0 0 0 0 0 0 0 9 0\n"
        f"@disk /dev/sda1 2000000 1500000 500000 75% /\n@gpu {gpu}\n"
    )


def test_a_full_answer_is_read_field_by_field() -> None:
    first = read_health(box_text(busy=100), now=1.0, wall_sent=999.0, wall_got=1001.0)
    assert first.gpus[0].name == "NVIDIA A100-SXM4-40GB"
    gpu = first.gpus[0]
    assert (gpu.util, gpu.used_mib, gpu.total_mib, gpu.temp_c, gpu.power_w, gpu.limit_w) == (
        97, 30211, 40960, 71, 388.12, 400.0,
    )  # fmt: skip
    assert gpu.throttle == "power cap"
    assert (first.load1, first.cores, first.oom_kills, first.boot_id) == (1.5, 8, 2, "abc")
    assert (first.ram_total, first.ram_used) == (1000 * 1024, 600 * 1024)
    assert (first.disk_free, first.disk_total) == (500000 * 1024, 2000000 * 1024)
    assert first.skew_s == pytest.approx(0.0)
    assert first.cpu is None
    text = box_text(mono=60.0, busy=100, net=5000).replace("cpu  100 0 0 900", "cpu  350 0 0 1650")
    second = read_health(text, now=11.0, wall_sent=0, wall_got=0, before=first)
    assert second.cpu == pytest.approx(25.0)
    assert (second.net_in, second.net_out) == (500.0, 1000.0)


def test_a_box_without_nvidia_smi_is_a_fact_and_not_an_error() -> None:
    health = read_health(box_text().replace(f"@gpu {SMI}", "@nogpu"), now=0, wall_sent=0, wall_got=0)
    assert health.gpus == ()
    assert "not on this box" in health.gpu_note
    broken = read_health(box_text(gpu="NVIDIA-SMI has failed"), now=0, wall_sent=0, wall_got=0)
    assert "NVIDIA-SMI has failed" in broken.gpu_note


def test_fields_the_driver_does_not_tell_are_none() -> None:
    health = read_health(box_text(gpu="0, T4, [N/A], 1, 2, 3, [N/A], [N/A], 0x0"), now=0, wall_sent=0, wall_got=0)
    assert (health.gpus[0].util, health.gpus[0].power_w, health.gpus[0].throttle) == (None, None, "")


@given(st.text())
def test_no_answer_of_a_box_breaks_the_reader(text: str) -> None:
    health = read_health(text, now=0, wall_sent=0, wall_got=0)
    list(judge_health(health))
    health.warnings()


def test_the_script_answers_on_this_machine() -> None:
    text = subprocess.run(
        ["sh", "-c", f"DIR=/ PID={os.getpid()}\n{SCRIPT}"], capture_output=True, text=True, check=False
    ).stdout
    health = read_health(text, now=0, wall_sent=time.time(), wall_got=time.time())
    assert health.ram_total
    assert health.disk_free
    assert health.skew_s is not None
    assert abs(health.skew_s) < 30
    assert judge_alive(health.pid_stat, health.boot_id, start_ticks=None, boot_id=None)


def test_f10_a_clock_that_is_off_by_an_hour_is_said_and_stays_out_of_every_age() -> None:
    """Skew is measured once per question; ages count on the laptop's monotonic clock from the change that was seen."""
    for hour in (3600.0, -3600.0):
        health = read_health(box_text(clock=1000.0 + hour), now=0, wall_sent=1000, wall_got=1000)
        assert health.skew_s == pytest.approx(hour)
        assert "60 min" in health.warnings()[0]
        fresh = Freshness()
        # the first look: 20 s old by the box's own clock, whatever ours says
        box_now, mtime = 1000.0 + hour, 980.0 + hour
        assert fresh.note(10, mtime, box_now - mtime, now=500.0) == pytest.approx(20.0)
        # an NTP step on either side moves mtime or the wall clock, not the age
        assert fresh.note(10, mtime, box_now - hour - mtime, now=507.0) == pytest.approx(27.0)
        assert fresh.note(20, mtime + hour, None, now=510.0) == 0.0
        assert fresh.age(513.5) == pytest.approx(3.5)


def test_f10_a_step_of_the_laptops_clock_changes_no_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from remote.source import LocalSource

    log = tmp_path / "log.txt"
    log.write_text("x")
    source = LocalSource(log)
    before = source.refresh(0.1).log_age_s
    real = time.time
    for step in (3600.0, -3600.0):
        monkeypatch.setattr(time, "time", lambda step=step: real() + step)
        after = source.refresh(0.1).log_age_s
        assert before is not None
        assert after is not None
        assert abs(after - before) < 60


@pytest.mark.parametrize(
    ("stat", "boot", "ticks", "was", "alive"),
    [
        ("7 (a) S" + " 0" * 18 + " 42 0", "b", 42, "b", True),
        ("7 (a (b) c) R" + " 0" * 18 + " 42 0", "b", 42, "b", True),
        ("7 (a) S" + " 0" * 18 + " 43 0", "b", 42, "b", False),
        ("7 (a) S" + " 0" * 18 + " 42 0", "c", 42, "b", False),
        ("7 (a) Z" + " 0" * 18 + " 42 0", "b", 42, "b", False),
        ("", "b", 42, "b", False),
    ],
    ids=["itself", "odd name", "pid reused", "rebooted", "zombie", "gone"],
)
def test_a_process_is_the_one_that_was_started_or_it_is_dead(
    stat: str, boot: str, ticks: int, was: str, alive: bool
) -> None:
    assert judge_alive(stat, boot, start_ticks=ticks, boot_id=was) is alive


def test_this_process_is_alive_and_a_zombie_is_not() -> None:
    assert is_alive(os.getpid(), None, None)
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(child.pid, None, None)
    child.wait()


def test_a_lost_link_is_asked_soon_then_rarely_and_never_in_step() -> None:
    import random

    waits = []
    backoff, now = Backoff(random.Random(1)), 0.0
    while now < 1200:
        wait = backoff.failed(now)
        waits.append((now, wait))
        now += wait
    assert all(wait <= 1.2 for at, wait in waits if at < 300)
    assert max(wait for _, wait in waits) <= 36
    assert waits[-1][1] > 20
    assert backoff.word(now, ever=True) == "offline"
    backoff.answered()
    assert backoff.word(now, ever=True) == "live"
    other = Backoff(random.Random(2))
    assert [other.failed(0.0) for _ in range(3)] != [w for _, w in waits[:3]]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Sshd]:
    with Sshd(tmp_path / "box") as running:
        yield running


@pytest.fixture
def hub() -> Iterator[str]:
    """A loopback server in place of the Hub."""
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_doctor_looks_at_everything_a_launch_needs(box: Sshd, tmp_path: Path, hub: str) -> None:
    with box.connect(tmp_path / "state") as host:
        checks = {c.name: c for c in check_host(host, environment={"HF_ENDPOINT": hub})}
    assert set(checks) == {"SSH", "tmux", "Python", "~/tunewatch", "network", "GPU", "disk", "clock"}
    assert {name for name, check in checks.items() if check.finding == "good"} >= {"SSH", "tmux", "Python", "network"}
    assert "torch" in checks["Python"].found


def test_doctor_says_what_is_missing_on_a_bare_box_and_how_to_mend_it(tmp_path: Path) -> None:
    (tmp_path / "box").mkdir()
    with Sshd(tmp_path / "box", python="") as made, made.connect(tmp_path / "state") as host:
        checks = {
            c.name: c for c in check_host(host, python="python3.99", environment={"HF_ENDPOINT": "http://127.0.0.1:1"})
        }
    assert checks["Python"].finding == "bad"
    assert "launch" in checks["Python"].mend
    assert checks["network"].finding == "note"


DRIVER = "The NVIDIA driver on your system is too old (found version 11040)."
TORCH = """
class version: cuda = {cuda!r}
__version__ = "2.13.0"
def zeros(*a, **k): {deed}
class cuda:
    device_count = staticmethod(lambda: 2)
    get_device_name = staticmethod(lambda n: "RTX 6000 Ada")
"""


@pytest.mark.parametrize(
    ("cuda", "deed", "finding", "words"),
    [
        (None, "pass", "bad", "built without CUDA"),
        ("12.8", f"raise RuntimeError({DRIVER!r})", "bad", "driver on your system is too old"),
        ("12.8", "from unittest.mock import MagicMock; return MagicMock()", "good", "2 x RTX 6000 Ada"),
    ],
    ids=["torch for processors", "old driver", "works"],
)
def test_doctor_tries_the_gpu_that_is_there_with_the_torch_that_is_there(
    cuda: str | None, deed: str, finding: str, words: str, box: Sshd, tmp_path: Path, hub: str
) -> None:
    """There is no GPU here: nvidia-smi and torch are small programs of the box that say what real ones would."""
    box.script("bin/nvidia-smi", f"#!/bin/sh\necho '{SMI}'\n")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "torch.py").write_text(TORCH.format(cuda=cuda, deed=deed))
    box.script("bin/gpupython", f'#!/bin/sh\nPYTHONPATH={tmp_path / "lib"} exec python3 "$@"\n')
    with box.connect(tmp_path / "state") as host:
        checks = {c.name: c for c in check_host(host, python="gpupython", environment={"HF_ENDPOINT": hub})}
    assert checks["GPU"].found == "NVIDIA A100-SXM4-40GB 40 GB"
    assert checks["CUDA"].finding == finding
    assert words in checks["CUDA"].found
    assert str(box.key) in checks["SSH"].found


def test_doctor_command_tells_an_unreachable_host_in_json_and_by_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tui.commands.doctor import command

    monkeypatch.setenv("TUNEWATCH_HOME", str(tmp_path))
    result = CliRunner().invoke(command, ["nobody@127.0.0.1:1", "--json"], standalone_mode=False)
    told = json.loads(result.stdout)
    assert result.return_value == 5
    assert told["ok"] is False
    assert told["checks"][0]["name"] == "SSH"
    assert told["checks"][0]["mend"]


def test_doctor_here_finds_a_broken_settings_file(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("[launch]\nnonsense = 1\n")
    checks = {c.name: c for c in check_here(tmp_path, environment={})}
    assert checks["settings"].finding == "bad"
    assert checks["Vast.ai"].finding == "note"


def test_a_host_key_is_forgotten_on_purpose_only(box: Sshd, tmp_path: Path) -> None:
    state = tmp_path / "state"
    target = f"{box.user}@{box.host}:{box.port}"
    with box.connect(state, name=f"{box.host}:{box.port}") as host:
        host.ping()
    box.new_host_key()
    assert forget_host_key(target, state) is True
    assert forget_host_key(target, state) is False
    with box.connect(state, name=f"{box.host}:{box.port}") as host:
        host.ping()
