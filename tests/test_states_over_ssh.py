"""What a run on another machine is called when it stands still or is killed for memory: told apart, over real sshd."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote.bootstrap import prepare
from remote.feed import RunFeed
from remote.remote_run import Order, resolve_order, start_run
from remote.stop import stop_run
from remote.target import parse_host
from runner.box import proc
from runner.errors import RefusedError
from tests.support.lab import Lab, running, tick_until, wait_for
from tests.support.parts import missing
from tests.support.sshd import SESSION, Sshd
from tests.support.trainers import foreign_project

GLUTTON = """
import time
print({'loss': 1.0, 'epoch': 0.1}, flush=True)
eaten = []
while True:
    eaten.append(bytearray(b'x' * (8 << 20)))
    time.sleep(0.01)
"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path / "lab")
    yield made
    made.close()


def test_f4b_a_frozen_trainer_is_silent_and_not_dead(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP: the heartbeat goes on, the step does not. Said in words; nothing is started beside it; it goes on."""
    monkeypatch.setattr("runner.state.QUIET_FLOOR_S", 3.0)
    # a bar that tells its time truly: twenty of the seconds per step that it tells are waited for
    trainer = lab.recipe.parent / "train.py"
    trainer.write_text(trainer.read_text().replace("00:{step % 60:02d}", "00:{int(step * pause):02d}"))
    run = lab.start()
    feed = lab.feed(run)
    tick_until(feed, lambda s: s.state == "running" and len(s.history.train) > 1)
    pid = lab.status(run).pid or 0
    os.killpg(pid, signal.SIGSTOP)
    state = tick_until(feed, lambda s: s.state == "silent")
    assert state.link.word == "live"
    assert "its process lives" in state.reason
    with pytest.raises(RefusedError):
        lab.start(name=run.name)
    assert running(pid)
    os.killpg(pid, signal.SIGCONT)
    tick_until(feed, lambda s: s.state == "running" and len(s.history.train) > len(state.history.train))
    assert stop_run(lab.host, run.run_dir, name=run.name).steps[-1].detail.endswith("exit status 11")
    feed.close()


@contextlib.contextmanager
def small_memory() -> Iterator[Path]:
    """A control group of 300 MB, so that the kernel itself kills; skips where none may be made."""
    version_2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    (path, _), *_ = [(p, k) for p, k in proc._memory_files() if p.exists()] or [(None, "")]
    if path is None:
        missing("no memory controller here")
    group = path.parent / f"tunewatch-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.max" if version_2 else "memory.limit_in_bytes")).write_text(str(300 << 20))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        missing(f"no control group can be made here: {error}")
    with contextlib.suppress(OSError):
        (group / "memory.swap.max").write_text("0")
    try:
        yield group
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()


def told_of_the_kill(box: Sshd, home: Path, recipe: Path, kill: object = None) -> str:
    """Start `recipe` on the box and watch it to its end; `kill` is called once it trains. Returns the feed's words."""
    with box.connect(home) as host:
        order = Order(str(recipe))
        run = start_run(
            host, prepare(host, needs="command"), order, resolve_order(order, {}), target=parse_host("box"), home=home
        )
        feed = RunFeed(run.name, home=home, connect=lambda _: box.connect(home))
        if callable(kill):
            tick_until(feed, lambda s: bool(s.history.train) and s.status is not None)
            kill(run.pid)
        state = tick_until(feed, lambda s: s.state == "crashed")
        feed.close()
        assert state.status is not None
        assert (state.status.rc, state.status.signal) == (137, 9)
        return state.reason


def test_a_trainer_that_the_kernel_kills_for_memory_is_said_to_be_that(tmp_path: Path) -> None:
    """No stand-in: a control group that is too small, and the kernel's own killer."""
    with small_memory() as group:
        joined = SESSION.replace('cd "$HOME"', f'echo $$ >{group}/cgroup.procs; cd "$HOME"')
        with Sshd(tmp_path / "box", session=joined) as box:
            said = told_of_the_kill(box, tmp_path / "state", foreign_project(tmp_path / "p", script=GLUTTON))
        # what still belongs to the group has to be gone before it can be
        wait_for(lambda: not (group / "cgroup.procs").read_text().strip())
    assert said == "killed by the kernel: the host ran out of memory (RAM, not GPU)"


@pytest.mark.parametrize("told", [True, False], ids=["told by the kernel", "not told"])
def test_a_sigkill_is_called_out_of_memory_only_where_the_kernel_says_so(told: bool, tmp_path: Path) -> None:
    """A container's memory.events as version 2 shows it, in a mount namespace of each session of the box."""
    (tmp_path / "cgroup").mkdir()
    events = tmp_path / "cgroup" / "memory.events"
    events.write_text("low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\n")
    flags = "-m" if os.geteuid() == 0 else "-rm"
    inner = SESSION.replace("#!/bin/sh\n", "")
    if subprocess.run(["unshare", flags, "mount", "--bind", tmp_path, "/sys/fs/cgroup"], check=False).returncode:
        missing("no mount namespace here")
    session = (
        f'#!/bin/sh\nif [ -z "$TW_INSIDE" ]; then export TW_INSIDE=1; exec unshare {flags} sh -c '
        f'\'mount --bind {tmp_path / "cgroup"} /sys/fs/cgroup; exec "$0"\' "$0"; fi\n{inner}'
    )

    def kill(pid: int) -> None:
        if told:
            events.write_text("low 0\nhigh 0\nmax 40\noom 2\noom_kill 2\n")
        os.kill(pid, signal.SIGKILL)

    with Sshd(tmp_path / "box", session=session) as box:
        said = told_of_the_kill(box, tmp_path / "state", foreign_project(tmp_path / "p"), kill)
    assert ("out of memory" in said) is told
    assert said if told else said == "killed by SIGKILL"
