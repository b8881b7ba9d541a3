"""What the kernel says about processes, asked about real ones."""

import os
import subprocess
import sys

from runner.box import proc

BUSY = """
import sys
first = open(sys.argv[1] + ".first", "w")
held = open(sys.argv[1], "w")
first.close()  # what is opened next comes before it in the list
print("holding", flush=True)
while True:
    open(sys.argv[1] + ".other", "a").close()
"""


def test_who_holds_a_file_is_named_each_time_although_it_opens_and_closes_others(tmp_path):
    """A trainer that writes its metrics while we look must not be missed: it is the one that holds the lock."""
    held = tmp_path / "run.lock"
    with subprocess.Popen([sys.executable, "-c", BUSY, str(held)], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout.readline() == b"holding\n"
            assert [proc.holders(str(held)) for _ in range(100)] == [[child.pid]] * 100
        finally:
            child.kill()
    assert proc.holders(str(held)) == []
    assert proc.holders(str(tmp_path / "nowhere")) == []


def test_a_process_is_its_pid_its_start_and_its_boot_and_a_zombie_is_dead():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ticks, boot = proc.start_ticks(child.pid), proc.boot_id()
    assert proc.is_alive(child.pid, ticks, boot)
    assert not proc.is_alive(child.pid, ticks + 1, boot)
    assert not proc.is_alive(child.pid, ticks, "another-boot")
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert proc.stat(child.pid).state == "Z"
    assert not proc.is_alive(child.pid, ticks, boot)
    child.wait()
    assert not proc.is_alive(child.pid, ticks, boot)
