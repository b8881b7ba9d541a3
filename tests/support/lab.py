"""A box with a foreign trainer on it, to be started, orphaned and killed: for tests, and for the long run of kills.

python -m tests.support.lab 100        # a hundred rounds of F5; prints each round's end and checks every invariant
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from remote.bootstrap import Box, prepare
from remote.feed import FeedState, RunFeed
from remote.remote_run import Order, StartedRun, resolve_order, start_run
from remote.ssh import SshTransport
from remote.stop import stop_run
from remote.target import parse_host
from runner.errors import RefusedError
from runner.rundir import Status, read_status
from tests.support.sshd import Sshd
from tests.support.trainers import foreign_project

SECRET = "hf_not_a_real_token_but_secret"


class Lab:
    """A box with a transport, ready for foreign recipes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.box = Sshd(folder / "box").start()
        self.host: SshTransport = self.box.connect(self.state)
        self.recipe = foreign_project(folder / "project")
        self.ready: Box = prepare(self.host, needs="command")

    def start(self, **more: object) -> StartedRun:
        order = Order(str(self.recipe), **more)  # type: ignore[arg-type]
        return start_run(
            self.host, self.ready, order, resolve_order(order, {}), target=parse_host("box"), home=self.state,
            grace_s=5, environment={"HF_TOKEN": SECRET},
        )  # fmt: skip

    def status(self, run: StartedRun) -> Status:
        status = read_status(Path(run.run_dir) / "status.json")
        assert status is not None
        return status

    def feed(self, run: StartedRun) -> RunFeed:
        return RunFeed(run.name, home=self.state, connect=lambda _: self.box.connect(self.state))

    def trainers(self) -> list[int]:
        """Living trainer processes on the box, zombies left out."""
        return [pid for pid in self.box.processes("train.py") if b"supervise" not in cmdline(pid) and running(pid)]

    def close(self) -> None:
        self.host.close()
        self.box.close()


def cmdline(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def wait_for(what: Callable[[], bool], seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.02)


def tick_until(feed: RunFeed, wanted: Callable[[FeedState], bool], seconds: float = 120.0) -> FeedState:
    until = time.monotonic() + seconds
    while True:
        state = feed.tick()
        if wanted(state):
            return state
        assert time.monotonic() < until, (state.state, state.reason, state.link, state.problem)
        time.sleep(0.02)


VICTIMS = ("sshd", "supervisor", "trainer", "tmux", "supervisor and trainer", "everything")


def kill_at_random(lab: Lab, rng: random.Random, victim: str) -> str:
    """One round of F5: start, kill at a random moment, look, try to start a second one, stop. Returns how it ended."""
    run = lab.start()
    status = lab.status(run)
    time.sleep(rng.uniform(0, 0.6))
    targets: list[int] = []
    if victim in ("sshd", "everything"):
        targets += lab.box.session_pids()
    if victim in ("tmux", "everything"):
        targets += lab.box.processes("tmux")
    if "supervisor" in victim or victim == "everything":
        targets.append(status.supervisor_pid or 0)
    if "trainer" in victim or victim == "everything":
        targets.append(status.pid or 0)
    for pid in targets:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    dead = "trainer" in victim or victim == "everything"
    if victim == "trainer":
        wait_for(lambda: lab.status(run).ended)
        assert (lab.status(run).rc, lab.status(run).signal) == (137, 9)
    wait_for(lambda: len(lab.trainers()) == (0 if dead else 1))
    feed = lab.feed(run)
    state = tick_until(feed, lambda s: s.link.word == "live" and (not dead or s.state == "crashed"))
    assert state.state == "crashed" if dead else state.state in ("running", "starting", "silent"), state.reason
    feed.close()
    if not dead:
        with pytest.raises(RefusedError):
            lab.start(name=run.name)
        assert len(lab.trainers()) == 1
    result = stop_run(lab.host, run.run_dir, name=run.name)
    assert result.ok
    assert lab.trainers() == []
    if not dead:
        assert lab.status(run).rc is not None
    return result.steps[-1].detail


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    rng = random.Random(20261123)
    made = Lab(Path(tempfile.mkdtemp(prefix="tw-kills-")))
    try:
        for number in range(rounds):
            victim = VICTIMS[number % len(VICTIMS)]
            print(f"{number + 1:4d}  {victim:<24} {kill_at_random(made, rng, victim)}", flush=True)
    finally:
        made.close()
    print(f"{rounds} rounds: never two trainers, every status true")


if __name__ == "__main__":
    main()
