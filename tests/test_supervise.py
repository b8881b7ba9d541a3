"""The supervisor with real processes: one trainer on a run directory, whoever is killed and whenever."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runner.box import proc
from runner.box.ending import judge_end, last_frame
from runner.rundir import Status, read_status, write_status, write_stop_request

ROOT = Path(__file__).parent.parent
TRAINER = """
import json, os, signal, sys, time
steps, pace, code = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
open("started", "a").write(f"{os.getpid()}\\n")
asked = []
if "--deaf" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
elif "--saves" in sys.argv: signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
for step in range(1, steps + 1):
    print("step", step)
    with open(os.environ["TUNEWATCH_RUN_DIR"] + "/metrics.jsonl", "a") as f:
        f.write(json.dumps({"event": "train", "step": step}) + "\\n")
    time.sleep(pace)
    if asked:
        print("saved"); sys.exit(11)
print("{'train_runtime': '1', 'train_loss': '2.0', 'epoch': '1'}")
sys.exit(code)
"""


def wait_for(condition, seconds=120.0):
    """Wait until `condition()` is true; its value. Fails when it does not become true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError("what was waited for did not happen")


class Box:
    """A run directory with a supervisor's command line."""

    def __init__(self, path):
        self.path = path
        self.run_dir = path / "run"
        (path / "trainer.py").write_text(TRAINER)
        self.children = []

    def start(self, *trainer, flags=(), command=None):
        if command is None:
            command = [sys.executable, str(self.path / "trainer.py"), *map(str, trainer)]
        env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"} | {"PYTHONPATH": str(ROOT)}
        head = [sys.executable, "-m", "runner.box.supervise", "--run-dir", str(self.run_dir), *flags, "--"]
        child = subprocess.Popen([*head, *command], cwd=self.path, env=env, stderr=subprocess.PIPE, text=True)
        self.children.append(child)
        return child

    def run(self, *trainer, **more):
        child = self.start(*trainer, **more)
        _, errors = child.communicate(timeout=240)
        return child.returncode, errors

    @property
    def status(self):
        return read_status(self.run_dir / "status.json")

    def trainer_pid(self):
        status = wait_for(lambda: self.status if self.status and self.status.pid else None)
        return status.pid

    @property
    def started(self):
        path = self.path / "started"
        return [int(x) for x in path.read_text().split()] if path.exists() else []

    def clean(self):
        for pid in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        for child in self.children:
            child.kill()
            child.communicate()


@pytest.fixture
def box(tmp_path):
    made = Box(tmp_path)
    yield made
    made.clean()


def test_a_run_that_finishes_says_so_in_status_log_and_exit_code(box):
    code, _ = box.run(3, 0.01, 0)
    status = box.status
    assert code == 0
    assert (status.state, status.rc, status.step, status.signal) == ("finished", 0, 3, None)
    log = (box.run_dir / "log.txt").read_text().splitlines()
    assert log[0] == f"# tunewatch run {status.run_id}"
    assert log[1:4] == ["step 1", "step 2", "step 3"]


@pytest.mark.parametrize(
    ("code", "state"),
    [(10, "stopped"), (11, "stopped"), (12, "stopped"), (20, "crashed"), (21, "crashed"), (3, "crashed")],
)
def test_the_trainers_exit_code_is_passed_on_and_named(box, code, state):
    assert box.run(1, 0, code)[0] == code
    assert (box.status.state, box.status.rc) == (state, code)


def test_output_reaches_the_log_at_once_although_nobody_set_the_environment(box):
    child = box.start(1000, 0.05, 0)
    wait_for(lambda: b"step 2" in (box.run_dir / "log.txt").read_bytes() if box.started else False)
    assert child.poll() is None


