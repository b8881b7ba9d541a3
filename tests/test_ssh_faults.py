"""What goes wrong on the way to a host (the fault matrix, F1 to F4, F6, F7): said in words, noticed, survived.

Every server here is a real sshd with a proxy before it that misbehaves, or a socket that pretends to be one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remote.feed import FeedState, RunFeed
from remote.ssh import SshTransport
from remote.ssh_config import Login
from remote.transport import AuthError, Feed, HostKeyChangedError, LinkError
from runner.errors import UnreachableError
from tests.support.proxy import FaultProxy
from tests.support.sshd import Sshd, make_key

LINE = b"{'loss': 1.25, 'grad_norm': 0.5, 'learning_rate': 2e-05, 'epoch': 0.1}\n"


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Sshd]:
    with Sshd(tmp_path / "box") as running:
        yield running


@pytest.fixture
def proxy(box: Sshd) -> Iterator[FaultProxy]:
    with FaultProxy((box.host, box.port)) as running:
        yield running


@contextlib.contextmanager
def watched(box: Sshd, proxy: FaultProxy, home: Path, path: str = "log.txt") -> Iterator[RunFeed]:
    feed = RunFeed(f"box:{path}", home=home, connect=lambda _: box.connect(home, port=proxy.port))
    try:
        yield feed
    finally:
        feed.close()


def tick_until(feed: RunFeed, wanted: Callable[[FeedState], bool], seconds: float = 120.0) -> FeedState:
    until = time.monotonic() + seconds
    while True:
        state = feed.tick()
        if wanted(state):
            return state
        assert time.monotonic() < until, f"never came: {state.link}, {state.problem}"


def when_there(file: Path, act: Callable[[], object]) -> None:
    """Do something as soon as a command on the box has made a file: it runs by then, however slow the machine."""

    def wait() -> None:
        until = time.monotonic() + 120
        while not file.exists() and time.monotonic() < until:
            time.sleep(0.01)
        act()

    threading.Thread(target=wait, daemon=True).start()


def test_f1_a_blackhole_mid_tail_changes_no_state_and_loses_no_line(
    box: Sshd, proxy: FaultProxy, tmp_path: Path
) -> None:
    log = box.home / "log.txt"
    log.write_bytes(LINE * 10)
    with watched(box, proxy, tmp_path / "state") as feed:
        before = tick_until(feed, lambda s: len(s.history.train) == 10)
        assert before.link.word == "live"
        proxy.mode = "blackhole"
        with log.open("ab") as out:
            out.write(LINE * 5 + LINE[:20])
        dark = tick_until(feed, lambda s: s.link.word == "reconnecting")
        assert dark.state in ("unreachable", "running", "starting", "silent")
        assert dark.state != "crashed"
        assert len(dark.history.train) == 10
        assert dark.link.age_s is not None
        assert dark.link.age_s > 4
        with log.open("ab") as out:
            out.write(LINE[20:] + LINE * 5)
        proxy.mode = "pass"
        after = tick_until(feed, lambda s: s.link.word == "live" and len(s.history.train) == 21)
        assert after.log_path is not None
        assert after.log_path.read_bytes() == log.read_bytes()


@pytest.mark.slow
def test_f2_a_storm_of_resets_leaves_equal_bytes_and_no_leak(box: Sshd, proxy: FaultProxy, tmp_path: Path) -> None:
    """200 connections die while a log grows: every byte arrives once, threads and descriptors stay as they were."""
    log = box.home / "log.txt"
    log.write_bytes(b"")
    with watched(box, proxy, tmp_path / "state") as feed:
        tick_until(feed, lambda s: s.link.word == "live")
        host = feed._source._host  # type: ignore[attr-defined]
        threads, files = 0, 0
        for number in range(200):
            with log.open("ab") as out:
                out.write(f"line {number} äöü\n".encode() * 20)
            proxy.reset()
            if number == 20:
                threads, files = threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))
            with contextlib.suppress(UnreachableError):
                host.ping(timeout=5)
            if number % 10 == 0:
                feed.tick()
        state = tick_until(feed, lambda s: s.link.word == "live" and s.history.bytes_read == log.stat().st_size)
        assert state.log_path is not None
        assert state.log_path.read_bytes() == log.read_bytes()
        assert proxy.resets >= 150
        assert threading.active_count() <= threads + 8
        assert len(list(Path("/proc/self/fd").iterdir())) <= files + 12


@contextlib.contextmanager
def raw_server(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that accepts and then does what `talk` does."""
    listener = socket.create_server(("127.0.0.1", 0))
    kept: list[socket.socket] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                kept.append(client)
                threading.Thread(target=quietly, args=(client,), daemon=True).start()

    def quietly(client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            talk(client)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()
        for client in kept:
            client.close()


def drip(client: socket.socket) -> None:
    for letter in "SSH-2.0-slow":
        client.sendall(letter.encode())
        time.sleep(0.5)


@pytest.mark.parametrize(
    ("talk", "words"),
    [
        (lambda client: client.recv(1 << 16) and client.recv(1), "greeting"),
        (drip, "greeting|not an SSH server"),
        (lambda client: client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 200), "not an SSH server"),
        (lambda client: client.close(), "lost|not an SSH"),
    ],
    ids=["silent", "slow banner", "wrong banner", "hangs up"],
)
def test_f3_what_is_no_ssh_server_is_named_and_no_traceback_is_printed(
    talk: Callable[[socket.socket], None], words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("remote.ssh._FIRST_CONNECT_S", 2.0)
    with raw_server(talk) as port:
        host = SshTransport(Login("x", "127.0.0.1", port, "me", (make_key(tmp_path / "key"),)), home=tmp_path)
        with pytest.raises(LinkError, match=words):
            host.ping()
        host.close()
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err
    assert said.err == ""


def test_f4_a_frozen_sshd_session_is_noticed_and_replaced(box: Sshd, proxy: FaultProxy, tmp_path: Path) -> None:
    log = box.home / "log.txt"
    log.write_bytes(LINE)
    with watched(box, proxy, tmp_path / "state") as feed:
        tick_until(feed, lambda s: s.link.word == "live" and len(s.history.train) == 1)
        for pid in box.session_pids():
            os.kill(pid, signal.SIGSTOP)
        with log.open("ab") as out:
            out.write(LINE)
        state = tick_until(feed, lambda s: s.link.word == "live" and len(s.history.train) == 2)
        assert state.state != "crashed"


def test_f6_a_changed_host_key_is_refused_and_explained(box: Sshd, tmp_path: Path) -> None:
    """Same host, other key: hard stop. The same address under the name of a new instance: another host."""
    with box.connect(tmp_path, name="vast-1") as host:
        host.ping()
    box.new_host_key()
    with box.connect(tmp_path, name="vast-1") as host, pytest.raises(HostKeyChangedError) as told:
        host.ping()
    assert told.value.message.count("SHA256:") == 2
    assert "--forget-host-key" in told.value.hint
    assert told.value.exit_code == 4
    with box.connect(tmp_path, name="vast-2") as host:
        host.ping()
    assert (tmp_path / "known_hosts").stat().st_mode & 0o077 == 0
    names = [line.split()[0] for line in (tmp_path / "known_hosts").read_text().splitlines()]
    assert names == ["vast-1", "vast-2"]


def test_f6_nothing_is_sent_to_a_host_whose_key_changed(box: Sshd, tmp_path: Path) -> None:
    with box.connect(tmp_path) as host:
        host.ping()
    box.new_host_key()
    accepted = box.log().count("Accepted publickey")
    with box.connect(tmp_path) as host, pytest.raises(HostKeyChangedError):
        host.run("touch should-not-be")
    assert box.log().count("Accepted publickey") == accepted
    assert not (box.home / "should-not-be").exists()


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A running ssh-agent of our own."""
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"tw-agent-{os.getpid()}-{time.monotonic_ns()}"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.01)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
    try:
        yield path
    finally:
        process.kill()
        process.wait()
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("tries", [6, 3])
def test_f7_eight_wrong_keys_in_the_agent_do_not_lock_the_right_one_out(
    tries: int, agent: Path, tmp_path: Path
) -> None:
    with Sshd(tmp_path / "box", options=(f"MaxAuthTries {tries}",)) as box:
        for number in range(8):
            subprocess.run(["ssh-add", "-q", str(make_key(tmp_path / f"wrong{number}"))], check=True)
        subprocess.run(["ssh-add", "-q", str(box.key)], check=True)
        login = Login("box", box.host, box.port, box.user, ())
        with SshTransport(login, home=tmp_path) as host:
            assert host.run("echo in").text == "in"


def test_f7_a_named_key_is_offered_before_the_agents_other_keys(agent: Path, box: Sshd, tmp_path: Path) -> None:
    for number in range(3):
        subprocess.run(["ssh-add", "-q", str(make_key(tmp_path / f"wrong{number}"))], check=True)
    with SshTransport(Login("box", box.host, box.port, box.user, (box.key,)), home=tmp_path) as host:
        host.ping()
    assert "Failed publickey" not in box.log()


def test_f7_a_refused_key_says_which_and_what_to_do(box: Sshd, tmp_path: Path) -> None:
    wrong = make_key(tmp_path / "wrong")
    login = Login("box", box.host, box.port, box.user, (wrong,), use_agent=False)
    with SshTransport(login, home=tmp_path) as host, pytest.raises(AuthError, match="wrong") as told:
        host.ping()
    assert "authorized_keys" in told.value.hint
    keyless = Login("box", box.host, box.port, box.user, (), use_agent=False)
    with SshTransport(keyless, home=tmp_path) as host, pytest.raises(AuthError, match="no key"):
        host.ping()


def test_f7_a_key_that_is_not_there_yet_is_taken_once_it_is(box: Sshd, tmp_path: Path) -> None:
    """The caller decides how long to wait; asking again is all it takes, and a refusal may be retried."""
    box.forbid_all()
    with box.connect(tmp_path) as host:
        for _ in range(3):
            with pytest.raises(AuthError, match="does not let") as told:
                host.ping()
            assert told.value.retry
        box.allow(box.key)
        host.ping()


def test_a_passphrase_is_asked_for_once_and_only_when_needed(tmp_path: Path) -> None:
    with Sshd(tmp_path / "box") as box:
        key = make_key(tmp_path / "secret_key", passphrase="open sesame")
        box.allow(key)
        asked: list[Path] = []

        def ask(path: Path) -> str:
            asked.append(path)
            return "open sesame"

        plain = Login("box", box.host, box.port, box.user, (key, box.key), use_agent=False)
        with SshTransport(plain, home=tmp_path, ask=ask) as host:
            host.ping()
        assert asked == []
        login = Login("box", box.host, box.port, box.user, (key,), use_agent=False)
        for _ in range(2):
            with SshTransport(login, home=tmp_path, ask=ask) as host:
                host.ping()
        assert asked == [key]


def test_a_host_is_reached_through_a_jump_host(tmp_path: Path) -> None:
    with Sshd(tmp_path / "jump") as jump, Sshd(tmp_path / "box") as box:
        first = Login("jump", jump.host, jump.port, jump.user, (jump.key,), use_agent=False)
        login = Login("box", box.host, box.port, box.user, (box.key,), use_agent=False, jumps=(first,))
        with SshTransport(login, home=tmp_path) as host:
            assert host.run("pwd").text == str(box.home)
        assert "Accepted publickey" in jump.log()
        dead = Login("box2", box.host, 1, box.user, (box.key,), use_agent=False, jumps=(first,))
        with SshTransport(dead, home=tmp_path) as host, pytest.raises(LinkError, match="jump host"):
            host.ping()


@pytest.mark.parametrize(
    ("session", "words"),
    [
        ("#!/bin/sh\necho 'open terminal failed: not a terminal' >&2\nexit 1\n", "not a terminal"),
        ("#!/bin/sh\necho This account is currently not available.\nexit 1\n", "not available"),
    ],
    ids=["starts tmux by itself", "nologin"],
)
def test_a_login_shell_that_does_not_run_commands_is_told_in_its_own_words(
    session: str, words: str, tmp_path: Path
) -> None:
    with Sshd(tmp_path / "box", session=session) as box, box.connect(tmp_path) as host:
        with pytest.raises(UnreachableError, match=words) as told:
            host.run("true")
        assert "no_auto_tmux" in told.value.hint


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [("no-such-host.invalid", 22, "not known"), ("127.0.0.1", 1, "Nothing listens on port 1")],
)
def test_a_host_that_is_not_there_is_one_sentence(host: str, port: int, words: str, tmp_path: Path) -> None:
    transport = SshTransport(Login("x", host, port, "me"), home=tmp_path)
    with transport, pytest.raises(LinkError, match=words) as told:
        transport.ping()
    assert told.value.hint


def test_closing_from_another_thread_ends_a_call_that_waits(box: Sshd, proxy: FaultProxy, tmp_path: Path) -> None:
    """Quitting must not hang on a dead link."""
    host = box.connect(tmp_path, port=proxy.port)
    host.ping()
    proxy.mode = "blackhole"
    ended = threading.Event()

    def wait() -> None:
        with contextlib.suppress(UnreachableError):
            host.run("true", timeout=60)
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    assert not ended.wait(0.3)
    host.close()
    assert ended.wait(120)


def test_f1_a_long_command_on_a_link_that_swallows_everything_is_given_up_long_before_its_deadline(
    box: Sshd, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installation may take half an hour; that nobody is there any more is known by a question of its own."""
    monkeypatch.setattr("remote.ssh._QUIET_S", (2.5, 5.0))
    with box.connect(tmp_path, port=proxy.port) as host:
        host.ping()
        when_there(box.home / "begun", lambda: setattr(proxy, "mode", "blackhole"))
        with pytest.raises(LinkError, match="was lost"):  # and not: took longer than
            host.run("touch begun; sleep 600", timeout=300)


def test_a_quiet_command_on_a_link_that_lives_is_waited_for(box: Sshd, tmp_path: Path) -> None:
    """Asked for a sign of life in its silence, also where no second session is granted."""
    with Sshd(tmp_path / "narrow", options=("MaxSessions 1",)) as narrow:
        for made in (box, narrow):
            with made.connect(tmp_path / "state", name=str(made.port)) as host:
                assert host.run("sleep 4; echo there", timeout=120).text == "there"


def test_a_command_cut_by_the_link_is_a_link_error_not_a_result(box: Sshd, proxy: FaultProxy, tmp_path: Path) -> None:
    with box.connect(tmp_path, port=proxy.port) as host:
        host.ping()
        when_there(box.home / "begun", proxy.reset)
        with pytest.raises(LinkError, match="lost"):
            host.run("echo half; touch begun; sleep 600", timeout=300)
        assert host.run("echo whole").text == "whole"


def test_a_cut_download_goes_on_where_it_was(box: Sshd, proxy: FaultProxy, tmp_path: Path) -> None:
    data = os.urandom(6 << 20)
    (box.home / "model").write_bytes(data)
    with box.connect(tmp_path, port=proxy.port) as host:
        proxy.rate = 12e6

        def cut(done: int, total: int) -> None:
            if done > total // 2 and proxy.rate:
                proxy.rate = None
                proxy.reset()

        with pytest.raises(LinkError):
            host.get("model", tmp_path / "model", sent=cut)
        kept = (tmp_path / "model.part").stat().st_size
        assert kept > 1 << 20
        first: list[int] = []
        host.get("model", tmp_path / "model", sent=lambda done, _: first.append(done))
        assert first[0] > kept
        assert (tmp_path / "model").read_bytes() == data


def write_on(feed: Feed) -> None:
    for _ in range(60):
        feed.write(b"x" * (1 << 20))


def wait_for(file: Path) -> None:
    until = time.monotonic() + 120
    while not file.exists():
        assert time.monotonic() < until, f"{file} never came"
        time.sleep(0.02)


def test_f1_a_feed_into_a_link_that_swallows_everything_is_given_up(
    box: Sshd, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy before the host goes on taking bytes: only an answer of the host itself shows that it is there."""
    monkeypatch.setattr("remote.ssh_feed.QUIET_S", 0.5)
    monkeypatch.setattr("remote.ssh_feed.ANSWER_S", 2.0)
    with box.connect(tmp_path, port=proxy.port) as host:
        feed = host.feed("cat > /dev/null")
        assert feed.write(b"x" * 1_000_000)
        proxy.mode = "blackhole"
        with pytest.raises(LinkError):
            write_on(feed)
        feed.close()
        proxy.mode = "pass"
        assert host.run("echo back", timeout=60).text == "back"


@pytest.mark.parametrize("options", [(), ("MaxSessions 1",)])
def test_a_busy_disk_that_takes_nothing_for_a_while_is_waited_for(
    options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for a sign of life meanwhile, also where no second session is granted."""
    monkeypatch.setattr("remote.ssh_feed.QUIET_S", 0.2)
    with Sshd(tmp_path / "slow", options=options) as box, box.connect(tmp_path) as host:
        feed = host.feed("sleep 3; wc -c", timeout=60)
        assert all(feed.write(b"x" * (1 << 20)) for _ in range(8))
        assert feed.finish(120).text == str(8 << 20)


def test_a_feed_cut_by_the_link_is_a_link_error_and_the_command_is_given_no_more(
    box: Sshd, proxy: FaultProxy, tmp_path: Path
) -> None:
    with box.connect(tmp_path, port=proxy.port) as host:
        feed = host.feed("touch begun; cat > /dev/null; touch ended")
        assert feed.write(b"x" * 100_000)
        wait_for(box.home / "begun")
        proxy.reset()
        with pytest.raises(LinkError):
            write_on(feed)
        wait_for(box.home / "ended")
        assert host.run("echo again", timeout=60).text == "again"
