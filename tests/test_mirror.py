"""A mirror is the remote file, byte for byte, whatever happened on the way and whenever somebody looks."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote.feed import RunFeed
from remote.local import LocalTransport
from remote.mirror import Mirror, mirror_folder
from remote.target import parse_target
from remote.transport import Chunk, FileInfo, LinkError
from runner.errors import UnreachableError
from tests.support.proxy import FaultProxy
from tests.support.sshd import Sshd

RUN_1 = b"# tunewatch run 11111111-1111-1111-1111-111111111111\n"
RUN_2 = b"# tunewatch run 22222222-2222-2222-2222-222222222222\n"


class Flaky(LocalTransport):
    """A local host whose answers break off, come short, or not at all, as often as `rng` says."""

    def __init__(self, home: Path, rng: random.Random, share: float = 0.3) -> None:
        super().__init__(home=home)
        self.rng = rng
        self.share = share
        self.faults = 0

    def _fail(self) -> bool:
        failed = self.rng.random() < self.share
        self.faults += failed
        return failed

    def stat(self, path: str, *, timeout: float = 10.0) -> FileInfo:
        if self._fail():
            raise LinkError("dropped before the answer")
        return super().stat(path, timeout=timeout)

    def read_from(self, path: str, offset: int, *, limit: int = 1 << 20, timeout: float = 10.0) -> Chunk:
        chunk = super().read_from(path, offset, limit=limit, timeout=timeout)
        if self._fail():
            if self.rng.random() < 0.5 or len(chunk.data) < 200:
                raise LinkError("dropped in the answer")
            return Chunk(chunk.data[: self.rng.randrange(100, len(chunk.data))], chunk.size, None)
        return chunk


def pull_all(mirror: Mirror, remote: Path, seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            pulled = mirror.pull(0.05)
        except UnreachableError:
            continue
        if not pulled.behind and mirror.path.exists() and mirror.path.stat().st_size == remote.stat().st_size:
            return
    raise AssertionError("never caught up")


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**9), pieces=st.lists(st.binary(min_size=1, max_size=3000), min_size=1, max_size=12))
def test_the_mirror_equals_the_file_under_any_faults(
    seed: int, pieces: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Partial lines, halves of characters, NUL and carriage returns travel as they are."""
    folder = tmp_path_factory.mktemp("flaky")
    host = Flaky(folder, random.Random(seed))
    log = folder / "log.txt"
    log.write_bytes(b"")
    local = folder / "copy" / "log.txt"
    mirror = Mirror(host, "log.txt", local)
    for number, piece in enumerate(pieces):
        with log.open("ab") as out:
            out.write(piece)
        if number % 3 == 2:
            mirror = Mirror(host, "log.txt", local)  # the laptop was restarted
        pull_all(mirror, log)
        assert local.read_bytes() == log.read_bytes()
    assert mirror.generation == 0


ANOTHER = """
import sys
from pathlib import Path
from remote.local import LocalTransport
from remote.mirror import Mirror
mirror = Mirror(LocalTransport(home=Path(sys.argv[1])), "log.txt", Path(sys.argv[2]))
print("watching", flush=True)
while True:
    mirror.pull(0.01)
"""


def test_several_processes_that_watch_one_run_share_one_copy(tmp_path: Path) -> None:
    """A control room with `watch --json` beside it: no byte twice, none lost, also when a new run begins meanwhile."""
    log, local = tmp_path / "log.txt", tmp_path / "copy" / "log.txt"
    log.write_bytes(RUN_1)
    words = [sys.executable, "-c", ANOTHER, str(tmp_path), str(local)]
    others = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    try:
        for other in others:
            assert other.stdout is not None
            assert other.stdout.readline() == b"watching\n"
        mirror = Mirror(LocalTransport(home=tmp_path), "log.txt", local)
        rng = random.Random(5)
        for run in (1, 2):
            for _ in range(150):
                with log.open("ab") as out:
                    out.write(rng.randbytes(rng.choice([1, 50, 3000, 400_000])))
                mirror.pull(0.01)
            pull_all(mirror, log)
            first = log.read_bytes()
            assert local.read_bytes() == first
            if run == 1:
                (tmp_path / "log.new").write_bytes(RUN_2)
                (tmp_path / "log.new").replace(log)
        assert [other.poll() for other in others] == [None, None]
    finally:
        for other in others:
            other.kill()
            other.communicate()
    assert mirror.generation == 1
    assert (local.parent / "log.txt.1").read_bytes().startswith(RUN_1)
    assert not (local.parent / "log.txt.2").exists()