def test_the_heartbeat_goes_on_and_follows_the_step(box):
    box.start(1000, 0.02, 0)
    first = wait_for(lambda: box.status if box.status and box.status.step else None)
    later = wait_for(lambda: box.status if box.status.seq > first.seq + 1 else None)
    assert later.step > first.step
    assert later.mono > first.mono
    assert later.boot_id == proc.boot_id()
    assert proc.is_alive(later.pid, later.start_ticks, later.boot_id)


def test_a_stop_request_lets_the_trainer_save_and_go(box):
    child = box.start(100000, 0.01, 0, "--saves")
    wait_for(lambda: box.status and box.status.step)
    write_stop_request(box.run_dir, "over budget")
    assert child.wait(240) == 11
    assert box.status.reason == "stopped on request, with a checkpoint (over budget)"
    assert "saved" in (box.run_dir / "log.txt").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_supervisor_stops_the_trainer(box, number):
    child = box.start(100000, 0.01, 0, "--saves")
    wait_for(lambda: box.status and box.status.step)
    child.send_signal(number)
    assert child.wait(240) == 11
    assert box.status.state == "stopped"


def test_a_trainer_that_does_not_listen_is_killed_after_its_grace_with_all_it_started(box):
    command = [sys.executable, str(box.path / "trainer.py"), "100000", "0.01", "0", "--deaf"]
    script = f"trap '' TERM; sleep 600 & {' '.join(command)}"
    child = box.start(command=["bash", "-c", script], flags=["--grace", "0.5"])
    wait_for(lambda: box.started)
    group = box.trainer_pid()
    assert len(proc.group_members(group)) >= 2
    write_stop_request(box.run_dir, "test")
    assert child.wait(240) == 137
    assert (box.status.state, box.status.signal) == ("stopped", 9)
    assert "grace" in box.status.reason
    assert proc.group_members(group) == []


def test_a_requests_deadline_replaces_the_grace(box):
    child = box.start(100000, 0.01, 0, "--deaf", flags=["--grace", "600"])
    wait_for(lambda: box.status and box.status.step)
    write_stop_request(box.run_dir, "now", time.time() + 0.5)
    assert child.wait(240) == 137


def test_a_trainer_that_is_killed_from_outside_is_a_crash_with_its_signal(box):
    child = box.start(100000, 0.01, 0)
    wait_for(lambda: box.started)
    os.kill(box.trainer_pid(), signal.SIGKILL)
    assert child.wait(240) == 137
    assert (box.status.state, box.status.rc, box.status.signal) == ("crashed", 137, 9)
    assert "SIGKILL" in box.status.reason


def test_what_the_trainer_left_running_is_ended_so_that_lock_and_memory_are_free(box):
    code, _ = box.run(command=["bash", "-c", "sleep 600 & exit 0"])
    assert code == 0
    assert proc.group_members(box.status.pid) == []
    assert box.run(1, 0, 0)[0] == 0


def test_a_second_start_is_refused_while_the_first_lives(box):
    box.start(100000, 0.01, 0)
    wait_for(lambda: box.started)
    code, errors = box.run(1, 0, 0)
    assert code == 75
    assert "already" in errors
    assert len(box.started) == 1


def test_the_lock_outlives_a_killed_supervisor_and_the_refusal_names_the_trainer(box):
    child = box.start(100000, 0.01, 0)
    wait_for(lambda: box.started)
    child.kill()
    child.wait()
    code, errors = box.run(1, 0, 0)
    assert code == 75
    assert str(box.started[0]) in errors
    assert len(box.started) == 1


def test_a_deleted_lock_file_does_not_let_a_second_trainer_in(box):
    child = box.start(100000, 0.01, 0)
    wait_for(lambda: box.started and box.status.pid)
    child.kill()
    child.wait()
    (box.run_dir / "run.lock").unlink()
    assert box.run(1, 0, 0)[0] == 75


