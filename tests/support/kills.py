"""F5, the long run: sshd, supervisor, trainer and tmux killed with SIGKILL at random moments, from the first question
of a start to the last second of a run. Never two trainers, and nothing said of the run that is not so.

    python -m tests.support.kills 100        # a hundred kills of each kind, about a quarter of an hour

Each round starts a run under a name of its own on a real sshd, kills, looks at the processes themselves, and holds
what `start`, the feed and `stop` say against what it saw. Half of the kills fall while the run is being started.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from remote.remote_run import StartedRun
from remote.stop import stop_run
from runner.errors import RefusedError, TunewatchError, UnreachableError
from runner.rundir import Status, read_status
from tests.support.lab import Lab, running, tick_until, wait_for

VICTIMS = ("sshd", "supervisor", "trainer", "tmux", "supervisor and trainer", "everything")
_PATIENCE_S = 300.0


class Start:
    """A start in a thread, as a person's command would run while the kill comes."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.run: StartedRun | None = None
        self.error: TunewatchError | None = None
        self._lab, self._name = lab, name
        self._thread = threading.Thread(target=self._go, daemon=True)
        self._thread.start()

    def _go(self) -> None:
        try:
            self.run = self._lab.start(name=self._name)
        except TunewatchError as error:
            self.error = error

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def wait(self) -> None:
        self._thread.join(_PATIENCE_S)
        assert self.over, "the start hangs"


def pids_of(lab: Lab, victim: str) -> list[int]:
    """The processes that a kill of this kind is aimed at, as they are now."""
    found: list[int] = []
    if victim in ("sshd", "everything"):
        found += lab.box.session_pids()
    if victim in ("tmux", "everything"):
        found += lab.box.processes("tmux")
    if "supervisor" in victim or victim == "everything":
        found += lab.box.processes("runner.box.supervise")
    if "trainer" in victim or victim == "everything":
        found += lab.trainers()
    return found


def kill_at_random(lab: Lab, rng: random.Random, victim: str, name: str) -> str:
    """One round; returns how it ended in the words that a person reads."""
    start = Start(lab, name)
    while_starting = rng.random() < 0.5
    if not while_starting:
        start.wait()
    until = time.monotonic() + rng.uniform(0, 0.8)
    while time.monotonic() < until or not (pids_of(lab, victim) or start.over):
        assert len(lab.trainers()) <= 1
        time.sleep(0.002)
    killed = pids_of(lab, victim)
    for pid in killed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(running(pid) for pid in killed))
    start.wait()
    run_dir = lab.box.home / "tunewatch" / "runs" / name
    check_what_start_said(lab, start, run_dir)
    if victim == "trainer" and start.run is not None:
        wait_for(lambda: ended(run_dir) or len(lab.trainers()) == 1)
    said = check_the_feed(lab, start, name)
    if lab.trainers():
        with pytest.raises(RefusedError):
            lab.start(name=name)
    assert len(lab.trainers()) <= 1
    end = stop_as_a_person(lab, rng, run_dir, name) if (run_dir / "status.json").exists() else ""
    if start.error is not None:
        end = f"{end or 'never began'}: {start.error.message}"
    wait_for(lambda: lab.trainers() == [])
    return f"{'while it started' if while_starting else 'while it ran':<17} {said:<9} {end}"


def check_what_start_said(lab: Lab, start: Start, run_dir: Path) -> None:
    """A start that failed left no trainer, unless it said itself that there may be one."""
    if start.run is not None:
        status = read_status(run_dir / "status.json")
        assert status is not None
        assert status.pid is not None
    elif not isinstance(start.error, UnreachableError):
        assert lab.trainers() == [], f"a trainer lives, and the start said: {start.error}"


def check_the_feed(lab: Lab, start: Start, name: str) -> str:
    """What the watcher says against the processes: alive is never called ended, dead never running for good."""
    if start.run is None:
        return "refused" if isinstance(start.error, RefusedError) else "cut"
    feed = lab.feed(start.run)
    try:
        if lab.trainers():
            state = tick_until(feed, lambda s: s.link.word == "live", _PATIENCE_S)
            assert state.state in ("running", "starting", "silent"), f"{name} lives; told: {state.state}"
            return "alive"
        state = tick_until(feed, lambda s: s.state == "crashed", _PATIENCE_S)
        assert state.reason
        return "dead"
    finally:
        feed.close()


def stop_as_a_person(lab: Lab, rng: random.Random, run_dir: Path, name: str) -> str:
    """`stop`, asked again when the link was cut in its way; in some rounds sshd dies under it."""
    lived = bool(lab.trainers())
    if rng.random() < 0.25:
        late = threading.Timer(rng.uniform(0, 0.3), lambda: [os.kill(pid, 9) for pid in lab.box.session_pids()])
        late.start()
    for _ in range(20):
        try:
            result = stop_run(lab.host, str(run_dir), name=name)
            break
        except UnreachableError:
            continue
    else:
        raise AssertionError("stop never got through")
    assert result.ok, result
    end = result.steps[-1].detail
    status = read_status(run_dir / "status.json")
    assert status is not None
    if lived:
        assert status.rc == 11 or (status.ended and status.rc is None), f"{name} was asked to stop: {status}"
    else:
        assert status.rc in (None, 137), f"{name} was killed: {status}"
    assert "exit status" in end or "lost" in end
    return end


def ended(run_dir: Path) -> bool:
    """Whether the supervisor has said its last word."""
    status: Status | None = read_status(run_dir / "status.json")
    return status is not None and status.ended


def rounds(lab: Lab, count: int, *, seed: int = 20261123, tell: bool = False) -> Counter[str]:
    """`count` kills of each kind, in turn; how often each kind ended in which way."""
    rng = random.Random(seed)
    ends: Counter[str] = Counter()
    for number in range(count * len(VICTIMS)):
        victim = VICTIMS[number % len(VICTIMS)]
        end = kill_at_random(lab, rng, victim, f"kills/{number:04d}")
        ends[f"{victim:<24} {end}"] += 1
        if tell:
            print(f"{number + 1:4d}  {victim:<24} {end}", flush=True)
    return ends


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    lab = Lab(Path(tempfile.mkdtemp(prefix="tw-kills-")))
    try:
        ends = rounds(lab, count, tell=True)
    finally:
        lab.close()
    print("\n".join(f"{times:5d}  {end}" for end, times in sorted(ends.items())))
    print(f"{count} kills of each of {len(VICTIMS)} kinds: never two trainers, every word true")


if __name__ == "__main__":
    main()