def test_a_new_run_in_the_same_place_starts_a_new_copy_and_keeps_the_old(tmp_path: Path) -> None:
    log, local = tmp_path / "log.txt", tmp_path / "copy" / "log.txt"
    first, second = RUN_1 + b"a" * 5000, RUN_2 + b"b" * 9000
    mirror = Mirror(LocalTransport(home=tmp_path), "log.txt", local)
    log.write_bytes(first)
    pull_all(mirror, log)
    log.write_bytes(second)
    pull_all(mirror, log)
    assert local.read_bytes() == second
    assert (local.parent / "log.txt.1").read_bytes() == first
    assert mirror.generation == 1


@pytest.mark.parametrize("new", [b"", b"short", RUN_2, RUN_2 + b"c" * 500_000], ids=["empty", "short", "line", "long"])
def test_truncation_and_rotation_are_noticed(new: bytes, tmp_path: Path) -> None:
    log, local = tmp_path / "log.txt", tmp_path / "copy" / "log.txt"
    mirror = Mirror(LocalTransport(home=tmp_path), "log.txt", local)
    log.write_bytes(RUN_1 + b"a" * 300_000)
    pull_all(mirror, log)
    (tmp_path / "log.new").write_bytes(new)
    (tmp_path / "log.new").replace(log)
    for _ in range(5):
        mirror.pull(0.1)
    assert (local.read_bytes() if local.exists() else b"") == new
    assert mirror.generation == 1


def test_a_copy_that_was_begun_is_continued_after_a_restart_not_fetched_again(tmp_path: Path) -> None:
    class Counting(LocalTransport):
        fetched = 0

        def read_from(self, path: str, offset: int, *, limit: int = 1 << 20, timeout: float = 10.0) -> Chunk:
            chunk = super().read_from(path, offset, limit=limit, timeout=timeout)
            Counting.fetched += len(chunk.data)
            return chunk

    log, local = tmp_path / "log.txt", tmp_path / "copy" / "log.txt"
    log.write_bytes(RUN_1 + b"x" * 100_000)
    pull_all(Mirror(Counting(home=tmp_path), "log.txt", local), log)
    Counting.fetched = 0
    with log.open("ab") as out:
        out.write(b"tail")
    pull_all(Mirror(Counting(home=tmp_path), "log.txt", local), log)
    assert local.read_bytes() == log.read_bytes()
    assert Counting.fetched < 1000


def cut(mirror: Mirror, proxy: FaultProxy) -> bool:
    """Whether a pull fails once the connections were reset."""
    proxy.reset()
    try:
        mirror.pull(0.1, timeout=2)
    except UnreachableError:
        return True
    return False