def test_a_new_supervisor_adopts_a_trainer_whose_supervisor_is_gone(box):
    child = box.start(100000, 0.01, 0, "--saves")
    wait_for(lambda: box.status and box.status.step)
    child.kill()
    child.wait()
    before = box.status.seq
    second = box.start(command=["true"], flags=["--adopt"])
    wait_for(lambda: box.status.seq > before and box.status.state == "running")
    assert box.run(command=["true"], flags=["--adopt"])[0] == 75
    write_stop_request(box.run_dir, "enough")
    assert second.wait(240) == 11
    assert len(box.started) == 1
    assert box.status.state == "stopped"


def test_a_finished_run_can_be_started_again_and_an_old_request_is_forgotten(box):
    assert box.run(1, 0, 0)[0] == 0
    write_stop_request(box.run_dir, "of yesterday")
    os.utime(box.run_dir / "stop.request", (time.time() - 3600,) * 2)
    assert box.run(2, 0.01, 0)[0] == 0
    assert box.status.state == "finished"


def test_a_status_of_an_earlier_boot_or_a_reused_pid_does_not_block_a_start(box):
    box.run_dir.mkdir()
    ours = Status(state="running", pid=os.getpid(), start_ticks=1, boot_id=proc.boot_id())
    write_status(box.run_dir / "status.json", ours)
    assert box.run(1, 0, 0)[0] == 0
    ours.start_ticks, ours.boot_id = proc.start_ticks(os.getpid()), "another boot"
    write_status(box.run_dir / "status.json", ours)
    assert box.run(1, 0, 0)[0] == 0


def test_a_run_that_moved_on_is_fenced(box):
    box.run_dir.mkdir()
    write_status(box.run_dir / "status.json", Status(state="stopped", epoch=2))
    code, errors = box.run(1, 0, 0, flags=["--epoch", "1"])
    assert code == 12
    assert "moved on" in errors
    assert box.run(1, 0, 0, flags=["--epoch", "2"])[0] == 0


def test_a_command_that_does_not_exist_is_said_in_log_and_status(box):
    assert box.run(command=["no-such-trainer"])[0] == 127
    assert "could not start no-such-trainer" in (box.run_dir / "log.txt").read_text()
    assert box.status.state == "crashed"


def test_no_command_is_a_usage_error(box):
    code, errors = box.run(command=())
    assert code == 2
    assert "what should run?" in errors


def test_killed_at_random_times_there_is_never_a_second_trainer_and_never_half_a_status(box):
    """Supervisor and trainer die in any order; restarts are tried all along; one trainer at a time, always."""
    chance = random.Random(7)
    for _ in range(6):
        child = box.start(100000, 0.005, 0)
        wait_for(lambda: box.status is not None)
        end = time.monotonic() + chance.uniform(0.02, 0.5)
        while time.monotonic() < end:
            assert box.status is not None
        child.kill()
        child.wait()
        # who holds the lock, not who has written its pid: a trainer orphaned in its first milliseconds counts too
        alive = proc.holders(str(box.run_dir / "run.lock"))
        assert len(alive) <= 1
        assert {pid for pid in box.started if proc.is_alive(pid)} <= set(alive)
        assert box.run(command=["true"])[0] == (75 if alive else 0)
        if alive:
            os.killpg(alive[0], signal.SIGKILL)
            wait_for(lambda pid=alive[0]: not proc.is_alive(pid))
    assert box.run(1, 0, 0)[0] == 0


