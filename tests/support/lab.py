"""A box with a foreign trainer on it, to be started, orphaned and killed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from remote.bootstrap import Box, prepare
from remote.feed import FeedState, RunFeed
from remote.remote_run import Order, StartedRun, resolve_order, start_run
from remote.ssh import SshTransport
from remote.target import parse_host
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