@pytest.mark.slow
def test_every_byte_arrives_once_over_two_hundred_injected_faults(tmp_path: Path) -> None:
    """Real sshd, real proxy: resets, slices, refused connections and short blackholes while a writer writes on."""
    rng = random.Random(20261123)
    with Sshd(tmp_path / "box") as box, FaultProxy((box.host, box.port)) as proxy:
        log, local = box.home / "log.txt", tmp_path / "copy" / "log.txt"
        log.write_bytes(RUN_1)
        host = box.connect(tmp_path / "state", port=proxy.port)
        mirror = Mirror(host, "log.txt", local)
        faults = 0
        while faults < 200:
            with log.open("ab") as out:
                out.write(
                    "".join(f"step {rng.random()} ½ε\r" for _ in range(rng.randrange(400))).encode()[
                        : -rng.randrange(1, 4)
                    ]
                )
                if rng.random() < 0.1:
                    out.write(rng.randbytes(600_000))
            kind = rng.choice(["reset", "reset", "slice", "refuse", "session", "mid"])
            faults += 1
            if kind == "reset":
                proxy.reset()
            elif kind == "slice":
                proxy.slice = rng.choice([7, 100, 1000, None])
                proxy.reset()
            elif kind == "refuse":
                proxy.mode = "refuse"
                # a connection that was just being taken may be there still: until the link is really cut
                until = time.monotonic() + 60
                while not cut(mirror, proxy):
                    assert time.monotonic() < until, "the link holds although every connection is refused"
                proxy.mode = "pass"
            elif kind == "session":
                for pid in box.session_pids():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            else:
                proxy.rate = 3e6
                with contextlib.suppress(UnreachableError):
                    mirror.pull(0.02, timeout=2)
                proxy.reset()
                proxy.rate = None
            with contextlib.suppress(UnreachableError):
                mirror.pull(0.2, timeout=2)
        proxy.slice = None
        pull_all(mirror, log)
        assert local.read_bytes() == log.read_bytes()
        assert mirror.generation == 0
        host.close()


def test_a_restart_without_network_shows_the_last_state_at_once(tmp_path: Path) -> None:
    home = tmp_path / "state"
    with Sshd(tmp_path / "box") as box:
        run = box.home / "runs" / "x"
        run.mkdir(parents=True)
        (run / "log.txt").write_bytes(RUN_1 + b"{'loss': 1.5, 'epoch': 0.1}\n" * 7)
        (run / "status.json").write_text('{"state": "running", "pid": 1, "seq": 5, "step": 70}')
        feed = RunFeed("box:runs/x", home=home, connect=lambda _: box.connect(home))
        seen = feed.settle()
        feed.close()
        port = box.port
    assert len(seen.history.train) == 7
    from remote.ssh import SshTransport
    from remote.ssh_config import Login

    dead = SshTransport(Login("box", "127.0.0.1", port, "me"), home=home)
    feed = RunFeed("box:runs/x", home=home, connect=lambda _: dead)
    state = feed.tick()
    feed.close()
    assert len(state.history.train) == 7
    assert state.link.word == "offline"
    assert state.state == "unreachable"
    assert state.status is not None
    assert state.status.step == 70
    assert isinstance(state.problem, UnreachableError)
    folder = mirror_folder(parse_target("box:runs/x"), home)
    assert (folder / "log.txt").read_bytes() == seen.log_path.read_bytes()  # type: ignore[union-attr]


def test_f19_a_long_ugly_log_is_mirrored_and_read_in_bounded_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A megabyte line, invalid UTF-8, carriage returns and NUL: caught up over ticks that each end soon."""
    # slices far smaller than the file, whatever the machine: this is about going on, not about speed
    monkeypatch.setattr("remote.feed._FETCH_S", 0.001)
    monkeypatch.setattr("remote.feed._READ_S", 0.001)
    frame = b"\r 10%|#         | 100/1000 [00:10<01:30, 10.00it/s]"
    body = frame * 120_000 + b"\n" + b"x" * 1_000_000 + b"\n" + b"\xff\xfe\x00" * 1000 + b"\n"
    body += b"{'loss': 0.75, 'epoch': 1.0}\n"
    with Sshd(tmp_path / "box") as box:
        (box.home / "log.txt").write_bytes(body)
        feed = RunFeed("box:log.txt", home=tmp_path / "state", connect=lambda _: box.connect(tmp_path / "state"))
        said: set[str] = set()
        longest = 0.0
        while True:
            began = time.monotonic()
            state = feed.tick()
            longest = max(longest, time.monotonic() - began)
            said.add(state.link.detail.split(":")[0])
            if state.caught_up:
                break
        feed.close()
        assert state.problem is None
        assert state.log_path is not None
        assert state.log_path.read_bytes() == body
        assert state.history.bytes_read == len(body)
        assert "catching up" in said
        assert longest < 10  # not a measurement: a tick that reads it all would be one