def test_a_full_disk_leaves_a_whole_status_and_the_last_words_are_written(tmp_path):
    """A disk of 1.2 MB that the trainer fills: the heartbeats fail, the ballast pays for the final status."""
    trainer = "import sys\nwith open(sys.argv[1], 'wb', buffering=0) as f:\n    while True: f.write(b'x' * 4096)\n"
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=1228800 none "{disk}" && "$@"; echo "rc $?"; cat "{disk}/run/status.json"'
    head = [sys.executable, "-m", "runner.box.supervise", "--run-dir", f"{disk}/run", "--"]
    flags = "-m" if os.getuid() == 0 else "-rm"
    done = subprocess.run(
        ["unshare", flags, "sh", "-c", mount, "sh", *head, sys.executable, "-c", trainer, f"{disk}/fill"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    words, _, status = done.stdout.partition("\n")
    assert words == "rc 21", done.stderr
    assert (json.loads(status)["state"], json.loads(status)["reason"]) == ("crashed", "the disk is full")


# --- judgements without processes -----------------------------------------------------------------------------------

OOM = b"  File 'x.py'\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.50 GiB\n"


def ending(code, asked="", killed=False, oom_kills=0, tail=b""):
    found = judge_end(code, asked=asked, killed=killed, oom_kills=oom_kills, tail=tail)
    return found.code, found.state


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"code": 1, "tail": OOM}, (20, "crashed")),
        ({"code": 1, "tail": b"OSError: [Errno 28] No space left on device"}, (21, "crashed")),
        ({"code": 1, "tail": b"ValueError: no"}, (1, "crashed")),
        ({"code": -9, "oom_kills": 1}, (137, "crashed")),
        ({"code": 137, "oom_kills": 1}, (137, "crashed")),
        ({"code": -15, "asked": "stop"}, (143, "stopped")),
        ({"code": -9, "asked": "stop", "killed": True}, (137, "stopped")),
        ({"code": 0, "asked": "stop"}, (11, "stopped")),
        ({"code": None, "asked": "stop"}, (11, "stopped")),
        ({"code": None, "tail": OOM}, (20, "crashed")),
        ({"code": None, "tail": b"{'train_runtime': 1, 'train_loss': 2}"}, (0, "finished")),
        ({"code": None}, (1, "crashed")),
    ],
)
def test_endings_are_recognised(arguments, expected):
    assert ending(**arguments) == expected


def test_the_hosts_own_memory_is_told_from_the_gpus():
    found = judge_end(-9, asked="", killed=False, oom_kills=1, tail=b"")
    assert "RAM, not GPU" in found.reason


def test_the_exception_is_the_reason():
    tail = (
        b"Traceback (most recent call last):\n  File 'a.py', line 3\n    raise ValueError\nValueError: no such column\n"
    )
    assert judge_end(1, asked="", killed=False, oom_kills=0, tail=tail).reason == "ValueError: no such column"


def test_a_run_that_gave_up_by_itself_says_why_and_not_only_its_exit_code() -> None:
    said = (
        b"loading\nrunner: The file pairs.jsonl, row 3: there is no column 'answer'.\n  Name it: data.answer_field.\n"
    )
    found = judge_end(2, asked="", killed=False, oom_kills=0, tail=said)
    assert (found.state, found.reason) == ("crashed", "The file pairs.jsonl, row 3: there is no column 'answer'.")
    assert judge_end(2, asked="", killed=False, oom_kills=0, tail=b"quiet\n").reason == "exit code 2"


def test_the_newest_bar_is_the_trainings_and_not_the_evaluations():
    tail = b"\r 17%|#| 20/120 [00:00<00:02, 38.34it/s]\n\r  0%|#| 3/16 [00:00<00:01, 9.0it/s]\x1b[A"
    assert last_frame(tail) == (20, 120)
    assert last_frame(b"") is None


def test_a_zombie_is_not_alive():
    child = subprocess.Popen(["true"])
    wait_for(lambda: proc.stat(child.pid).state == "Z")
    os.kill(child.pid, 0)
    assert not proc.is_alive(child.pid)
    child.wait()


def test_a_name_with_brackets_does_not_confuse_the_process_table(tmp_path):
    link = tmp_path / "a) R 1 (b"
    link.symlink_to(Path("/bin/sleep").resolve())
    child = subprocess.Popen([str(link), "60"])
    wait_for(lambda: proc.stat(child.pid).state == "S")
    assert proc.stat(child.pid).group == os.getpgid(child.pid)
    child.kill()
    child.wait()
